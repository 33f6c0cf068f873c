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
from .bootstrap import Statistic
from .verification import DETCurve, Places

__all__ = ["ScoredTrials", "Trial", "Trials", "all_pairs", "listed_trials", "read_trials", "score_trials"]

# U utterances, X width of an embedding, T trials

Ids = NDArray[np.int64]
LABELS = {"1": True, "0": False, "target": True, "nontarget": False}
BLOCK = 2**20  # scores in memory at once
DENSE = 8  # a matrix product of so many times the scores that are wanted is still faster than one product a pair
# Trials that the confidence intervals are computed from, at most, drawn from all. There are quickly millions, but what
# is uncertain is which speakers there are.
SAMPLED_TARGETS, SAMPLED_NONTARGETS = 20_000, 200_000
BINS = np.linspace(-1, 1, 1001)  # of the histograms of scores


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
        if first == second:
            raise ManifestError(
                f"{path}: line {number}: {first} is compared with itself, which says nothing; take the line out"
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


def listed_trials(trials: Sequence[Trial], names: Sequence[str | None], units: Ids) -> Trials:
    """The trials of a list between the utterances (U) that there are.

    Args:
        trials: those with another utterance are left out.
        names: (U) of the utterances, None of one that cannot be used.
        units: as in `Trials`.
    """
    place = {name: index for index, name in enumerate(names) if name is not None}
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


def all_pairs(speakers: Ids, corpora: Ids, usable: NDArray[np.bool_] | None = None) -> Trials:
    """Every two utterances of one corpus, each pair once.

    Args:
        speakers: (U,) ids; one of one corpus is none of another.
        corpora: (U,) ids.
        usable: (U,) which utterances there are; None: all.
    """
    there = np.arange(len(speakers)) if usable is None else np.flatnonzero(usable)
    speaker, corpus = speakers[there], corpora[there]
    members = [there[speaker == one] for one in np.unique(speaker)]
    targets = [own[np.stack(np.triu_indices(len(own), 1), axis=1)] for own in members]
    sizes = [np.unique(speaker[corpus == one], return_counts=True)[1] for one in np.unique(corpus)]

    def nontargets() -> Iterator[Ids]:
        rows = max(1, BLOCK // max(len(there), 1))
        for start in range(0, len(there), rows):
            these = slice(start, start + rows)
            different = speaker[these, None] != speaker[None, start:]
            different &= corpus[these, None] == corpus[None, start:]
            yield there[start + np.argwhere(np.triu(different, 1))]

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

    def statistic(self, p_targets: Sequence[float]) -> Statistic:
        """What `bootstrap_intervals` needs of the EER and of the minDCF at each of P probabilities (1 + P).

        What is drawn are the units of the trials (speakers, where they are known); a trial counts as often as both of
        its speakers were drawn together, one of a single speaker as often as this one.
        """

        def statistic(drawn: Ids) -> list[float]:
            try:
                curve = self.sample.curve(drawn)
            except ValueError:  # too few speakers were drawn for trials of both kinds
                return [np.nan] * (1 + len(p_targets))
            return [curve.eer, *(curve.min_dcf(p_target) for p_target in p_targets)]

        return statistic


class Sample:
    """Some of the trials, as places on a curve, to be counted again and again with other weights.

    Args:
        targets: scores of trials of one speaker, and their units (T, 2).
        nontargets: the same of different speakers.
        drawable: how many units there are.
    """

    def __init__(
        self, targets: tuple[NDArray[np.float64], Ids], nontargets: tuple[NDArray[np.float64], Ids], drawable: int
    ) -> None:
        self.places = Places(targets[0])
        self.trials = [(self.places.of(scores), units) for scores, units in (targets, nontargets)]
        self.drawable = drawable

    def curve(self, drawn: Ids) -> DETCurve:
        """The curve of the trials as often as their units (drawable,) were drawn.

        Raises:
            ValueError: no trial of one of the kinds was.
        """
        targets, nontargets = (
            np.bincount(places, weights(units, drawn), self.places.count) for places, units in self.trials
        )
        return DETCurve(self.places.scores, targets, nontargets)


def weights(units: Ids, drawn: Ids) -> Ids:
    """How often trials (T, 2) count."""
    first, second = drawn[units[:, 0]], drawn[units[:, 1]]
    return np.where(units[:, 0] == units[:, 1], first, first * second)


def score_trials(embeddings: NDArray[np.float32], trials: Trials, *, seed: int = 0) -> ScoredTrials:
    """Score trials by the cosine of their utterances.

    Args:
        embeddings: (U, X) of unit length.
        trials: between them.
        seed: decides which of many trials the confidence intervals are computed from.

    Raises:
        ValueError: there are no trials of one of the kinds, or scores that are not finite.
    """
    generator = np.random.default_rng(seed)
    targets = cosines(embeddings, trials.targets)
    places = Places(targets)
    counts = np.zeros(places.count, np.int64)
    histogram = np.zeros(len(BINS) - 1, np.int64)
    kept_scores, kept_units = [np.zeros(0)], [np.zeros((0, 2), np.int64)]
    for pairs in trials.nontargets():
        scores = cosines(embeddings, pairs)
        counts += places.counts(scores)
        histogram += score_histogram(scores)
        kept = generator.random(len(pairs)) * trials.nontarget_count < SAMPLED_NONTARGETS
        kept_scores.append(scores[kept])
        kept_units.append(trials.units[pairs[kept]])
    curve = DETCurve(places.scores, places.counts(targets), counts)
    some = generator.permutation(len(targets))[:SAMPLED_TARGETS]
    return ScoredTrials(
        curve,
        targets=len(targets),
        nontargets=int(counts.sum()),
        target_histogram=score_histogram(targets),
        nontarget_histogram=histogram,
        sample=Sample(
            (targets[some], trials.units[trials.targets[some]]),
            (np.concatenate(kept_scores), np.concatenate(kept_units)),
            drawable=int(trials.units.max()) + 1,
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
