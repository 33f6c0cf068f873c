"""Rows of a matrix, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["row_blocks"]

BLOCK = 1 << 19  # numbers


def row_blocks(rows: Tensor, width: int | None = None, numbers: int | None = None) -> Iterator[slice]:
    """Some rows at a time: what is made of them on the way stays in the cache, in place of fresh memory each time.

    Args:
        rows: (N, I).
        width: numbers that are made of a row on the way (I).
        numbers: how many of them at once, at most (`BLOCK`).
    """
    most = max(1, (numbers or BLOCK) // (width or rows.shape[1]))
    pieces = -(-rows.shape[0] // most)
    for piece in range(pieces):  # of nearly the same size: kernels are slower on a small rest
        yield slice(piece * rows.shape[0] // pieces, (piece + 1) * rows.shape[0] // pieces)
