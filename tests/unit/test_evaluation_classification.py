"""Confusion matrices: figures by hand, and by a definition that counts one class at a time."""

from __future__ import annotations

import numpy as np
import pytest

from wav2vec2_conformer.evaluation import ConfusionMatrix


def counted(labels: str, references: str, hypotheses: str) -> ConfusionMatrix:
    matrix = ConfusionMatrix(labels)
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        matrix.add(reference, hypothesis)
    return matrix


def test_by_hand() -> None:
    matrix = counted("abc", "aaabbc", "aabbba")
    assert matrix.counts.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.accuracy == 4 / 6
    a, b, c = matrix.per_class()
    assert (a.references, a.precision, a.recall) == (3, 2 / 3, 2 / 3)
    assert (b.precision, b.recall, b.f1) == (2 / 3, 1.0, 0.8)
    assert (c.precision, c.recall, c.f1) == (None, 0.0, 0.0)
    assert matrix.macro_f1 == pytest.approx((2 / 3 + 0.8 + 0) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_equals_counting_one_class_at_a_time(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = "abcdefgh"
    references, hypotheses = ("".join(generator.choice(list("abcdef"), 40)) for _ in range(2))
    found = {}
    for label in labels:
        right = sum(r == h == label for r, h in zip(references, hypotheses, strict=True))
        precision = right / max(hypotheses.count(label), 1)
        recall = right / max(references.count(label), 1)
        if label in references + hypotheses:
            found[label] = 2 * precision * recall / (precision + recall) if right else 0.0
    matrix = counted(labels, references, hypotheses)
    assert matrix.macro_f1 == pytest.approx(sum(found.values()) / len(found))
    assert {row.label: row.f1 for row in matrix.per_class() if row.f1 is not None} == pytest.approx(found)


def test_classes_that_do_not_occur_do_not_count() -> None:
    assert counted("ab", "aab", "aab").macro_f1 == 1.0
    assert counted("abcde", "aab", "aab").macro_f1 == 1.0
    assert counted("abc", "aab", "aac").macro_f1 == pytest.approx((1 + 0 + 0) / 3)  # given though nothing has it
    assert (ConfusionMatrix("ab").accuracy, ConfusionMatrix("ab").macro_f1) == (0.0, 0.0)


def test_counts_of_processes_add_up() -> None:
    whole = counted("abc", "abcabc", "abccba")
    parts = counted("abc", "abc", "abc").counts + counted("abc", "abc", "cba").counts
    assert ConfusionMatrix("abc", parts).counts.tolist() == whole.counts.tolist()


def test_unknown_and_repeated_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown label 'x'; expected one of 2: 'a', 'b'"):
        ConfusionMatrix("ab").add("x", "a")
    with pytest.raises(ValueError, match="'a' twice"):
        ConfusionMatrix(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"of shape \(2, 2\), got \(3, 3\)"):
        ConfusionMatrix("ab", np.zeros((3, 3), np.int64))
