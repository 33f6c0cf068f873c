"""Error rates: those of jiwer over a corpus, counted utterance by utterance. Intervals: of known distributions."""

from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest

from wav2vec2_conformer.evaluation import AlignedWord, ErrorRates, align_words, bootstrap_intervals, ratio_of_sums


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
    peer = jiwer.process_words(references, hypotheses)
    assert (rates.substitutions, rates.deletions, rates.insertions) == (
        peer.substitutions,
        peer.deletions,
        peer.insertions,
    )
    assert rates.wer == pytest.approx(peer.wer, abs=1e-12)
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
    assert counted([""], [""]) == ErrorRates(utterances=1)
    rates = counted(["", "a b"], ["x yz", "a b"])
    assert rates == ErrorRates(utterances=2, words=2, insertions=2, characters=3, character_errors=4)
    assert (rates.wer, rates.cer) == (1.0, 4 / 3)


def test_nothing_counted_is_no_error() -> None:
    assert (ErrorRates().wer, ErrorRates().cer) == (0.0, 0.0)


def test_spacing_is_no_error() -> None:
    assert counted(["a  b"], [" a b\n"]) == ErrorRates(utterances=1, words=2, characters=3)


def test_small_cases_by_hand() -> None:
    assert counted(["the cat sat"], ["the bat"]) == ErrorRates(
        utterances=1, words=3, substitutions=1, deletions=1, characters=11, character_errors=5
    )
    assert counted(["a"], ["a b c"]).wer == 2.0


def test_words_are_aligned_in_their_order() -> None:
    assert align_words("the cat sat", "the bat sat down") == [
        AlignedWord("the", "the"),
        AlignedWord("cat", "bat"),
        AlignedWord("sat", "sat"),
        AlignedWord(None, "down"),
    ]
    assert align_words("a b", "") == [AlignedWord("a", None), AlignedWord("b", None)]
    assert align_words("", "a") == [AlignedWord(None, "a")]
    for reference, hypothesis in zip(*corpus(40, 3), strict=True):
        aligned = align_words(reference, hypothesis)
        assert " ".join(word.reference for word in aligned if word.reference) == reference
        assert " ".join(word.hypothesis for word in aligned if word.hypothesis) == hypothesis


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_constant_is_a_point() -> None:
    assert bootstrap_intervals(ratio_of_sums([3] * 9, [12] * 9), 9).tolist() == [[0.25, 0.25]]
    assert bootstrap_intervals(ratio_of_sums([1], [3]), 1).tolist() == [[1 / 3, 1 / 3]]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator, covered, rounds = np.random.default_rng(0), 0, 200
    for seed in range(rounds):
        right = generator.random(150) < 0.3
        ((low, high),) = bootstrap_intervals(
            ratio_of_sums(right, np.ones(150)), 150, resamples=150, confidence=0.9, seed=seed
        )
        covered += low <= 0.3 <= high
    assert 0.84 < covered / rounds < 0.96  # 3 standard deviations of a binomial of 0.9


def test_several_figures_are_drawn_from_the_same_samples() -> None:
    generator = np.random.default_rng(1)
    errors, words = generator.integers(0, 5, 80), generator.integers(1, 9, 80)
    both = bootstrap_intervals(ratio_of_sums(np.stack([errors, words - errors], 1), np.stack([words, words], 1)), 80)
    assert both[0].tolist() == bootstrap_intervals(ratio_of_sums(errors, words), 80)[0].tolist()
    assert both[1].tolist() == pytest.approx((1 - both[0, ::-1]).tolist())
    assert both[0, 0] < errors.sum() / words.sum() < both[0, 1]


def test_samples_that_do_not_define_a_figure_are_left_out() -> None:
    assert bootstrap_intervals(ratio_of_sums([1, 0], [2, 0]), 2).tolist() == [[0.5, 0.5]]
    assert np.isnan(bootstrap_intervals(ratio_of_sums([0], [0]), 1)).all()


def test_intervals_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        bootstrap_intervals(ratio_of_sums([], []), 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_intervals(ratio_of_sums([1], [1]), 1, confidence=95)
