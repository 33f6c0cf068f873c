"""What the classification heads share: the network, and the hidden state they read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..configuration import Wav2Vec2ConformerConfig
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel, choose_states
from .outputs import StateSelection, selected_states

# B batch, N samples, T frames, D hidden size, L blocks

__all__ = ["HeadInput", "LayerMixtureModel", "mix_layers"]


class HeadInput(NamedTuple):
    """What a head reads, `features` (B, T, D), and what it passes on: all hidden states and attentions if asked for."""

    features: Tensor
    hidden_states: tuple[Tensor, ...] | None  # as the library's outputs say; `None` where one was not asked for
    attentions: tuple[Tensor, ...] | None


def mix_layers(hidden_states: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Weighted sum of hidden states, n times (B, T, D) -> (B, T, D), under the softmax of n learnt weights (n,).

    Source: SUPERB (Yang et al. 2021), section 3.
    """
    shares = weights.softmax(-1, dtype=torch.promote_types(weights.dtype, torch.float32)).to(hidden_states[0].dtype)
    mixed = shares[0] * hidden_states[0]
    for share, state in zip(shares[1:], hidden_states[1:], strict=True):
        mixed = mixed + share * state  # one sum at a time: stacked, the states would be in memory twice
    return mixed


class LayerMixtureModel(Wav2Vec2ConformerPreTrainedModel):  # type: ignore[no-untyped-call]
    """The network with either its last hidden state or, under `use_weighted_layer_sum`, a mixture of all of them."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.wav2vec2_conformer = Wav2Vec2ConformerModel(config)
        if config.use_weighted_layer_sum:
            states = config.num_hidden_layers + 1  # one enters the first block, one leaves each
            self.layer_weights = nn.Parameter(torch.full((states,), 1 / states))

    def freeze_base_model(self) -> None:
        """Exclude the whole network below the head from training.

        Its batch norms go on tracking statistics in training mode, as in transformers.
        """
        self.wav2vec2_conformer.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.use_weighted_layer_sum:
            init.constant_(self.layer_weights, 1 / len(self.layer_weights))

    def _encode(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: StateSelection | None,
    ) -> HeadInput:
        """Run the network; arguments as for `Wav2Vec2ConformerModel`."""
        mixing = self.config.use_weighted_layer_sum
        asked = choose_states(output_hidden_states, self.config.output_hidden_states)
        outputs = self.wav2vec2_conformer(
            input_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=mixing or asked,
            return_dict=True,
        )
        if not mixing:
            return HeadInput(outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)
        states = outputs.hidden_states
        kept = selected_states(asked, len(states))  # those that only the mixture needs are not returned
        returned = cast(tuple[Tensor, ...], tuple(state if i in kept else None for i, state in enumerate(states)))
        return HeadInput(mix_layers(states, self.layer_weights), returned if kept else None, outputs.attentions)

    def _valid_frames(self, features: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, T) mask of the encoder's frames, True = valid; all of them where there is no mask."""
        if attention_mask is None:
            return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self._get_feature_vector_attention_mask(features.shape[1], attention_mask, add_adapter=False)


def refuse_adapter(config: Wav2Vec2ConformerConfig, task: str) -> None:
    """Refuse a configuration whose adapter the head could not use."""
    if config.add_adapter:
        raise ValueError(
            f"{task} reads the encoder's frames and expects `add_adapter=False`, got True; turn the adapter off, or "
            "use a CTC or x-vector head, which can follow one"
        )
