"""Position embeddings, computed for the length at hand: nothing grows, nothing is cached, nothing is synchronised."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..configuration import Wav2Vec2ConformerConfig
from .convolution import conv1d_channels_last
from .unused import rename_old_weight_norm, unused_conv_positions
from .wide_buffers import WideBuffers

# B batch, T frames, D hidden size, H heads, d head size

__all__ = [
    "ConvPositions",
    "NormedWeight",
    "RelativePositions",
    "RotaryPositions",
    "apply_rotary",
    "build_conv_positions",
    "build_positions",
]


class RelativePositions(nn.Module):
    """Sinusoids of the distance between query and key (Transformer-XL, Dai et al. 2019)."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.width = config.hidden_size

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (2T, D): row `m` embeds the distance T-1-m, positive where the key is left of the query.

        The last row (distance -T) is never read; it makes the shift in attention a plain view. The table is computed
        in float32 as the references do, and cast last.
        """
        frames, device = hidden_states.shape[1], hidden_states.device
        distance = torch.arange(frames - 1, -frames - 1, -1, device=device, dtype=torch.float32)  # (2T,)
        channel = torch.arange(0, self.width, 2, device=device, dtype=torch.float32)
        angles = distance[:, None] * torch.exp(channel * -(math.log(10000.0) / self.width))  # (2T, D/2)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # sin on even, cos on odd channels
        return table.to(hidden_states.dtype)


class RotaryPositions(WideBuffers):
    """Cosines and sines of rotary position embeddings (Su et al. 2021).

    `inv_freq` is part of the checkpoint: released models carry values that their training run had rounded to half
    precision, and exact ones would move the cosines by up to 0.2. It stays at least float32 whatever the model is cast
    to, because at frame 1500 an angle in bfloat16 is wrong by several radians.
    """

    inv_freq: Tensor

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.base = float(config.rotary_embedding_base)
        self.register_buffer("inv_freq", self.exact_frequencies())

    def exact_frequencies(self) -> Tensor:
        """(d/2,) frequencies base^(-2i/d), which a model without a checkpoint starts from."""
        return 1.0 / self.base ** (torch.arange(0, self.head_size, 2, dtype=torch.float32) / self.head_size)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> cosines and sines, each (T, 1, d)."""
        wide = torch.float64 if hidden_states.dtype == torch.float64 else torch.float32
        time = torch.arange(hidden_states.shape[1], device=hidden_states.device, dtype=wide)
        angles = time[:, None] * self.inv_freq.to(wide)  # (T, d/2)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # (T, 1, d)
        return angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)


def apply_rotary(hidden_states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the channel pairs (i, i + d/2) of each head of (B, T, D) by the frame's angle.

    In this family the rotation comes *before* the query and key projections. That is not the textbook order, but the
    released weights were trained with it (`tests/parity/test_mutations.py` pins it).
    """
    batch, frames, width = hidden_states.shape
    x = hidden_states.view(batch, frames, heads, width // heads)  # (B, T, H, d)
    first, second = x.chunk(2, dim=-1)
    rotated: Tensor = x * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated.flatten(-2)


def build_positions(config: Wav2Vec2ConformerConfig) -> RelativePositions | RotaryPositions | None:
    """The position module that `config.position_embeddings_type` names."""
    if config.position_embeddings_type == "relative":
        return RelativePositions(config)
    if config.position_embeddings_type == "rotary":
        return RotaryPositions(config)
    return None


class NormedWeight(nn.Module):
    """A convolution's weight as direction and length (Salimans & Kingma 2016), one length for each kernel position.

    Its names are those that torch's weight norm gives in files.
    """

    def __init__(self, channels: int, inputs: int, kernel: int) -> None:
        super().__init__()
        self.original0 = nn.Parameter(torch.empty(1, 1, kernel))
        self.original1 = nn.Parameter(torch.empty(channels, inputs, kernel))
        self.spread = 2 * math.sqrt(1 / (kernel * channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values as the references do."""
        init.normal_(self.original1, std=self.spread)
        init.copy_(self.original0, self.original1.norm(dim=(0, 1), keepdim=True))

    def forward(self) -> Tensor:  # (C, C / groups, K)
        lengths: Tensor = self.original1.norm(dim=(0, 1), keepdim=True)
        return self.original1 * (self.original0 / lengths)


class ConvPositions(nn.Module):
    """A wide grouped convolution over the frames, whose output is added to them (Baevski et al. 2020, section 2)."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.conv = NormedConv(
            config.hidden_size, config.num_conv_pos_embeddings, groups=config.num_conv_pos_embedding_groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); padded frames of `x` must be 0, as they are beyond the end of a clip alone."""
        if x.shape[1] == 0:
            return x
        return F.gelu(self.conv(x))


class NormedConv(nn.Module):
    """A convolution (B, T, C) -> (B, T, C) whose weight is a `NormedWeight`."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.bias = nn.Parameter(torch.zeros(channels))
        self.parametrizations = nn.ModuleDict({"weight": NormedWeight(channels, channels // groups, kernel)})
        self.register_load_state_dict_pre_hook(rename_old_weight_norm)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; of the frames that an even kernel adds at the end, there is one too many."""
        weight = self.parametrizations["weight"]()
        found = conv1d_channels_last(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return found[:, : x.shape[1]]


def build_conv_positions(config: Wav2Vec2ConformerConfig) -> nn.Module:
    """`pos_conv_embed`: applied and trained where the configuration says so, else kept for files only."""
    if config.position_embeddings_type == "convolutional":
        return ConvPositions(config)
    return unused_conv_positions(config)
