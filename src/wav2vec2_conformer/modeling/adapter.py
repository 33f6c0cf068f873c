"""Strided convolutional adapter: fewer, wider frames after the encoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import adapter_layer_length, frame_mask
from .convolution import convolve
from .layer_norm import LayerNorm

# B batch, T frames, D hidden size

__all__ = ["StridedAdapter"]


class AdapterLayer(nn.Module):
    """Strided convolution -> GLU; padding 1 whatever the kernel is, since released weights depend on it."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        width = config.output_hidden_size or config.hidden_size
        self.stride = config.adapter_stride
        self.conv = nn.Conv1d(width, 2 * width, config.adapter_kernel_size, self.stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T', D)
        return F.glu(convolve(self.conv, x, stride=self.stride, padding=1), dim=-1)


class StridedAdapter(nn.Module):
    """[Linear -> LayerNorm to `output_hidden_size`] -> layers of strided convolutions."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.output_hidden_size or config.hidden_size
        self.proj = nn.Linear(config.hidden_size, width) if width != config.hidden_size else None
        self.proj_layer_norm = LayerNorm(width) if width != config.hidden_size else None
        self.layers = nn.ModuleList(AdapterLayer(config) for _ in range(config.num_adapter_layers))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Shorten.

        Args:
            x: (B, T, D) hidden states of the encoder.
            lengths: (B,) valid frames; frames beyond them are zeroed before each layer, as if the clip ended there.
        """
        if self.proj is not None and self.proj_layer_norm is not None:
            x = self.proj_layer_norm(self.proj(x))
        for layer in self.layers:
            if lengths is not None:
                x = x.masked_fill(~frame_mask(lengths, x.shape[1]).unsqueeze(-1), 0)
                lengths = adapter_layer_length(lengths, self.config)
            x = layer(x)
        if lengths is not None:
            x = x.masked_fill(~frame_mask(lengths, x.shape[1]).unsqueeze(-1), 0)
        return x
