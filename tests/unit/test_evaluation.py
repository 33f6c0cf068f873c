"""Error rates: those of jiwer over a corpus, counted utterance by utterance."""

from __future__ import annotations

import random

import jiwer
import pytest

from wav2vec2_conformer.evaluation import ErrorRates


def corpus(count: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)

    def words(least: int) -> list[str]:
        return ["".join(draw.choices("abc", k=draw.randint(1, 3))) for _ in range(draw.randint(least, 6))]

    references = [words(1) for _ in range(count)]
    hypotheses = [[w for w in r if draw.random() < 0.7] + words(0)[: draw.randint(0, 2)] for r in references]
    return [" ".join(r) for r in references], [" ".join(h) for h in hypotheses]


def counted(references: list[str], hypotheses: list[str]) -> ErrorRates:
    rates = ErrorRates()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        rates.add(reference, hypothesis)
    return rates


@pytest.mark.parametrize("seed", range(5))
def test_equals_jiwer_over_the_corpus(seed: int) -> None:
    references, hypotheses = corpus(60, seed)
    hypotheses[7] = ""
    rates = counted(references, hypotheses)
    assert rates.wer == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
    assert rates.cer == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)
    assert rates.utterances == 60
    # The rate of the corpus is no mean of rates: long utterances weigh more.
    assert rates.wer != pytest.approx(sum(map(jiwer.wer, references, hypotheses)) / 60, abs=1e-3)


def test_counts_of_processes_add_up() -> None:
    references, hypotheses = corpus(30, 9)
    whole = counted(references, hypotheses)
    shares = [counted(references[rank::3], hypotheses[rank::3]).counts() for rank in range(3)]
    assert ErrorRates.from_counts([sum(column) for column in zip(*shares, strict=True)]) == whole


def test_an_empty_reference_counts_insertions_alone() -> None:
    assert counted([""], [""]).counts() == [1, 0, 0, 0, 0]
    rates = counted(["", "a b"], ["x yz", "a b"])
    assert rates.counts() == [2, 2, 2, 3, 4]
    assert (rates.wer, rates.cer) == (1.0, 4 / 3)


def test_nothing_counted_is_no_error() -> None:
    assert (ErrorRates().wer, ErrorRates().cer) == (0.0, 0.0)


def test_spacing_is_no_error() -> None:
    assert counted(["a  b"], [" a b\n"]).counts() == [1, 2, 0, 3, 0]


def test_small_cases_by_hand() -> None:
    assert counted(["the cat sat"], ["the bat"]).counts() == [1, 3, 2, 11, 5]
    assert counted(["a"], ["a b c"]).wer == 2.0
