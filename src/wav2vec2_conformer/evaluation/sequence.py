"""Evaluation of classifiers of recordings: accuracy, macro-F1, the confusion matrix, the surest mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..classification import AudioClassifier
from ..data import ManifestError
from ..recordings import BATCH_SECONDS
from .classification import ConfusionMatrix, macro_f1
from .run import SHOWN, Evaluation, EvaluationSet, Progress, figures_of

__all__ = ["Mistake", "SequenceDetails", "evaluate_sequence"]


class Mistake(NamedTuple):
    """A recording that was given another class; ordered by how sure the model was."""

    score: float
    file: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class SequenceDetails:
    """What is only said of classifiers: the confusion matrix, and the mistakes of which the model was surest."""

    confusion: ConfusionMatrix
    mistakes: list[Mistake]

    def lines(self, count: int) -> Iterator[str]:
        """What people should see first: so many of the most frequent confusions."""
        often = (f"{said} -> {given} ({times})" for said, given, times in self.confused()[:count])
        if self.mistakes:
            yield f"most frequent confusions: {', '.join(often)}"

    def confused(self) -> list[tuple[str, str, int]]:
        """Pairs of classes of which one was given in place of the other, and how often, the most frequent first."""
        wrong = self.confusion.counts * ~np.eye(len(self.confusion.labels), dtype=bool)
        order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
        labels = self.confusion.labels
        return [
            (labels[r], labels[h], int(wrong[r, h])) for r, h in zip(*np.unravel_index(order, wrong.shape), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """The part that a program may read."""
        return {
            "classes": [asdict(row) for row in self.confusion.per_class()],
            "confusion": {"labels": list(self.confusion.labels), "counts": self.confusion.counts.tolist()},
            "mistakes": [mistake._asdict() for mistake in self.mistakes],
        }


def evaluate_sequence(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    device: str | None = None,
    batch_seconds: float = BATCH_SECONDS,
    compute_type: str = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Classify the recordings of manifests and compare with their labels.

    Args:
        model: a folder or Hub id.
        data: manifests whose lines have `label`, one of the model's.
        device: None: a CUDA device if there is one, else the CPU.
        batch_seconds: audio computed at once.
        compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8".
        progress: called with the seconds of audio done since the last call, and those of the whole set.

    Raises:
        ValueError: a manifest or model that cannot be used, a label that the model does not know, or no recording that
            can be read.
    """
    found = EvaluationSet(data, "label")
    classifier = AudioClassifier.from_pretrained(
        model, device=device, batch_seconds=batch_seconds, compute_type=compute_type
    )
    found.conversion = classifier.conversion
    confusion = ConfusionMatrix(classifier.labels)
    classes = np.zeros((2, len(found)), np.int64)  # the class of each recording, and the one that it was given
    for index, utterance in enumerate(found.utterances):
        try:
            classes[0, index] = confusion.index(str(utterance.label))
        except ValueError as error:
            path = found.data[found.source[index]]
            raise ManifestError(f"{path}: {utterance.name}: {error} (the model's labels)") from None
    mistakes: list[Mistake] = []  # a heap, the least sure one on top
    for index, utterance, result in found.results(classifier.classify_many, progress):
        confusion.add(str(utterance.label), result.label)
        classes[1, index] = confusion.index(result.label)
        if result.label != utterance.label:
            mistake = Mistake(float(result.scores.max()), utterance.name, str(utterance.label), result.label)
            heapq.heappush(mistakes, mistake)
            if len(mistakes) > SHOWN:
                heapq.heappop(mistakes)
    rows = np.flatnonzero(found.judged)
    names = ("accuracy", "macro_f1")
    return found.evaluation(
        task="sequence",
        model=str(model),
        figures=figures_of(
            names,
            (confusion.accuracy, confusion.macro_f1),
            lambda drawn: accuracy_and_f1(classes[:, rows], len(confusion.labels), drawn),
            len(rows),
        ),
        counts={"right": int(np.trace(confusion.counts)), "wrong": confusion.total - int(np.trace(confusion.counts))},
        unit="utterances",
        by_data=found.of_each(
            lambda own: dict(zip(names, accuracy_and_f1(classes[:, own], len(confusion.labels)), strict=True))
        ),
        details=SequenceDetails(confusion, sorted(mistakes, reverse=True)),
    )


def accuracy_and_f1(
    classes: NDArray[np.int64], count: int, drawn: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Accuracy and macro-F1 of recordings (2, U), each counted as often as it was `drawn` (U,), or once."""
    weights = np.ones(classes.shape[1], np.int64) if drawn is None else drawn
    reference, hypothesis = classes
    right = reference == hypothesis
    hits = np.bincount(reference[right], weights[right], count)
    return float(hits.sum() / max(weights.sum(), 1)), macro_f1(
        hits, np.bincount(reference, weights, count), np.bincount(hypothesis, weights, count)
    )
