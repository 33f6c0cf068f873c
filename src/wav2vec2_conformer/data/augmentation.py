"""Changes to training waveforms: speed, bandwidth and noise, all drawn from the generator passed in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from ..audio import SAMPLE_RATE

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition"), narrow bands and noise.

    Gain is no part of it: waveforms are normalised afterwards. A speed below 1 lengthens the waveform, so batches
    planned by seconds can exceed their budget by 1 / the lowest factor; a speed above 1 leaves fewer frames for the
    same labels, which is why the collator checks labels against frames after augmentation.

    Args:
        speed_factors: One is drawn for each waveform, all equally likely; pitch changes along. (1.0,) turns it off.
        narrow_probability: Share of the waveforms that lose their upper frequencies, as over a telephone.
        narrow_rates: Lowest and highest sampling rate in Hz (uniform between them) that those waveforms pass through.
        noise_probability: Share of the waveforms that get noise, white or pink with equal chance.
        snr_db: Lowest and highest signal-to-noise ratio in dB, uniform between them.

    Raises:
        ValueError: a value is out of its range.
    """

    speed_factors: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
    narrow_probability: float = 0.25
    narrow_rates: tuple[float, float] = (6500.0, 12000.0)
    noise_probability: float = 0.3
    snr_db: tuple[float, float] = (10.0, 40.0)

    def __post_init__(self) -> None:
        if not self.speed_factors or not all(0.5 <= factor <= 2.0 for factor in self.speed_factors):
            raise ValueError(
                f"`speed_factors` must be one or more factors from 0.5 to 2, got {self.speed_factors};"
                " (0.9, 1.0, 1.1) is usual and (1.0,) turns speed perturbation off"
            )
        for name in ("narrow_probability", "noise_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(self, name)}")
        slowest, fastest = self.narrow_rates
        if not 1000.0 <= slowest <= fastest <= SAMPLE_RATE:
            raise ValueError(
                f"`narrow_rates` must be (lowest, highest) within 1000 to {SAMPLE_RATE} Hz, got {self.narrow_rates}"
            )
        low, high = self.snr_db
        if not -20.0 <= low <= high <= 100.0:
            raise ValueError(f"`snr_db` must be (lowest, highest) within -20 to 100 dB, got {self.snr_db}")

    def __call__(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        """Return a changed copy of `waveform` (N,), or itself where nothing was drawn; `waveform` is not written to."""
        factor = self.speed_factors[int(generator.integers(len(self.speed_factors)))]
        waveform = change_speed(waveform, factor)
        if generator.random() < self.narrow_probability:
            waveform = narrow_band(waveform, float(generator.uniform(*self.narrow_rates)))
        if generator.random() < self.noise_probability:
            snr_db = float(generator.uniform(*self.snr_db))
            pink = bool(generator.random() < 0.5)
            waveform = add_noise(waveform, snr_db, generator, pink=pink)
        return waveform


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """Return `waveform` (N,) played `factor` times as fast: about N / factor samples at the same rate."""
    if factor == 1.0 or waveform.size == 0:
        return waveform
    # "LQ" keeps aliasing below the noise of speech corpora; "QQ" (cubic, no filter) would save under 0.1 ms in 10 s.
    changed: Waveform = soxr.resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ")
    return changed.astype(np.float32, copy=False)


def narrow_band(waveform: Waveform, rate: float) -> Waveform:
    """Return `waveform` (N,) without what a recording at `rate` Hz could not hold: frequencies above `rate` / 2."""
    if waveform.size == 0:
        return waveform
    narrow = soxr.resample(waveform, SAMPLE_RATE, rate, quality="LQ")
    widened: Waveform = np.zeros_like(waveform)
    back = soxr.resample(narrow, rate, SAMPLE_RATE, quality="LQ")[: waveform.size]  # rounding may add a sample
    widened[: back.size] = back
    return widened


def add_noise(waveform: Waveform, snr_db: float, generator: np.random.Generator, *, pink: bool) -> Waveform:
    """Return `waveform` (N,) plus noise `snr_db` dB below its mean power; silence is returned as it is.

    White noise has equal power at every frequency, pink noise power proportional to 1 / frequency, as rooms have.
    """
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0
    if power == 0.0:
        return waveform
    noise = _pink_noise(waveform.size, generator) if pink else _white_noise(waveform.size, generator)
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if noise_power == 0.0:
        return waveform
    gain = np.float32(np.sqrt(power / noise_power * 10.0 ** (-snr_db / 10.0)))
    return waveform + gain * noise


def _white_noise(samples: int, generator: np.random.Generator) -> Waveform:
    return generator.standard_normal(samples, dtype=np.float32)


def _pink_noise(samples: int, generator: np.random.Generator) -> Waveform:
    """Draw the spectrum itself (one transform instead of two), over a power of two: other lengths transform slowly."""
    size = max(2, 1 << (samples - 1).bit_length())
    bins = size // 2 + 1
    spectrum = generator.standard_normal((bins, 2), dtype=np.float32).view(np.complex64)[:, 0]
    spectrum[0] = 0.0  # 1 / f has no value at 0 Hz
    spectrum[1:] /= np.sqrt(np.arange(1, bins, dtype=np.float32))
    noise: Waveform = np.fft.irfft(spectrum, n=size)[:samples].astype(np.float32)
    return noise
