"""Wav2Vec2ConformerConfig: everything that defines the network, checked when it is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

__all__ = ["Wav2Vec2ConformerConfig"]


class Wav2Vec2ConformerConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    r"""Defines a Wav2Vec2-Conformer network; every field of the transformers class with its default, and `padding`.

    A released model is
    [facebook/wav2vec2-conformer-rel-pos-large](https://huggingface.co/facebook/wav2vec2-conformer-rel-pos-large).

    Raises:
        ValueError: a value that no network can be built from; the message says what to write instead.

    Args:
        vocab_size: columns of the CTC head; `None` for models without one.
        hidden_size: width `D` of the conformer blocks.
        num_hidden_layers: number `L` of conformer blocks.
        num_attention_heads: heads `H`; must divide `hidden_size`.
        intermediate_size: inner width of the two feed-forward modules of a block.
        hidden_act: activation of the feed-forward and convolution modules (`"swish"` in the released models).
        hidden_dropout: dropout after each feed-forward module and before the first block.
        activation_dropout: dropout inside the feed-forward modules.
        attention_dropout: dropout of the attention weights and of the attention output.
        feat_proj_dropout: dropout of the projected features.
        feat_quantizer_dropout: dropout of the features that enter the quantizer.
        final_dropout: dropout before the CTC head.
        layerdrop: probability with which a whole block is skipped in training.
        initializer_range: standard deviation of new linear weights.
        layer_norm_eps: epsilon of the feature projection's and the encoder's LayerNorm (inner ones: always 1e-5).
        feat_extract_norm: `"group"` (GroupNorm after the first convolution) or `"layer"` (LayerNorm after each).
        feat_extract_activation: activation of the feature encoder.
        conv_dim: output channels of each convolution of the feature encoder.
        conv_stride: stride of each of these convolutions; their product is the number of samples a frame.
        conv_kernel: kernel size of each of these convolutions.
        conv_bias: whether these convolutions have a bias.
        num_conv_pos_embeddings: kernel size of the convolutional position embedding, which no released model uses;
            without `position_embeddings_type="convolutional"` it is the shape of weights that checkpoints carry only.
        num_conv_pos_embedding_groups: groups of that convolution.
        apply_spec_augment: whether training draws SpecAugment masks.
        mask_time_prob: share of frames covered by time masks, counted before overlap.
        mask_time_length: frames of one time mask.
        mask_time_min_masks: least number of time masks in a clip.
        mask_feature_prob: share of feature channels covered by masks, counted before overlap.
        mask_feature_length: channels of one feature mask.
        mask_feature_min_masks: least number of feature masks in a clip.
        num_codevectors_per_group: entries `V` of each codebook group of the quantizer.
        num_codevector_groups: codebook groups `G` of the quantizer; must divide `codevector_dim`.
        contrastive_logits_temperature: temperature of the contrastive loss.
        num_negatives: negatives for each masked frame, for those who draw them; the network takes any number.
        codevector_dim: width of a quantized vector.
        proj_codevector_dim: width in which predictions and quantized vectors are compared.
        diversity_loss_weight: weight of the codebook diversity loss.
        ctc_loss_reduction: `"sum"` or `"mean"` over the clips of a batch.
        ctc_zero_infinity: whether a clip with more labels than frames counts 0 instead of infinity.
        use_weighted_layer_sum: whether heads read a learnt mixture of all hidden states.
        classifier_proj_size: width before pooling in sequence classification.
        tdnn_dim: output channels of the x-vector's TDNN layers.
        tdnn_kernel: kernel sizes of these layers.
        tdnn_dilation: dilations of these layers.
        xvector_output_dim: width of the x-vector embedding.
        pad_token_id: padding token, and the blank of CTC.
        bos_token_id: token of the beginning of a text; kept for tokenizers, without effect on the network.
        eos_token_id: token of the end of a text; kept likewise.
        add_adapter: whether a strided convolutional adapter follows the encoder.
        adapter_kernel_size: its kernel size.
        adapter_stride: its stride.
        num_adapter_layers: its number of layers.
        output_hidden_size: its output width; `None` means `hidden_size`.
        adapter_attn_dim: inner width of the language adapter after each block; `None`: no language adapters.
        position_embeddings_type: `"relative"`, `"rotary"`, `None`, or `"convolutional"` (a convolution over the frames
            is added before the first block, as in wav2vec 2.0; fairseq's `abs`).
        rotary_embedding_base: base of the rotary frequencies.
        max_source_positions: kept for the references' files; positions are computed for any length here.
        conv_depthwise_kernel_size: kernel size of the depthwise convolution; odd.
        conformer_conv_dropout: dropout after the convolution module.
        padding: `"invariant"` (default): a clip in a padded batch gives what it gives alone; `"reference"`: padding
            leaks into the results exactly as in transformers 4.34.0.
        encoder_layer_norm: `"after"` the blocks, or `"before"` them (models of fairseq without `layer_norm_first`).
        feat_projection: whether a linear layer takes the features to `hidden_size`; `False` needs
            `conv_dim[-1] == hidden_size` (fairseq has none where the two agree).
    """

    model_type = "wav2vec2-conformer"

    vocab_size: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: Sequence[int] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: Sequence[int] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: Sequence[int] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: Sequence[int] = (512, 512, 512, 512, 1500)
    tdnn_kernel: Sequence[int] = (5, 3, 3, 1, 1)
    tdnn_dilation: Sequence[int] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    adapter_attn_dim: int | None = None
    position_embeddings_type: str | None = "relative"
    rotary_embedding_base: int = 10000
    max_source_positions: int = 5000
    conv_depthwise_kernel_size: int = 31
    conformer_conv_dropout: float = 0.1
    padding: Literal["invariant", "reference"] = "invariant"
    encoder_layer_norm: Literal["after", "before"] = "after"
    feat_projection: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Old files carry this count beside `conv_dim`; it is derived here and never read back.
        kwargs.pop("num_feat_extract_layers", None)
        if self.output_hidden_size is None:
            self.output_hidden_size = self.hidden_size
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.check()

    @property
    def num_feat_extract_layers(self) -> int:
        """Number of convolutions of the feature encoder."""
        return len(self.conv_dim)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples a frame of the feature encoder: 320 in the released models."""
        return math.prod(self.conv_stride)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a JSON-ready dictionary, with the derived field that the references' files carry."""
        return {**super().to_dict(), "num_feat_extract_layers": self.num_feat_extract_layers}

    def check(self) -> None:
        """Refuse what no network can be built from, with the remedy, as a `ValueError`."""
        self._check_whole_numbers()
        self._check_rates()
        self._check_names()
        self._check_lists("conv_dim", "conv_stride", "conv_kernel")
        self._check_lists("tdnn_dim", "tdnn_kernel", "tdnn_dilation")
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads:
            nearest = max(heads, round(width / heads) * heads)
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size`, got {heads} heads for a width of {width}; "
                f"use hidden_size={nearest} or another number of heads"
            )
        if self.position_embeddings_type == "rotary" and (width // heads) % 2:
            raise ValueError(
                "rotary positions rotate pairs of channels and need an even head size, got "
                f"hidden_size / num_attention_heads = {width} / {heads} = {width // heads}; change one of the two"
            )
        if self.position_embeddings_type == "relative" and width % 2:
            raise ValueError(f"relative positions need an even `hidden_size`, got {width}; use {width + 1}")
        if not self.feat_projection and self.conv_dim[-1] != width:
            raise ValueError(
                "`feat_projection=False` needs features as wide as the blocks, got conv_dim[-1] = "
                f"{self.conv_dim[-1]} and hidden_size = {width}; use feat_projection=True"
            )
        kernel = self.conv_depthwise_kernel_size
        if kernel % 2 == 0:
            raise ValueError(
                f"`conv_depthwise_kernel_size` must be odd, got {kernel}; use {kernel - 1} or {kernel + 1}"
            )
        if self.codevector_dim % self.num_codevector_groups:
            raise ValueError(
                f"`codevector_dim` must be divisible by `num_codevector_groups`, got {self.codevector_dim} and "
                f"{self.num_codevector_groups}"
            )
        if width % self.num_conv_pos_embedding_groups:
            raise ValueError(
                f"`num_conv_pos_embedding_groups` must divide `hidden_size`, got {self.num_conv_pos_embedding_groups} "
                f"and {width}; use {math.gcd(width, self.num_conv_pos_embedding_groups)}"
            )

    def _check_whole_numbers(self) -> None:
        positive = (
            "hidden_size num_attention_heads intermediate_size num_conv_pos_embeddings num_conv_pos_embedding_groups "
            "mask_time_length mask_feature_length num_codevectors_per_group num_codevector_groups num_negatives "
            "codevector_dim proj_codevector_dim classifier_proj_size xvector_output_dim adapter_kernel_size "
            "adapter_stride output_hidden_size rotary_embedding_base max_source_positions conv_depthwise_kernel_size"
        ).split()
        at_least_zero = "num_hidden_layers num_adapter_layers mask_time_min_masks mask_feature_min_masks".split()
        positive += [name for name in ("vocab_size", "adapter_attn_dim") if getattr(self, name) is not None]
        for name in positive + at_least_zero:
            value = getattr(self, name)
            least = 0 if name in at_least_zero else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}")

    def _check_rates(self) -> None:
        rates = (
            "hidden_dropout activation_dropout attention_dropout feat_proj_dropout feat_quantizer_dropout "
            "final_dropout conformer_conv_dropout layerdrop mask_time_prob mask_feature_prob"
        ).split()
        for name in rates:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"`{name}` is a probability: it must lie in [0, 1], got {value!r}")
        for name in ("initializer_range", "diversity_loss_weight"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0, got {value!r}")
        for name in ("layer_norm_eps", "contrastive_logits_temperature"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"`{name}` must be a number greater than 0, got {value!r}")

    def _check_names(self) -> None:
        choices: dict[str, tuple[str | bool | None, ...]] = {
            "feat_extract_norm": ("group", "layer"),
            "position_embeddings_type": ("relative", "rotary", None, "convolutional"),
            "ctc_loss_reduction": ("sum", "mean"),
            "padding": ("invariant", "reference"),
            "encoder_layer_norm": ("after", "before"),
            "feat_projection": (True, False),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}"
                )
        for name in ("hidden_act", "feat_extract_activation"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(
                    f"`{name}` must name an activation such as 'gelu' or 'swish', got {getattr(self, name)!r}"
                )

    def _check_lists(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"`{name}` must be a list with one entry a layer, got {getattr(self, name)!r}")
        lists = {name: list(getattr(self, name)) for name in names}
        if len({len(values) for values in lists.values()}) != 1 or not lists[names[0]]:
            got = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
            raise ValueError(f"{', '.join(f'`{name}`' for name in names)} must have one entry a layer each, but {got}")
        for name, values in lists.items():
            for value in values:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"`{name}` must hold whole numbers of at least 1, got {value!r}")
