"""Speakers told apart by their voices, over a whole recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray
from test_diarization import VOICES, Oracle, bits, conversation, expected, spans, talk

from speech import RATE, Waveform
from tiny_heads import diarizer as save_diarizer
from tiny_heads import speaker_encoder
from wav2vec2_conformer import Diarizer, diarization
from wav2vec2_conformer.audio import AudioError
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.voices import Part, Voices, group_voices


class ToneEncoder:
    """In a speaker model's place: how loud each tone is."""

    def __init__(self, least: int = 0) -> None:
        self.least = least
        self.heard: list[float] = []

    def embed_many(self, clips: Iterable[Waveform]) -> Iterator[NDArray[np.float32] | AudioError]:
        for clip in clips:
            self.heard.append(len(clip) / RATE)
            if len(clip) < self.least:
                yield AudioError("waveform", "is too short")
                continue
            waves = np.exp(2j * np.pi * np.array(VOICES)[:, None] * np.arange(len(clip)) / RATE)
            loud = np.abs(waves @ clip) / len(clip) + 1e-3
            yield (loud / np.linalg.norm(loud)).astype(np.float32)


def slow_conversation(seconds: float, speakers: int, seed: int) -> list[tuple[float, float, int]]:
    """Turns of 2 to 6 s: a voice needs more than a second alone."""
    return [(2 * start, 2 * end, speaker) for start, end, speaker in conversation(seconds / 2, speakers, seed)]


def diarizer(speakers: int, outputs: int | None = None, **settings: Any) -> Diarizer:
    voices = Voices(ToneEncoder(), speakers)  # type: ignore[arg-type]
    return Diarizer(Oracle(outputs or speakers), normalize=False, voices=voices, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("speakers", [1, 2, 3])
@pytest.mark.parametrize("batch_seconds", [1.0, 100.0])
def test_speakers_keep_their_names_over_windows(speakers: int, batch_seconds: float) -> None:
    turns = slow_conversation(150, speakers, seed=speakers) if speakers > 1 else [(1.0, 20.0, 0), (70.0, 149.0, 0)]
    found = diarizer(speakers, batch_seconds=batch_seconds).diarize(talk(turns, 150), sample_rate=RATE)
    assert spans(found) == expected(turns)


def test_who_was_silent_for_long_comes_back_under_the_same_name() -> None:
    turns = [(1.0, 5.0, 0), (6.0, 10.0, 1), (11.0, 90.0, 0), (91.0, 95.0, 1), (96.0, 99.0, 0)]
    assert spans(diarizer(2).diarize(talk(turns, 100), sample_rate=RATE)) == expected(turns)


def test_the_order_of_the_outputs_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only how many speak is taken from the network: matching windows is never asked for."""
    monkeypatch.setattr(diarization, "match_speakers", None)
    turns = slow_conversation(100, 2, seed=5)
    assert spans(diarizer(2).diarize(talk(turns, 100), sample_rate=RATE)) == expected(turns)


def test_more_speakers_than_outputs() -> None:
    """Three people, of whom never more than two speak at once."""
    turns = [(1.0, 4.0, 0), (5.0, 8.0, 1), (7.0, 12.0, 2), (13.0, 16.0, 0), (40.0, 44.0, 2), (45.0, 48.0, 1)]
    waveform = talk(turns, 50)

    class Two(Oracle):
        """As many of its two outputs as people speak."""

        def forward(self, values: Any, mask: Any) -> Any:
            out = super().forward(values, mask)
            out.logits = out.logits.sort(-1, descending=True).values[..., :2]
            return out

    network = Two(3)
    network.config.num_labels = 2
    three = Diarizer(network, normalize=False, voices=Voices(ToneEncoder(), 3))  # type: ignore[arg-type]
    assert spans(three.diarize(waveform, sample_rate=RATE)) == expected(turns)


def test_a_part_hears_two_seconds_around_it() -> None:
    encoder = ToneEncoder()
    voices = Voices(encoder, 2)  # type: ignore[arg-type]
    activity = bits("0" * 10 + "1" * 15 + "0" * 75, "0" * 15 + "1" * 85)  # frames of 0.1 s
    edges = np.arange(101) * RATE / 10
    parts = voices.parts(np.ones(10 * RATE, np.float32), edges, activity, slice(0, 90), begin=1000)
    assert [(part.first, part.last) for part in parts[:2]] == [(1010, 1015), (1025, 1034)]
    assert parts[-1].last == 1090
    assert len({part.stretch for part in parts}) == 2
    assert set(encoder.heard) == {2.0}


def test_what_is_too_short_for_the_encoder_is_the_neighbours() -> None:
    encoder = ToneEncoder(least=RATE)
    activity = bits("1100011", "0000011")
    voices = Voices(encoder, 2)  # type: ignore[arg-type]
    parts = voices.parts(np.ones(7 * 1600, np.float32), np.arange(8) * 1600.0, activity, slice(0, 7), begin=0)
    assert parts == []
    counts = activity.sum(1)
    assert voices.activity(parts, counts).tolist() == [[True]] * 2 + [[False]] * 3 + [[True]] * 2


def test_those_nearest_in_time_speak_together() -> None:
    axes = np.eye(3, dtype=np.float32)
    parts = [Part(0, 3, 0, axes[0]), Part(5, 8, 5, axes[1]), Part(9, 12, 9, axes[2])]
    counts = np.array([1, 1, 1, 2, 2, 1, 1, 1, 3, 1, 1, 1])
    active = Voices(ToneEncoder(), 3).activity(parts, counts)  # type: ignore[arg-type]
    columns = [int(active[first].argmax()) for first in (0, 5, 9)]
    assert sorted(columns) == [0, 1, 2]
    ordered = active[:, columns].astype(int)
    assert ordered.sum(1).tolist() == counts.tolist()
    assert ordered[3:5].tolist() == [[1, 1, 0]] * 2


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_best_of_all(seed: int) -> None:
    """Of few vectors every grouping can be tried."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = generator.uniform(0.2, 2, 7)

    def agreement(numbers: NDArray[np.int64]) -> float:
        return float(sum(np.linalg.norm((vectors * weights[:, None])[numbers == group].sum(0)) for group in (0, 1)))

    every = [np.array([(mask >> place) & 1 for place in range(7)]) for mask in range(1, 127)]
    assert agreement(group_voices(vectors, weights, 2)) == pytest.approx(max(map(agreement, every)), rel=1e-9)


def test_fewer_vectors_than_groups() -> None:
    assert group_voices(np.eye(2), np.ones(2), 3).tolist() == [0, 1]
    assert group_voices(np.zeros((0, 4)), np.zeros(0), 2).tolist() == []


def test_columns_may_come_in_any_order() -> None:
    for order in permutations(range(3)):
        parts = [Part(3 * i, 3 * i + 3, 3 * i, np.eye(3, dtype=np.float32)[k]) for i, k in enumerate(order)]
        active = Voices(ToneEncoder(), 3).activity(parts, np.ones(9, np.int64))  # type: ignore[arg-type]
        assert (active.sum(1) == 1).all()
        assert len({tuple(column) for column in active.T.tolist()}) == 3


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "talk.wav", talk(conversation(40, 2, seed=1), 40), RATE)
    models = ["--model", save_diarizer(tmp_path / "frames"), "--speaker-model", speaker_encoder(tmp_path / "speakers")]
    assert (
        main(["diarize", *map(str, models), "--speakers", "2", "--threshold", "0.01", str(tmp_path / "talk.wav")]) == 0
    )
    names = {line.split()[7] for line in capsys.readouterr().out.splitlines()}
    assert names
    assert names <= {"speaker_1", "speaker_2"}


def test_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`speakers` must be 1 or more"):
        Voices(ToneEncoder(), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong together"):
        Diarizer.from_pretrained("anything", speakers=2)
    assert main(["diarize", "--model", str(tmp_path), "--speaker-model", str(tmp_path), "talk.wav"]) == 2
    assert "--speakers" in capsys.readouterr().err
