"""Features -> entries of a product codebook, the targets of pre-training."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig

# B batch, T frames, C conv channels, G codebook groups, V entries a group, Q width of a quantized vector

__all__ = ["GumbelQuantizer", "Quantized", "perplexities"]


class Quantized(NamedTuple):
    """What `GumbelQuantizer` returns.

    Args:
        vectors: (B, T, Q).
        codes: (B, T, G), the entry chosen in each group.
        perplexity: () float32, the references' value: the sum of the soft perplexities in training, of the hard ones in
            evaluation.
        soft_perplexities: (G,) float32, of the average softmax distribution (before Gumbel noise).
        hard_perplexities: (G,) float32, of the chosen entries.
    """

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor
    soft_perplexities: Tensor
    hard_perplexities: Tensor


class GumbelQuantizer(nn.Module):
    """Product quantizer with a straight-through Gumbel-softmax (Baevski et al. 2020, section 2; Jang et al. 2017).

    In training each group draws one entry, and the gradient flows through the softmax at `temperature`; in evaluation
    it takes the most likely entry, and only the chosen entries receive a gradient.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.groups, self.entries = config.num_codevector_groups, config.num_codevectors_per_group
        total = self.groups * self.entries
        self.codevectors = nn.Parameter(torch.empty(1, total, config.codevector_dim // self.groups).uniform_())
        self.weight_proj = nn.Linear(config.conv_dim[-1], total)
        self.temperature: float = 2.0

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize every frame.

        Args:
            features: (B, T, C).
            mask: (B, T) bool, True = the frame counts in the perplexities; `None`: all do.
        """
        logits = self.weight_proj(features).unflatten(-1, (self.groups, self.entries))  # (B, T, G, V)
        if self.training:
            chosen = F.gumbel_softmax(logits.float().flatten(0, 2), tau=self.temperature, hard=True)  # (BTG, V)
            chosen = chosen.to(logits.dtype).view(logits.shape)
            codes = chosen.argmax(-1)  # (B, T, G)
            codebook = self.codevectors.view(self.groups, self.entries, -1)
            vectors = torch.einsum("btgv,gvd->btgd", chosen, codebook)
        else:
            codes = logits.argmax(-1)
            vectors = F.embedding(self._flat(codes), self.codevectors[0])
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            soft = self._soft_perplexities(logits, mask)
        hard = self._hard_perplexities(codes, mask)
        perplexity = soft.sum() if self.training else hard.sum()
        return Quantized(vectors.flatten(-2), codes, perplexity, soft.detach(), hard)

    def _flat(self, codes: Tensor) -> Tensor:
        """(B, T, G) entries within their groups -> rows of the codebook."""
        return codes + self.entries * torch.arange(self.groups, device=codes.device)

    def _soft_perplexities(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        probabilities = logits.float().softmax(-1)
        weights = _weights(probabilities[..., 0, 0], mask)  # (B, T)
        return perplexities(torch.einsum("bt,btgv->gv", weights, probabilities))

    def _hard_perplexities(self, codes: Tensor, mask: Tensor | None) -> Tensor:
        weights = _weights(codes[..., 0].float(), mask).unsqueeze(-1).expand(codes.shape)  # (B, T, G)
        empty = weights.new_zeros(self.groups * self.entries)
        return perplexities(empty.scatter_add(0, self._flat(codes).flatten(), weights.flatten()).view(self.groups, -1))


def _weights(like: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T) share of each frame in an average over the masked frames; all 0 where none is masked."""
    weights = torch.ones_like(like) if mask is None else mask.to(like.dtype)
    return weights / weights.sum().clamp(min=1)


def perplexities(distributions: Tensor) -> Tensor:
    """(G,) exp(entropy) of each group: between 1, a single entry, and V, all equally likely.

    Args:
        distributions: (G, V).
    """
    entropies = -(distributions * (distributions + 1e-7).log()).sum(-1)  # 1e-7 as in transformers 4.34.0
    return entropies.exp()
