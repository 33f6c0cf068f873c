"""Diarization error rate (NIST RT-09): missed, false and confused speaker time, counted recording by recording.

Computed from the segments' boundaries, between which nothing changes, so exactly; not by sampled frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import networkx
import numpy as np
from numpy.typing import NDArray

from ..data import Segment

__all__ = ["DiarizationErrors", "speaker_mapping"]

# R speakers of the reference, H of the hypothesis, E stretches of time between neighbouring boundaries

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass
class DiarizationErrors:
    """Seconds of speakers' time over all recordings added so far; those of several processes add up.

    Where several speak at once, each one's time counts (overlap is scored): a stretch in which two speak and one of
    them is found has one part right and one part missed.

    Args:
        speech: time of the reference's speakers.
        missed: of it, where fewer speak in the hypothesis.
        false_alarm: where more speak in the hypothesis.
        confusion: where another speaks in the hypothesis than the reference's speaker is mapped to.
    """

    recordings: int = 0
    speech: float = 0.0
    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    @classmethod
    def of(cls, reference: Iterable[Segment], hypothesis: Iterable[Segment], *, collar: float = 0.0) -> Self:
        """Compare one recording's segments; speakers are mapped one to one, so that the confusion is least.

        Segments of one speaker that touch or overlap are one.

        Args:
            reference: who speaks when.
            hypothesis: what was found; its speakers' names need not be the reference's.
            collar: seconds on each side of where a speaker of the reference starts or stops that are not scored.

        Raises:
            ValueError: a collar that is no number from 0 up.
        """
        if not 0 <= collar < np.inf:
            raise ValueError(f"`collar` must be a number of seconds from 0 up, got {collar}")
        expected, found = timelines(reference), timelines(hypothesis)
        starts_and_stops = np.concatenate([np.zeros(0), *(spans.ravel() for spans in expected.values())])
        unscored = np.stack([starts_and_stops - collar, starts_and_stops + collar], axis=1)  # (2 spans, 2)
        edges = np.unique(
            np.concatenate([unscored.ravel(), *(s.ravel() for s in (*expected.values(), *found.values()))])
        )
        if len(edges) < 2:
            return cls(recordings=1)
        seconds = np.diff(edges)  # (E,)
        if collar > 0:
            seconds = seconds * ~activity([unscored], edges)[0]
        speaks, heard = activity(expected.values(), edges), activity(found.values(), edges)  # (R, E), (H, E)
        speaking, hearing = speaks.sum(0), heard.sum(0)  # (E,)
        together = np.asarray(speaks * seconds @ heard.T, np.float64)  # (R, H)
        right = sum(together[row, column] for row, column in speaker_mapping(together).items())
        return cls(
            recordings=1,
            speech=float(seconds @ speaking),
            missed=float(seconds @ np.maximum(speaking - hearing, 0)),
            false_alarm=float(seconds @ np.maximum(hearing - speaking, 0)),
            # a difference of sums: rounding must not make a negative time of nothing
            confusion=max(0.0, float(seconds @ np.minimum(speaking, hearing)) - float(right)),
        )

    def add(self, reference: Iterable[Segment], hypothesis: Iterable[Segment], *, collar: float = 0.0) -> Self:
        """Count one recording, as `of` does, and return its own times."""
        one = self.of(reference, hypothesis, collar=collar)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(one, field.name))
        return one

    @property
    def der(self) -> float:
        """Missed, false and confused time over the reference's; above 1 where there is much false alarm."""
        wrong = self.missed + self.false_alarm + self.confusion
        return wrong / self.speech if self.speech > 0 else float(wrong > 0)

    def counts(self) -> list[float]:
        """The numbers in the order of the fields, to be summed over processes."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_counts(cls, counts: list[float]) -> Self:
        """The inverse of `counts`."""
        return cls(int(counts[0]), *counts[1:])


def speaker_mapping(together: Floats) -> dict[int, int]:
    """Pair rows (R) with columns (H), one to one, so that the sum of their seconds together (R, H) is largest."""
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        (("reference", int(row)), ("hypothesis", int(column)), float(together[row, column]))
        for row, column in zip(*np.nonzero(together), strict=True)
    )
    pairs = (dict(pair) for pair in networkx.max_weight_matching(graph))
    return {pair["reference"]: pair["hypothesis"] for pair in pairs}


def timelines(segments: Iterable[Segment]) -> dict[str, Floats]:
    """Speaker -> (S, 2) starts and ends of what they say, in order and apart."""
    spans: dict[str, list[list[float]]] = {}
    for segment in sorted(segments):
        said = spans.setdefault(segment.speaker, [])
        if said and segment.start <= said[-1][1]:
            said[-1][1] = max(said[-1][1], segment.end)
        else:
            said.append([segment.start, segment.end])
    return {speaker: np.array(said) for speaker, said in spans.items()}


def activity(timelines: Iterable[Floats], edges: Floats) -> Bools:
    """Which of the timelines (rows) are active between which neighbouring edges, which hold all their boundaries."""
    rows = []
    for spans in timelines:
        change = np.zeros(len(edges), np.int64)
        np.add.at(change, np.searchsorted(edges, spans[:, 0]), 1)
        np.add.at(change, np.searchsorted(edges, spans[:, 1]), -1)
        rows.append(change.cumsum()[:-1] > 0)
    return np.stack(rows) if rows else np.zeros((0, len(edges) - 1), np.bool_)
