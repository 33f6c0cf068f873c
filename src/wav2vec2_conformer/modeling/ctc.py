"""Speech recognition: a linear layer a frame, trained by connectionist temporal classification."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import frame_mask
from .batch_norm import FrameBatchNorm
from .dropout import Dropout
from .language_adapter import LanguageAdapter, read_adapter, write_adapter
from .losses import ctc_loss
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel, choose
from .outputs import StateSelection

# B batch, N samples, T frames, D hidden size, V vocabulary, S labels

__all__ = ["Wav2Vec2ConformerForCTC"]

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# What tells a call for a PEFT adapter (transformers' `load_adapter`) from one for a language.
PEFT_OPTIONS = frozenset({"adapter_name", "peft_config", "adapter_state_dict", "peft_model_id", "is_trainable"})
PADDING_LOGIT = -100.0  # e^-100 is 0 in float32, and 100 fits every floating-point type


class Wav2Vec2ConformerForCTC(Wav2Vec2ConformerPreTrainedModel):  # type: ignore[no-untyped-call]
    """Wav2Vec2-Conformer with a CTC head.

    Args:
        config: with `vocab_size` set; `pad_token_id` is the blank.
        target_lang: language id whose `adapter.<target_lang>.safetensors` is loaded, from the folder or Hub id in
            `config.name_or_path`; needs `config.adapter_attn_dim`.
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
        self.target_lang: str | None = None
        self.dropout = Dropout(config.final_dropout)
        width = config.output_hidden_size if config.add_adapter else config.hidden_size
        self.lm_head = nn.Linear(width or config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]
        if target_lang is not None:
            self.load_adapter(target_lang)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, target_lang: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a model, and the adapter and head of `target_lang` if it is given; otherwise as every model here."""
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if target_lang is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(target_lang, **hub_options)
        return loaded

    def freeze_base_model(self) -> None:
        """Exclude the whole network below the head from training, language adapters included.

        Its batch norms go on tracking statistics in training mode, as in transformers.
        """
        self.wav2vec2_conformer.requires_grad_(False)

    def freeze_all_but_language(self) -> None:
        """Train one language: exclude all but its adapters and its head, and hold the batch norms' statistics still.

        They belong to all languages; the ones that are not being trained would suffer.
        """
        self.requires_grad_(False)
        for parameter in self._get_adapters().values():
            parameter.requires_grad = True
        for module in self.modules():
            if isinstance(module, FrameBatchNorm):
                module.frozen = True
                module.train(False)

    def _get_adapters(self) -> dict[str, nn.Parameter]:
        """The weights that belong to one language: the adapter of every block, and the head."""
        if self.config.adapter_attn_dim is None:
            raise ValueError(
                "this model has no language adapters; build it with `config.adapter_attn_dim` set, for instance "
                "`from_pretrained(..., adapter_attn_dim=16)`"
            )
        return {
            key: parameter
            for key, parameter in self.named_parameters()
            if ".adapter_layer." in key or key.startswith("lm_head.")
        }

    def init_adapter_layers(self) -> None:
        """Give adapters and head new weights, to train another language; such adapters change nothing at first."""
        self._get_adapters()
        for module in self.modules():
            if isinstance(module, LanguageAdapter):
                module.reset_parameters()
        nn.init.normal_(self.lm_head.weight, std=self.config.initializer_range)
        nn.init.zeros_(self.lm_head.bias)

    def load_adapter(  # type: ignore[override]  # the name and the arguments are those of transformers' Wav2Vec2ForCTC
        self, target_lang: str | None = None, force_load: bool = True, **kwargs: Any
    ) -> Any:
        """Switch to a language: load `adapter.<target_lang>.safetensors` (or `.bin`) from `config.name_or_path`.

        Adapters, head and `config.vocab_size` change, nothing else; on an error nothing changes at all. Call
        `tokenizer.set_target_lang` for the texts. With the arguments of PEFT (`adapter_name`, `peft_config`, ...) it
        loads a PEFT adapter, as every transformers model does.

        Args:
            target_lang: the language id, or the folder of a PEFT adapter.
            force_load: whether to read the file again where the language is already loaded.
            kwargs: as for `from_pretrained`: `cache_dir`, `revision`, `token`, `local_files_only`, ...

        Raises:
            ValueError: no language adapters in this model, no such file, or a file of another model.
        """
        if isinstance(force_load, str):  # PEFT's second argument
            kwargs["adapter_name"] = force_load
        if target_lang is None or is_peft_adapter(target_lang) or not PEFT_OPTIONS.isdisjoint(kwargs):
            return super().load_adapter(target_lang, **kwargs)
        own = self._get_adapters()
        if target_lang == self.target_lang and not force_load:
            return None
        path, tensors = read_adapter(str(self.config.name_or_path), target_lang, **kwargs)
        vocabulary = len(tensors.get("lm_head.bias", self.lm_head.bias))
        self._check_adapter(path, tensors, {key: tuple(value.shape) for key, value in own.items()}, vocabulary)
        if vocabulary != self.lm_head.out_features:
            old = self.lm_head.weight
            self.lm_head = nn.Linear(self.lm_head.in_features, vocabulary, device=old.device, dtype=old.dtype)
            self.lm_head.requires_grad_(old.requires_grad)
            self.config.vocab_size = vocabulary
        with torch.no_grad():
            for key, parameter in self._get_adapters().items():
                parameter.copy_(tensors[key])
        self.target_lang = target_lang
        return None

    def _check_adapter(
        self, path: str, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], vocabulary: int
    ) -> None:
        expected["lm_head.weight"] = (vocabulary, self.lm_head.in_features)  # a language has its own alphabet
        expected["lm_head.bias"] = (vocabulary,)
        found = {key: tuple(value.shape) for key, value in tensors.items()}
        wrong = [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"{path}: not an adapter of this model; {len(wrong)} weights are missing, unknown or of another shape, "
                f"the first is {key}: expected {expected.get(key, 'none')}, got {found.get(key, 'none')}"
            )
        if self.blank >= vocabulary:
            raise ValueError(
                f"{path}: its head has {vocabulary} tokens, too few for the blank, pad_token_id = {self.blank}"
            )

    def save_adapter(self, save_directory: str | os.PathLike[str], target_lang: str | None = None) -> Path:
        """Write adapters and head as `adapter.<target_lang>.safetensors`.

        Args:
            save_directory: a folder, usually the model's own.
            target_lang: the language id; by default the one that is loaded.

        Returns:
            the file's path.
        """
        language = self.target_lang if target_lang is None else target_lang
        if language is None:
            raise ValueError("no language is loaded; say which one this is: `save_adapter(folder, target_lang='eng')`")
        return write_adapter(save_directory, language, dict(self._get_adapters()))

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
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
            labels: (B, S) token ids in [0, V); negative ones, such as -100, and the blank are left out.

        Returns:
            `loss` () where labels are given, `logits` (B, T, V), `hidden_states`, `attentions`. Under
            `padding="invariant"` the argmax on padded frames is the blank, so decoding needs no lengths.

        Raises:
            ValueError: a label outside the vocabulary.
        """
        if labels is not None:
            self._check_labels(labels, len(input_values))
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

    def _check_labels(self, labels: Tensor, clips: int) -> None:
        if labels.dim() != 2 or len(labels) != clips or labels.is_floating_point():
            raise ValueError(
                f"labels must be whole numbers of shape (batch, length) with a batch of {clips}, got "
                f"{tuple(labels.shape)} of {labels.dtype}; a single transcript needs `[None]`"
            )
        if labels.numel() and int(labels.max()) >= self.lm_head.out_features:
            raise ValueError(
                f"labels must be below vocab_size = {self.lm_head.out_features}, got {int(labels.max())}; the model "
                "and the tokenizer do not belong together"
            )


def is_peft_adapter(name: str) -> bool:
    """Whether this is a folder with a PEFT adapter, and no language id."""
    return (Path(name) / "adapter_config.json").is_file()
