"""The arithmetic of a fairseq checkpoint, step by step on its own weights, to compare a converted model with.

Written from the description of the network, in float64, without anything of `modeling/`: what the two have in common is
the file. Slow and plain on purpose; one clip at a time, no padding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .fairseq_settings import CONV_LAYERS, parse_conv_layers

if TYPE_CHECKING:
    from .fairseq import FairseqCheckpoint

# N samples, T frames, C conv channels, D width, H heads, d head size, Q width of a quantized vector

__all__ = ["Arithmetic"]


class Arithmetic:
    """The forward pass of a checkpoint, by fairseq's keys."""

    def __init__(self, checkpoint: FairseqCheckpoint) -> None:
        self.file, self.tensors, self.prefix = checkpoint.file, checkpoint.tensors, checkpoint.prefix
        settings = checkpoint.network
        self.heads = settings.get("encoder_attention_heads", int, 12)
        self.blocks = settings.get("encoder_layers", int, 12)
        self.positions = settings.get("pos_enc_type", str, "abs")
        self.norm_first = settings.get("layer_norm_first", bool, False)
        self.convolutions = parse_conv_layers(settings.get("conv_feature_layers", str, CONV_LAYERS))
        self.position_groups = settings.get("conv_pos_groups", int, 16)
        self.codebooks = settings.get("latent_groups", int, 2)

    def weight(self, key: str) -> Tensor:
        """A weight of the network in float64."""
        return self.file.read(self.tensors[self.prefix + key]).double()

    def has(self, key: str) -> bool:
        """Whether the checkpoint has this weight of the network."""
        return self.prefix + key in self.tensors

    def linear(self, x: Tensor, key: str) -> Tensor:
        """A linear layer."""
        y = x @ self.weight(f"{key}.weight").T
        return y + self.weight(f"{key}.bias") if self.has(f"{key}.bias") else y

    def norm(self, x: Tensor, key: str) -> Tensor:
        """LayerNorm over the last axis."""
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * self.weight(f"{key}.weight") + self.weight(f"{key}.bias")

    def run(self, waveform: Tensor) -> dict[str, Tensor]:
        """(N,) samples -> `logits` of a CTC model, or the two sides of a pre-trained model's comparison."""
        features = self.norm(self.encode(waveform), "layer_norm")  # (T, C)
        x = self.linear(features, "post_extract_proj") if self.has("post_extract_proj.weight") else features
        if self.positions == "abs":
            x = x + self.conv_positions(x)
        if not self.norm_first:
            x = self.norm(x, "encoder.layer_norm")
        for block in range(self.blocks):
            x = self.block(x, f"encoder.layers.{block}")
        if self.norm_first:
            x = self.norm(x, "encoder.layer_norm")
        if self.prefix:
            self.prefix = ""
            return {"logits": self.linear(x, "w2v_encoder.proj")}
        return {
            "projected_states": self.linear(x, "final_proj"),
            "projected_quantized_states": self.linear(self.quantize(features), "project_q"),
        }

    def encode(self, waveform: Tensor) -> Tensor:
        """(N,) -> (T, C)."""
        x = waveform[None, None]  # (1, 1, N)
        for index, (_, _, stride) in enumerate(self.convolutions):
            key = f"feature_extractor.conv_layers.{index}"
            bias = self.weight(f"{key}.0.bias") if self.has(f"{key}.0.bias") else None
            x = F.conv1d(x, self.weight(f"{key}.0.weight"), bias, stride)
            if self.has(f"{key}.2.1.weight"):
                x = self.norm(x.transpose(1, 2), f"{key}.2.1").transpose(1, 2)
            elif self.has(f"{key}.2.weight"):  # each channel over time
                x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                x = x * self.weight(f"{key}.2.weight")[:, None] + self.weight(f"{key}.2.bias")[:, None]
            x = gelu(x)
        return x[0].T

    def conv_positions(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D): a convolution whose weight is a direction and a length for each kernel position."""
        length, direction = self.weight("encoder.pos_conv.0.weight_g"), self.weight("encoder.pos_conv.0.weight_v")
        weight = length * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
        bias, kernel = self.weight("encoder.pos_conv.0.bias"), direction.shape[2]
        padded = F.pad(x.T[None], (kernel // 2, kernel // 2 - (kernel + 1) % 2))  # nothing too many for even kernels
        return gelu(F.conv1d(padded, weight, bias, groups=self.position_groups))[0].T

    def block(self, x: Tensor, key: str) -> Tensor:
        """One conformer block on (T, D)."""
        x = x + 0.5 * self.feed_forward(x, f"{key}.ffn1")
        x = x + self.attention(self.norm(x, f"{key}.self_attn_layer_norm"), f"{key}.self_attn")
        x = x + self.convolution(x, f"{key}.conv_module")
        x = x + 0.5 * self.feed_forward(x, f"{key}.ffn2")
        return self.norm(x, f"{key}.final_layer_norm")

    def feed_forward(self, x: Tensor, key: str) -> Tensor:
        """Norm, wide linear layer, swish, linear layer."""
        return self.linear(swish(self.linear(self.norm(x, f"{key}.layer_norm"), f"{key}.w_1")), f"{key}.w_2")

    def convolution(self, x: Tensor, key: str) -> Tensor:
        """Norm, gated pointwise, depthwise, batch norm with stored statistics, swish, pointwise."""
        x = self.norm(x, f"{key}.layer_norm") @ self.weight(f"{key}.pointwise_conv1.weight")[..., 0].T
        value, gate = x.chunk(2, -1)
        x = value * torch.sigmoid(gate)
        kernel = self.weight(f"{key}.depthwise_conv.weight")  # (D, 1, K)
        x = F.conv1d(x.T[None], kernel, padding=kernel.shape[2] // 2, groups=kernel.shape[0])[0].T
        mean, variance = self.weight(f"{key}.batch_norm.running_mean"), self.weight(f"{key}.batch_norm.running_var")
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * self.weight(f"{key}.batch_norm.weight") + self.weight(f"{key}.batch_norm.bias")
        return swish(x) @ self.weight(f"{key}.pointwise_conv2.weight")[..., 0].T

    def attention(self, x: Tensor, key: str) -> Tensor:
        """Attention on (T, D) with the checkpoint's kind of positions."""
        frames, width = x.shape
        size = width // self.heads
        rotated = self.rotate(x, f"{key}.rotary_emb.inv_freq") if self.positions == "rope" else x

        def split(y: Tensor) -> Tensor:
            return y.view(-1, self.heads, size).transpose(0, 1)  # (H, T, d)

        query, keys = split(self.linear(rotated, f"{key}.linear_q")), split(self.linear(rotated, f"{key}.linear_k"))
        value = split(self.linear(x, f"{key}.linear_v"))
        if self.positions == "rel_pos":
            u, v = self.weight(f"{key}.pos_bias_u")[:, None], self.weight(f"{key}.pos_bias_v")[:, None]
            scores = (query + u) @ keys.mT
            distances = torch.arange(frames)[:, None] - torch.arange(frames)  # (T, T), query minus key
            table = split(self.linear(sinusoids(frames, width), f"{key}.linear_pos"))  # (H, 2T-1, d)
            by_distance = (query + v) @ table.mT  # (H, T, 2T-1)
            index = (distances + frames - 1).expand(self.heads, -1, -1)
            scores = scores + by_distance.gather(2, index)
        else:
            scores = query @ keys.mT
        weights = torch.softmax(scores / math.sqrt(size), -1)
        return self.linear((weights @ value).transpose(0, 1).reshape(frames, width), f"{key}.linear_out")

    def rotate(self, x: Tensor, key: str) -> Tensor:
        """Turn the pairs (i, i + d/2) of each head of (T, D) by time times frequency, as complex numbers."""
        angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * self.weight(key)  # (T, d/2)
        first, second = x.view(len(x), self.heads, 2, -1).unbind(2)  # (T, H, d/2)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.stack((turned.real, turned.imag), 2).flatten(1)

    def quantize(self, features: Tensor) -> Tensor:
        """(T, C) -> (T, Q): the likeliest entry of each codebook group."""
        scores = self.linear(features, "quantizer.weight_proj").view(len(features), self.codebooks, -1)
        entries = self.weight("quantizer.vars")[0].view(self.codebooks, scores.shape[-1], -1)
        chosen = [entries[group][scores[:, group].argmax(-1)] for group in range(self.codebooks)]
        return torch.cat(chosen, -1)


def sinusoids(frames: int, width: int) -> Tensor:
    """(2T-1, D): row m is of the distance m - (T-1); the table's numbers are float32 in the source."""
    distances = torch.arange(-(frames - 1), frames, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.zeros(2 * frames - 1, width)
    table[:, 0::2], table[:, 1::2] = torch.sin(distances * frequencies), torch.cos(distances * frequencies)
    return table.double()


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
