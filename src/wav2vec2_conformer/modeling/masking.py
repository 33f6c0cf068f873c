"""Random spans for SpecAugment: vectorised, on the tensor's device, without a host synchronisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# B batch, T positions (frames, or feature channels)

__all__ = ["sample_spans", "thin_to_equal_counts"]


def sample_spans(
    lengths: Tensor,
    size: int,
    *,
    probability: float,
    span: int,
    min_spans: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw masked spans, distributed as in the references (SpecAugment, Park et al. 2019).

    Each row gets floor(probability * length / span + u) spans, u uniform in [0, 1) and common to the batch, at least
    `min_spans`, at most size / span, with distinct starts drawn uniformly; spans may overlap and always lie wholly
    inside the row's valid positions. A row shorter than a span gets none.

    Args:
        lengths: (B,) valid positions of each row.
        size: T.
        probability: share of positions covered, counted before overlap.
        span: positions of one span.
        min_spans: least number of spans.
        generator: where the randomness comes from; `None`: torch's default generator.

    Returns:
        (B, T) bool, True = masked.
    """
    device, rows = lengths.device, lengths.shape[0]
    # A generator of None is left out: `torch.rand` with one refuses the symbolic sizes of dynamic compilation.
    source: dict[str, Any] = {} if generator is None else {"generator": generator}
    rounding = torch.rand((), device=device, **source)
    counts = (probability * lengths / span + rounding).floor().long().clamp(min=min_spans, max=size // span)
    starts = (lengths - span + 1).clamp(min=0)  # (B,) how many places a span can start at
    counts = torch.minimum(counts, starts)
    # The places with the `count` highest random scores are a draw without replacement.
    scores = torch.rand((rows, size), device=device, **source)
    scores = scores.masked_fill(torch.arange(size, device=device) >= starts[:, None], -1)
    order = scores.argsort(dim=1, descending=True)
    chosen = torch.arange(size, device=device) < counts[:, None]  # (B, T) in order of score
    begins = torch.zeros((rows, size), dtype=torch.long, device=device).scatter(1, order, chosen.long())
    begun = begins.cumsum(1)
    ended = torch.nn.functional.pad(begun, (span, 0))[:, :size]
    return begun > ended


def thin_to_equal_counts(mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Unmask random positions until all rows have as many masked ones as the row with the fewest.

    So fairseq does for pre-training: every utterance then weighs the same, and the loss computes without filler. A row
    without any masked position stays so and does not set the count, or one clip that is shorter than a span would
    unmask the whole batch.

    Args:
        mask: (B, T) bool, True = masked.
        generator: where the randomness comes from; `None`: torch's default generator.

    Returns:
        (B, T) bool, True = masked; nowhere where `mask` is False.
    """
    rows, size = mask.shape
    if rows == 0 or size == 0:
        return mask
    source: dict[str, Any] = {} if generator is None else {"generator": generator}
    counts = mask.sum(1)
    fewest = counts.masked_fill(counts == 0, size).amin()
    scores = torch.rand((rows, size), device=mask.device, **source).masked_fill(~mask, -1)
    order = scores.argsort(dim=1, descending=True)
    kept = (torch.arange(size, device=mask.device) < fewest).expand(rows, -1)
    return mask & torch.zeros_like(mask).scatter(1, order, kept)
