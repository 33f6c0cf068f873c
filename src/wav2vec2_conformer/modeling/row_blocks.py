"""Rows of a matrix, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["row_blocks"]

BLOCK = 1 << 19  # numbers


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Some rows at a time: what is made of them on the way stays in the cache, in place of fresh memory each time."""
    step = max(1, BLOCK // rows.shape[1])
    for first in range(0, rows.shape[0], step):
        yield slice(first, first + step)
