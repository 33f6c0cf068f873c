"""Output types that the transformers library has no common class for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

# B batch, T frames, D hidden size, H heads, P width of the comparison (`proj_codevector_dim`), L blocks

__all__ = ["Wav2Vec2ConformerForPreTrainingOutput"]


@dataclass
class Wav2Vec2ConformerForPreTrainingOutput(ModelOutput):
    """What `Wav2Vec2ConformerForPreTraining` returns.

    Args:
        loss: () float32, contrastive plus weighted diversity loss; `None` without negatives.
        projected_states: (B, T, P) predictions, 0 on padded frames.
        projected_quantized_states: (B, T, P) targets, 0 on padded frames.
        codevector_perplexity: () float32, effectively used codebook entries, summed over the groups.
        hidden_states: L+1 tensors (B, T, D), where they were asked for.
        attentions: L tensors (B, H, T, T), where they were asked for.
        contrastive_loss: () float32, sum over the masked frames.
        diversity_loss: () float32, before its weight.
    """

    loss: Tensor | None = None
    projected_states: Tensor | None = None
    projected_quantized_states: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
