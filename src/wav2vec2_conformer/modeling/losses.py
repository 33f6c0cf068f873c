"""Losses: pure functions in float32, each with its reduction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, T frames, V vocabulary, S labels

__all__ = ["ctc_loss"]


def ctc_loss(
    logits: Tensor,
    labels: Tensor,
    lengths: Tensor,
    *,
    blank: int,
    reduction: str = "sum",
    zero_infinity: bool = False,
) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006).

    A clip without a frame has no share in the loss, whatever its labels are.

    Args:
        logits: (B, T, V).
        labels: (B, S); negative entries and entries equal to `blank` are left out.
        lengths: (B,) valid frames of each clip.
        blank: the blank's column.
        reduction: `"sum"` over the clips, `"mean"` (each clip's loss divided by its number of labels, then the mean
            over the clips) or `"none"` for (B,) losses.
        zero_infinity: whether a clip with more labels than frames counts 0 instead of infinity.

    Returns:
        () or (B,) float32.
    """
    if logits.shape[1] == 0:
        losses = logits.float().sum((1, 2))  # zeros that still lead back to the network's output
        return losses if reduction == "none" else losses.sum()
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)  # (T, B, V)
    lengths = lengths.clamp(max=logits.shape[1])
    wanted = (labels >= 0) & (labels != blank) & (lengths > 0)[:, None]
    counts = wanted.sum(-1)
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probs,
            labels[wanted],
            lengths.clamp(min=1),
            counts,
            blank=blank,
            reduction="none",
            zero_infinity=zero_infinity,
        )
    losses = losses.masked_fill(lengths == 0, 0.0)
    if reduction == "none":
        return losses
    if reduction == "mean":
        return (losses / counts.clamp(min=1)).mean()
    return losses.sum()
