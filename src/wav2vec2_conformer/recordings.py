"""Recordings of any length through a network, in memory that does not grow with them.

A recording is read in windows; the network runs on batches of windows, of one recording or of many, each window
normalised alone and masked, so that no result depends on what else is in the batch. What the network says of a
recording's windows is put together by the task: transcription, classification, verification, diarization.
"""

from __future__ import annotations

import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .audio import SAMPLE_RATE, AudioError, AudioSource, iter_audio, prepare_waveform, source_name
from .compute_types import convert_checked
from .data import normalize_waveform
from .data.collation import few_lengths
from .lengths import frames_of, samples_a_frame
from .loading import usable_device
from .reading import ReadAhead

# B batch, N samples, T frames

__all__ = [
    "BATCH_SECONDS",
    "AveragedModel",
    "AveragedRecording",
    "Progress",
    "Recording",
    "Source",
    "Times",
    "Window",
    "WindowedModel",
    "checked_source",
    "only_result",
]

logger = logging.getLogger(__name__)

# Two windows of 30 s: a CPU is no faster with more of them at once, and memory stays what a minute of audio needs.
BATCH_SECONDS = 60.0
AHEAD = 8  # batches of short windows that are collected, so that those of similar length meet
SPREAD = 0.15  # how much shorter than the longest of its batch a window may be
PIECES = 4  # windows that are read ahead

Source = AudioSource | NDArray[Any]
Progress = Callable[[float], object]  # called with the seconds of audio that have gone through since the last call
Result = TypeVar("Result")


@dataclass(slots=True)
class Recording:
    """A recording on its way through; a task adds what it keeps of it.

    `frames` are those of its windows, so that shared ones count twice; `lowest` and `highest` are of its samples.
    """

    name: str
    samples: int = 0
    frames: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    error: AudioError | None = None
    complete: bool = False

    @property
    def duration(self) -> float:
        """Seconds that have been read."""
        return self.samples / SAMPLE_RATE


@dataclass(slots=True)
class Times:
    """Seconds that a run took in all, in which it waited for audio, and in which the network computed."""

    total: float = 0.0
    waiting: float = 0.0
    network: float = 0.0


@dataclass(slots=True)
class AveragedRecording(Recording):
    """With the sum of the rows (C,) of its windows, each times its window's frames."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, row: Tensor, frames: int) -> None:
        """Take the row of a window of so many frames."""
        self.total = self.total + row.double() * frames  # a window without a frame says nothing


R = TypeVar("R", bound=Recording)


@dataclass(slots=True)
class Window(Generic[R]):
    """A piece of a recording: its samples (N,), where its frames begin and how many they are, and if it is last."""

    recording: R
    samples: NDArray[np.float32]
    first_frame: int
    frames: int
    last: bool


class WindowedModel(ABC, Generic[R, Result]):
    """A network and how it is run on recordings.

    A recording that is shorter than a frame is answered with `nothing_heard` and a warning where a task has such an
    answer (an empty text, no segments), and is an error where it has none (there is no empty class).

    Args:
        model: with or without a head.
        normalize: whether each window is given mean 0 and variance 1, as its feature extractor says.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window.
        compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8", to which `model` is converted in place. See
            `conversion` for what that gains here, and what it costs.

    Raises:
        ValueError: a value is out of its range, or the model's results would be others in that type.
    """

    def __init__(
        self,
        model: Any,
        *,
        normalize: bool,
        device: str | torch.device,
        batch_seconds: float,
        compute_type: str = "float32",
    ) -> None:
        if not batch_seconds > 0:
            raise ValueError(f"`batch_seconds` must be above 0, got {batch_seconds}; {BATCH_SECONDS:g} is usual")
        self.device = usable_device(device)
        self.model = nn.Module.to(model, self.device)
        self.model.train(False)
        self.conversion = convert_checked(self.model, compute_type)  # None: it computes in float32
        # Kernels of fewer bits are generated for each shape, which takes as long as a short window.
        self.makes_kernels = self.device.type == "cpu" and self.model.dtype != torch.float32
        self.normalize = normalize
        self.batch_seconds = batch_seconds
        self.stride = samples_a_frame(model.config)
        self.times = Times()  # of the last run

    nothing_heard: ClassVar[str | None] = None  # what a recording without a frame gives, in words; None: an error

    @abstractmethod
    def _begin(self, name: str) -> R:
        """A recording of which nothing has been read."""

    @abstractmethod
    def _outputs(self, values: Tensor, mask: Tensor) -> Tensor:
        """What the task needs of a batch (B, N) and its mask (B, N): a row a window."""

    @abstractmethod
    def _add(self, window: Window[R], output: Tensor) -> None:
        """Take the network's row on a window, of a recording's windows in their order."""

    @abstractmethod
    def _result(self, recording: R) -> Result:
        """What came out of a recording whose windows have all been added."""

    def _checked_result(self, recording: R) -> Result | AudioError:
        """The result, or the error in its place; what makes a result worth little is named in a warning."""
        if recording.error is not None:
            return recording.error
        if recording.frames == 0:
            problem = f"is too short ({recording.duration:.3f} s): it holds no frame of the network"
            if self.nothing_heard is None:
                return AudioError(recording.name, problem)
            logger.warning("%s: %s, which gives %s", recording.name, problem, self.nothing_heard)
        elif self.nothing_heard is None and recording.lowest == recording.highest:
            logger.warning("%s: is digital silence (all samples are equal): its result says nothing", recording.name)
        return self._result(recording)

    def _results(
        self, sources: Iterable[Source], progress: Progress | None, *, window: float, overlap: float
    ) -> Iterator[Result | AudioError]:
        """One result a recording, in their order; an `AudioError` where one cannot be read.

        A thread reads ahead. Whole windows are computed as soon as they fill a batch; shorter ones wait for others of
        their length, so that hardly anything of a batch is padding. So a recording's result comes after up to
        2 `AHEAD` batches' worth of audio that follows it.

        Args:
            sources: paths, bytes, binary streams, or arrays of mono samples at 16 kHz.
            progress: told the seconds of audio done.
            window: seconds that the network sees of a recording at once.
            overlap: seconds that neighbouring windows share.
        """
        begun, self.times = time.monotonic(), Times()
        most = round(self.batch_seconds * SAMPLE_RATE)
        waiting: deque[R] = deque()
        whole: list[Window[R]] = []
        short: list[Window[R]] = []
        passed = 0  # samples since results were last given

        def run(windows: list[Window[R]]) -> None:
            for batch in similar_batches(windows, most):
                self._run(batch, progress, window, window - overlap)
            windows.clear()

        def finished() -> Iterator[Result | AudioError]:
            while waiting and (waiting[0].complete or waiting[0].error is not None):
                yield self._checked_result(waiting.popleft())

        with ReadAhead(self._pieces(sources, window, overlap), PIECES) as pieces:
            for piece in pieces:
                self.times.waiting, self.times.total = pieces.waited, time.monotonic() - begun
                if not isinstance(piece, Window):
                    waiting.append(piece)
                    continue
                (short if piece.last else whole).append(piece)
                if samples_of(whole) + len(piece.samples) > most:
                    run(whole)
                passed += len(piece.samples)
                if max(samples_of(short), passed // 2) > AHEAD * most:
                    run(whole)  # first: the windows of a recording are added in their order
                    run(short)
                    passed = 0
                    yield from finished()
            run(whole)
            run(short)
            self.times.waiting, self.times.total = pieces.waited, time.monotonic() - begun
            yield from finished()

    def _pieces(self, sources: Iterable[Source], window: float, overlap: float) -> Iterator[R | Window[R]]:
        """Each recording, and then its windows."""
        for source in sources:
            recording = self._begin("waveform" if isinstance(source, np.ndarray) else source_name(source))
            yield recording
            yield from self._windows(recording, source, window, overlap)

    def _windows(self, recording: R, source: Source, window: float, overlap: float) -> Iterator[Window[R]]:
        """Cut a recording into windows that start on multiples of the frame stride."""
        size = round(window * SAMPLE_RATE) // self.stride * self.stride
        hop = round((window - overlap) * SAMPLE_RATE) // self.stride * self.stride
        kept = np.zeros(0, np.float32)
        start = 0

        def cut(samples: NDArray[np.float32], *, last: bool) -> Window[R]:
            frames = frames_of(len(samples), self.model.config)
            return Window(recording, samples, start // self.stride, frames, last=last)

        try:
            for block in blocks_of(source, window):
                kept = np.concatenate([kept, block])
                recording.samples += len(block)
                recording.lowest = min(recording.lowest, float(block.min(initial=math.inf)))
                recording.highest = max(recording.highest, float(block.max(initial=-math.inf)))
                while len(kept) > size:  # only more samples than a window prove that it is not the last
                    yield cut(kept[:size], last=False)
                    kept, start = kept[hop:], start + hop
        except AudioError as error:
            recording.error = error
            return
        yield cut(kept, last=True)

    @torch.inference_mode()
    def _run(self, windows: list[Window[R]], progress: Progress | None, whole: float, hop: float) -> None:
        """Compute a batch of windows and hand each recording its share; a whole window's seconds begin `hop` apart."""
        begun = time.monotonic()
        longest = max(len(window.samples) for window in windows)
        if self.makes_kernels:
            longest = max(longest, int(min(few_lengths(longest), whole * SAMPLE_RATE)))
        values = torch.zeros(len(windows), longest)
        mask = torch.zeros(len(windows), longest, dtype=torch.long)
        for row, window in enumerate(windows):
            samples = normalize_waveform(window.samples) if self.normalize and len(window.samples) else window.samples
            values[row, : len(samples)] = torch.from_numpy(samples)
            mask[row, : len(samples)] = 1
        if self.device.type == "cuda":  # from pinned memory a copy does not wait for what is being computed
            values, mask = values.pin_memory(), mask.pin_memory()
        values, mask = values.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)
        outputs = self._outputs(values.to(self.model.dtype), mask).cpu()
        self.times.network += time.monotonic() - begun
        for window, output in zip(windows, outputs, strict=True):
            if bool(output.isfinite().all()):
                self._add(window, output)
            else:
                window.recording.error = AudioError(window.recording.name, self._not_finite())
            window.recording.frames += window.frames
            window.recording.complete = window.last
            if progress is not None:
                progress(len(window.samples) / SAMPLE_RATE if window.last else hop)

    def _not_finite(self) -> str:
        """What to say of a recording on which the network gives inf or NaN."""
        kind = str(self.model.dtype).removeprefix("torch.")
        return (
            f"the network computes inf or NaN of it in {kind}: its samples are too large, the weights are damaged, or "
            "they need float32"
        )


class AveragedModel(WindowedModel[AveragedRecording, Result]):
    """A network that gives one row a window; a recording's is their mean, weighted by their frames."""

    @abstractmethod
    def _answer(self, mean: Tensor, duration: float) -> Result:
        """What the mean row (C,) of a recording of so many seconds says."""

    def _begin(self, name: str) -> AveragedRecording:
        return AveragedRecording(name)

    def _add(self, window: Window[AveragedRecording], output: Tensor) -> None:
        window.recording.add(output, window.frames)

    def _result(self, recording: AveragedRecording) -> Result:
        return self._answer(recording.total / recording.frames, recording.duration)


def samples_of(windows: Sequence[Window[R]]) -> int:
    """All samples of windows."""
    return sum(len(window.samples) for window in windows)


def similar_batches(windows: Sequence[Window[R]], most: int) -> Iterator[list[Window[R]]]:
    """Batches of windows of similar length, longest first, of at most `most` samples with padding, or of one window.

    Windows of equal length keep their order.
    """
    batch: list[Window[R]] = []
    for window in sorted(windows, key=lambda window: -len(window.samples)):
        if batch:
            longest = len(batch[0].samples)
            if longest * (len(batch) + 1) > most or len(window.samples) < (1 - SPREAD) * longest:
                yield batch
                batch = []
        batch.append(window)
    if batch:
        yield batch


def blocks_of(source: Source, seconds: float) -> Iterator[NDArray[np.float32]]:
    """The samples of a source at 16 kHz, piece by piece."""
    if isinstance(source, np.ndarray):
        return iter([prepare_waveform(source, SAMPLE_RATE)])
    return iter_audio(source, block_seconds=seconds)


def checked_source(source: Source, sample_rate: int | None, verb: str) -> Source:
    """A source with the rate that an array needs and that nothing else may have, ready for `_results`.

    Args:
        source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
        sample_rate: of an array, in Hz.
        verb: what is to be done with it, for the message.

    Raises:
        ValueError: an array without a rate, a file with one, or something else.
    """
    if isinstance(source, np.ndarray):
        if sample_rate is None:
            raise ValueError("an array of samples needs its `sample_rate` in Hz, for instance 16000; got None")
        return prepare_waveform(source, sample_rate)
    if not isinstance(source, str | bytes | os.PathLike) and not hasattr(source, "read"):
        raise ValueError(
            f"cannot {verb} {type(source).__name__}; expected a path, bytes, a binary stream or a numpy array "
            "(`numpy.asarray` makes one of lists and tensors)"
        )
    if sample_rate is not None:
        raise ValueError("`sample_rate` belongs to arrays; a file says its rate itself")
    return source


def only_result(results: Iterator[Result | AudioError]) -> Result:
    """The result of a single recording, or its error raised."""
    result = next(results)
    if isinstance(result, AudioError):
        raise result
    return result
