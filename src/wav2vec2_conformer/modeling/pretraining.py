"""Self-supervised pre-training: recognise each masked frame's quantized features among those of other frames."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..configuration import Wav2Vec2ConformerConfig
from .dropout import Dropout
from .losses import contrastive_loss, diversity_loss
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel, choose
from .outputs import PretrainingStatistics, StateSelection, Wav2Vec2ConformerForPreTrainingOutput
from .quantizer import GumbelQuantizer

# B batch, N samples, T frames, D hidden size, P width of the comparison (`proj_codevector_dim`), K negatives

__all__ = ["Wav2Vec2ConformerForPreTraining"]


class Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerPreTrainedModel):  # type: ignore[no-untyped-call]
    """Wav2Vec2-Conformer with a quantizer and the contrastive task (Baevski et al. 2020, section 3).

    Args:
        config: without `add_adapter`, since predictions and targets are compared frame by frame.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__(config)
        if config.add_adapter:
            raise ValueError(
                "pre-training compares the network's output with its features frame by frame, but the adapter shortens "
                "the output; build it with `add_adapter=False` and add the adapter for fine-tuning"
            )
        self.wav2vec2_conformer = Wav2Vec2ConformerModel(config)
        self.dropout_features = Dropout(config.feat_quantizer_dropout)
        self.quantizer = GumbelQuantizer(config)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values, distributed as in the references."""
        super()._init_weights(module)
        # The layers, not their parents: transformers passes over a module of ours without parameters of its own.
        if isinstance(module, GumbelQuantizer):
            init.uniform_(module.codevectors)
        elif module is self.quantizer.weight_proj:
            init.normal_(self.quantizer.weight_proj.weight, mean=0.0, std=1.0)
        elif module is self.project_hid or module is self.project_q:
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, a=-bound, b=bound)
            init.uniform_(module.bias, a=-bound, b=bound)

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Set the temperature of the quantizer's Gumbel-softmax, which matters in training only."""
        self.quantizer.temperature = temperature

    @staticmethod
    def compute_contrastive_logits(
        target_features: Tensor, negative_features: Tensor, predicted_features: Tensor, temperature: float = 0.1
    ) -> Tensor:
        """Cosine similarities over the temperature, for features that are already gathered.

        `forward` does not go this way: it never builds `negative_features`.

        Args:
            target_features: (1, B, T, P).
            negative_features: (K, B, T, P).
            predicted_features: (B, T, P).
            temperature: what the similarities are divided by.

        Returns:
            (K+1, B, T), the targets first.
        """
        candidates = torch.cat((target_features, negative_features))
        similarities = F.cosine_similarity(predicted_features.float(), candidates.float(), dim=-1)
        return similarities.to(candidates.dtype) / temperature

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
        return_dict: bool | None = None,
        output_statistics: bool = False,
    ) -> Wav2Vec2ConformerForPreTrainingOutput | tuple[Any, ...]:
        """Compute predictions and targets, and the loss where negatives are given.

        Args:
            input_values: (B, N) samples.
            attention_mask: (B, N), 1 = real sample, right padding. Under `padding="invariant"` padded frames count
                nowhere: their predictions and targets are 0, and the loss leaves them out even where they are masked.
            mask_time_indices: (B, T), True or 1 = frame that is masked and to be recognised, for instance from
                `sample_spans` or `compute_mask_indices`.
            sampled_negative_indices: (B, T, K), `row * T + frame` of the negatives of each frame, as
                `sample_negatives` and `sample_negative_indices` draw them; those of unmasked frames are not read.
            output_attentions: as in `Wav2Vec2ConformerModel`.
            output_hidden_states: as in `Wav2Vec2ConformerModel`.
            return_dict: `False`: a plain tuple.
            output_statistics: whether to return, with the loss, what tells whether training learns.

        Returns:
            The fields of `Wav2Vec2ConformerForPreTrainingOutput`.

        Raises:
            ValueError: negatives without `mask_time_indices`, of another shape, of another utterance or (under
                `padding="invariant"`) in the padding.
        """
        if sampled_negative_indices is not None and mask_time_indices is None:
            raise ValueError(
                "`sampled_negative_indices` was given without `mask_time_indices`; the loss is taken over the masked "
                "frames, so pass the mask that the negatives were drawn for"
            )
        outputs = self.wav2vec2_conformer(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden_states, features = outputs.last_hidden_state, outputs.extract_features  # (B, T, D), (B, T, C)
        valid = None  # (B, T)
        if attention_mask is not None and self.config.padding == "invariant":
            valid = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        mask = valid if mask_time_indices is None else mask_time_indices.to(torch.bool)
        if mask is not None and valid is not None:
            mask = mask & valid

        states = self.project_hid(hidden_states)  # (B, T, P)
        quantized = self.quantizer(self.dropout_features(features), mask)
        targets = self.project_q(quantized.vectors.to(self.project_q.weight.dtype))  # (B, T, P)
        if valid is not None:
            states = states.masked_fill(~valid.unsqueeze(-1), 0)
            targets = targets.masked_fill(~valid.unsqueeze(-1), 0)

        loss = contrastive = diversity = statistics = None
        if sampled_negative_indices is not None and mask is not None:
            contrast = contrastive_loss(
                states,
                targets,
                quantized.codes,
                mask,
                sampled_negative_indices,
                temperature=self.config.contrastive_logits_temperature,
                valid=valid,
            )
            entries = self.config.num_codevector_groups * self.config.num_codevectors_per_group
            contrastive, masked = contrast.loss, mask.sum()
            diversity = diversity_loss(quantized.perplexity, entries, masked)
            if output_statistics:
                statistics = PretrainingStatistics(
                    masked, contrast.correct, quantized.hard_perplexities, quantized.soft_perplexities
                )
            loss = contrastive + self.config.diversity_loss_weight * diversity
        output = Wav2Vec2ConformerForPreTrainingOutput(
            loss=loss,
            projected_states=states,
            projected_quantized_states=targets,
            codevector_perplexity=quantized.perplexity,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            contrastive_loss=contrastive,
            diversity_loss=diversity,
            statistics=statistics,
        )
        return output if choose(return_dict, self.config.return_dict) else output.to_tuple()
