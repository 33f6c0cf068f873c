"""Waveform -> features: strided convolutions, one frame per 320 samples in the released models."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import conv_layers, conv_length, feature_lengths, frame_mask, receptive_field
from .activation import Activation
from .convolution import convolve
from .dropout import Dropout
from .layer_norm import LayerNorm
from .recompute import recomputed_by_clip

# B batch, N samples, T frames, C conv channels, D hidden size

# Frames that inference encodes at once where frames do not depend on each other: the first layer's output for 15 s
# takes 98 MB, whose fresh memory costs as much time as the layer; that of 128 frames stays in the cache.
BLOCK = 128

__all__ = ["FeatureEncoder", "FeatureProjection"]


class TimeGroupNorm(nn.GroupNorm):
    """GroupNorm with one channel a group, on (B, T, C): each channel is normalised over a clip's valid frames."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels, affine=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, C), (B, T)
        """Normalise, with the statistics of the frames where `mask` is True, or of all."""
        if x.shape[1] == 0:
            return x
        if mask is None:
            variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        else:
            valid = mask.unsqueeze(-1)
            count = valid.sum(dim=1, keepdim=True).clamp(min=1)
            # `where` and not a product: whatever stands in the padding, even inf, must not reach the sums.
            mean = torch.where(valid, x, 0).sum(dim=1, keepdim=True) / count
            variance = torch.where(valid, x - mean, 0).square().sum(dim=1, keepdim=True) / count
        scale = self.weight * torch.rsqrt(variance + self.eps)  # (B, 1, C)
        return torch.addcmul((self.bias - mean * scale).to(x.dtype), x, scale.to(x.dtype))


class ConvLayer(nn.Module):
    """Strided convolution -> norm (if any) -> activation, on (B, T, C)."""

    def __init__(self, config: Wav2Vec2ConformerConfig, index: int) -> None:
        super().__init__()
        inputs = config.conv_dim[index - 1] if index else 1
        outputs = config.conv_dim[index]
        self.kernel, self.stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(inputs, outputs, self.kernel, self.stride, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = LayerNorm(outputs)
        elif index == 0:
            self.layer_norm = TimeGroupNorm(outputs)
        self.activation = Activation(config.feat_extract_activation)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # (B, T_in, C_in) -> (B, T, C)
        return self.activate(self.convolve(x), lengths)

    def convolve(self, x: Tensor) -> Tensor:  # (B, T_in, C_in) -> (B, T, C)
        """The convolution alone."""
        return convolve(self.conv, x, stride=self.stride)

    def activate(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # (B, T, C) -> (B, T, C)
        """Norm and activation of the convolution's output; `lengths` (B,) are the waveforms' samples."""
        if isinstance(self.layer_norm, TimeGroupNorm):
            mask = None
            if lengths is not None:
                mask = frame_mask(conv_length(lengths, self.kernel, self.stride), x.shape[1])
            x = self.layer_norm(x, mask)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.activation(x))


class FeatureEncoder(nn.Module):
    """(B, N) waveforms -> (B, T, C) features; T is 0 for clips shorter than the receptive field."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(ConvLayer(config, i) for i in range(config.num_feat_extract_layers))
        self.layers = conv_layers(config)
        self.field, self.stride = receptive_field(self.layers)
        self.norm_over_time = config.feat_extract_norm == "group"

    def _freeze_parameters(self) -> None:
        """Exclude the encoder from training."""
        self.requires_grad_(False)

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms.

        Args:
            input_values: (B, N) samples.
            lengths: (B,) real samples of each clip, so that statistics over time (feat_extract_norm="group") leave the
                padding out; `None`: every sample is real.
        """
        x = input_values.unsqueeze(-1)  # (B, N, 1)
        whole = self.norm_over_time or torch.is_grad_enabled() or torch.compiler.is_compiling()
        frames = feature_lengths(x.shape[1], self.layers)
        if whole or frames <= BLOCK:
            return self._convolve(x, lengths)
        blocks = []
        for first in range(0, frames, BLOCK):
            last = min(first + BLOCK, frames) - 1
            blocks.append(self._convolve(x[:, first * self.stride : last * self.stride + self.field], None))
        return torch.cat(blocks, dim=1)

    def _convolve(self, x: Tensor, lengths: Tensor | None) -> Tensor:  # (B, N, 1) -> (B, T, C)
        layers = cast(list[ConvLayer], list(self.conv_layers))
        if not torch.is_grad_enabled():  # whole layers, so that hooks on them see their inputs and outputs
            for index, layer in enumerate(layers):
                x = layer(x, lengths if index == 0 else None)
            return x
        x = layers[0].convolve(x)
        for index, (layer, following) in enumerate(pairwise(layers)):
            # The outputs of the convolutions are kept for the gradients, and what lies between them is not.
            step = partial(activate_and_convolve, layer, following)
            x = recomputed_by_clip(step, x, lengths if index == 0 else None, size=x.numel() * x.itemsize)
        return layers[-1].activate(x, lengths if len(layers) == 1 else None)


def activate_and_convolve(layer: ConvLayer, following: ConvLayer, x: Tensor, lengths: Tensor | None) -> Tensor:
    """From the output of one layer's convolution to the output of the next one's."""
    return following.convolve(layer.activate(x, lengths))


class FeatureProjection(nn.Module):
    """(B, T, C) features -> (B, T, D) hidden states, and the normed features, which the quantizer reads."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size) if config.feat_projection else None
        self.dropout = Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.layer_norm(features)
        return self.dropout(normed if self.projection is None else self.projection(normed)), normed
