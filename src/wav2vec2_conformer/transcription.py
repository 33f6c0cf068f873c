"""Recordings of any length -> text, in memory that does not grow with the recording.

A recording is read in overlapping windows, whose logits are stitched where both sides hear a pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Wav2Vec2Processor

from .audio import SAMPLE_RATE, AudioError
from .checkpoints.model_folder import find_config, load_model
from .decoding import best_path
from .loading import usable_device
from .modeling import Wav2Vec2ConformerForCTC
from .processing import DEFAULT_MODEL, load_processor, model_name
from .recordings import BATCH_SECONDS, Progress, Recording, Source, Window, WindowedModel, checked_source, only_result

# B batch, N samples, T frames, V vocabulary

__all__ = ["DEFAULT_MODEL", "Transcriber", "Transcript"]

WINDOW = 30.0  # seconds
OVERLAP = 6.0  # seconds that neighbouring windows share; they are joined inside its middle half
PAUSE = 0.3  # seconds over which a pause is sought


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said: `text`, and the recording's `duration` in seconds."""

    text: str
    duration: float


@dataclass(slots=True)
class _Recording(Recording):
    """With its most likely tokens so far, and the end of the last window, still open."""

    tokens: list[Tensor] = field(default_factory=list)
    open: Tensor | None = None  # (T, V) log probabilities of the last window, from `open_frame` on
    open_frame: int = 0


class Transcriber(WindowedModel[_Recording, Transcript]):
    """Turns recordings into text.

    Args:
        model: a CTC model.
        processor: its processor; of its feature extractor only `do_normalize` matters, since every clip is normalised
            alone and every batch is masked here, whatever a saved processor says.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window of up to
            30 s.
        compute_type: "float32", "bfloat16", "float16" or "int8", to which the model is converted in place.
    """

    nothing_heard = "an empty text"

    def __init__(
        self,
        model: Wav2Vec2ConformerForCTC,
        processor: Wav2Vec2Processor,
        *,
        device: str | torch.device = "cpu",
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
    ) -> None:
        normalize = bool(processor.feature_extractor.do_normalize)
        super().__init__(
            model, normalize=normalize, device=device, batch_seconds=batch_seconds, compute_type=compute_type
        )
        known, columns = processor.tokenizer.vocab_size, model.lm_head.out_features  # without tokens added later
        if known > columns:
            raise ValueError(f"the tokenizer knows {known} tokens, the model {columns}; they do not belong together")
        self.tokenizer = processor.tokenizer
        self.blank = int(self.tokenizer.pad_token_id)
        self.delimiter = self.tokenizer.convert_tokens_to_ids(self.tokenizer.word_delimiter_token)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
        target_lang: str | None = None,
    ) -> Self:
        """Load a model and its processor.

        Args:
            model: a folder, or a Hub id such as `facebook/wav2vec2-conformer-rope-large-960h-ft`; `None`: the small
                English model that comes with the package.
            device: `None`: a CUDA device if there is one, else the CPU.
            batch_seconds: as in the constructor.
            compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8"; measured when loaded, see `conversion`.
            target_lang: of a model with language adapters, the language to write.

        Raises:
            ValueError: `model` is neither a folder nor a Hub id, the folder's files are damaged or of another kind of
                model, or there is no processor beside it.
            OSError: there is no such model on the Hub, or it cannot be reached.
        """
        device = usable_device(device)  # before anything is loaded
        name = model_name(model)
        config = find_config(name, "transcribe with")
        if config.vocab_size is None:
            raise ValueError(
                f"{name}: a network without letters to write, as pre-training leaves it; fine-tune it first: "
                f"`wav2vec2-conformer train ctc --init {name} ...`"
            )
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
        return cls(network, processor, device=device, batch_seconds=batch_seconds, compute_type=compute_type)

    def transcribe(self, source: Source, *, sample_rate: int | None = None) -> Transcript:
        """Transcribe one recording.

        Args:
            source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
            sample_rate: of an array, in Hz; needed there and refused elsewhere.

        Raises:
            AudioError: it is missing, empty, truncated or no audio.
            ValueError: an array without `sample_rate`, or a file with one.
        """
        return only_result(self.transcribe_many([checked_source(source, sample_rate, "transcribe")]))

    def transcribe_many(
        self, sources: Iterable[Source], *, progress: Progress | None = None
    ) -> Iterator[Transcript | AudioError]:
        """Transcribe recordings, one result each and in their order, as soon as each is done.

        A recording that cannot be read gives its `AudioError` in place of a transcript; the others go on. Arrays are
        taken to be mono at 16 kHz.

        Args:
            sources: as in `transcribe`.
            progress: called with the seconds of audio that have gone through since the last call.
        """
        return self._results(sources, progress, window=WINDOW, overlap=OVERLAP)

    def _begin(self, name: str) -> _Recording:
        return _Recording(name)

    def _outputs(self, values: Tensor, mask: Tensor) -> Tensor:
        log_probs: Tensor = self.model(values, mask).logits.float().log_softmax(-1)  # (B, T, V)
        return log_probs

    def _add(self, window: Window[_Recording], output: Tensor) -> None:
        """Append a window's (T, V) log probabilities to its recording."""
        log_probs, first_frame = output[: window.frames], window.first_frame
        recording = window.recording
        if recording.open is not None:
            before, shared = recording.open, first_frame - recording.open_frame
            cut, between = self._cut(before[shared:], log_probs)
            recording.tokens.append(before[: shared + cut].argmax(-1))
            recording.tokens.append(torch.tensor(between, dtype=torch.long))
            log_probs = log_probs[cut:]
            first_frame += cut
        if window.last:
            recording.tokens.append(log_probs.argmax(-1))
            recording.open = None
        else:
            recording.open, recording.open_frame = log_probs, first_frame

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

    def _result(self, recording: _Recording) -> Transcript:
        path = best_path(torch.cat(recording.tokens), self.blank)
        text = str(self.tokenizer.decode(path, group_tokens=False, skip_special_tokens=True))
        return Transcript(text=" ".join(text.split()), duration=recording.duration)


def switch_language(tokenizer: Any, language: str) -> None:
    """Switch a tokenizer with several vocabularies; one with a single vocabulary stays as it is."""
    if not getattr(tokenizer, "target_lang", None):
        return
    if language not in tokenizer.vocab:
        raise ValueError(
            f"the tokenizer has no vocabulary for {language!r}; it has {', '.join(sorted(tokenizer.vocab))}"
        )
    tokenizer.set_target_lang(language)
