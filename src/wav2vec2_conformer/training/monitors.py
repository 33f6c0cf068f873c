"""What a training is watched for: the head's scale, how far the network has moved, and a head that writes nothing."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

__all__ = ["BlankMonitor", "Drift", "RootMeanSquare"]

logger = logging.getLogger(__name__)

SAMPLED = 256  # weights of each tensor that are compared
STUCK = 3  # evaluations in a row


class RootMeanSquare:
    """Of all tensors added since it was last asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)

    def add(self, x: Tensor) -> None:
        """Count a tensor."""
        x = x.detach().float()
        self.sums += torch.stack((x.square().sum(), torch.tensor(float(x.numel()), device=x.device)))

    def take(self) -> float:
        """The root mean square; 0 where nothing was added."""
        squares, count = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        return float((squares / max(count, 1)) ** 0.5)


class Drift:
    """How far weights are from where they began, relative to their size; judged by some entries of each tensor."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.begun = self.sample()

    def sample(self) -> Tensor:
        """Entries at equal distances of every tensor."""
        parts = [p.detach().flatten()[:: max(1, p.numel() // SAMPLED)] for p in self.network.parameters()]
        return torch.cat([part.float() for part in parts])

    def measure(self) -> float:
        """The Euclidean distance over the norm at the beginning."""
        return float((self.sample() - self.begun).norm() / self.begun.norm().clamp(min=1e-12))


class BlankMonitor:
    """Says in plain words when a CTC model goes on writing nothing at all."""

    def __init__(self) -> None:
        self.empty = 0

    def look(self, share_of_empty: float) -> None:
        """Look at the share of development utterances for which nothing was written."""
        self.empty = self.empty + 1 if share_of_empty == 1 else 0
        if self.empty == STUCK:
            logger.warning(
                "%d evaluations in a row the model wrote nothing at all (only blanks). A model from scratch does so "
                "for some hundred updates, and leaves it by itself if it can learn. Otherwise try: --prior-share 0.5; "
                "shorter utterances first; a lower learning rate or a longer warm-up; a model to start from (--init); "
                "--overfit 10, which tells whether transcripts and audio belong together",
                STUCK,
            )
