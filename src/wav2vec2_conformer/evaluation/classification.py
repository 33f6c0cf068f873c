"""Accuracy, macro-F1, precision and recall from a confusion matrix, counted clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassFigures", "ConfusionMatrix", "macro_f1"]

# C classes

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class: how many references have it, and how well it is found; None where nothing was to be found."""

    label: str
    references: int
    precision: float | None
    recall: float | None
    f1: float | None


class ConfusionMatrix:
    """Counts (C, C) of references (rows) and hypotheses (columns); counts of several processes add up.

    Args:
        labels: of the classes, in the order of the rows and columns.
        counts: to begin with; zeros by default.

    Raises:
        ValueError: labels that are not distinct, or counts of another shape.
    """

    def __init__(self, labels: Sequence[str], counts: Counts | None = None) -> None:
        self.labels = tuple(labels)
        self._index = {label: index for index, label in enumerate(self.labels)}
        size = len(self.labels)
        if len(self._index) < size:
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"labels must be distinct, got {twice!r} twice")
        self.counts: Counts = np.zeros((size, size), np.int64) if counts is None else np.array(counts, np.int64)
        if self.counts.shape != (size, size):
            raise ValueError(f"counts of {size} labels must be of shape {(size, size)}, got {self.counts.shape}")

    def add(self, reference: str, hypothesis: str) -> None:
        """Count one clip: its class and the one it was given.

        Raises:
            ValueError: one of them is no label of the matrix.
        """
        self.counts[self.index(reference), self.index(hypothesis)] += 1

    def index(self, label: str) -> int:
        """The row and column of a label.

        Raises:
            ValueError: there is no such label.
        """
        if label not in self._index:
            shown = ", ".join(map(repr, self.labels[:10])) + (", ..." if len(self.labels) > 10 else "")
            raise ValueError(f"unknown label {label!r}; expected one of {len(self.labels)}: {shown}")
        return self._index[label]

    @property
    def total(self) -> int:
        """Clips counted."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of the clips that were given their class."""
        return int(np.trace(self.counts)) / max(self.total, 1)

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1; classes that occur in neither references nor hypotheses are left out."""
        return macro_f1(np.diagonal(self.counts), self.counts.sum(1), self.counts.sum(0))

    def per_class(self) -> list[ClassFigures]:
        """Precision, recall and F1 of every class, in the order of the labels."""
        hits, references, hypotheses = np.diagonal(self.counts), self.counts.sum(1), self.counts.sum(0)
        return [
            ClassFigures(
                label, int(expected), share(hit, given), share(hit, expected), share(2 * hit, given + expected)
            )
            for label, hit, expected, given in zip(self.labels, hits, references, hypotheses, strict=True)
        ]


def macro_f1(hits: Counts, references: Counts, hypotheses: Counts) -> float:
    """Mean of the classes' F1; classes without reference and hypothesis are left out (0 if all are).

    F1 is 2 hits / (references + hypotheses), the harmonic mean of precision and recall, defined where either is.

    Args:
        hits: (C,) clips of the class that were given it.
        references: (C,) clips of the class.
        hypotheses: (C,) clips that were given it.
    """
    occurrences = references + hypotheses
    present = occurrences > 0
    return float(np.mean(2 * hits[present] / occurrences[present])) if present.any() else 0.0


def share(part: np.int64, whole: np.int64) -> float | None:
    """A ratio, None of nothing."""
    return float(part / whole) if whole else None
