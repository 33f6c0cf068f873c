"""Where something holds without a break."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["runs_of"]


def runs_of(chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The runs of True in (T,): where each begins, and the place after its end."""
    change = np.diff(chosen.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)
