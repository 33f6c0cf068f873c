"""Trials of speaker verification: pairs of utterances from a list, or all pairs, and their scores block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import ManifestError
from .bootstrap import bootstrap_intervals
from .verification import DETCurve, Places

__all__ = ["ScoredTrials", "Trial", "Trials", "all_pairs", "listed_trials", "read_trials", "score_trials"]

# U utterances, X width of an embedding, T trials

Ids = NDArray[np.int64]
LABELS = {"1": True, "0": False, "target": True, "nontarget": False}
BLOCK = 2**20  # scores in memory at once
DENSE = 8  # a matrix product of so many times the scores that are wanted is still faster than one product a pair
# Trials of different speakers that the confidence intervals are computed from. There are quickly millions, but what is
# uncertain is the choice of speakers and the few trials of one speaker, all of which are used.
SAMPLED = 200_000
BINS = np.linspace(-1, 1, 101)  # of the histograms of scores


class Trial(NamedTuple):
    """Two utterances by their names in the manifest, and whether one speaker says both."""

    same: bool
    first: str
    second: str


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances whose scores are to be computed.

    Args:
        targets: (T, 2) pairs of one speaker.
        nontargets: gives blocks (T, 2) of pairs of different speakers, the same at each call.
        nontarget_count: how many these are in all.
        units: (U,) what is drawn by the bootstrap: the speaker of each utterance, or the utterance.
    """

    targets: Ids
    nontargets: Callable[[], Iterator[Ids]]
    nontarget_count: int
    units: Ids


def read_trials(path: str | Path) -> list[Trial]:
    """Read a trial list: lines `LABEL A B` as VoxCeleb's, or JSON objects {"label", "a", "b"}.

    A label is 1 (or `target`): one speaker says both; or 0 (or `nontarget`). Blank lines are passed over.

    Raises:
        ManifestError: the file cannot be read or is empty, or a line of it cannot be used.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ManifestError(
            f"{path}: cannot read the trials ({problem}); give a list of lines `1 a.wav b.wav`"
        ) from error
    trials = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, first, second = trial_fields(line)
        if label not in LABELS or not first or not second:
            raise ManifestError(
                f'{path}: line {number}: expected `1 a.wav b.wav`, `0 a.wav b.wav` or {{"label": 1, "a": "a.wav", '
                f'"b": "b.wav"}}, got {line.strip()[:80]!r}'
            )
        trials.append(Trial(LABELS[label], first, second))
    if not trials:
        raise ManifestError(f"{path}: the trial list is empty; write lines `1 a.wav b.wav` and `0 a.wav c.wav`")
    return trials


def trial_fields(line: str) -> tuple[str, str, str]:
    """Label and names of a line, empty where it has another form."""
    if line.lstrip().startswith("{"):
        try:
            fields = json.loads(line)
        except ValueError:
            return "", "", ""
        names = fields.get("a"), fields.get("b")
        if not all(isinstance(name, str) for name in names) or isinstance(fields.get("label"), bool):
            return "", "", ""
        return str(fields.get("label")), *names
    words = line.split()
    return (words[0], words[1], words[2]) if len(words) == 3 else ("", "", "")


def listed_trials(trials: Sequence[Trial], names: Sequence[str], units: Ids) -> Trials:
    """The trials of a list between the utterances (U) that there are; `units` as in `Trials`."""
    place = {name: index for index, name in enumerate(names)}
    there = [trial for trial in trials if trial.first in place and trial.second in place]
    pairs = np.array([(place[trial.first], place[trial.second]) for trial in there], np.int64).reshape(-1, 2)
    same = np.array([trial.same for trial in there], bool)
    nontargets = pairs[~same]
    return Trials(
        targets=pairs[same],
        nontargets=lambda: (nontargets[start : start + BLOCK] for start in range(0, len(nontargets), BLOCK)),
        nontarget_count=len(nontargets),
        units=units,
    )


def all_pairs(speakers: Ids, corpora: Ids) -> Trials:
    """Every two utterances of one corpus, each pair once.

    Args:
        speakers: (U,) ids; one of one corpus is none of another.
        corpora: (U,) ids.
    """
    members = [np.flatnonzero(speakers == speaker) for speaker in np.unique(speakers)]
    targets = [own[np.stack(np.triu_indices(len(own), 1), axis=1)] for own in members]
    sizes = [np.unique(speakers[corpora == corpus], return_counts=True)[1] for corpus in np.unique(corpora)]

    def nontargets() -> Iterator[Ids]:
        rows = max(1, BLOCK // max(len(speakers), 1))
        for start in range(0, len(speakers), rows):
            these = slice(start, start + rows)
            different = speakers[these, None] != speakers[None, start:]
            different &= corpora[these, None] == corpora[None, start:]
            yield start + np.argwhere(np.triu(different, 1))

    return Trials(
        targets=np.concatenate([np.zeros((0, 2), np.int64), *targets]),
        nontargets=nontargets,
        nontarget_count=sum((int(size.sum()) ** 2 - int((size**2).sum())) // 2 for size in sizes),
        units=speakers,
    )


@dataclass(frozen=True)
class ScoredTrials:
    """What the scores of trials say: the curve, how many there are, and histograms of the scores between `BINS`."""

    curve: DETCurve
    targets: int
    nontargets: int
    target_histogram: Ids
    nontarget_histogram: Ids
    sample: Sample

    def intervals(self, p_targets: Sequence[float]) -> NDArray[np.float64]:
        """Confidence intervals (1 + P, 2) of the EER and of the minDCF at each of P probabilities.

        What is drawn are the units of the trials (speakers, where they are known); a trial counts as often as both of
        its speakers were drawn together, one of a single speaker as often as this one.
        """

        def statistic(drawn: NDArray[np.int64]) -> list[float]:
            try:
                curve = self.sample.curve(self.curve.scores, drawn)
            except ValueError:  # too few speakers were drawn for trials of both kinds
                return [np.nan] * (1 + len(p_targets))
            return [curve.eer, *(curve.min_dcf(p_target) for p_target in p_targets)]

        return bootstrap_intervals(statistic, self.sample.units)


@dataclass(frozen=True)
class Sample:
    """Places (T,) of scores on the curve and the units (T, 2) of their trials, of both kinds."""

    units: int
    target_places: Ids
    target_units: Ids
    nontarget_places: Ids
    nontarget_units: Ids

    def curve(self, scores: NDArray[np.float64], drawn: Ids) -> DETCurve:
        """The curve of the trials as often as their units were drawn."""
        size = 2 * len(scores) + 1
        return DETCurve(
            scores,
            np.bincount(self.target_places, weights(self.target_units, drawn), size),
            np.bincount(self.nontarget_places, weights(self.nontarget_units, drawn), size),
        )


def weights(units: Ids, drawn: Ids) -> Ids:
    """How often trials (T, 2) count."""
    first, second = drawn[units[:, 0]], drawn[units[:, 1]]
    return np.where(units[:, 0] == units[:, 1], first, first * second)


def score_trials(embeddings: NDArray[np.float32], trials: Trials, *, seed: int = 0) -> ScoredTrials:
    """Score trials by the cosine of their utterances.

    Args:
        embeddings: (U, X) of unit length.
        trials: between them.
        seed: decides which trials of different speakers the confidence intervals are computed from.

    Raises:
        ValueError: there are no trials of one of the kinds, or scores that are not finite.
    """
    generator = np.random.default_rng(seed)
    kept = min(1.0, SAMPLED / max(trials.nontarget_count, 1))
    targets = cosines(embeddings, trials.targets)
    places = Places(targets)
    counts = np.zeros(2 * len(places.scores) + 1, np.int64)
    histogram = np.zeros(len(BINS) - 1, np.int64)
    sampled_places, sampled_units = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)]
    for pairs in trials.nontargets():
        scores = cosines(embeddings, pairs)
        where = places.of(scores)
        counts += np.bincount(where, minlength=len(counts))
        histogram += score_histogram(scores)
        chosen = generator.random(len(pairs)) < kept
        sampled_places.append(where[chosen])
        sampled_units.append(trials.units[pairs[chosen]])
    curve = DETCurve(places.scores, places.counts(targets), counts)
    return ScoredTrials(
        curve,
        targets=len(targets),
        nontargets=int(counts.sum()),
        target_histogram=score_histogram(targets),
        nontarget_histogram=histogram,
        sample=Sample(
            units=int(trials.units.max()) + 1,
            target_places=places.of(targets),
            target_units=trials.units[trials.targets],
            nontarget_places=np.concatenate(sampled_places),
            nontarget_units=np.concatenate(sampled_units),
        ),
    )


def cosines(embeddings: NDArray[np.float32], pairs: Ids) -> NDArray[np.float64]:
    """Scores (T,) of pairs (T, 2) of rows of unit length."""
    rows, row = np.unique(pairs[:, 0], return_inverse=True)
    columns, column = np.unique(pairs[:, 1], return_inverse=True)
    wide = embeddings.astype(np.float64)
    if len(rows) * len(columns) <= DENSE * len(pairs):
        found: NDArray[np.float64] = (wide[rows] @ wide[columns].T)[row, column]
        return found
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK // 64):
        these = pairs[start : start + BLOCK // 64]
        found[start : start + len(these)] = np.einsum("tx,tx->t", wide[these[:, 0]], wide[these[:, 1]])
    return found


def score_histogram(scores: NDArray[np.float64]) -> Ids:
    """How many scores lie between neighbouring `BINS`."""
    return np.histogram(np.clip(scores, -1, 1), BINS)[0]
