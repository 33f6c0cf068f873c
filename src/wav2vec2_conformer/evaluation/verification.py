"""Speaker verification: EER, minDCF and the DET curve, exact for any number of trials in flat memory.

A threshold between two neighbouring scores of target trials misses the same target trials wherever it lies, so it is
enough to know how many nontarget trials score between them: these are counted block by block and never kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DETCurve", "Places"]

# K distinct scores of target trials

Floats = NDArray[np.float64]
P_TARGET, COST_MISS, COST_FALSE_ALARM = 0.01, 1.0, 1.0  # NIST SRE 2010, core condition


class Places:
    """Scores by their place among the distinct scores of the target trials, so that trials can be counted.

    Place 2 i + 1 is the i-th of these scores itself, place 2 i what lies below it and above the one before.

    Args:
        targets: scores of the trials of one speaker.

    Raises:
        ValueError: there is none, or one is not finite.
    """

    def __init__(self, targets: ArrayLike) -> None:
        scores = np.asarray(targets, np.float64).ravel()
        if not scores.size:
            raise ValueError("no target trial: at least one pair of utterances of the same speaker is needed")
        check_finite(scores)
        self.scores: Floats = np.unique(scores)

    @property
    def count(self) -> int:
        """How many places there are: 2 K + 1."""
        return 2 * len(self.scores) + 1

    def of(self, scores: ArrayLike) -> NDArray[np.int64]:
        """The places of scores, from 0 to 2 K."""
        values = np.asarray(scores, np.float64).ravel()
        check_finite(values)
        left = np.searchsorted(self.scores, values, side="left")
        return left + np.searchsorted(self.scores, values, side="right")

    def counts(self, scores: ArrayLike) -> NDArray[np.int64]:
        """How many scores have which place (2 K + 1)."""
        return np.bincount(self.of(scores), minlength=self.count)


@dataclass(frozen=True)
class DETCurve:
    """Misses against false alarms, from the threshold that accepts every trial to the one that accepts none.

    Args:
        scores: (K,) distinct scores of target trials.
        targets: (2 K + 1) target trials at each place (see `Places`).
        nontargets: (2 K + 1) nontarget trials at each place.

    Raises:
        ValueError: no target or no nontarget trial.
    """

    scores: Floats
    targets: NDArray[Any]
    nontargets: NDArray[Any]

    def __post_init__(self) -> None:
        for name, counts in (("target", self.targets), ("nontarget", self.nontargets)):
            if not counts.sum() > 0:
                kind = "the same speaker" if name == "target" else "different speakers"
                raise ValueError(f"no {name} trial: at least one pair of utterances of {kind} is needed")

    @classmethod
    def of(cls, targets: ArrayLike, nontargets: Iterable[ArrayLike]) -> DETCurve:
        """Count trials.

        Args:
            targets: scores of all trials of one speaker.
            nontargets: blocks of the scores of the trials of different speakers.

        Raises:
            ValueError: there is none of a kind, or a score is not finite.
        """
        places = Places(targets)
        counts = np.zeros(places.count, np.int64)
        for block in nontargets:
            counts += places.counts(block)
        return cls(places.scores, places.counts(targets), counts)

    @cached_property
    def miss(self) -> Floats:
        """(2 K + 2) share of the target trials that are refused, rising from 0 to 1."""
        return rising_share(self.targets)

    @cached_property
    def false_alarm(self) -> Floats:
        """(2 K + 2) share of the nontarget trials that are accepted, falling from 1 to 0."""
        return 1 - rising_share(self.nontargets)

    @property
    def eer(self) -> float:
        """Equal error rate: where the curve, its points joined by lines, has as many misses as false alarms."""
        step, part = self._crossing()
        return float((1 - part) * self.miss[step] + part * self.miss[step + 1])

    @property
    def eer_threshold(self) -> float:
        """A threshold at the equal error rate: scores from it upwards are taken for the same speaker.

        Between two scores of target trials its place is interpolated.
        """
        step, part = self._crossing()
        if step % 2:  # at a target trial's score: with it or without it, whichever has fewer of the worse errors
            worse = np.maximum(self.miss, self.false_alarm)
            score = self.scores[step // 2]
            return float(score if worse[step] <= worse[step + 1] else np.nextafter(score, np.inf))
        above = self.scores[step // 2]
        below = self.scores[max(step // 2 - 1, 0)]
        return float(below + part * (above - below))

    def min_dcf(
        self,
        p_target: float = P_TARGET,
        *,
        cost_miss: float = COST_MISS,
        cost_false_alarm: float = COST_FALSE_ALARM,
    ) -> float:
        """Least detection cost over all thresholds, over that of the better of accepting all and accepting none.

        NIST Speaker Recognition Evaluation Plan (2010): C_miss P_target P_miss + C_fa (1 - P_target) P_fa.

        Args:
            p_target: how probable it is that a trial is of one speaker.
            cost_miss: of refusing such a trial.
            cost_false_alarm: of accepting another one.

        Raises:
            ValueError: a probability that is not between 0 and 1, a cost that is not above 0.
        """
        if not 0 < p_target < 1:
            raise ValueError(f"`p_target` must lie between 0 and 1, got {p_target}; 0.01 is usual")
        if not (cost_miss > 0 and cost_false_alarm > 0):
            raise ValueError(f"costs must be above 0, got {cost_miss} and {cost_false_alarm}; 1 is usual")
        miss, false_alarm = cost_miss * p_target, cost_false_alarm * (1 - p_target)
        return float(np.min(miss * self.miss + false_alarm * self.false_alarm) / min(miss, false_alarm))

    def _crossing(self) -> tuple[int, float]:
        """The step of the curve on which misses come to outnumber false alarms, and the part of it until there."""
        more = self.miss - self.false_alarm  # from -1 to 1, never falling
        step = int(np.argmax(more >= 0)) - 1
        return step, float(-more[step] / (more[step + 1] - more[step]))


def rising_share(counts: NDArray[Any]) -> Floats:
    """The share of all counts that lies before each, and that before the end, which is 1."""
    sums = np.cumsum(counts, dtype=np.float64)
    return np.concatenate([np.zeros(1), sums / sums[-1]])


def check_finite(scores: Floats) -> None:
    """Refuse scores that no threshold can be compared with."""
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers, got NaN or infinity; the model is broken, or a waveform is")
