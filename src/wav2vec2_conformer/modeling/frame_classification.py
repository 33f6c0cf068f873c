"""Classification of frames: a linear layer a frame, for instance for speaker diarization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from ..configuration import Wav2Vec2ConformerConfig
from .layer_mixture import LayerMixtureModel, refuse_adapter
from .losses import IGNORED, class_ids, class_loss, multi_label_loss
from .model import choose
from .outputs import StateSelection

# B batch, N samples, T frames, D hidden size

__all__ = ["Wav2Vec2ConformerForAudioFrameClassification"]


class Wav2Vec2ConformerForAudioFrameClassification(LayerMixtureModel):
    """Wav2Vec2-Conformer with a classifier of frames.

    Args:
        config: with `num_labels` (or `id2label`) and `use_weighted_layer_sum`. Under
            `problem_type="multi_label_classification"` several classes can be active in a frame (overlapping speakers),
            and each is trained by binary cross entropy; otherwise one class is, trained by cross entropy.

    Raises:
        ValueError: `add_adapter` is set.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        refuse_adapter(config, "frame classification")
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Compute one row of logits a frame, and the loss where labels are given.

        Args:
            input_values: (B, N) samples.
            attention_mask: (B, N), 1 = real sample, right padding.
            labels: (B, T) class ids in [0, num_labels), -100 where a frame has no share in the loss; or (B, T,
                num_labels) one-hot rows, of which the largest entry counts; or, in a multi-label model, (B, T,
                num_labels) targets in [0, 1], -100 where one has no share. T is the number of frames of the padded
                batch. Labels of padded frames never count, whatever they are. (Under `padding="reference"` they do.)
            output_attentions: as in `Wav2Vec2ConformerModel`.
            output_hidden_states: as in `Wav2Vec2ConformerModel`.
            return_dict: `False`: a plain tuple.

        Returns:
            `loss` (), the mean over all labels that count, where labels are given, `logits` (B, T, num_labels),
            `hidden_states`, `attentions`.

        Raises:
            ValueError: labels of another shape, or classes that there are not.
        """
        encoded = self._encode(input_values, attention_mask, output_attentions, output_hidden_states)
        logits = self.classifier(encoded.features)  # (B, T, num_labels)
        loss = None
        if labels is not None:
            padded = None
            if attention_mask is not None and self.config.padding == "invariant":
                padded = ~self._valid_frames(logits, attention_mask)  # (B, T)
            loss = self._loss(logits, labels, padded)
        output = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if choose(return_dict, self.config.return_dict) else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor, padded: Tensor | None) -> Tensor:
        multi_label = self.config.problem_type == "multi_label_classification"
        rows = tuple(logits.shape)
        frames = rows[:-1]
        if labels.shape != rows and (multi_label or labels.shape != frames):
            wanted = f"targets of shape {rows}" if multi_label else f"class ids of shape {frames} or one-hot of {rows}"
            raise ValueError(
                f"`labels` must be {wanted} (clips, frames, classes), got {tuple(labels.shape)}; "
                "`_get_feat_extract_output_lengths` tells how many frames the padded clips have"
            )
        if not labels.is_floating_point():
            labels = labels.long()  # booleans and bytes cannot hold -100
        if padded is not None:
            labels = labels.masked_fill(padded if labels.dim() == 2 else padded.unsqueeze(-1), IGNORED)
        if multi_label:
            return multi_label_loss(logits, self._check_targets(labels))
        if labels.dim() == 3:
            empty = (labels < 0).all(-1)  # a row of -100 is no row
            labels = labels.float().argmax(-1).masked_fill(empty, IGNORED)  # (B, T)
        return class_loss(logits, class_ids(labels, frames, self.num_labels))

    def _check_targets(self, targets: Tensor) -> Tensor:
        fine = ((targets >= 0) & (targets <= 1)) | (targets == IGNORED)
        if not bool(fine.all()):
            raise ValueError(
                f"`labels` of a multi-label model must lie in [0, 1], or be {IGNORED} where they should not count, got "
                f"{targets[~fine][0].item()}; class ids need `config.problem_type` other than "
                "'multi_label_classification'"
            )
        return targets
