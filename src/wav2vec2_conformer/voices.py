"""Who speaks, where another network has said how many do: by what voices are like, over a recording of any length.

Where one person speaks, a vector is made of every second; the vectors of the whole recording are grouped, one group a
speaker. Where several speak at once, they are those who are heard alone nearest in time (Otterson and Ostendorf 2007,
"Efficient use of overlap information in speaker diarization").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .audio import SAMPLE_RATE
from .data.runs import runs_of
from .verification import SpeakerEncoder

# T frames, C outputs of the network, P parts, X width of a vector, S speakers

__all__ = ["Part", "Voices", "group_voices"]

PART = 1.0  # seconds that get one vector
HEARD = 2.0  # seconds around the middle of a part that its vector is made of
STRETCH = 0.5  # weight of the stretch's mean in a part's vector: nobody else comes in unnoticed within a stretch
STARTS = 24  # random ones, of which the best grouping is kept
ROUNDS = 50

Activity = NDArray[np.bool_]
Counts = NDArray[np.int64]
Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """About a second in which one person speaks: its frames, where its unbroken stretch begins, and its vector (X,)."""

    first: int
    last: int  # the one after
    stretch: int
    vector: NDArray[np.float32]


class Voices:
    """Tells speakers apart by their voices.

    Args:
        encoder: a speaker model.
        speakers: how many people speak in a recording.

    Raises:
        ValueError: there is not even one speaker.
    """

    def __init__(self, encoder: SpeakerEncoder, speakers: int) -> None:
        if speakers < 1:
            raise ValueError(f"`speakers` must be 1 or more, how many people speak in a recording; got {speakers}")
        self.encoder, self.speakers = encoder, speakers

    def parts(
        self, samples: NDArray[np.float32], edges: NDArray[np.float64], activity: Activity, own: slice, begin: int
    ) -> list[Part]:
        """The parts of a window in which one person speaks, as far as one output of the network stands for it.

        Args:
            samples: (N,) the window's, at 16 kHz.
            edges: (T + 1,) the samples between which its T frames lie.
            activity: (T, C) which outputs of the network speak.
            own: its frames to cut parts from; what lies around them is heard all the same.
            begin: the window's first frame in the recording.
        """
        alone = activity[own] & (activity[own].sum(1, keepdims=True) == 1)
        found: list[tuple[int, int, int]] = []
        for first, last in sorted(stretch for output in alone.T for stretch in np.stack(runs_of(output), 1).tolist()):
            cuts = int(np.ceil((edges[own.start + last] - edges[own.start + first]) / (PART * SAMPLE_RATE)))
            bounds = np.linspace(own.start + first, own.start + last, max(1, cuts) + 1).round().astype(int)
            found += [(a, b, own.start + first) for a, b in pairwise(bounds.tolist()) if a < b]
        clips = []
        for first, last, _ in found:
            middle, half = (edges[first] + edges[last]) / 2, max(HEARD * SAMPLE_RATE, edges[last] - edges[first]) / 2
            low = round(min(max(0.0, middle - half), max(0.0, len(samples) - 2 * half)))
            clips.append(samples[low : low + round(2 * half)])
        vectors = self.encoder.embed_many(clips)
        return [
            Part(begin + first, begin + last, begin + stretch, vector)
            for (first, last, stretch), vector in zip(found, vectors, strict=True)
            if isinstance(vector, np.ndarray)  # and not an error: too short to be heard
        ]

    def activity(self, parts: Sequence[Part], counts: Counts) -> Activity:
        """(T, S): who speaks in the T frames of a recording, as many in each as `counts` says, and at most S."""
        speakers = self.speakers if parts else 1  # nobody is heard well enough to be somebody else
        alone = np.full(len(counts), -1)  # the speaker of a frame
        for part, speaker in zip(parts, self._speakers(parts), strict=True):
            alone[part.first : part.last] = speaker
        distances = np.stack([distance_to(alone == speaker) for speaker in range(speakers)], axis=1)  # (T, S)
        ranks = distances.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        active: Activity = ranks < counts[:, None]
        return active

    def _speakers(self, parts: Sequence[Part]) -> NDArray[np.int64]:
        if not parts:
            return np.zeros(0, np.int64)
        vectors = np.stack([part.vector for part in parts]).astype(np.float64)
        weights = np.array([part.last - part.first for part in parts], np.float64)
        numbers = np.unique([part.stretch for part in parts], return_inverse=True)[1]
        means = np.zeros((numbers.max() + 1, vectors.shape[1]))
        np.add.at(means, numbers, vectors * weights[:, None])
        smooth = (1 - STRETCH) * vectors + STRETCH * unit_rows(means)[numbers]
        return group_voices(unit_rows(smooth), weights, self.speakers)


def group_voices(vectors: Vectors, weights: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """(P,) the number of each vector's group: spherical k-means (Dhillon and Modha 2001), the best of several starts.

    Args:
        vectors: (P, X) of unit length.
        weights: (P,) above 0, how much each counts.
        groups: how many; where there are fewer vectors, each is one.
    """
    if len(vectors) <= groups:
        return np.arange(len(vectors))
    generator = np.random.default_rng(0)  # the same groups every time
    best, found = -np.inf, np.zeros(len(vectors), np.int64)
    for _ in range(STARTS):
        centres = vectors[generator.choice(len(vectors), groups, replace=False, p=weights / weights.sum())]
        numbers = np.full(len(vectors), -1)
        for _ in range(ROUNDS):
            nearest = (vectors @ centres.T).argmax(1)
            if (nearest == numbers).all():
                break
            numbers = nearest
            for group in range(groups):
                own = numbers == group
                if own.any():  # else its centre stays
                    centres[group] = unit_rows((vectors[own] * weights[own, None]).sum(0, keepdims=True))[0]
        agreement = float(weights @ (vectors @ centres.T).max(1))
        if agreement > best:
            best, found = agreement, numbers
    return found


def distance_to(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(T,) frames to the nearest True, infinite where there is none."""
    frames = np.arange(len(chosen), dtype=np.float64)
    before = np.maximum.accumulate(np.where(chosen, frames, -np.inf))
    after = np.minimum.accumulate(np.where(chosen, frames, np.inf)[::-1])[::-1]
    return np.minimum(frames - before, after - frames)


def unit_rows(rows: Vectors) -> Vectors:
    """(P, X) rows of length 1; zero rows stay."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return scaled
