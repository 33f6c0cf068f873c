"""Augmentation: lengths, levels and spectra are as asked for, and all randomness is the generator's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from wav2vec2_conformer.data import Augmentation, Utterance, add_noise, change_speed, narrow_band
from wav2vec2_conformer.data.augmentation import change_gain, mix, reverberate, room_response, stretch

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
        ({"reverberation_probability": -0.1}, "`reverberation_probability`"),
        ({"reverberation_seconds": (0.0, 0.5)}, "`reverberation_seconds`"),
        ({"direct_db": (3.0, 0.0)}, "`direct_db`"),
        ({"recorded_noise_probability": float("nan")}, "`recorded_noise_probability`"),
        ({"recorded_snr_db": (0.0, 200.0)}, "`recorded_snr_db`"),
        ({"gain_probability": 2.0}, "`gain_probability`"),
        ({"gain_db": (0.0, 90.0)}, "`gain_db`"),
    ],
)
def test_values_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)  # type: ignore[arg-type]


OFF: dict[str, Any] = {"speed_factors": (1.0,), "narrow_probability": 0.0, "noise_probability": 0.0}


def recording(path: Path, waveform: np.ndarray) -> Utterance:
    """A float recording, so that samples come back as they are."""
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    return Utterance(path, None, len(waveform) / 16000, None, None, path.name)


def level(waveform: np.ndarray) -> float:
    """Mean power in dB."""
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64))))


@pytest.mark.parametrize("switched_on", ["reverberation", "recorded_noise", "gain"])
def test_new_effects_draw_after_those_that_were_there_before(switched_on: str, tmp_path: Path) -> None:
    """What is off draws nothing, and what is on leaves the other effects' draws as they were."""
    noise = recording(tmp_path / "noise.wav", np.random.default_rng(9).standard_normal(8000).astype(np.float32))
    new: dict[str, Any] = {f"{switched_on}_probability": 1e-12, "noises": (noise,) if "noise" in switched_on else ()}
    for seed in range(20):
        before, after = np.random.default_rng(seed), np.random.default_rng(seed)
        # It is drawn whether it happens, and it does not.
        np.testing.assert_array_equal(Augmentation(**new)(TONE, after), Augmentation()(TONE, before))
        before.random()
        assert after.random() == before.random()


def test_all_effects_together_are_a_function_of_the_generators_state(tmp_path: Path) -> None:
    source = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    noises = (recording(tmp_path / "a.wav", source), recording(tmp_path / "b.wav", source[:3000]))
    augmentation = Augmentation(reverberation_probability=0.7, noises=noises, gain_probability=0.7)
    results = []
    for seed in range(12):
        result = augmentation(TONE, np.random.default_rng(seed))
        np.testing.assert_array_equal(result, augmentation(TONE.copy(), np.random.default_rng(seed)))
        assert result.dtype == np.float32
        results.append(result.tobytes())
    assert len(set(results)) == 12


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("seconds", [0.5, 7.0])
def test_recorded_noise_has_the_asked_level(snr_db: float, seconds: float, tmp_path: Path) -> None:
    """Also where the recording is shorter than the waveform, or much longer."""
    source = 0.05 * np.random.default_rng(0).standard_normal(round(seconds * 16000)).astype(np.float32)
    on = {"recorded_noise_probability": 1.0, "recorded_snr_db": (snr_db, snr_db)}
    augmentation = Augmentation(**OFF, **on, noises=(recording(tmp_path / "noise.wav", source),))
    noise = augmentation(TONE, np.random.default_rng(0)) - TONE
    assert level(TONE) - level(noise) == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize("samples", [100, 16000, 90000])
def test_a_stretch_is_what_lies_there(samples: int, tmp_path: Path) -> None:
    """Of a rising ramp, so each sample says where it comes from; a short recording goes on at its beginning."""
    source = np.arange(1, 85001, dtype=np.float32)
    noise = recording(tmp_path / "ramp.wav", source)
    starts = set()
    for seed in range(5):
        found = stretch(noise, samples, np.random.default_rng(seed))
        start = int(found[0]) - 1
        np.testing.assert_array_equal(found, source[(start + np.arange(samples)) % len(source)])
        assert samples > len(source) or start + samples <= len(source)
        starts.add(start)
    assert len(starts) == 5


def test_noise_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    broken = Utterance(tmp_path / "broken.wav", None, 3.0, None, None, "broken.wav")
    with caplog.at_level(logging.WARNING):
        augmentation = Augmentation(**OFF, noises=(broken,), recorded_noise_probability=1.0)
        assert augmentation(TONE, np.random.default_rng(0)) is TONE
        rooms = Augmentation(**OFF, responses=(broken,), reverberation_probability=1.0)
        assert rooms(TONE, np.random.default_rng(0)) is TONE
    assert [("broken.wav" in message, "left out" in message) for message in caplog.messages] == [(True, True)] * 2


def test_reverberation_is_a_convolution_that_leaves_the_direct_sound_in_its_place() -> None:
    generator = np.random.default_rng(0)
    waveform = generator.standard_normal(1000).astype(np.float32)
    response = np.zeros(300, np.float32)
    response[[40, 90, 200]] = [0.9, -0.4, 0.2]
    expected = np.zeros(1000)
    for delay, factor in ((0, 0.9), (50, -0.4), (160, 0.2)):  # by definition, from the largest sample on
        expected[delay:] += factor * waveform[: 1000 - delay]
    heard = reverberate(waveform, response)
    np.testing.assert_allclose(heard, expected * np.linalg.norm(waveform) / np.linalg.norm(expected), atol=2e-6)


@pytest.mark.parametrize(("seconds", "direct_db"), [(0.2, 0.0), (0.5, 6.0), (1.0, -6.0)])
def test_a_made_response_falls_by_60_db_in_its_time(seconds: float, direct_db: float) -> None:
    responses = [room_response(seconds, direct_db, np.random.default_rng(seed)) for seed in range(40)]
    energy = np.mean(np.square(responses, dtype=np.float64), axis=0)
    assert 10 * np.log10(energy[0] / energy[1:].sum()) == pytest.approx(direct_db, abs=1e-3)
    # The backward integral of the energy (Schroeder 1965) falls as the energy does: its slope from -5 to -35 dB.
    left = 10 * np.log10(np.cumsum(energy[:0:-1])[::-1] / energy[1:].sum())
    first, last = np.argmax(left < -5), np.argmax(left < -35)
    assert 2 * (last - first) / 16000 == pytest.approx(seconds, rel=0.05)


def test_reverberation_keeps_length_level_and_place(tmp_path: Path) -> None:
    click = np.zeros(8000, np.float32)
    click[3000] = 0.5
    response = np.zeros(2000, np.float32)
    response[[17, 500, 1500]] = [1.0, 0.5, -0.25]
    made = Augmentation(**OFF, reverberation_probability=1.0)
    measured = Augmentation(**OFF, reverberation_probability=1.0, responses=(recording(tmp_path / "r.wav", response),))
    for augmentation in (made, measured):
        for seed in range(10):
            heard = augmentation(click, np.random.default_rng(seed))
            assert len(heard) == len(click)
            assert np.abs(heard).argmax() == 3000
            assert level(heard) == pytest.approx(level(click), abs=0.01)
            assert np.abs(heard[:3000]).max() < 1e-6  # nothing is heard before it is said


def test_gain_clips_as_a_recorder_does() -> None:
    np.testing.assert_allclose(change_gain(TONE, -6.0), TONE * 0.5012, rtol=1e-4)
    louder = change_gain(TONE, 20.0)
    np.testing.assert_allclose(louder, np.clip(10 * TONE, -1, 1), rtol=1e-6)
    assert np.mean(np.abs(louder) == 1.0) > 0.5


def test_mixing_with_silence_changes_nothing() -> None:
    assert mix(TONE, np.zeros_like(TONE), 0.0) is TONE
    silence = np.zeros_like(TONE)
    assert mix(silence, TONE, 0.0) is silence


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Augmentation:
    """All effects that keep the length, most of the time, with noises that are silent or a single sample."""
    folder = tmp_path_factory.mktemp("noises")
    noise = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    files = {"noise": noise, "silence": 0 * noise, "click": noise[:1]}
    return Augmentation(
        speed_factors=(1.0,),
        reverberation_probability=0.8,
        noises=tuple(recording(folder / f"{name}.wav", waveform) for name, waveform in files.items()),
        recorded_noise_probability=0.8,
        gain_probability=0.8,
    )


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 700),
    amplitude=st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_every_effect_gives_finite_samples_of_the_same_number(
    everything: Augmentation, samples: int, amplitude: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    waveform = (amplitude * generator.standard_normal(samples)).astype(np.float32)
    before = waveform.copy()
    result = everything(waveform, generator)
    assert result.shape == waveform.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(waveform, before)
