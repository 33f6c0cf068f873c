"""Measurements and counts against their definitions, sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from wav2vec2_conformer.audio import AudioError
from wav2vec2_conformer.data import Segment, Utterance
from wav2vec2_conformer.data.measurement import AudioFacts, measure_audio, measure_recordings, silence_of
from wav2vec2_conformer.data.statistics import MeasuredManifest, Quartiles, speech_and_overlap, summarize

RATE = 16000


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise with pauses, zeros and clipped stretches, as 16-bit samples."""
    generator = np.random.default_rng(seed)
    waveform = generator.standard_normal(round(seconds * RATE))
    envelope = generator.choice([0.0, 0.0002, 0.1, 2.0], size=round(seconds * 10) + 1, p=[0.2, 0.2, 0.5, 0.1])
    waveform *= np.repeat(envelope, RATE // 10)[: len(waveform)]
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of True, counted one by one."""
    found, length = [], 0
    for value in [*mask.tolist(), False]:
        if value:
            length += 1
        elif length:
            found.append(length)
            length = 0
    return found


@pytest.mark.parametrize("seconds", [0.013, 0.5, 9.3])  # under a frame, one piece, several pieces of the decoder
def test_measurements_equal_their_definitions(seconds: float, tmp_path: Path) -> None:
    samples = speech_like(seconds) if seconds > 0.1 else np.full(round(seconds * RATE), 1000, np.int16)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    facts = measure_audio(tmp_path / "a.flac")
    waveform = samples / 32768
    assert facts.duration == pytest.approx(len(samples) / RATE)
    assert (facts.sample_rate, facts.channels, facts.format) == (RATE, 1, "flac pcm_16")
    assert facts.peak == pytest.approx(np.abs(waveform).max())
    assert facts.level_db == pytest.approx(10 * np.log10(np.mean(waveform**2)), abs=1e-3)
    assert facts.zeros == pytest.approx(np.mean(samples == 0))
    clipped = sum(length for length in runs(np.abs(waveform) >= 32767 / 32768) if length >= 3)
    assert facts.clipped == pytest.approx(clipped / len(samples))
    if seconds < 0.02:
        powers = np.array([np.mean(waveform**2)])
    else:
        powers = np.array([np.mean(waveform[i : i + 320] ** 2) for i in range(0, len(waveform) - 319, 320)])
    loud = np.sort(powers)[int(np.ceil(0.95 * (len(powers) - 1)))]
    assert facts.silent == pytest.approx(np.mean(powers < loud * 1e-4), abs=1 / len(powers))


@pytest.mark.parametrize("length", [2, 3, 7])
@pytest.mark.parametrize("start", [100, 65534, 65535, 65536, 131070])
def test_clipped_runs_are_counted_across_pieces(length: int, start: int, tmp_path: Path) -> None:
    """The decoder's pieces end every 65,536 samples; a run of two is a loud but intact place."""
    samples = np.full(140000, 5000, np.int16)
    samples[start : start + length] = 32767
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    expected = length if length >= 3 else 0
    assert measure_audio(tmp_path / "a.wav").clipped * 140000 == pytest.approx(expected)


def test_equal_sound_has_one_digest_in_any_lossless_file(tmp_path: Path) -> None:
    samples = speech_like(1.0)
    for name in ("a.wav", "a.flac", "a.aiff"):
        soundfile.write(tmp_path / name, samples, RATE)
    changed = samples.copy()
    changed[5] += 1
    soundfile.write(tmp_path / "other.wav", changed, RATE)
    soundfile.write(tmp_path / "rate.wav", samples, 8000)
    digests = {name: measure_audio(tmp_path / name).digest for name in ("a.wav", "a.flac", "a.aiff")}
    assert len(set(digests.values())) == 1
    assert len({measure_audio(tmp_path / name).digest for name in ("a.wav", "other.wav", "rate.wav")}) == 3


def test_silence_at_both_ends_is_found() -> None:
    powers = np.array([0, 1e-9, 1, 1, 1e-9, 1, 1e-6, 0, 0, 0], np.float32)
    assert silence_of(powers) == (pytest.approx(0.7), 2, 4)
    assert silence_of(np.zeros(4, np.float32)) == (1.0, 4, 4)
    assert silence_of(np.zeros(0, np.float32)) == (0.0, 0, 0)
    assert silence_of(np.full(5, 1e-12, np.float32)) == (0.0, 0, 0)  # soft all along is not silence


def test_recordings_come_in_order_with_errors_in_their_places(tmp_path: Path) -> None:
    utterances = []
    for number in range(7):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(1000 * (number + 1), 0.1), RATE)
        utterances.append(Utterance(path, None, 1.0, None, None, path.name))
    (tmp_path / "3.wav").write_bytes(b"RIFF")
    found = list(measure_recordings(utterances, workers=3))
    assert isinstance(found[3], AudioError)
    lengths = [round(f.duration * RATE) for f in found if isinstance(f, AudioFacts)]
    assert lengths == [1000, 2000, 3000, 5000, 6000, 7000]


segments = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.sampled_from("abc")).map(
        lambda drawn: Segment(drawn[0] / 10, (drawn[0] + drawn[1]) / 10, drawn[2])
    ),
    max_size=6,
)


@given(segments, st.integers(1, 60))
def test_speech_and_overlap_are_what_counting_tenths_gives(drawn: list[Segment], tenths: int) -> None:
    counts = [sum(s.start <= (t + 0.5) / 10 < s.end for s in drawn) for t in range(tenths)]
    speech, overlap = speech_and_overlap(drawn, tenths / 10)
    assert speech == pytest.approx(sum(count >= 1 for count in counts) / 10, abs=1e-9)
    assert overlap == pytest.approx(sum(count >= 2 for count in counts) / 10, abs=1e-9)


def test_a_manifest_in_numbers(tmp_path: Path) -> None:
    for name, seed in (("a.wav", 0), ("b.wav", 1), ("copy.wav", 0)):
        soundfile.write(tmp_path / name, speech_like(2.0, seed), RATE)
    soundfile.write(tmp_path / "zeros.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "more-zeros.wav", np.zeros(8000), 8000)
    (tmp_path / "broken.wav").write_bytes(b"")

    def line(name: str, text: str | None = None, speaker: str | None = None, label: str | None = None) -> Utterance:
        return Utterance(tmp_path / name, text, 1.0, speaker, label, name)

    utterances = [
        line("a.wav", "AB A", "x", "yes"),
        line("b.wav", "B", "y", "yes"),
        line("copy.wav", speaker="x", label="no"),
        line("b.wav"),
        line("zeros.wav", ""),
        line("more-zeros.wav"),
        line("broken.wav", "C"),
    ]
    found = summarize(MeasuredManifest("m", utterances, list(measure_recordings(utterances))))
    assert (found.recordings, found.unreadable, found.transcribed, found.without_sound) == (7, 1, 4, 2)
    assert found.hours == pytest.approx(10 / 3600, abs=1e-4)
    assert found.durations == Quartiles(1.0, 1.25, 2.0, 2.0, 2.0)
    assert list(found.speakers.items()) == [("x", 2), ("y", 1)]
    assert list(found.labels.items()) == [("yes", 2), ("no", 1)]
    assert found.sample_rates == {"16000": 4, "8000": 2}
    assert found.characters == {"A": 2, "B": 2, " ": 1, "C": 1}
    assert found.speaking_rate == Quartiles(0.5, 0.875, 1.25, 1.625, 2.0)
    assert found.duplicate_audio == [["a.wav", "copy.wav"]]  # silences are no copies of one another
    assert found.duplicate_entries == ["b.wav"]
    assert found.segments is None
