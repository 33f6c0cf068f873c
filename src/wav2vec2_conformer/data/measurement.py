"""What a recording holds: read once, in blocks."""

# N samples, F frames of 20 ms

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..audio import AudioError, AudioHeader, audio_header, iter_stored
from .manifest import Utterance
from .runs import runs_of

__all__ = ["SILENCE_DB", "AudioFacts", "measure_audio", "measure_recordings", "silence_of"]

FRAME_SECONDS = 0.02
# A frame is silent if it is this much below the recording's loud frames, of which 95 % of its frames are softer. Speech
# falls 20 to 30 dB within a word; what is 40 dB below is a pause, or the noise of a good recording.
SILENCE_DB = 40.0
LOUD = 0.95
# 16-bit files end at 1 - 2^-15. A loud but intact recording touches full scale with single samples, hence the run.
FULL_SCALE = 0.9999
CLIPPED_RUN = 3


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What one recording holds.

    Args:
        duration: seconds that were decoded.
        sample_rate, channels, format: as its header says.
        peak: largest absolute sample, 1 = full scale.
        level_db: mean power in dB of full scale (a square wave has 0); None where every sample is 0.
        clipped: share of the samples in runs of three or more at full scale.
        zeros: share of the samples that are exactly 0.
        silent: share of the 20 ms frames that are `SILENCE_DB` below the loud ones.
        leading, trailing: seconds of silence before the first and after the last frame that is not silent.
        digest: of the decoded samples and their rate, so equal for equal sound in different files.
    """

    duration: float
    sample_rate: int
    channels: int
    format: str
    peak: float
    level_db: float | None
    clipped: float
    zeros: float
    silent: float
    leading: float
    trailing: float
    digest: str


def measure_recordings(
    utterances: Sequence[Utterance], *, workers: int | None = None
) -> Iterator[AudioFacts | AudioError]:
    """Read each recording once and yield, in order, what it holds, or the `AudioError` that says why it cannot be read.

    Args:
        utterances: of any manifest.
        workers: threads (decoders and numpy let one another run); by default one a processor, 8 at most.
    """
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda utterance: _facts_or_error(utterance.audio), utterances)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops early, by Ctrl-C too, need not wait for the rest


def _facts_or_error(path: Path) -> AudioFacts | AudioError:
    try:
        return measure_audio(path)
    except AudioError as error:
        return error


def measure_audio(path: str | Path) -> AudioFacts:
    """Decode a recording block by block, at its own rate; memory grows by 4 bytes for each 20 ms.

    Raises:
        AudioError: it cannot be read, or not to its end.
    """
    header = audio_header(path)
    meter = _Meter()
    for waveform, rate in iter_stored(path):
        meter.add(waveform, rate)
    return meter.facts(header)


class _Meter:
    """Sums over the samples of a recording, fed piece by piece; the result does not depend on where it was cut."""

    def __init__(self) -> None:
        self._samples = self._zeros = self._clipped = 0
        self._seconds = self._energy = self._peak = 0.0
        self._digest = hashlib.blake2b(digest_size=16)
        self._rate = 0
        self._powers: list[npt.NDArray[np.float32]] = []  # of the frames
        self._rest = np.zeros(0, np.float32)  # samples after the last whole frame
        self._run = 0  # full-scale samples at the end of the last piece

    def add(self, waveform: npt.NDArray[np.float32], rate: int) -> None:
        """Take (N,) samples at `rate` Hz in."""
        if rate != self._rate:
            self._digest.update(str(rate).encode())
            self._rate, self._rest = rate, self._rest[:0]
        self._digest.update(np.ascontiguousarray(waveform).data)
        absolute = np.abs(waveform)
        self._samples += len(waveform)
        self._seconds += len(waveform) / rate
        self._energy += float(np.square(waveform, dtype=np.float64).sum())
        self._peak = max(self._peak, float(absolute.max(initial=0.0)))
        self._zeros += int((absolute == 0).sum())
        self._count_clipped(absolute >= FULL_SCALE)
        size = max(1, round(rate * FRAME_SECONDS))
        samples = np.concatenate([self._rest, waveform])
        whole = len(samples) // size * size
        self._powers.append(np.square(samples[:whole].reshape(-1, size)).mean(axis=1))
        self._rest = samples[whole:]

    def _count_clipped(self, full: npt.NDArray[np.bool_]) -> None:
        """Count the runs of a piece; a run that reaches its end goes on in the next piece."""
        if len(full) == 0:
            return
        starts, ends = runs_of(np.concatenate([np.ones(self._run, np.bool_), full]))
        runs = ends - starts
        already = self._run if self._run >= CLIPPED_RUN else 0
        self._clipped += int(runs[runs >= CLIPPED_RUN].sum()) - already
        # No longer than what decides whether it counts.
        self._run = min(int(runs[-1]), CLIPPED_RUN) if full[-1] else 0

    def facts(self, header: AudioHeader) -> AudioFacts:
        """What was measured, under what the header says."""
        if not any(map(len, self._powers)) and len(self._rest):  # shorter than a frame: one frame
            self._powers.append(np.square(self._rest).mean(keepdims=True))
        silent, leading, trailing = silence_of(np.concatenate([np.zeros(0, np.float32), *self._powers]))
        samples = max(1, self._samples)
        power = self._energy / samples
        return AudioFacts(
            duration=self._seconds,
            sample_rate=header.sample_rate,
            channels=header.channels,
            format=header.format,
            peak=self._peak,
            level_db=10 * math.log10(power) if power > 0 else None,
            clipped=self._clipped / samples,
            zeros=self._zeros / samples,
            silent=silent,
            leading=min(leading * FRAME_SECONDS, self._seconds),
            trailing=min(trailing * FRAME_SECONDS, self._seconds),
            digest=self._digest.hexdigest(),
        )


def silence_of(powers: npt.NDArray[np.float32]) -> tuple[float, int, int]:
    """Mean powers (F,) of frames -> share of silent frames, silent frames at the start, and at the end."""
    if len(powers) == 0:
        return 0.0, 0, 0
    loud = float(np.quantile(powers, LOUD))
    sounding = np.flatnonzero((powers > 0) & (powers >= loud * 10 ** (-SILENCE_DB / 10)))
    if len(sounding) == 0:
        return 1.0, len(powers), len(powers)
    return 1 - len(sounding) / len(powers), int(sounding[0]), int(len(powers) - 1 - sounding[-1])
