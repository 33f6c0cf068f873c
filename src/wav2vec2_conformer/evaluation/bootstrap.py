"""Percentile bootstrap: how far a figure may be from what other utterances of the same kind would have given.

Utterances are drawn with replacement, as many as there are, again and again (Efron 1979; for error rates Bisani and
Ney 2004). Only a few counts an utterance are kept, never what a model computed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CONFIDENCE", "Statistic", "bootstrap_intervals", "ratio_of_sums"]

# U units that are drawn (utterances, speakers, recordings), F figures

CONFIDENCE = 0.95
RESAMPLES = 1000

Statistic = Callable[[NDArray[np.int64]], ArrayLike]


def bootstrap_intervals(
    statistic: Statistic,
    units: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Confidence intervals (F, 2) of F figures, from low to high.

    Args:
        statistic: gives the figures (F,) of a sample; the sample is (U,), how often each unit was drawn. NaN where
            the sample does not define a figure, which is then left out.
        units: how many there are to draw from, and how many are drawn.
        resamples: samples to draw.
        confidence: share of the samples' figures inside the interval; half of the rest lies on each side.
        seed: of the draws.

    Raises:
        ValueError: there is nothing to draw from, or a share that is not between 0 and 1.
    """
    if units < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs at least one unit and one sample, got {units} and {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}; 0.95 is usual")
    generator = np.random.default_rng(seed)
    figures = np.array(
        [statistic(np.bincount(generator.integers(units, size=units), minlength=units)) for _ in range(resamples)],
        np.float64,
    ).reshape(resamples, -1)
    tail = (1 - confidence) / 2
    found: NDArray[np.float64] = np.full((figures.shape[1], 2), np.nan)
    for figure, values in enumerate(figures.T):
        if not np.isnan(values).all():
            found[figure] = np.nanquantile(values, [tail, 1 - tail])
    return found


def ratio_of_sums(parts: ArrayLike, wholes: ArrayLike) -> Statistic:
    """The statistic sum(parts) / sum(wholes), such as errors a word; NaN where the wholes sum to 0.

    Args:
        parts: (U,) or (U, F) of each unit.
        wholes: the same.
    """
    part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)

    def ratios(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        sums, of = np.atleast_1d(drawn @ part), np.atleast_1d(drawn @ whole)
        figures: NDArray[np.float64] = np.divide(sums, of, out=np.full(of.shape, np.nan), where=of > 0)
        return figures

    return ratios
