"""Classification of whole clips: a linear layer a frame, the mean over the valid frames, a linear layer a clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ..configuration import Wav2Vec2ConformerConfig
from .layer_mixture import LayerMixtureModel, refuse_adapter
from .losses import class_ids, class_loss
from .model import choose
from .outputs import StateSelection

# B batch, N samples, T frames, P projected channels

__all__ = ["Wav2Vec2ConformerForSequenceClassification", "mean_pooling"]


class Wav2Vec2ConformerForSequenceClassification(LayerMixtureModel):
    """Wav2Vec2-Conformer with a classifier of whole clips, for instance for keywords or emotions.

    Args:
        config: with `num_labels` (or `id2label`), `classifier_proj_size` and `use_weighted_layer_sum`.

    Raises:
        ValueError: `add_adapter` is set.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        refuse_adapter(config, "sequence classification")
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Compute one row of logits a clip, and the cross entropy where labels are given.

        Args:
            input_values: (B, N) samples.
            attention_mask: (B, N), 1 = real sample, right padding.
            output_attentions: as in `Wav2Vec2ConformerModel`.
            output_hidden_states: as in `Wav2Vec2ConformerModel`.
            return_dict: `False`: a plain tuple.
            labels: (B,) class ids in [0, num_labels); a clip labelled -100 has no share in the loss.

        Returns:
            `loss` (), the mean over the labelled clips, where labels are given, `logits` (B, num_labels),
            `hidden_states`, `attentions`. A clip without a frame pools a zero vector.

        Raises:
            ValueError: labels that are no class ids, one a clip.
        """
        encoded = self._encode(input_values, attention_mask, output_attentions, output_hidden_states)
        projected = self.projector(encoded.features)  # (B, T, P)
        pooled = mean_pooling(projected, self._valid_frames(projected, attention_mask))  # (B, P)
        logits = self.classifier(pooled)  # (B, num_labels)
        loss = None
        if labels is not None:
            loss = class_loss(logits, class_ids(labels, logits.shape[:1], self.num_labels))
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if choose(return_dict, self.config.return_dict) else output.to_tuple()


def mean_pooling(x: Tensor, valid: Tensor) -> Tensor:
    """Mean (B, P) of the frames of (B, T, P) where `valid` (B, T) is True; zero where there is none.

    Summed in at least float32, since a few hundred frames overflow float16.
    """
    total = x.masked_fill(~valid.unsqueeze(-1), 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / valid.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)
