"""Augmentation: lengths, levels and spectra are as asked for, and all randomness is the generator's."""

from __future__ import annotations

import numpy as np
import pytest

from wav2vec2_conformer.data import Augmentation, add_noise, change_speed, narrow_band

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)).astype(np.float32)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    changed = change_speed(TONE, factor)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(len(TONE) / factor, abs=2)
    peak = np.abs(np.fft.rfft(changed)).argmax() * 16000 / len(changed)
    assert peak == pytest.approx(440 * factor, abs=1)
    assert changed.std() == pytest.approx(TONE.std(), rel=0.01)


@pytest.mark.parametrize("pink", [False, True])
@pytest.mark.parametrize("snr_db", [0.0, 10.0, 40.0])
def test_noise_has_the_asked_level(pink: bool, snr_db: float) -> None:
    noise = add_noise(TONE, snr_db, np.random.default_rng(0), pink=pink) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.1)


def test_white_noise_is_level_and_pink_noise_falls_3_db_an_octave() -> None:
    for pink, step_db in ((False, 0.0), (True, -3.01)):
        noise = add_noise(TONE, 0.0, np.random.default_rng(0), pink=pink) - TONE
        power = np.abs(np.fft.rfft(noise)) ** 2
        frequencies = np.fft.rfftfreq(len(noise), 1 / 16000)
        octaves = [power[(frequencies >= low) & (frequencies < 2 * low)].mean() for low in (250, 500, 1000, 2000)]
        steps = np.diff(10 * np.log10(octaves))
        np.testing.assert_allclose(steps, step_db, atol=0.9)


@pytest.mark.parametrize("rate", [6500.0, 8000.0, 11025.0, 16000.0])
def test_a_narrow_band_loses_what_lies_above_it_and_keeps_what_lies_below(rate: float) -> None:
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    narrow = narrow_band(noise, rate)
    assert narrow.dtype == np.float32
    assert len(narrow) == len(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / 16000)
    power, before = np.abs(np.fft.rfft(narrow)) ** 2, np.abs(np.fft.rfft(noise)) ** 2
    below, above = frequencies < 0.35 * rate, frequencies > 0.52 * rate
    assert power[below].sum() == pytest.approx(before[below].sum(), rel=0.02)
    assert power[above].sum() <= 1e-3 * before[above].sum()


def test_one_generator_state_gives_one_result_and_leaves_the_input() -> None:
    augmentation = Augmentation(noise_probability=1.0)
    before = TONE.copy()
    first = augmentation(TONE, np.random.default_rng([1, 2]))
    np.testing.assert_array_equal(first, augmentation(TONE, np.random.default_rng([1, 2])))
    np.testing.assert_array_equal(TONE, before)
    assert first.dtype == np.float32


def test_shares_are_as_configured() -> None:
    generator = np.random.default_rng(0)
    waveform = TONE[:1600]
    augmentation = Augmentation(speed_factors=(0.9, 1.0, 1.1), narrow_probability=0.5, noise_probability=0.3)
    results = [augmentation(waveform, generator) for _ in range(600)]
    lengths = [len(result) for result in results]
    for factor in (0.9, 1.0, 1.1):
        share = np.mean([abs(length - 1600 / factor) < 3 for length in lengths])
        assert share == pytest.approx(1 / 3, abs=0.06)
    untouched = np.mean([result is waveform for result in results])
    assert untouched == pytest.approx(0.5 * 0.7 / 3, abs=0.06)


def test_turned_off_it_returns_its_input() -> None:
    off = Augmentation(speed_factors=(1.0,), narrow_probability=0.0, noise_probability=0.0)
    assert off(TONE, np.random.default_rng(0)) is TONE


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_silence_and_tiny_waveforms_stay_finite(samples: int) -> None:
    augmentation = Augmentation(narrow_probability=1.0, noise_probability=1.0)
    for value in (0.0, 0.5):
        for seed in range(8):
            result = augmentation(np.full(samples, value, dtype=np.float32), np.random.default_rng(seed))
            assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"narrow_probability": 1.5}, "`narrow_probability`"),
        ({"narrow_rates": (500.0, 8000.0)}, "`narrow_rates`"),
        ({"narrow_rates": (8000.0, 20000.0)}, "`narrow_rates`"),
        ({"speed_factors": ()}, "`speed_factors`"),
        ({"speed_factors": (0.0,)}, "`speed_factors`"),
        ({"noise_probability": 1.5}, "`noise_probability`"),
        ({"snr_db": (40.0, 10.0)}, "`snr_db`"),
        ({"snr_db": (float("nan"), 10.0)}, "`snr_db`"),
    ],
)
def test_values_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)  # type: ignore[arg-type]
