"""The bare network (waveform -> hidden states) and what all heads share: loading, saving, initial values, lengths."""

from __future__ import annotations

import logging
import math
import re
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import adapter_lengths, conv_layers, feature_lengths, frame_mask, frames_of, reference_frame_mask
from .adapter import StridedAdapter
from .attention import SelfAttention
from .conformer import ConformerBlock, ConformerEncoder
from .feature_encoder import FeatureEncoder, FeatureProjection
from .inference_linear import STATE, InferenceLinear, replace_linear_layers
from .language_adapter import ZeroLinear
from .masking import sample_spans
from .outputs import StateSelection
from .positions import NormedWeight, RotaryPositions
from .quantized import QuantizedLinear
from .unused import UnusedTensors, seal_unused

# B batch, N samples, T frames, C conv channels, D hidden size, L blocks

logger = logging.getLogger(__name__)

__all__ = ["Wav2Vec2ConformerModel", "Wav2Vec2ConformerPreTrainedModel"]

# What a checkpoint of the network may lack: all else of it missing means random weights, so it is an error.
MAY_BE_MISSING = re.compile(r"masked_spec_embed|inv_freq|pos_conv_embed|num_batches_tracked|(^|\.)adapter(_layer)?\.")


class Wav2Vec2ConformerPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Loading, saving and initial values of all Wav2Vec2-Conformer models."""

    config: Wav2Vec2ConformerConfig
    config_class = Wav2Vec2ConformerConfig
    base_model_prefix = "wav2vec2_conformer"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": ConformerBlock, "attentions": SelfAttention}  # noqa: RUF012
    _no_split_modules = ["ConformerBlock"]  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [r"pos_conv_embed", r"inv_freq", r"num_batches_tracked"]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model from a folder or the Hub; arguments as for every transformers model.

        Raises:
            ValueError: weights of the network itself are missing. (A head may be missing: it starts at random, with a
                warning, as fine-tuning wants.)
        """
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: its weights are damaged or truncated ({error})"
            ) from error
        model, info = loaded
        seal_unused(model)
        inside = "" if model.base_model is model else f"{cls.base_model_prefix}."
        absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        missing = sorted(key for key in absent if key.startswith(inside) and not model._may_be_missing(key))
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path}: {len(missing)} weights of the network are missing or of another "
                f"shape, and random ones would give wrong results without a sign: {', '.join(missing[:5])}, ... "
                "Expected a Wav2Vec2-Conformer checkpoint whose config.json belongs to its weights."
            )
        drawn = sorted(key for key in absent if key not in missing)
        if drawn:
            logger.warning("%s does not have %s: drawn at random", pretrained_model_name_or_path, ", ".join(drawn))
        return (model, info) if output_loading_info else model

    def __init__(self, config: Wav2Vec2ConformerConfig, *args: Any, **kwargs: Any) -> None:
        if not isinstance(config, Wav2Vec2ConformerConfig):
            raise ValueError(
                f"{type(self).__name__} needs a wav2vec2_conformer.Wav2Vec2ConformerConfig, got {type(config)}; "
                "`Wav2Vec2ConformerConfig.from_dict(config.to_dict())` makes one of it"
            )
        config.check()  # fields may have been changed since it was built, as `from_pretrained(..., field=...)` does
        super().__init__(config, *args, **kwargs)
        if config.position_embeddings_type == "convolutional":  # then they are used, and none may be missing
            self._keys_to_ignore_on_load_missing = self._keys_to_ignore_on_load_missing[1:]

    def quantize(self, compute_type: str = "int8") -> Self:
        """Turn the weights of the conformer blocks' linear layers into integers, in place, for inference on a CPU.

        Each output has a scale of its own, and so has each frame's input, so that results do not depend on what else
        is in a batch. The products are several times as fast where the processor multiplies 8-bit integers (AVX-512
        VNNI); `Transcriber.from_pretrained(..., compute_type="int8")` measures that, and the error.

        Returns:
            The model itself. It can neither be trained nor saved any more.

        Raises:
            ValueError: the type is not "int8", the model was converted for inference before, or it is not on a CPU.
        """
        if compute_type != "int8":
            raise ValueError(f"a model is quantized to 'int8', got {compute_type!r}")
        if self.is_converted:
            raise ValueError("the model was converted already; load it anew to quantize it")
        if self.device.type != "cpu":
            raise ValueError(
                f"int8 is for CPUs, and the model is on {self.device}; bfloat16 or float16 is faster there"
            )
        network: Any = self.base_model
        replace_linear_layers(network.encoder.layers, QuantizedLinear)
        self.train(False)
        return self

    @property
    def is_quantized_to_int8(self) -> bool:
        """Whether `quantize` was called."""
        return any(isinstance(module, QuantizedLinear) for module in self.modules())

    @property
    def is_converted(self) -> bool:
        """Whether linear layers were quantized, or packed for bfloat16: such a model is for inference only."""
        return any(isinstance(module, InferenceLinear) for module in self.modules())

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the model to a folder; arguments as for every transformers model.

        Raises:
            ValueError: it was converted for inference.
        """
        if self.is_converted:
            raise ValueError(STATE)
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values, distributed as in the references."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, UnusedTensors):
            for name, buffer in module.named_buffers(recurse=False):
                init.copy_(buffer, module.initial(name))
        elif isinstance(module, SelfAttention):
            if module.position_embeddings_type == "relative":
                init.xavier_uniform_(module.pos_bias_u)
                init.xavier_uniform_(module.pos_bias_v)
        elif isinstance(module, FeatureProjection) and module.projection is not None:
            bound = math.sqrt(1 / module.projection.in_features)
            init.uniform_(module.projection.weight, a=-bound, b=bound)
            init.uniform_(module.projection.bias, a=-bound, b=bound)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                init.uniform_(module.bias, a=-bound, b=bound)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, NormedWeight):
            module.reset_parameters()
        elif isinstance(module, RotaryPositions):
            init.copy_(module.inv_freq, module.exact_frequencies())
        elif isinstance(module, Wav2Vec2ConformerModel) and hasattr(module, "masked_spec_embed"):
            init.uniform_(module.masked_spec_embed)

    def _may_be_missing(self, key: str) -> bool:
        used = self.config.position_embeddings_type == "convolutional" and "pos_conv_embed" in key
        return not used and MAY_BE_MISSING.search(key) is not None

    def get_input_embeddings(self) -> nn.Module:
        """The layer whose output enters the encoder: what LoRA with reentrant checkpointing asks gradients of."""
        projection = cast(Wav2Vec2ConformerModel, self.base_model).feature_projection
        return projection if projection.projection is None else projection.projection

    def freeze_feature_encoder(self) -> None:
        """Exclude the convolutional feature encoder from training."""
        cast(Wav2Vec2ConformerModel, self.base_model).feature_extractor._freeze_parameters()

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int, add_adapter: bool | None = None) -> Tensor:
        """Frames for clips of `input_lengths` samples, as a tensor also for an int."""
        return frames_of(torch.as_tensor(input_lengths), self.config, add_adapter=add_adapter)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: Tensor, add_adapter: bool | None = None
    ) -> Tensor:
        """(B, N) mask of samples -> (B, feature_vector_length) bool mask of frames."""
        samples = attention_mask.sum(-1)
        adapter = self.config.add_adapter if add_adapter is None else add_adapter
        if self.config.padding == "reference":
            return reference_frame_mask(samples, self.config, feature_vector_length, adapter=adapter)
        return frame_mask(frames_of(samples, self.config, add_adapter=adapter), feature_vector_length)


class Wav2Vec2ConformerModel(Wav2Vec2ConformerPreTrainedModel):  # type: ignore[no-untyped-call]
    """Raw waveform -> hidden states, without a head.

    Source: Baevski et al. 2020 (wav2vec 2.0) with the blocks of Gulati et al. 2020 (Conformer).
    """

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__(config)
        self.feature_extractor = FeatureEncoder(config)
        self.feature_projection = FeatureProjection(config)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = ConformerEncoder(config)
        self.adapter = StridedAdapter(config) if config.add_adapter else None
        self.layerdrop_seed: int | None = None  # of the next pass; trainers set it, so that all processes drop alike
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: StateSelection | None = None,
        return_dict: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput | tuple[Any, ...]:
        """Compute hidden states.

        Args:
            input_values: (B, N) samples at 16 kHz, each clip normalised to zero mean and unit variance if its
                processor says so.
            attention_mask: (B, N), 1 = real sample, right padding. With it, a clip's results do not depend on what it
                is batched with.
            mask_time_indices: (B, T), True or 1 = frame replaced by the mask embedding; used as it is given.
            output_attentions: whether to return all attention weights, L times (B, H, T, T).
            output_hidden_states: whether to return the states entering block 1 and leaving each block, L+1 times
                (B, T, D); the last one is after the final LayerNorm. Given indices instead, such as `[0, -1]`, only
                those are kept, and the others are `None`.
            return_dict: `False`: a plain tuple.

        Returns:
            `last_hidden_state` (B, T, D), `extract_features` (B, T, C), `hidden_states`, `attentions`.

        Raises:
            ValueError: shapes that do not belong together.
        """
        check_inputs(input_values, attention_mask, self.dtype)
        invariant = self.config.padding == "invariant"
        samples = None if attention_mask is None else attention_mask.sum(-1)  # (B,)

        if attention_mask is not None and invariant:
            # Nothing below lets padding into a result, but its gradient of 0 times a NaN or inf would be NaN.
            input_values = input_values.masked_fill(attention_mask == 0, 0)
        features = self.feature_extractor(input_values, samples if invariant else None)  # (B, T, C)
        frames = features.shape[1]
        lengths = None if samples is None else feature_lengths(samples, conv_layers(self.config))  # (B,)
        valid = None  # (B, T)
        if attention_mask is not None:
            valid = self._get_feature_vector_attention_mask(frames, attention_mask, add_adapter=False)

        hidden_states, features = self.feature_projection(features)  # (B, T, D), (B, T, C)
        if valid is not None and invariant:
            features = features.masked_fill(~valid.unsqueeze(-1), 0)
        hidden_states = self._mask(hidden_states, lengths, mask_time_indices)
        encoded = self.encoder(
            hidden_states,
            valid,
            dropped_layers=self._draw_layerdrop(),
            output_attentions=choose(output_attentions, self.config.output_attentions),
            output_hidden_states=choose_states(output_hidden_states, self.config.output_hidden_states),
        )
        hidden_states = encoded.last_hidden_state
        if self.adapter is not None:
            hidden_states = self.adapter(hidden_states, lengths if invariant else None)

        output = Wav2Vec2BaseModelOutput(
            last_hidden_state=hidden_states,
            extract_features=features,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if choose(return_dict, self.config.return_dict) else output.to_tuple()

    def _mask(self, hidden_states: Tensor, lengths: Tensor | None, given: Tensor | None) -> Tensor:
        """Replace masked frames by the mask embedding and zero masked channels (SpecAugment, in training)."""
        config = self.config
        batch, frames, width = hidden_states.shape
        augment = self.training and config.apply_spec_augment
        if lengths is None:
            lengths = torch.full((batch,), frames, device=hidden_states.device)
        if given is not None:
            if not hasattr(self, "masked_spec_embed"):
                raise ValueError(
                    "`mask_time_indices` was given, but this model has no mask embedding because `mask_time_prob` and "
                    "`mask_feature_prob` are both 0; set one of them above 0 when the model is built"
                )
            if given.shape != (batch, frames):
                raise ValueError(f"`mask_time_indices` must be of shape {(batch, frames)}, got {tuple(given.shape)}")
            time_mask = given.to(torch.bool)
        elif augment and config.mask_time_prob > 0:
            time_mask = sample_spans(
                lengths,
                frames,
                probability=config.mask_time_prob,
                span=config.mask_time_length,
                min_spans=config.mask_time_min_masks,
            )
        else:
            time_mask = None
        if time_mask is not None:
            embedding = self.masked_spec_embed.to(hidden_states.dtype)
            hidden_states = torch.where(time_mask.unsqueeze(-1), embedding, hidden_states)
        if augment and config.mask_feature_prob > 0:
            feature_mask = sample_spans(
                torch.full_like(lengths, width),
                width,
                probability=config.mask_feature_prob,
                span=config.mask_feature_length,
                min_spans=config.mask_feature_min_masks,
            )
            hidden_states = hidden_states.masked_fill(feature_mask.unsqueeze(1), 0)
        return hidden_states

    def _draw_layerdrop(self) -> list[bool] | None:
        """L decisions, True = skip the block; drawn on the host, outside the blocks."""
        if not self.training or self.config.layerdrop == 0:
            return None
        seed, self.layerdrop_seed = self.layerdrop_seed, None  # for one pass: the next one is drawn anew
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        draws = torch.rand(self.config.num_hidden_layers, generator=generator)
        return (draws < self.config.layerdrop).tolist()

    def output_lengths(self, attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor:
        """(B,) valid frames of the last hidden state (after the adapter, if there is one)."""
        if attention_mask is None:
            return torch.full((hidden_states.shape[0],), hidden_states.shape[1], device=hidden_states.device)
        lengths = feature_lengths(attention_mask.sum(-1), conv_layers(self.config))
        return lengths if self.adapter is None else adapter_lengths(lengths, self.config)


def choose(value: bool | None, default: bool | None) -> bool:
    """An argument of `forward`, or the configuration's value where it is not given."""
    return bool(default if value is None else value)


def choose_states(value: StateSelection | None, default: StateSelection | None) -> StateSelection:
    """The same for hidden states, of which some may be asked for by their indices."""
    return (default or False) if value is None else value


def check_inputs(input_values: Tensor, attention_mask: Tensor | None, dtype: torch.dtype) -> None:
    """Refuse inputs that are no batch of waveforms of the network's type; warn of masks that are no right padding."""
    for name, value in (("input_values", input_values), ("attention_mask", attention_mask)):
        if not isinstance(value, Tensor) and (name == "input_values" or value is not None):
            raise ValueError(
                f"`{name}` must be a torch tensor, got {type(value).__name__}; `torch.as_tensor` makes one"
            )
    if input_values.dim() != 2 or not input_values.is_floating_point():
        raise ValueError(
            "`input_values` must be a floating-point batch of waveforms of shape (batch, samples), got "
            f"{tuple(input_values.shape)} of {input_values.dtype}; a single waveform needs `[None]`"
        )
    if input_values.dtype != dtype and not torch.is_autocast_enabled(input_values.device.type):
        raise ValueError(
            f"`input_values` must be of the network's type {dtype}, got {input_values.dtype}; pass "
            f"`input_values.to(model.dtype)`"
        )
    if attention_mask is None:
        return
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_values`, {tuple(input_values.shape)}, got "
            f"{tuple(attention_mask.shape)}; it marks samples, not frames"
        )
    # Elsewhere looking at the values would make the host wait for the device.
    if attention_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        allowed = (attention_mask == 0) | (attention_mask == 1)
        if not bool(allowed.all()):
            raise ValueError("`attention_mask` must hold ones (real samples) and zeros (padding), and nothing else")
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            # A warning and no error, since transformers' own tests run its models so.
            logger.warning(
                "`attention_mask` is read as ones followed by zeros, and here it is not: other samples than the marked "
                'ones are used. Pad clips on the right, as `padding_side="right"` of the feature extractor does.'
            )
