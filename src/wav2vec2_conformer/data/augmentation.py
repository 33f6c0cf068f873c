"""Changes to training waveforms: speed, bandwidth, noise, rooms and gain, all drawn from the generator passed in."""

# N samples, R samples of a room's response

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from ..audio import SAMPLE_RATE, AudioError, iter_audio, load_audio
from .manifest import Utterance

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition"), narrow bands and noise.

    Where switched on, reverberation, recorded noise and gain follow, in this order.

    A speed below 1 lengthens the waveform, so batches planned by seconds can exceed their budget by 1 / the lowest
    factor; a speed above 1 leaves fewer frames for the same labels, which is why the collator checks labels against
    frames after augmentation. Nothing else changes a length.

    What is switched off draws nothing, and what is new draws after what was there before: a recipe's random numbers
    stay the same when effects are added here.

    Args:
        speed_factors: One is drawn for each waveform, all equally likely; pitch changes along. (1.0,) turns it off.
        narrow_probability: Share of the waveforms that lose their upper frequencies, as over a telephone.
        narrow_rates: Lowest and highest sampling rate in Hz (uniform between them) that those waveforms pass through.
        noise_probability: Share of the waveforms that get noise, white or pink with equal chance.
        snr_db: Lowest and highest signal-to-noise ratio of that noise in dB, uniform between them.
        reverberation_probability: Share of the waveforms that sound as in a room.
        responses: Rooms' impulse responses, one drawn for each of those waveforms. Without any, responses are made of
            decaying noise.
        reverberation_seconds: Shortest and longest time in which a made response falls by 60 dB.
        direct_db: Lowest and highest level in dB of the direct sound over the rest of a made response: how near the
            speaker is.
        noises: Recordings of noise, such as `read_recordings` gives. Cut long ones: what lies before a stretch has to
            be decoded, too.
        recorded_noise_probability: Share of the waveforms that get a stretch of one of `noises`, if there are any.
        recorded_snr_db: Lowest and highest signal-to-noise ratio of that noise in dB.
        gain_probability: Share of the waveforms that are made softer or louder; what then exceeds full scale is
            clipped, as a recorder does. Where waveforms are normalised afterwards (`do_normalize`), the model hears the
            clipping alone, so only gains above 0 matter.
        gain_db: Lowest and highest gain in dB.

    Raises:
        ValueError: a value is out of its range.
    """

    speed_factors: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
    narrow_probability: float = 0.25
    narrow_rates: tuple[float, float] = (6500.0, 12000.0)
    noise_probability: float = 0.3
    snr_db: tuple[float, float] = (10.0, 40.0)
    reverberation_probability: float = 0.0
    responses: tuple[Utterance, ...] = ()
    reverberation_seconds: tuple[float, float] = (0.1, 0.8)
    direct_db: tuple[float, float] = (0.0, 12.0)
    noises: tuple[Utterance, ...] = ()
    recorded_noise_probability: float = 0.3
    recorded_snr_db: tuple[float, float] = (5.0, 25.0)
    gain_probability: float = 0.0
    gain_db: tuple[float, float] = (-10.0, 20.0)

    def __post_init__(self) -> None:
        if not self.speed_factors or not all(0.5 <= factor <= 2.0 for factor in self.speed_factors):
            raise ValueError(
                f"`speed_factors` must be one or more factors from 0.5 to 2, got {self.speed_factors};"
                " (0.9, 1.0, 1.1) is usual and (1.0,) turns speed perturbation off"
            )
        for name in (
            "narrow_probability",
            "noise_probability",
            "reverberation_probability",
            "recorded_noise_probability",
            "gain_probability",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(self, name)}")
        for name, least, most, unit in (
            ("narrow_rates", 1000, SAMPLE_RATE, "Hz"),
            ("snr_db", -20, 100, "dB"),
            ("reverberation_seconds", 0.01, 10, "s"),
            ("direct_db", -20, 60, "dB"),
            ("recorded_snr_db", -20, 100, "dB"),
            ("gain_db", -60, 60, "dB"),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"`{name}` must be (lowest, highest) within {least} to {most} {unit}, got {getattr(self, name)}"
                )

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
        if _happens(self.reverberation_probability, generator):
            waveform = self._reverberated(waveform, generator)
        if self.noises and _happens(self.recorded_noise_probability, generator):
            snr_db = float(generator.uniform(*self.recorded_snr_db))
            noise = self.noises[int(generator.integers(len(self.noises)))]
            waveform = mix(waveform, stretch(noise, waveform.size, generator), snr_db)
        if _happens(self.gain_probability, generator):
            waveform = change_gain(waveform, float(generator.uniform(*self.gain_db)))
        return waveform

    def _reverberated(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        if not self.responses:
            seconds = float(generator.uniform(*self.reverberation_seconds))
            response = room_response(seconds, float(generator.uniform(*self.direct_db)), generator)
            return reverberate(waveform, response, direct=0)
        recording = self.responses[int(generator.integers(len(self.responses)))]
        try:
            return reverberate(waveform, load_audio(recording.audio))
        except AudioError as error:
            logger.warning("%s, so it is left out of augmentation", error)
            return waveform


def _happens(probability: float, generator: np.random.Generator) -> bool:
    """Whether an effect that may be switched off takes place; drawn only where it is on."""
    return probability > 0.0 and bool(generator.random() < probability)


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
    if _power(waveform) == 0.0:
        return waveform
    noise = _pink_noise(waveform.size, generator) if pink else _white_noise(waveform.size, generator)
    return mix(waveform, noise, snr_db)


def mix(waveform: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Return `waveform` (N,) plus `noise` (N,), `snr_db` dB below its mean power; itself if either is silent."""
    power, noise_power = _power(waveform), _power(noise)
    if power == 0.0 or noise_power == 0.0:
        return waveform
    gain = np.float32(np.sqrt(power / noise_power * 10.0 ** (-snr_db / 10.0)))
    return waveform + gain * noise


def _power(waveform: Waveform) -> float:
    """Mean square, 0 of nothing."""
    return float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0


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


def stretch(recording: Utterance, samples: int, generator: np.random.Generator) -> Waveform:
    """Return a stretch (`samples`,) of a recording from a random place on; a shorter recording is repeated.

    A recording that cannot be read is named in a warning, and gives silence.
    """
    whole = max(1, round(recording.duration * SAMPLE_RATE))
    start = int(generator.integers(max(1, whole - samples + 1) if whole > samples else whole))
    # A short recording is needed from its beginning, since it goes on there.
    first, stop = (start, start + samples) if whole > samples else (0, whole)
    pieces, position = [np.zeros(0, np.float32)], 0
    try:
        for block in iter_audio(recording.audio, block_seconds=5.0):
            pieces.append(block[max(0, first - position) : max(0, stop - position)])
            position += len(block)
            if position >= stop:
                break
    except AudioError as error:
        logger.warning("%s, so it is left out of augmentation", error)
        return np.zeros(samples, np.float32)
    found = np.concatenate(pieces)
    if found.size == 0:
        return np.zeros(samples, np.float32)
    return np.resize(np.roll(found, -(start - first)), samples)


def room_response(seconds: float, direct_db: float, generator: np.random.Generator) -> Waveform:
    """Return an impulse response (R,): the direct sound, then noise that falls by 60 dB in `seconds`.

    The statistical model of a room's late reverberation (Polack 1988; Habets 2007, "Single- and multi-microphone
    speech dereverberation", section 2.4), the same at all frequencies. The direct sound, a 1 at the start, has
    `direct_db` dB more energy than the rest.
    """
    size = max(2, round(seconds * SAMPLE_RATE))
    response = generator.standard_normal(size, dtype=np.float32)
    response *= np.float32(10.0) ** (np.linspace(0, -3, size, dtype=np.float32))
    response[0] = 0.0
    response *= np.float32(10.0 ** (-direct_db / 20.0) / max(float(np.linalg.norm(response)), 1e-12))
    response[0] = 1.0
    return response


def reverberate(waveform: Waveform, response: Waveform, direct: int | None = None) -> Waveform:
    """Return `waveform` (N,) as heard in a room with the impulse response `response` (R,), as loud as before.

    The direct sound stays where it is, and what sounds on after the end is cut off. A silent response gives `waveform`
    itself.

    Args:
        waveform: (N,).
        response: (R,).
        direct: the sample of the response that is the direct sound; None: its largest.
    """
    if waveform.size == 0 or response.size == 0:
        return waveform
    if direct is None:
        direct = int(np.abs(response).argmax())
    size = 1 << (waveform.size + response.size - 2).bit_length()
    spectrum = np.fft.rfft(waveform, n=size) * np.fft.rfft(response, n=size)
    heard: Waveform = np.fft.irfft(spectrum, n=size)[direct : direct + waveform.size].astype(np.float32)
    power = _power(heard)
    if power == 0.0 or not np.isfinite(power):
        return waveform
    return heard * np.float32(np.sqrt(_power(waveform) / power))


def change_gain(waveform: Waveform, gain_db: float) -> Waveform:
    """Return `waveform` (N,) `gain_db` dB louder, clipped at full scale."""
    louder: Waveform = np.clip(waveform * np.float32(10.0 ** (gain_db / 20.0)), np.float32(-1.0), np.float32(1.0))
    return louder
