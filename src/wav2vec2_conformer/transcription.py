"""Recordings of any length -> text, in memory that does not grow with the recording.

A recording is read in overlapping windows; the network runs on batches of windows, of one file or of many; the windows'
logits are stitched where both sides hear a pause.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Wav2Vec2Processor

from .audio import SAMPLE_RATE, AudioError, AudioSource, iter_audio, prepare_waveform
from .checkpoints.model_folder import find_config, load_model
from .data import normalize_waveform
from .decoding import best_path
from .lengths import frames_of, samples_a_frame
from .modeling import Wav2Vec2ConformerForCTC
from .processing import DEFAULT_MODEL, load_processor, model_name

# B batch, N samples, T frames, V vocabulary

__all__ = ["DEFAULT_MODEL", "Transcriber", "Transcript", "default_device"]

WINDOW = 30.0  # seconds
OVERLAP = 6.0  # seconds that neighbouring windows share; they are joined inside its middle half
PAUSE = 0.3  # seconds over which a pause is sought

Source = AudioSource | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said: `text`, and the recording's `duration` in seconds."""

    text: str
    duration: float


@dataclass(slots=True)
class _Window:
    """A piece of a recording: its samples (N,), its first frame in the recording, and whether it is the last."""

    recording: _Recording
    samples: NDArray[np.float32]
    first_frame: int
    last: bool


@dataclass(slots=True)
class _Recording:
    """A recording on its way through: most likely tokens so far, and the end of the last window, still open."""

    samples: int = 0
    error: AudioError | None = None
    complete: bool = False
    tokens: list[Tensor] = field(default_factory=list)
    open: Tensor | None = None  # (T, V) log probabilities of the last window, from `open_frame` on
    open_frame: int = 0


class Transcriber:
    """Turns recordings into text.

    Args:
        model: a CTC model.
        processor: its processor; of its feature extractor only `do_normalize` matters, since every clip is normalised
            alone and every batch is masked here, whatever a saved processor says.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window of up to
            30 s.
    """

    def __init__(
        self,
        model: Wav2Vec2ConformerForCTC,
        processor: Wav2Vec2Processor,
        *,
        device: str | torch.device = "cpu",
        batch_seconds: float = 120.0,
    ) -> None:
        if not batch_seconds > 0:
            raise ValueError(f"`batch_seconds` must be above 0, got {batch_seconds}; 120 is usual")
        known, columns = processor.tokenizer.vocab_size, model.lm_head.out_features  # without tokens added later
        if known > columns:
            raise ValueError(f"the tokenizer knows {known} tokens, the model {columns}; they do not belong together")
        self.device = usable_device(device)
        self.model = nn.Module.to(model, self.device)
        self.model.train(False)
        self.tokenizer = processor.tokenizer
        self.normalize = bool(processor.feature_extractor.do_normalize)
        self.batch_seconds = batch_seconds
        self.blank = int(self.tokenizer.pad_token_id)
        self.delimiter = self.tokenizer.convert_tokens_to_ids(self.tokenizer.word_delimiter_token)
        self.stride = samples_a_frame(model.config)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        batch_seconds: float = 120.0,
        target_lang: str | None = None,
    ) -> Self:
        """Load a model and its processor.

        Args:
            model: a folder, or a Hub id such as `facebook/wav2vec2-conformer-rope-large-960h-ft`; `None`: the small
                English model that comes with the package.
            device: `None`: a CUDA device if there is one, else the CPU.
            batch_seconds: as in the constructor.
            target_lang: of a model with language adapters, the language to write.

        Raises:
            ValueError: `model` is neither a folder nor a Hub id, the folder's files are damaged or of another kind of
                model, or there is no processor beside it.
            OSError: there is no such model on the Hub, or it cannot be reached.
        """
        device = usable_device(device or default_device())  # before anything is loaded
        name = model_name(model)
        config = find_config(name, "transcribe with")
        network, info = load_model(name, config, Wav2Vec2ConformerForCTC, target_lang=target_lang)
        untrained = sorted(key for key in info["missing_keys"] if "lm_head" in key or "adapter." in key)
        if untrained:
            raise ValueError(
                f"{name}: {', '.join(untrained)} are missing, so it would write random letters; expected a model that "
                "was fine-tuned for CTC"
            )
        processor = load_processor(name)
        if processor is None:
            raise ValueError(
                f"{name}: there is no processor (vocab.json, preprocessor_config.json) beside the model; it says which "
                "column of the logits means which letter"
            )
        if target_lang is not None:
            switch_language(processor.tokenizer, target_lang)
        return cls(network, processor, device=device, batch_seconds=batch_seconds)

    def transcribe(self, source: Source, *, sample_rate: int | None = None) -> Transcript:
        """Transcribe one recording.

        Args:
            source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
            sample_rate: of an array, in Hz; needed there and refused elsewhere.

        Raises:
            AudioError: it is missing, empty, truncated or no audio.
            ValueError: an array without `sample_rate`, or a file with one.
        """
        if isinstance(source, np.ndarray):
            if sample_rate is None:
                raise ValueError("an array of samples needs its `sample_rate` in Hz, for instance 16000; got None")
            source = prepare_waveform(source, sample_rate)
        elif not isinstance(source, str | bytes | os.PathLike) and not hasattr(source, "read"):
            raise ValueError(
                f"cannot transcribe {type(source).__name__}; expected a path, bytes, a binary stream or a numpy array "
                "(`numpy.asarray` makes one of lists and tensors)"
            )
        elif sample_rate is not None:
            raise ValueError("`sample_rate` belongs to arrays; a file says its rate itself")
        result = next(self.transcribe_many([source]))
        if isinstance(result, AudioError):
            raise result
        return result

    def transcribe_many(
        self, sources: Iterable[Source], *, progress: Callable[[float], object] | None = None
    ) -> Iterator[Transcript | AudioError]:
        """Transcribe recordings, one result each and in their order, as soon as each is done.

        A recording that cannot be read gives its `AudioError` in place of a transcript; the others go on. Arrays are
        taken to be mono at 16 kHz.

        Args:
            sources: as in `transcribe`.
            progress: called with the seconds of audio that have gone through since the last call.
        """
        waiting: deque[_Recording] = deque()
        batch: list[_Window] = []

        def finished() -> Iterator[Transcript | AudioError]:
            while waiting and (waiting[0].complete or waiting[0].error is not None):
                yield self._result(waiting.popleft())

        for source in sources:
            recording = _Recording()
            waiting.append(recording)
            for window in self._windows(recording, source):
                longest = max(len(piece.samples) for piece in [*batch, window])
                if batch and longest * (len(batch) + 1) > self.batch_seconds * SAMPLE_RATE:
                    self._run(batch, progress)
                    batch = []
                    yield from finished()
                batch.append(window)
        if batch:
            self._run(batch, progress)
        yield from finished()

    def _windows(self, recording: _Recording, source: Source) -> Iterator[_Window]:
        """Cut a recording into windows that start on multiples of the frame stride."""
        size = round(WINDOW * SAMPLE_RATE) // self.stride * self.stride
        hop = round((WINDOW - OVERLAP) * SAMPLE_RATE) // self.stride * self.stride
        kept = np.zeros(0, np.float32)
        start = 0
        try:
            for block in self._blocks(source):
                kept = np.concatenate([kept, block])
                recording.samples += len(block)
                while len(kept) > size:  # only more samples than a window prove that it is not the last
                    yield _Window(recording, kept[:size], start // self.stride, last=False)
                    kept, start = kept[hop:], start + hop
        except AudioError as error:
            recording.error = error
            return
        yield _Window(recording, kept, start // self.stride, last=True)

    @staticmethod
    def _blocks(source: Source) -> Iterator[NDArray[np.float32]]:
        if isinstance(source, np.ndarray):
            return iter([prepare_waveform(source, SAMPLE_RATE)])
        return iter_audio(source, block_seconds=WINDOW)

    @torch.inference_mode()
    def _run(self, windows: list[_Window], progress: Callable[[float], object] | None) -> None:
        """Compute a batch of windows and hand each recording its share."""
        longest = max(len(window.samples) for window in windows)
        values = torch.zeros(len(windows), longest)
        mask = torch.zeros(len(windows), longest, dtype=torch.long)
        for row, window in enumerate(windows):
            samples = normalize_waveform(window.samples) if self.normalize and len(window.samples) else window.samples
            values[row, : len(samples)] = torch.from_numpy(samples)
            mask[row, : len(samples)] = 1
        logits = self.model(values.to(self.device), mask.to(self.device)).logits
        log_probs = logits.float().log_softmax(-1).cpu()  # (B, T, V)
        for window, row in zip(windows, log_probs, strict=True):
            frames = frames_of(len(window.samples), self.model.config)
            self._join(window, row[:frames])
            if progress is not None:
                progress(len(window.samples) / SAMPLE_RATE if window.last else WINDOW - OVERLAP)

    def _join(self, window: _Window, log_probs: Tensor) -> None:
        """Append a window's (T, V) log probabilities to its recording."""
        recording = window.recording
        if recording.open is not None:
            before, shared = recording.open, window.first_frame - recording.open_frame
            cut, between = self._cut(before[shared:], log_probs)
            recording.tokens.append(before[: shared + cut].argmax(-1))
            recording.tokens.append(torch.tensor(between, dtype=torch.long))
            log_probs = log_probs[cut:]
            window.first_frame += cut
        if window.last:
            recording.tokens.append(log_probs.argmax(-1))
            recording.open, recording.complete = None, True
        else:
            recording.open, recording.open_frame = log_probs, window.first_frame

    def _cut(self, before: Tensor, after: Tensor) -> tuple[int, list[int]]:
        """Where to go over from one window to the next.

        Args:
            before: (S, V) the end of the earlier window, from the first frame that both have.
            after: (T, V) the later window; its first S frames are the same sound.

        Returns:
            The frame, in the middle half of the S shared ones, around which both windows are surest of a pause; and a
            word delimiter to put there if one of the windows hears it and each thinks the other side has it.
        """
        shared = min(len(before), len(after))
        width = max(1, round(PAUSE * SAMPLE_RATE / self.stride)) | 1
        blank = before[:shared, self.blank] + after[:shared, self.blank]  # (S,)
        smooth = torch.nn.functional.avg_pool1d(
            blank[None, None], width, stride=1, padding=width // 2, count_include_pad=False
        )[0, 0]
        low, high = shared // 4, max(shared // 4 + 1, shared - shared // 4)
        cut = low + int(smooth[low:high].argmax())
        old, new = before[:shared].argmax(-1), after[:shared].argmax(-1)
        silent = (self.blank, self.delimiter)
        begin = max((i + 1 for i in range(cut) if int(old[i]) not in silent), default=0)
        end = min((i for i in range(cut, shared) if int(new[i]) not in silent), default=shared)
        delimited = bool(((old[begin:end] == self.delimiter) | (new[begin:end] == self.delimiter)).any())
        return cut, [self.delimiter] if delimited else []

    def _result(self, recording: _Recording) -> Transcript | AudioError:
        if recording.error is not None:
            return recording.error
        path = best_path(torch.cat(recording.tokens), self.blank)
        text = str(self.tokenizer.decode(path, group_tokens=False, skip_special_tokens=True))
        return Transcript(text=" ".join(text.split()), duration=recording.samples / SAMPLE_RATE)


def switch_language(tokenizer: Any, language: str) -> None:
    """Switch a tokenizer with several vocabularies; one with a single vocabulary stays as it is."""
    if not getattr(tokenizer, "target_lang", None):
        return
    if language not in tokenizer.vocab:
        raise ValueError(
            f"the tokenizer has no vocabulary for {language!r}; it has {', '.join(sorted(tokenizer.vocab))}"
        )
    tokenizer.set_target_lang(language)


def usable_device(device: str | torch.device) -> torch.device:
    """The device of a name, if this machine and this torch can compute on it."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot compute on device {str(device)!r} ({reason}); use cpu, or cuda where there is one"
        ) from error
    return torch.device(device)


def default_device() -> str:
    """A CUDA device if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
