"""The conformer: feed-forward halves around attention and convolution (Gulati et al. 2020), and the stack of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import Wav2Vec2ConformerConfig
from .activation import Activation
from .attention import Positions, SelfAttention
from .batch_norm import BatchStatistics, FrameBatchNorm
from .convolution import call_channels_last, conv1d_channels_last, is_replaced
from .dropout import Dropout
from .inference_linear import InferenceLinear
from .language_adapter import LanguageAdapter
from .layer_norm import LayerNorm
from .linear import Linear, linear
from .outputs import StateSelection, selected_states
from .packed import PackedLinear, packed_feed_forward
from .positions import build_conv_positions, build_positions
from .quantized import QuantizedLinear, quantized_feed_forward
from .recompute import recomputed

# B batch, T frames, D hidden size, H heads, L blocks

__all__ = ["ConformerBlock", "ConformerEncoder", "ConvolutionModule", "EncoderOutput", "FeedForward"]


class FeedForward(nn.Module):
    """Linear -> activation -> dropout -> Linear -> dropout."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.activation = Activation(config.hidden_act)
        self.intermediate_dropout = Dropout(config.activation_dropout)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        first, second = self.intermediate_dense, self.output_dense
        if isinstance(first, QuantizedLinear) and isinstance(second, QuantizedLinear):
            return quantized_feed_forward(first, self.activation, second, x)
        if isinstance(first, PackedLinear) and isinstance(second, PackedLinear):
            return packed_feed_forward(first, self.activation, second, x)
        x = self.intermediate_dense(x)
        dropping = self.training and self.intermediate_dropout.p > 0
        return cast(
            Tensor, self.output_dropout(recomputed(self._activated, x, size=x.numel() * x.itemsize, random=dropping))
        )

    def _activated(self, x: Tensor) -> Tensor:  # (B, T, intermediate size) -> (B, T, D)
        return cast(Tensor, self.output_dense(self.intermediate_dropout(self.activation(x))))


class ConvolutionModule(nn.Module):
    """LayerNorm -> pointwise -> GLU -> depthwise -> BatchNorm -> activation -> pointwise -> dropout; no biases."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.conv_depthwise_kernel_size
        self.layer_norm = LayerNorm(width)
        # Checkpoints hold the pointwise layers as convolutions of kernel 1; `forward` runs them as linear layers.
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.batch_norm = FrameBatchNorm(width)
        self.activation = Activation(config.hidden_act)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)
        self.dropout = Dropout(config.conformer_conv_dropout)

    def forward(self, x: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, BatchStatistics | None]:
        """(B, T, D) -> (B, T, D) and, in training, the batch's statistics, which the encoder commits."""
        x = self.layer_norm(x)
        if frame_mask is not None:
            # The norm's bias makes padded frames non-zero, and the depthwise convolution would carry them into the
            # last valid frames; beyond the end of a clip alone there are zeros.
            x = x.masked_fill(~frame_mask.unsqueeze(-1), 0)
        x = F.glu(pointwise(self.pointwise_conv1, x), dim=-1)  # (B, T, D)
        statistics: BatchStatistics | None = None
        if self.batch_norm.training:
            x, statistics = self.batch_norm(self._depthwise(x), frame_mask)
        else:
            scale, shift = self.batch_norm.folded(x.dtype)  # running statistics: an affine map, folded into the kernel
            x = self._depthwise(x, scale, shift)
        x = pointwise(self.pointwise_conv2, self.activation(x))
        return self.dropout(x), statistics

    def _depthwise(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Convolve each channel of (B, T, D), then multiply by `scale` (D,) and add `shift` (D,)."""
        if is_replaced(self.depthwise_conv):
            x = call_channels_last(self.depthwise_conv, x)
            return x if scale is None or shift is None else torch.addcmul(shift, x, scale)
        kernel = self.depthwise_conv.weight
        kernel = kernel if scale is None else kernel * scale[:, None, None]
        return conv1d_channels_last(x, kernel, shift, padding=kernel.shape[2] // 2, groups=kernel.shape[0])


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of kernel 1 on (B, T, D), as a linear layer."""
    if isinstance(conv, InferenceLinear):
        return cast(Tensor, conv(x))
    if is_replaced(conv):
        return call_channels_last(conv, x)
    return linear(x, cast(Tensor, conv.weight).squeeze(-1))


class ConformerBlock(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """Half a feed-forward, attention, convolution, half a feed-forward, LayerNorm[, language adapter]."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.ffn1_layer_norm = LayerNorm(config.hidden_size)
        self.ffn1 = FeedForward(config)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size)
        self.self_attn = SelfAttention(config)
        self.self_attn_dropout = Dropout(config.attention_dropout)
        self.conv_module = ConvolutionModule(config)
        self.ffn2_layer_norm = LayerNorm(config.hidden_size)
        self.ffn2 = FeedForward(config)
        self.final_layer_norm = LayerNorm(config.hidden_size)
        width = config.adapter_attn_dim
        self.adapter_layer = None if width is None else LanguageAdapter(config, width)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        key_mask: Tensor | None = None,
        conv_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, BatchStatistics | None]:
        """(B, T, D) -> (B, T, D), attention weights if asked for, and the convolution's batch statistics."""
        x = torch.add(x, self.ffn1(self.ffn1_layer_norm(x)), alpha=0.5)
        attended, weights = self.self_attn(
            self.self_attn_layer_norm(x), positions, key_mask, output_attentions=output_attentions
        )
        x = x + self.self_attn_dropout(attended)
        convolved, statistics = self.conv_module(x, conv_mask)
        x = x + convolved
        x = torch.add(x, self.ffn2(self.ffn2_layer_norm(x)), alpha=0.5)
        x = self.final_layer_norm(x)
        if self.adapter_layer is not None:
            x = self.adapter_layer(x)
        return x, weights, statistics


class SkippedBlock(torch.autograd.Function):
    """The identity on (B, T, D), through which the parameters of a block that LayerDrop skips get gradients of 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def pass_by(block: nn.Module, x: Tensor) -> Tensor:
    """Skip a block. Among several processes its parameters get gradients of 0, since DDP waits for one of each."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return cast(Tensor, SkippedBlock.apply(x, *trained))  # type: ignore[no-untyped-call]


class EncoderOutput(NamedTuple):
    """(B, T, D) last hidden state; L+1 hidden states and L attentions where they were asked for, else `None`."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor | None, ...] | None
    attentions: tuple[Tensor | None, ...] | None


class ConformerEncoder(nn.Module):
    """[Convolutional positions ->] [LayerNorm ->] dropout -> L conformer blocks [-> LayerNorm]."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_positions = build_positions(config)
        self.pos_conv_embed = build_conv_positions(config)
        self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        frame_mask: Tensor | None = None,
        *,
        dropped_layers: Sequence[bool] | None = None,
        output_attentions: bool = False,
        output_hidden_states: StateSelection = False,
    ) -> EncoderOutput:
        """Run the blocks.

        Args:
            x: (B, T, D) projected (and masked) features.
            frame_mask: (B, T), True = valid.
            dropped_layers: L decisions of LayerDrop, True = skip the block.
            output_attentions: whether to return the attention weights; a skipped block has None.
            output_hidden_states: whether to return the states entering block 1 and leaving each block, the last one
                after the final LayerNorm; given indices, the others are `None`.
        """
        padded = None if frame_mask is None else ~frame_mask.unsqueeze(-1)
        if padded is not None:
            x = x.masked_fill(padded, 0)
        # Only the key mask is in the reference; zeros in the convolution module and after the last norm are ours.
        invariant = self.config.padding == "invariant"
        conv_mask, cleared = (frame_mask, padded) if invariant else (None, None)
        if self.config.position_embeddings_type == "convolutional":
            x = x + self.pos_conv_embed(x)
        if self.config.encoder_layer_norm == "before":
            x = self.layer_norm(x)
        x = self.dropout(x)
        positions = None if self.embed_positions is None else self.embed_positions(x)
        kept = selected_states(output_hidden_states, len(self.layers) + 1)
        states, attentions = [x if 0 in kept else None], []
        for index, block in enumerate(cast(Iterable[ConformerBlock], self.layers)):
            weights = None
            dropped = dropped_layers is not None and dropped_layers[index]
            if not dropped and x.shape[1] > 0:  # clips too short for one frame pass through
                x, weights, statistics = block(x, positions, frame_mask, conv_mask, output_attentions)
                if statistics is not None:
                    block.conv_module.batch_norm.commit(statistics)
                if cleared is not None and index + 1 in kept:
                    x = x.masked_fill(cleared, 0)  # here and not in a copy, so that a returned state has its gradient
            elif dropped:
                x = pass_by(block, x)
            states.append(x if index + 1 in kept else None)
            attentions.append(weights)
        if self.config.encoder_layer_norm == "after":
            x = self.layer_norm(x)
        if cleared is not None:
            x = x.masked_fill(cleared, 0)
        if len(self.layers) in kept:
            states[-1] = x
        return EncoderOutput(x, tuple(states) if kept else None, tuple(attentions) if output_attentions else None)
