"""EER, minDCF and trials: against trying every threshold, and every pair."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wav2vec2_conformer.data import ManifestError
from wav2vec2_conformer.evaluation import DETCurve, bootstrap_intervals, trials
from wav2vec2_conformer.evaluation.trials import (
    ScoredTrials,
    Trial,
    all_pairs,
    cosines,
    listed_trials,
    read_trials,
    score_trials,
)

Floats = NDArray[np.float64]


def every_threshold(targets: Floats, nontargets: Floats) -> list[tuple[float, float]]:
    """Misses and false alarms at every threshold that makes a difference."""
    thresholds = [*sorted({*targets.tolist(), *nontargets.tolist()}), np.inf]
    return [(float((targets < t).mean()), float((nontargets >= t).mean())) for t in thresholds]


def crossing(points: list[tuple[float, float]]) -> float:
    """Where straight lines between neighbouring points meet misses = false alarms."""
    for (m0, f0), (m1, f1) in pairwise(points):
        if m0 <= f0 and m1 >= f1:
            part = (f0 - m0) / ((m1 - m0) + (f0 - f1))
            return m0 + part * (m1 - m0)
    raise AssertionError


def random_scores(seed: int, decimals: int) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    targets = generator.normal(0.4, 0.25, generator.integers(1, 30))
    nontargets = generator.normal(0, 0.25, generator.integers(1, 200))
    return targets.round(decimals), nontargets.round(decimals)


@pytest.mark.parametrize("decimals", [1, 12])  # with ties and without
@pytest.mark.parametrize("seed", range(12))
def test_equals_every_threshold(seed: int, decimals: int) -> None:
    targets, nontargets = random_scores(seed, decimals)
    points = every_threshold(targets, nontargets)
    curve = DETCurve.of(targets, np.array_split(nontargets, 3))
    assert curve.eer == pytest.approx(crossing(points), abs=1e-12)
    for p in (0.01, 0.05, 0.5, 0.99):
        best = min(p * miss + (1 - p) * false_alarm for miss, false_alarm in points) / min(p, 1 - p)
        assert curve.min_dcf(p) == pytest.approx(best, abs=1e-12)
    best = min(10 * 0.01 * miss + 0.99 * false_alarm for miss, false_alarm in points) / 0.1  # NIST SRE 2008
    assert curve.min_dcf(0.01, cost_miss=10) == pytest.approx(best, abs=1e-12)
    on_the_curve = set(zip(curve.miss.round(9).tolist(), curve.false_alarm.round(9).tolist(), strict=True))
    assert on_the_curve <= {(round(miss, 9), round(false_alarm, 9)) for miss, false_alarm in points}


@pytest.mark.parametrize("seed", range(12))
def test_the_threshold_makes_about_as_many_errors_of_both_kinds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets, nontargets = generator.normal(0.4, 0.25, 300), generator.normal(0, 0.25, 3000)
    curve = DETCurve.of(targets, [nontargets])
    assert abs((targets < curve.eer_threshold).mean() - curve.eer) <= 1 / 300
    assert abs((nontargets >= curve.eer_threshold).mean() - curve.eer) <= 1 / 100


def test_by_hand() -> None:
    perfect = DETCurve.of([0.8, 0.9], [[0.1, 0.2]])
    assert (perfect.eer, perfect.min_dcf(), perfect.eer_threshold) == (0, 0, 0.8)
    reversed_ = DETCurve.of([0.1, 0.2], [[0.8, 0.9]])
    assert (reversed_.eer, reversed_.min_dcf()) == (1, 1)
    # one of four of each kind on the wrong side
    assert DETCurve.of([0.1, 0.7, 0.8, 0.9], [[0.05, 0.06, 0.07, 0.75]]).eer == 0.25
    alike = DETCurve.of([0.5], [[0.5, 0.5]])
    assert (alike.eer, alike.eer_threshold, alike.min_dcf()) == (0.5, 0.5, 1)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no target trial"):
        DETCurve.of([], [[0.5]])
    with pytest.raises(ValueError, match="no nontarget trial"):
        DETCurve.of([0.5], [])
    with pytest.raises(ValueError, match="NaN"):
        DETCurve.of([0.5], [[np.nan]])
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        DETCurve.of([0.5], [[0.1]]).min_dcf(1)


def intervals(scored: ScoredTrials, *p_targets: float) -> Floats:
    return bootstrap_intervals(scored.statistic(p_targets), scored.sample.drawable)


# --- pairs -----------------------------------------------------------------------------------------------------------


def voices(seed: int, speakers: int, each: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings around one direction a speaker."""
    generator = np.random.default_rng(seed)
    ids = np.repeat(np.arange(speakers), each)
    embeddings = generator.normal(size=(speakers, 8))[ids] + 0.9 * generator.normal(size=(len(ids), 8))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), ids


@pytest.mark.parametrize("block", [1, 50, 2**20])
def test_all_pairs_are_each_pair_of_a_corpus_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "BLOCK", block)
    speakers, corpora = np.array([0, 1, 0, 2, 3, 1, 3, 3]), np.array([0, 0, 0, 1, 1, 0, 1, 1])
    pairs = all_pairs(speakers, corpora)
    expected = [pair for pair in combinations(range(8), 2) if corpora[pair[0]] == corpora[pair[1]]]
    found = [tuple(pair) for block in pairs.nontargets() for pair in block.tolist()]
    assert sorted(found) == [(a, b) for a, b in expected if speakers[a] != speakers[b]]
    assert sorted(map(tuple, pairs.targets.tolist())) == [(a, b) for a, b in expected if speakers[a] == speakers[b]]
    assert pairs.nontarget_count == len(found)


def test_a_list_of_all_pairs_gives_the_figures_of_all_pairs() -> None:
    embeddings, speakers = voices(0, 8, 5)
    names = [f"{i}.wav" for i in range(len(speakers))]
    listed = [Trial(bool(speakers[a] == speakers[b]), names[a], names[b]) for a, b in combinations(range(40), 2)]
    pairs = score_trials(embeddings, all_pairs(speakers, np.zeros(40, np.int64)))
    lists = score_trials(embeddings, listed_trials(listed, names, speakers))
    scores = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    upper, same = np.triu(np.ones((40, 40), bool), 1), speakers[:, None] == speakers
    points = every_threshold(scores[upper & same], scores[upper & ~same])
    assert pairs.curve.eer == pytest.approx(crossing(points), abs=1e-12)
    assert lists.curve.eer == pytest.approx(pairs.curve.eer, abs=1e-12)
    assert (pairs.targets, pairs.nontargets) == (80, 700) == (lists.targets, lists.nontargets)
    assert pairs.target_histogram.sum() == 80
    assert pairs.nontarget_histogram.tolist() == lists.nontarget_histogram.tolist()
    assert intervals(pairs, 0.05) == pytest.approx(intervals(lists, 0.05))


def test_scores_are_cosines_however_dense_the_pairs_are() -> None:
    embeddings, _ = voices(1, 30, 3)
    sparse = np.array([(i, (37 * i + 1) % 90) for i in range(90)])
    dense = np.array(list(combinations(range(20), 2)))
    for pairs in (sparse, dense, sparse[:0]):
        expected = [float(embeddings[a].astype(float) @ embeddings[b].astype(float)) for a, b in pairs]
        assert cosines(embeddings, pairs).tolist() == pytest.approx(expected, abs=1e-12)


def test_intervals_of_few_speakers_are_wide_and_hold_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {}
    for speakers, each in ((6, 8), (60, 8)):
        embeddings, ids = voices(2, speakers, each)
        scored = score_trials(embeddings, all_pairs(ids, np.zeros(len(ids), np.int64)))
        monkeypatch.setattr(trials, "SAMPLED_NONTARGETS", 20_000)
        low, high = intervals(scored)[0]
        assert low <= scored.curve.eer <= high
        widths[speakers] = high - low
    assert widths[60] < 0.6 * widths[6]


def test_the_weight_of_a_trial_is_how_often_its_speakers_were_drawn() -> None:
    """Drawing speakers is the same as listing the trials of the drawn speakers again and again."""
    embeddings, speakers = voices(3, 4, 3)
    scored = score_trials(embeddings, all_pairs(speakers, np.zeros(12, np.int64)))
    drawn = np.array([2, 0, 1, 1])
    repeated = [
        Trial(bool(speakers[a] == speakers[b]), str(a), str(b))
        for a, b in combinations(range(12), 2)
        for _ in range(drawn[speakers[a]] * (1 if speakers[a] == speakers[b] else drawn[speakers[b]]))
    ]
    again = score_trials(embeddings, listed_trials(repeated, list(map(str, range(12))), speakers))
    curve = scored.sample.curve(drawn)
    assert (curve.eer, curve.min_dcf()) == pytest.approx((again.curve.eer, again.curve.min_dcf()))


# --- lists -----------------------------------------------------------------------------------------------------------


def test_lists_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    objects = [{"label": 1, "a": "a b.wav", "b": "c.wav"}, {"label": "nontarget", "a": "a.wav", "b": "c.wav"}]
    path.write_text("1 a.wav b.wav\n\ntarget a.wav c.wav\n0\tb.wav c.wav\n" + "\n".join(map(json.dumps, objects)))
    assert read_trials(path) == [
        Trial(True, "a.wav", "b.wav"),
        Trial(True, "a.wav", "c.wav"),
        Trial(False, "b.wav", "c.wav"),
        Trial(True, "a b.wav", "c.wav"),
        Trial(False, "a.wav", "c.wav"),
    ]


@pytest.mark.parametrize("line", ["2 a b", "1 a", "1 a b c", "{", '{"label": 1, "a": "x"}', '{"label": true}', "[1]"])
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trials.txt"
    path.write_text(f"1 a b\n{line}\n")
    with pytest.raises(ManifestError, match=r"trials.txt: line 2: expected `1 a.wav b.wav`"):
        read_trials(path)


def test_lists_that_are_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read the trials"):
        read_trials(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ManifestError, match="is empty"):
        read_trials(tmp_path / "empty.txt")


def test_trials_of_utterances_that_are_not_there_are_left_out() -> None:
    listed = [Trial(True, "a", "b"), Trial(False, "a", "gone")]
    found = listed_trials(listed, ["a", "b"], np.array([0, 0]))
    assert (found.targets.tolist(), found.nontarget_count) == ([[0, 1]], 0)
