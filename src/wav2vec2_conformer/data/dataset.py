"""Utterances -> items: the waveform decoded, augmented and normalised, the text as labels."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from ..audio import SAMPLE_RATE, AudioError, load_audio
from .manifest import Utterance
from .vocabulary import TextEncoder

Waveform = npt.NDArray[np.float32]
Augment = Callable[[Waveform, np.random.Generator], Waveform]

# The variance floor of Wav2Vec2FeatureExtractor: keeps digital silence at zero instead of dividing by it.
_VARIANCE_FLOOR = 1e-7
_INT16_SCALE = 32767.0
# Manifests round durations and resamplers round lengths: this much more room for each cached waveform.
_CACHE_MARGIN_SAMPLES = SAMPLE_RATE // 20


class SpeechItem(TypedDict):
    """One utterance, ready for a collator: `input_values` (N,) float32, `labels` the vocabulary ids of `text`.

    `draw` is a random number of (seed, epoch, index), for what is drawn batch by batch. `stretch` is how many times as
    long as the recording the waveform is: augmentation may have changed its speed.
    """

    input_values: Waveform
    labels: list[int]
    text: str
    draw: int
    index: int
    name: str
    utterance: Utterance
    stretch: float


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """Stands for an utterance that cannot be used, so that one bad file does not end a long job."""

    index: int
    name: str
    reason: str


def normalize_waveform(waveform: Waveform) -> Waveform:
    """Return `waveform` (N,) with zero mean and unit variance, as Wav2Vec2FeatureExtractor with `do_normalize`."""
    normalized: Waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + np.float32(_VARIANCE_FLOOR))
    return normalized.astype(np.float32, copy=False)


class SpeechDataset(Dataset[SpeechItem | SkippedItem]):
    """Utterances of a manifest as items for `CTCCollator`.

    An item is a function of (seed, epoch, index) alone: the augmentation's generator is seeded with these three, so
    the number of workers, their order and an interruption change nothing. `set_epoch` reaches worker processes, too,
    if called before the loader is iterated over.

    A recording that cannot be read gives a `SkippedItem` in place of an exception.

    Args:
        utterances: What `read_manifest` gives.
        encoder: Turns texts into labels; None for work without transcripts (every item's labels are empty).
        augment: Called with the waveform as decoded, before normalisation, and a generator, e.g. an `Augmentation`.
            It must not write to the waveform.
        seed: A number from 0 up.
        cache_bytes: Keep up to this much decoded audio in memory, as int16 (one hour: 115 MB), the first utterances
            first, so that later epochs need not decode them. Forked workers share it. A pickled dataset (workers
            started by spawn or forkserver) goes without, because each process would hold a copy. With a cache, all
            waveforms are rounded to int16, also on first reading: items never depend on what was cached before.
        do_normalize: Whether to normalise each waveform alone to zero mean and unit variance.

    Raises:
        ValueError: an argument is out of its range, or `encoder` is given and utterances have no text.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        encoder: TextEncoder | None,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        do_normalize: bool = True,
    ) -> None:
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}")
        if cache_bytes < 0:
            raise ValueError(f"`cache_bytes` must be 0 (no cache) or more, got {cache_bytes}")
        untranscribed = [utterance.name for utterance in utterances if utterance.text is None]
        if encoder is not None and untranscribed:
            raise ValueError(
                f"{len(untranscribed)} of {len(utterances)} utterances have no text, the first is {untranscribed[0]};"
                ' read the manifest with `require="text"`, or pass `encoder=None` for work without transcripts'
            )
        self.utterances = list(utterances)
        self._encoder = encoder
        self._augment = augment
        self._seed = seed
        self._do_normalize = do_normalize
        self._quantize = cache_bytes > 0
        self._cache = _WaveformCache(self.utterances, cache_bytes) if cache_bytes else None
        # In shared memory: workers that outlive an epoch (`persistent_workers`) see the new value.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0 up) whose augmentations the next items have; call it before iterating."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be 0 or more, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> SpeechItem | SkippedItem:
        if not 0 <= index < len(self.utterances):
            raise IndexError(f"index must be from 0 to {len(self.utterances) - 1}, got {index}")
        utterance = self.utterances[index]
        try:
            waveform = self._waveform(index)
        except AudioError as error:
            return SkippedItem(index, utterance.name, error.problem)
        except OSError as error:
            return SkippedItem(index, utterance.name, str(error))
        generator = np.random.default_rng([self._seed, int(self._epoch.item()), index])
        draw = int(generator.integers(2**62))
        recorded = waveform.size
        if self._augment is not None:
            waveform = self._augment(waveform, generator)
        # One NaN would spread to every weight of the model at the next step.
        if waveform.size == 0 or not np.isfinite(waveform.sum(dtype=np.float64)):
            return SkippedItem(index, utterance.name, "the waveform is empty or contains NaN or infinity")
        if self._do_normalize:
            waveform = normalize_waveform(waveform)
        text = utterance.text or ""
        labels = self._encoder.encode(text) if self._encoder is not None else []
        return SpeechItem(
            input_values=waveform,
            labels=labels,
            text=text,
            draw=draw,
            index=index,
            name=utterance.name,
            utterance=utterance,
            stretch=waveform.size / recorded,
        )

    def _waveform(self, index: int) -> Waveform:
        quantized = self._cache.get(index) if self._cache is not None else None
        if quantized is None:
            waveform: Waveform = load_audio(self.utterances[index].audio, sample_rate=SAMPLE_RATE)
            if not self._quantize:
                return waveform
            quantized = np.clip(np.rint(waveform * _INT16_SCALE), -32768, 32767).astype(np.int16)
            if self._cache is not None:
                self._cache.put(index, quantized)
        return quantized.astype(np.float32) / np.float32(_INT16_SCALE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


class _WaveformCache:
    """Decoded waveforms (int16) in one anonymous mapping that forked workers share.

    A dict would not do: what a worker puts into its own copy is gone with the worker, at the end of the epoch. Nor
    would shared tensors: they live in /dev/shm, 64 MB in a default container. Pages take memory once written to.
    A waveform's place follows from the manifest's durations, so no two processes ever contend for one, and as an
    epoch reads each utterance once, nobody reads a place while it is being written.
    """

    def __init__(self, utterances: Sequence[Utterance], limit_bytes: int) -> None:
        rooms = np.array([int(u.duration * SAMPLE_RATE) + _CACHE_MARGIN_SAMPLES for u in utterances], dtype=np.int64)
        stops = np.cumsum(rooms)
        # The table of lengths (8 bytes an utterance) counts towards the limit, too.
        fitting = int(np.searchsorted(stops * 2 + np.arange(1, len(rooms) + 1) * 8, limit_bytes, side="right"))
        self._starts = stops[:fitting] - rooms[:fitting]
        self._rooms = rooms[:fitting]
        total = int(stops[fitting - 1]) if fitting else 0
        # A mapping may not be empty: one spare element.
        self._lengths = np.frombuffer(mmap.mmap(-1, 8 * (fitting + 1)), dtype=np.int64)  # 0: not there yet
        self._samples = np.frombuffer(mmap.mmap(-1, 2 * (total + 1)), dtype=np.int16)

    def get(self, index: int) -> npt.NDArray[np.int16] | None:
        if index >= len(self._starts) or self._lengths[index] == 0:
            return None
        start = self._starts[index]
        return self._samples[start : start + self._lengths[index]]

    def put(self, index: int, waveform: npt.NDArray[np.int16]) -> None:
        if index >= len(self._starts) or waveform.size > self._rooms[index]:
            return
        start = self._starts[index]
        self._samples[start : start + waveform.size] = waveform
        self._lengths[index] = waveform.size  # last: the length says that the samples are there
