"""Who speaks when: frames to segments, and windows stitched so that speakers keep their names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import speech
from speech import RATE, Waveform
from wav2vec2_conformer import Diarizer, Wav2Vec2ConformerConfig, diarization
from wav2vec2_conformer.data import Segment, find_segments
from wav2vec2_conformer.diarization import match_speakers, median_filter
from wav2vec2_conformer.lengths import frame_centres, frame_edges

Bools = NDArray[np.bool_]
EDGES = np.arange(21) * 0.1


def bits(*rows: str) -> Bools:
    """Speakers as rows of 0 and 1 -> (T, S)."""
    return np.array([[digit == "1" for digit in row] for row in rows]).T


# --- matching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_matching_is_the_best_of_all_orders(seed: int) -> None:
    generator = np.random.default_rng(seed)
    speakers, frames = int(generator.integers(1, 6)), int(generator.integers(0, 12))
    before, after = generator.random((2, frames, speakers)) < generator.random()

    def goodness(order: Sequence[int]) -> tuple[int, int]:
        return int((before & after[:, list(order)]).sum()), sum(a == b for a, b in enumerate(order))

    order = match_speakers(before, after).tolist()
    assert sorted(order) == list(range(speakers))
    assert goodness(order) == max(map(goodness, permutations(range(speakers))))


def test_permuted_columns_are_put_back() -> None:
    before = bits("1110000000", "0001110001", "0000001110")
    for order in permutations(range(3)):
        after = before[:, list(order)]
        assert (after[:, match_speakers(before, after)] == before).all()


def test_silence_keeps_the_order() -> None:
    silent = np.zeros((10, 4), np.bool_)
    assert match_speakers(silent, silent).tolist() == [0, 1, 2, 3]
    assert match_speakers(silent[:0], silent[:0]).tolist() == [0, 1, 2, 3]
    one = bits("0000", "1111", "0000")  # one speaks, and moves: only who stood in the way gives way
    assert match_speakers(one, bits("1111", "0000", "0000")).tolist() == [1, 0, 2]


# --- frames to segments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 11])
@pytest.mark.parametrize("frames", [0, 1, 2, 5, 40])
def test_median_filter_by_its_definition(width: int, frames: int) -> None:
    activity = np.random.default_rng(frames).random((frames, 3)) < 0.5
    filtered = median_filter(activity, width)
    assert filtered.shape == activity.shape
    for t in range(frames):
        around = np.clip(np.arange(t - width // 2, t + width // 2 + 1), 0, frames - 1)
        assert (filtered[t] == np.median(activity[around], axis=0)).all()


def test_median_takes_out_blips_and_gaps() -> None:
    (filtered,) = median_filter(bits("00001000001111011110000"), 5).T
    assert filtered.tolist() == bits("00000000001111111110000")[:, 0].tolist()


def test_segments_of_hand_made_activity() -> None:
    activity = bits("11100000000000000011", "00000111111000000000", "00000000000000000000")
    found = find_segments(activity, EDGES)
    assert [(round(a, 3), round(b, 3), s) for a, b, s in found] == [(0.0, 0.3, 0), (0.5, 1.1, 1), (1.8, 2.0, 0)]
    assert find_segments(activity[:0], EDGES[:1]) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(0.0, 0.3), (0.5, 0.6), (0.8, 1.1), (1.9, 2.0)]),
        ({"min_speech": 0.2}, [(0.0, 0.3), (0.8, 1.1)]),
        ({"min_silence": 0.3}, [(0.0, 1.1), (1.9, 2.0)]),
        ({"min_silence": 0.2}, [(0.0, 0.3), (0.5, 0.6), (0.8, 1.1), (1.9, 2.0)]),  # gaps of 0.2 are not shorter
        ({"min_silence": 0.3, "min_speech": 0.3}, [(0.0, 1.1)]),
        ({"min_silence": 5.0}, [(0.0, 2.0)]),
        ({"min_speech": 5.0}, []),
    ],
)
def test_least_lengths(settings: dict[str, float], expected: list[tuple[float, float]]) -> None:
    """Gaps are closed before segments are dropped: a short segment beside others counts as part of them."""
    found = find_segments(bits("11100100111000000001"), EDGES, **settings)
    assert [(round(start, 3), round(end, 3)) for start, end, _ in found] == expected


@pytest.mark.parametrize("samples", [0, 399, 400, 719, 720, 5000])
def test_a_sample_belongs_to_the_frame_whose_centre_is_nearest(samples: int) -> None:
    config = Wav2Vec2ConformerConfig()
    frames = max(0, (samples - 400) // 320 + 1)
    edges = frame_edges(frames, samples, config)
    assert len(edges) == frames + 1
    if frames:
        assert (edges[0], edges[-1]) == (0, samples)
        positions = np.arange(samples)
        nearest = np.abs(positions[:, None] - frame_centres(np.arange(frames), config)).argmin(1)
        assert (np.searchsorted(edges, positions, side="right") - 1 == nearest).all()


# --- whole recordings ----------------------------------------------------------------------------------------------
# An oracle in the network's place: a speaker is a tone, and it hears without fail who speaks in a frame. As a network
# does, it gives each window's speakers to its outputs in an order of its own.

VOICES = list(speech.TONES.values())


class Oracle(nn.Module):
    FRAME = 320

    dtype = torch.float32

    def __init__(self, speakers: int = 2, labels: dict[int, str] | None = None, **fields: Any) -> None:
        super().__init__()
        one_layer = {"conv_dim": [8], "conv_kernel": [self.FRAME], "conv_stride": [self.FRAME]}
        named = {"num_labels": speakers} if labels is None else {"id2label": labels}
        fields = {"problem_type": "multi_label_classification"} | fields
        self.config = Wav2Vec2ConformerConfig(**speech.TINY | one_layer | named | fields)
        self.speakers = speakers
        self.generator = np.random.default_rng(0)
        phases = torch.tensor(VOICES[:speakers])[:, None] * torch.arange(self.FRAME) / RATE * 2 * torch.pi
        self.waves = torch.exp(1j * phases)  # (speakers, FRAME)

    def forward(self, values: Tensor, mask: Tensor) -> SimpleNamespace:
        frames = values[:, : values.shape[1] // self.FRAME * self.FRAME].unflatten(1, (-1, self.FRAME))
        speaks = (frames.to(self.waves.dtype) @ self.waves.T).abs() > 0.2 * self.FRAME / 2  # (B, T, S)
        orders = [self.generator.permutation(self.speakers) for _ in speaks]
        speaks = torch.stack([row[:, torch.from_numpy(order)] for row, order in zip(speaks, orders, strict=True)])
        if self.config.problem_type == "multi_label_classification":
            return SimpleNamespace(logits=torch.where(speaks, 9.0, -9.0))
        silent = ~speaks.any(-1, keepdim=True)
        return SimpleNamespace(logits=torch.cat((silent, speaks), -1) * 9.0)


def talk(turns: Sequence[tuple[float, float, int]], seconds: float) -> Waveform:
    """Tones of 0.4 for (start, end, speaker)."""
    time = np.arange(round(seconds * RATE)) / RATE
    waveform = np.zeros(len(time))
    for start, end, speaker in turns:
        inside = (time >= start) & (time < end)
        waveform[inside] += 0.4 * np.sin(2 * np.pi * VOICES[speaker] * time[inside])
    return waveform.astype(np.float32)


def conversation(seconds: float, speakers: int, seed: int) -> list[tuple[float, float, int]]:
    """Turns of 1 to 3 s in a random order, some begun before the last has ended, on multiples of a frame."""
    generator = np.random.default_rng(seed)
    turns, now, last = [], 0.4, -1
    while now < seconds - 4:
        speaker = (last + 1) % speakers if len(turns) < speakers else int(generator.integers(speakers))
        if speaker == last:
            continue
        length = round(float(generator.uniform(1, 3)) / 0.02) * 0.02
        turns.append((round(now, 2), round(now + length, 2), speaker))
        now = round((now + length + float(generator.uniform(-0.4, 0.6))) / 0.02) * 0.02
        last = speaker
    return turns


def spans(segments: Sequence[Segment]) -> list[tuple[float, float, str]]:
    """Rounded to the frames' 0.02 s: an edge lies half a sample beside its frame."""
    return [(round(s.start, 2), round(s.end, 2), s.speaker) for s in segments]


def expected(turns: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, str]]:
    """Numbered as they come to speak."""
    numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(s for _, _, s in turns), start=1)}
    return [(start, end, f"speaker_{numbers[speaker]}") for start, end, speaker in turns]


@pytest.mark.parametrize("speakers", [2, 3])
@pytest.mark.parametrize("batch_seconds", [1.0, 100.0])
def test_speakers_keep_their_names_over_windows(
    speakers: int, batch_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diarization, "WINDOW", 20.0)
    monkeypatch.setattr(diarization, "OVERLAP", 12.0)
    turns = conversation(120, speakers, seed=speakers)
    diarizer = Diarizer(Oracle(speakers), normalize=False, batch_seconds=batch_seconds)  # type: ignore[arg-type]
    assert spans(diarizer.diarize(talk(turns, 120), sample_rate=RATE)) == expected(turns)


def test_windows_as_they_are_shipped() -> None:
    turns = conversation(200, 2, seed=9)
    diarizer = Diarizer(Oracle(), normalize=False)  # type: ignore[arg-type]
    assert spans(diarizer.diarize(talk(turns, 200), sample_rate=RATE)) == expected(turns)


def test_the_oracle_is_no_walkover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows whose outputs are taken as they come give wrong names: the tests above can fail."""
    monkeypatch.setattr(diarization, "match_speakers", lambda before, after: np.arange(before.shape[1]))
    turns = conversation(200, 2, seed=9)
    diarizer = Diarizer(Oracle(), normalize=False)  # type: ignore[arg-type]
    assert spans(diarizer.diarize(talk(turns, 200), sample_rate=RATE)) != expected(turns)


def test_one_class_a_frame() -> None:
    """Silence is nobody, and named classes keep their names."""
    labels = {0: "Non-speech", 1: "anna", 2: "bert"}
    oracle = Oracle(2, labels, problem_type="single_label_classification")
    turns = [(1.0, 3.0, 0), (4.0, 6.0, 1), (7.0, 8.0, 0)]
    diarizer = Diarizer(oracle, normalize=False)  # type: ignore[arg-type]
    segments = diarizer.diarize(talk(turns, 10), sample_rate=RATE)
    assert [span[:2] for span in spans(segments)] == [turn[:2] for turn in turns]
    first, second, third = (segment.speaker for segment in segments)
    assert first == third
    assert {first, second} == {"anna", "bert"}


def test_a_model_in_which_somebody_always_speaks_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    Diarizer(Oracle(2, problem_type=None), normalize=False)  # type: ignore[arg-type]
    assert "somebody speaks in every frame" in caplog.text


def test_the_median_filter_and_the_least_lengths_are_used() -> None:
    waveform = talk([(1.0, 1.06, 0), (3.0, 5.0, 0), (5.06, 7.0, 0), (8.0, 8.4, 0)], 10)

    def found(**settings: Any) -> list[tuple[float, float, str]]:
        diarizer = Diarizer(Oracle(), normalize=False, **settings)  # type: ignore[arg-type]
        return spans(diarizer.diarize(waveform, sample_rate=RATE))

    name = "speaker_1"
    blip, speech_, tail = (1.0, 1.06, name), [(3.0, 5.0, name), (5.06, 7.0, name)], (8.0, 8.4, name)
    assert found(median=1) == [blip, *speech_, tail]
    assert found() == [(3.0, 7.0, name), tail]
    assert found(median=1, min_speech=0.1) == [*speech_, tail]
    assert found(median=1, min_silence=0.1) == [blip, (3.0, 7.0, name), tail]
    assert found(min_speech=0.5) == [(3.0, 7.0, name)]


@pytest.mark.parametrize("samples", [0, 1, 319])
def test_recordings_without_a_frame_have_no_segments(samples: int) -> None:
    diarizer = Diarizer(Oracle(), normalize=True)  # type: ignore[arg-type]
    assert diarizer.diarize(np.zeros(samples, np.float32), sample_rate=RATE) == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("threshold", 1.0, "`threshold` must be a probability between 0 and 1, got 1.0"),
        ("threshold", float("nan"), "`threshold` must be"),
        ("median", 4, "`median` must be an odd number of frames, got 4"),
        ("median", -1, "`median` must be an odd number"),
        ("min_speech", -0.1, "`min_speech` must be a number of seconds from 0 up, got -0.1"),
        ("min_silence", float("inf"), "`min_silence` must be"),
    ],
)
def test_settings_outside_their_ranges(setting: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diarizer(Oracle(), normalize=True, **{setting: value})  # type: ignore[arg-type]
