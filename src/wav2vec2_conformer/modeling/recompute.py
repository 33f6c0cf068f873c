"""Large intermediate results that are computed twice instead of kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# B batch

__all__ = ["recomputed", "recomputed_by_clip"]

# Bytes of a clip. What is smaller is kept: computing it twice would slow small models down and save little.
LARGE = 3 * 2**20
LARGE_AND_COSTLY = 9 * 2**20  # attention's scores: 20 s in 4 heads or 11 s in 16, in half precision
TOGETHER = 16 * 2**20  # bytes of the clips that are computed again at once, where each can be computed alone


def recomputed(
    function: Callable[..., Tensor],
    x: Tensor,
    *inputs: Tensor | None,
    size: int,
    random: bool = False,
    costly: bool = False,
) -> Tensor:
    """Return `function(x, *inputs)`; of large results only the inputs are kept, and the backward pass makes them again.

    The second call ends where the last result that the gradients need is there: a convolution or linear layer at the
    end of `function` is not run again, for its gradients need its input and not its output. Where no gradient is
    wanted, in compiled graphs and on other devices than a CPU, this is a plain call.

    Args:
        function: reads what needs gradients from its arguments or from modules.
        x: (B, ...) its first argument.
        inputs: its other arguments.
        size: bytes that the results between its inputs and its output take, of all B clips.
        random: whether it draws random numbers; the second call draws the same.
        costly: whether computing them takes long, as products do, so that more of them is kept.
    """
    if is_kept(x, size, costly):
        return function(x, *inputs)
    out: Tensor = checkpoint(
        function, x, *inputs, use_reentrant=False, preserve_rng_state=random, determinism_check="none"
    )
    return out


def recomputed_by_clip(
    function: Callable[..., Tensor],
    x: Tensor,
    *inputs: Tensor | None,
    size: int,
    random: bool = False,
    costly: bool = False,
) -> Tensor:
    """The same for a function of (B, ...) tensors that treats each clip alone: some clips at a time.

    So the results that exist at once in the backward pass, too, stay below `TOGETHER` or are one clip's.
    """
    if is_kept(x, size, costly):
        return function(x, *inputs)
    together = max(1, TOGETHER * x.shape[0] // size)
    parts = []
    for first in range(0, x.shape[0], together):
        clips = slice(first, first + together)
        others = (None if y is None else y[clips] for y in inputs)
        parts.append(recomputed(function, x[clips], *others, size=size, random=random, costly=costly))
    return torch.cat(parts)


def is_kept(x: Tensor, size: int, costly: bool) -> bool:
    """Whether results of `size` bytes that depend on `x` are not computed twice."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return True
    return size <= (LARGE_AND_COSTLY if costly else LARGE) * x.shape[0]  # also where there are no clips
