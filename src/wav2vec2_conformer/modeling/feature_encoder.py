"""Waveform -> features: strided convolutions, one frame per 320 samples in the released models."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import conv_layers, conv_length, feature_lengths, frame_mask, receptive_field
from .activation import Activation
from .convolution import convolve, is_replaced, is_traced, is_wide, matrix_of
from .dropout import Dropout
from .layer_norm import LayerNorm
from .recompute import recomputed_by_clip

# B batch, N samples, T frames, C conv channels, D hidden size

# Frames that inference encodes at once where frames do not depend on each other: the first layer's output for 15 s
# takes 98 MB, whose fresh memory costs as much time as the layer; that of 128 frames stays in the cache.
BLOCK = 128

__all__ = ["FeatureEncoder", "FeatureProjection"]


class Moments(NamedTuple):
    """Of each channel over a clip's valid frames, in float32 at least."""

    frames: Tensor  # how many they are, (B, 1, 1)
    mean: Tensor  # (B, 1, C)
    squares: Tensor  # (B, 1, C), the sum of the squared distances to the mean

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None) -> Moments:  # (B, T, C), (B, T)
        """Of the frames where `mask` is True, each clip's first ones, or of all; on a CPU, without gradients."""
        batch, length, channels = x.shape
        counts = [length] * batch if mask is None else mask.sum(dim=1).tolist()
        wide = torch.promote_types(x.dtype, torch.float32)
        frames = torch.tensor(counts, dtype=wide, device=x.device).view(batch, 1, 1)
        mean, squares = x.new_zeros(2, batch, 1, channels, dtype=wide)
        # Running statistics, which are written and never read; of this type, so that the results are.
        unused = x.new_zeros(channels, dtype=wide)
        for clip, count, own_mean, own_squares in zip(x, counts, mean, squares, strict=True):
            if count > 0:
                # A clip's frames as a batch: many times as fast as torch's variance over a dimension that is not last.
                # Its mean sums up one by one, which is less exact than `mean`, but far more than half precision is.
                found, variance = torch.batch_norm_update_stats(clip[:count], unused, unused, 0.0)
                own_mean.copy_(clip[:count].mean(dim=0) if x.dtype == wide else found)
                own_squares.copy_(variance * count)
        return cls(frames, mean, squares)

    def joined(self, other: Moments) -> Moments:
        """Of two stretches of the clips together (Chan et al. 1979, on updating formulae for variances)."""
        frames = self.frames + other.frames
        share = other.frames / frames.clamp(min=1)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.frames * share)
        return Moments(frames, self.mean + apart * share, squares)

    @property
    def variance(self) -> Tensor:
        """The mean squared distance to the mean, (B, 1, C)."""
        return self.squares / self.frames.clamp(min=1)


class TimeGroupNorm(nn.GroupNorm):
    """GroupNorm with one channel a group, on (B, T, C): each channel is normalised over a clip's valid frames."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels, affine=True)

    def forward(  # (B, T, C), (B, T)
        self, x: Tensor, mask: Tensor | None = None, moments: Moments | None = None
    ) -> Tensor:
        """Normalise, with `moments`, or the statistics of the frames where `mask` is True, or of all."""
        if x.shape[1] == 0:
            return x
        plain = torch.is_grad_enabled() or is_traced()
        if moments is None and x.device.type == "cpu" and not plain:
            moments = Moments.of(x, mask)
        if moments is not None:
            mean, variance = moments.mean, moments.variance
        elif mask is None:
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
        self.kept_matrix: Tensor | None
        self.register_buffer("kept_matrix", None, persistent=False)

    def forward(  # (B, T_in, C_in) -> (B, T, C)
        self, x: Tensor, lengths: Tensor | None = None, moments: Moments | None = None
    ) -> Tensor:
        return self.activate(self.convolve(x), lengths, moments)

    def convolve(self, x: Tensor) -> Tensor:  # (B, T_in, C_in) -> (B, T, C)
        """The convolution alone."""
        return convolve(self.conv, x, stride=self.stride, matrix=self.kept_matrix)

    def keep_matrix(self) -> None:
        """Keep the weight as inference on a CPU reads it, until weights are loaded; it must not change until then."""
        weight = self.conv.weight
        wide = not is_replaced(self.conv) and is_wide(weight) and weight.device.type == "cpu"
        self.kept_matrix = matrix_of(weight.detach()) if wide else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.kept_matrix = None

    def activate(  # (B, T, C) -> (B, T, C)
        self, x: Tensor, lengths: Tensor | None = None, moments: Moments | None = None
    ) -> Tensor:
        """Norm and activation of the convolution's output; `lengths` (B,) are the waveforms' samples."""
        if isinstance(self.layer_norm, TimeGroupNorm):
            x = self.layer_norm(x, self.valid(lengths, 0, x.shape[1]), moments)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.activation(x))

    def valid(self, lengths: Tensor | None, first: int, last: int) -> Tensor | None:
        """Which frames from `first` to `last` stand for samples of waveforms of `lengths` (B,), (B, T); None: all."""
        if lengths is None:
            return None
        return frame_mask((conv_length(lengths, self.kernel, self.stride) - first).clamp(min=0), last - first)

    def moments(self, x: Tensor, lengths: Tensor | None, step: int) -> Moments:  # (B, T_in, C_in)
        """Of the convolution's output, `step` frames at a time, so that all of it never has to be in memory."""
        frames = int(conv_length(x.shape[1], self.kernel, self.stride))
        found: Moments | None = None
        for first in range(0, frames, step):
            last = min(first + step, frames)
            block = self.convolve(x[:, first * self.stride : (last - 1) * self.stride + self.kernel])
            own = Moments.of(block, self.valid(lengths, first, last))
            found = own if found is None else found.joined(own)
        assert found is not None
        return found


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

    def keep_matrices(self) -> None:
        """Lay the convolutions' weights out for good (`ConvLayer.keep_matrix`)."""
        for layer in cast(list[ConvLayer], list(self.conv_layers)):
            layer.keep_matrix()

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms.

        Args:
            input_values: (B, N) samples.
            lengths: (B,) real samples of each clip, so that statistics over time (feat_extract_norm="group") leave the
                padding out; `None`: every sample is real.
        """
        x = input_values.unsqueeze(-1)  # (B, N, 1)
        whole = torch.is_grad_enabled() or is_traced()
        whole |= self.norm_over_time and x.device.type != "cpu"  # a GPU has no use for reading the clip twice
        frames = feature_lengths(x.shape[1], self.layers)
        if whole or frames <= BLOCK:
            return self._convolve(x, lengths)
        moments = None
        if self.norm_over_time:  # the first convolution, which is cheap, once more
            layer = cast(ConvLayer, self.conv_layers[0])
            moments = layer.moments(x, lengths, BLOCK * self.stride // layer.stride)
        blocks = []
        for first in range(0, frames, BLOCK):
            last = min(first + BLOCK, frames) - 1
            blocks.append(self._convolve(x[:, first * self.stride : last * self.stride + self.field], None, moments))
        return torch.cat(blocks, dim=1)

    def _convolve(  # (B, N, 1) -> (B, T, C)
        self, x: Tensor, lengths: Tensor | None, moments: Moments | None = None
    ) -> Tensor:
        layers = cast(list[ConvLayer], list(self.conv_layers))
        if not torch.is_grad_enabled():  # whole layers, so that hooks on them see their inputs and outputs
            for index, layer in enumerate(layers):
                x = layer(x, lengths, moments) if index == 0 else layer(x)
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
