"""Speech recognition: a linear layer a frame, trained by connectionist temporal classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import frame_mask
from .dropout import Dropout
from .losses import ctc_loss
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel, choose

# B batch, N samples, T frames, D hidden size, V vocabulary, S labels

__all__ = ["Wav2Vec2ConformerForCTC"]

PADDING_LOGIT = -100.0  # e^-100 is 0 in float32, and 100 fits every floating-point type


class Wav2Vec2ConformerForCTC(Wav2Vec2ConformerPreTrainedModel):  # type: ignore[no-untyped-call]
    """Wav2Vec2-Conformer with a CTC head.

    Args:
        config: with `vocab_size` set; `pad_token_id` is the blank.
        target_lang: language id of an adapter, kept for the references' signature.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig, target_lang: str | None = None) -> None:
        super().__init__(config)
        if config.vocab_size is None:
            raise ValueError(
                "a CTC head needs `config.vocab_size`, got None; pass it, for instance "
                "`Wav2Vec2ConformerForCTC.from_pretrained(..., vocab_size=len(processor.tokenizer))`"
            )
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            raise ValueError(
                f"`pad_token_id` is the blank of CTC and must lie in [0, vocab_size = {config.vocab_size}), got "
                f"{config.pad_token_id}; set it to the index of the padding token"
            )
        self.blank = config.pad_token_id
        self.wav2vec2_conformer = Wav2Vec2ConformerModel(config)
        self.target_lang = target_lang
        self.dropout = Dropout(config.final_dropout)
        width = config.output_hidden_size if config.add_adapter else config.hidden_size
        self.lm_head = nn.Linear(width or config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Compute logits, and the CTC loss where labels are given.

        Args:
            input_values: (B, N) samples.
            attention_mask: (B, N), 1 = real sample, right padding.
            output_attentions: as in `Wav2Vec2ConformerModel`.
            output_hidden_states: as in `Wav2Vec2ConformerModel`.
            return_dict: `False`: a plain tuple.
            labels: (B, S) token ids in [0, V); negative ones, such as -100, are left out.

        Returns:
            `loss` () where labels are given, `logits` (B, T, V), `hidden_states`, `attentions`. Under
            `padding="invariant"` the argmax on padded frames is the blank, so decoding needs no lengths.

        Raises:
            ValueError: a label outside the vocabulary.
        """
        if labels is not None:
            self._check_labels(labels)
        return_dict = choose(return_dict, self.config.return_dict)
        outputs = self.wav2vec2_conformer(
            input_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        logits = self.lm_head(self.dropout(hidden_states))  # (B, T, V)
        lengths = self.wav2vec2_conformer.output_lengths(attention_mask, hidden_states)
        if attention_mask is not None and self.config.padding == "invariant":
            logits = self._blank_padding(logits, lengths)
        loss = None
        if labels is not None:
            loss = ctc_loss(
                logits,
                labels,
                lengths,
                blank=self.blank,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        output = CausalLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return output if return_dict else output.to_tuple()

    def _blank_padding(self, logits: Tensor, lengths: Tensor) -> Tensor:
        valid = frame_mask(lengths, logits.shape[1]).unsqueeze(-1)
        columns = torch.arange(logits.shape[-1], device=logits.device)
        blank = torch.where(columns == self.blank, 0.0, PADDING_LOGIT).to(logits.dtype)
        return torch.where(valid, logits, blank)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dim() != 2:
            raise ValueError(f"labels must be of shape (batch, length), got {tuple(labels.shape)}")
        if labels.numel() and int(labels.max()) >= self.lm_head.out_features:
            raise ValueError(
                f"labels must be below vocab_size = {self.lm_head.out_features}, got {int(labels.max())}; the model "
                "and the tokenizer do not belong together"
            )
