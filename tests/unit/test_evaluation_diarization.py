"""DER: hand-computed cases, and a definition that samples frames and tries every mapping of speakers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wav2vec2_conformer.data import Segment
from wav2vec2_conformer.evaluation import DiarizationErrors
from wav2vec2_conformer.evaluation.diarization import speaker_mapping

FRAMES = 40  # of a second each; segments of whole seconds make frames exact


def segments(*triples: tuple[float, float, str]) -> list[Segment]:
    return [Segment(*triple) for triple in triples]


def by_frames(reference: list[Segment], hypothesis: list[Segment], collar: int) -> tuple[float, float, float, float]:
    """Speech, missed, false alarm and confusion."""

    def active(side: list[Segment]) -> dict[str, set[int]]:
        said: dict[str, set[int]] = {}
        for s in side:
            said.setdefault(s.speaker, set()).update(range(int(s.start), int(s.end)))
        return said

    speaks, heard = active(reference), active(hypothesis)
    scored = set(range(FRAMES))
    for said in speaks.values():
        for frame in range(FRAMES + 1):
            if (frame in said) != (frame - 1 in said):  # a boundary at second `frame`
                scored -= set(range(frame - collar, frame + collar))
    names = [*heard, *(f"nobody {i}" for i in range(len(speaks)))]
    best = max(
        sum(len(said & heard.get(name, set()) & scored) for said, name in zip(speaks.values(), chosen, strict=True))
        for chosen in permutations(names, len(speaks))
    )
    speech = missed = false_alarm = both = 0
    for frame in scored:
        expected, found = (sum(frame in said for said in side.values()) for side in (speaks, heard))
        speech += expected
        missed += max(0, expected - found)
        false_alarm += max(0, found - expected)
        both += min(expected, found)
    return speech, missed, false_alarm, both - best


def conversation(names: str) -> st.SearchStrategy[list[Segment]]:
    one = st.tuples(st.integers(0, FRAMES - 9), st.integers(1, 8), st.sampled_from(names))
    return st.lists(one.map(lambda t: Segment(t[0], t[0] + t[1], t[2])), max_size=9)


@settings(max_examples=150, deadline=None)
@given(conversation("ABC"), conversation("wxyz"), st.integers(0, 2))
def test_equals_sampled_frames_with_every_mapping(
    reference: list[Segment], hypothesis: list[Segment], collar: int
) -> None:
    found = DiarizationErrors.of(reference, hypothesis, collar=collar)
    assert found.counts() == pytest.approx([1, *by_frames(reference, hypothesis, collar)], abs=1e-9)


A, B = (0.0, 4.0, "A"), (4.0, 10.0, "B")


@pytest.mark.parametrize(
    ("hypothesis", "missed", "false_alarm", "confusion"),
    [
        ([A, B], 0, 0, 0),
        ([(0, 4, "B"), (4, 10, "A")], 0, 0, 0),  # names do not matter
        ([(0, 4, "1"), (4, 10, "2")], 0, 0, 0),
        ([], 10, 0, 0),
        ([(0, 10, "1")], 0, 0, 4),  # the only speaker is B
        ([A, (4, 10, "B"), (2, 5, "C")], 0, 3, 0),
        ([(0, 3, "A"), (4, 12, "B")], 1, 2, 0),
        ([(0, 1, "A"), (1, 4, "A"), (4, 8, "B"), (6, 10, "B")], 0, 0, 0),  # how a speaker is cut does not matter
    ],
)
def test_by_hand(
    hypothesis: list[tuple[float, float, str]], missed: float, false_alarm: float, confusion: float
) -> None:
    found = DiarizationErrors.of(segments(A, B), segments(*hypothesis))
    assert found.counts() == [1, 10, missed, false_alarm, confusion]
    assert found.der == (missed + false_alarm + confusion) / 10


def test_overlap_counts_for_each_speaker() -> None:
    reference = segments((0, 6, "A"), (4, 10, "B"))
    assert DiarizationErrors.of(reference, reference).counts() == [1, 12, 0, 0, 0]
    alone = DiarizationErrors.of(reference, segments((0, 5, "1"), (5, 10, "2")))
    assert alone.counts() == [1, 12, 2, 0, 0]


def test_a_collar_forgives_boundaries_of_the_reference_only() -> None:
    reference = segments((1, 5, "A"))
    near = segments((0.75, 5.25, "1"))
    assert DiarizationErrors.of(reference, near).der == 0.5 / 4
    assert DiarizationErrors.of(reference, near, collar=0.25).counts() == [1, 3.5, 0, 0, 0]
    assert DiarizationErrors.of(reference, segments((1, 3, "1")), collar=0.25).counts() == [1, 3.5, 1.75, 0, 0]
    with pytest.raises(ValueError, match="from 0 up, got -1"):
        DiarizationErrors.of(reference, near, collar=-1)


def test_recordings_add_up_and_speakers_are_mapped_in_each() -> None:
    total = DiarizationErrors()
    first = total.add(segments(A, B), segments((0, 4, "1"), (4, 10, "2")))
    second = total.add(segments(A, B), segments((0, 4, "2"), (4, 9, "1")))
    assert (first.der, second.der, total.der) == (0, 0.1, 1 / 20)
    assert total.counts() == [a + b for a, b in zip(first.counts(), second.counts(), strict=True)]
    assert DiarizationErrors.from_counts(total.counts()) == total


def test_without_speech() -> None:
    assert DiarizationErrors.of([], []) == DiarizationErrors(recordings=1)
    assert DiarizationErrors.of([], []).der == 0
    assert DiarizationErrors.of([], segments(A)).counts() == [1, 0, 0, 4, 0]
    assert DiarizationErrors.of([], segments(A)).der == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_mapping_is_the_best_of_all(seed: int) -> None:
    together = np.random.default_rng(seed).integers(0, 9, (4, 5)).astype(np.float64)
    best = max(sum(together[row, column] for row, column in enumerate(p)) for p in permutations(range(5), 4))
    mapping = speaker_mapping(together)
    assert len(set(mapping.values())) == len(mapping)
    assert sum(together[row, column] for row, column in mapping.items()) == best
