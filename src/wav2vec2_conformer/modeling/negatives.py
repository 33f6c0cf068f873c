"""Random negatives for the contrastive loss: vectorised, on the tensor's device, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

# B batch, T frames, K negatives

__all__ = ["sample_negatives"]


def sample_negatives(mask: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw negatives for each masked frame, uniformly from the other masked frames of its utterance.

    They are drawn with replacement (Baevski et al. 2020, section 3.2). With padded frames unmasked, as `sample_spans`
    leaves them, no negative is padding. A frame that is the only masked one of its utterance has no negatives: its
    entries name the frame itself, which the loss leaves out, because a negative equal to the positive never counts.

    Args:
        mask: (B, T) bool, True = masked.
        count: K.
        generator: where the randomness comes from; `None`: torch's default generator.

    Returns:
        (B, T, K) int64 in the references' convention, `row * T + frame`; frames that are not masked name the first
        frame of their row and do not count.
    """
    rows, frames = mask.shape
    device = mask.device
    masked = mask.sum(1).view(-1, 1, 1)
    rank = mask.cumsum(1).unsqueeze(-1) - 1  # (B, T, 1) position among the masked frames
    # The remainder of 62 random bits is uniform to 1e-15.
    draws = torch.randint(2**62, (rows, frames, count), generator=generator, device=device)
    draws = draws % (masked - 1).clamp(min=1)
    draws = draws + (draws >= rank)  # step over the positive
    draws = draws.minimum((masked - 1).clamp(min=0))  # a lone masked frame names itself
    places = mask.long().argsort(dim=1, descending=True, stable=True)  # masked frames first, in order
    found = places.gather(1, draws.flatten(1)).view(draws.shape).masked_fill(~mask.unsqueeze(-1), 0)
    return found + frames * torch.arange(rows, device=device).view(-1, 1, 1)
