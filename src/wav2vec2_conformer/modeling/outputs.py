"""Output types that the transformers library has no common class for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.utils.generic import ModelOutput

# B batch, T frames, D hidden size, H heads, P width of the comparison (`proj_codevector_dim`), L blocks,
# G codebook groups

__all__ = ["PretrainingStatistics", "StateSelection", "Wav2Vec2ConformerForPreTrainingOutput", "selected_states"]

StateSelection = bool | int | Sequence[int]  # all or none of the hidden states, or those of these indices


def selected_states(selection: StateSelection, count: int) -> frozenset[int]:
    """The indices that `output_hidden_states` asks for among `count` hidden states; negative ones count from the end.

    Raises:
        ValueError: an index of no hidden state.
    """
    if isinstance(selection, bool):
        return frozenset(range(count) if selection else ())
    indices = [selection] if isinstance(selection, int) else selection
    if outside := [index for index in indices if not -count <= index < count]:
        raise ValueError(
            f"`output_hidden_states` must be True, False or indices in [{-count}, {count}), got {outside[0]}; the "
            f"model has {count} hidden states, the input of its first block included"
        )
    return frozenset(index % count for index in indices)


class PretrainingStatistics(NamedTuple):
    """What tells whether pre-training learns.

    Args:
        masked: () frames that counted.
        correct: () of those, the ones recognised among their negatives.
        hard_perplexities: (G,) float32, effectively chosen entries of each codebook group, over the masked frames.
        soft_perplexities: (G,) float32, the same of the average softmax distribution.
    """

    masked: Tensor
    correct: Tensor
    hard_perplexities: Tensor
    soft_perplexities: Tensor


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
        statistics: where they were asked for.
    """

    loss: Tensor | None = None
    projected_states: Tensor | None = None
    projected_quantized_states: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
    statistics: PretrainingStatistics | None = None
