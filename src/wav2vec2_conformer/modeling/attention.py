"""Multi-head self-attention with relative, rotary or no positions."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig
from .dropout import dropout
from .positions import apply_rotary

# B batch, T frames, D hidden size, H heads, d head size

__all__ = ["SelfAttention"]

Positions = Tensor | tuple[Tensor, Tensor] | None


def shift(scores: Tensor) -> Tensor:
    """(..., T, 2T) scores by distance T-1-m -> the (..., T, T) view with out[i, j] = scores[i, T-1-i+j].

    Entry (i, j) lies at i*2T + T-1-i+j = (T-1) + i*(2T-1) + j of the flattened scores, so that cutting off the first
    T-1 numbers and reading rows of 2T-1 puts it in row i, column j. No copy is made.
    """
    frames = scores.shape[-2]
    flat = scores.flatten(-2).narrow(-1, frames - 1, frames * (2 * frames - 1))
    rows: Tensor = flat.unflatten(-1, (frames, 2 * frames - 1))  # type: ignore[no-untyped-call]
    return rows[..., :frames]


class SelfAttention(nn.Module):
    """Scaled dot-product attention; scores ((q+u)·k + (q+v)·W_pos p) / sqrt(d) with relative positions."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.position_embeddings_type = config.position_embeddings_type
        self.dropout = config.attention_dropout
        self.linear_q = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_k = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_v = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)
        if self.position_embeddings_type == "relative":
            self.linear_pos = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, self.head_size))
            self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, self.head_size))

    def forward(
        self, x: Tensor, positions: Positions, frame_mask: Tensor | None = None, *, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: (B, T, D), normed.
            positions: what `modeling.positions` computed for T frames.
            frame_mask: (B, T), True = valid; other frames are no keys.
            output_attentions: whether to return the (B, H, T, T) attention weights.
        """
        mixed = x
        if self.position_embeddings_type == "rotary":
            cos, sin = cast(tuple[Tensor, Tensor], positions)
            mixed = apply_rotary(x, cos, sin, heads=self.heads)
        # The scale goes into the queries, which are smaller than the scores; u and v are scaled with them.
        query = self._heads(self.linear_q(mixed)) * self.head_size**-0.5  # (B, H, T, d)
        key = self._heads(self.linear_k(mixed))
        value = self._heads(self.linear_v(x))

        bias: Tensor | None = None  # (B, H, T, T) or (B, 1, 1, T), added to query·key
        if self.position_embeddings_type == "relative":
            query, bias = self._relative(query, cast(Tensor, positions))
        if frame_mask is not None:
            bias = self._exclude_padding(bias, frame_mask, query.dtype)

        probability = self.dropout if self.training else 0.0
        # On a CPU, torch has no fused kernel with dropout: its step-by-step one would run, with a slower dropout.
        stepwise = self.config._attn_implementation == "eager" or (probability > 0 and x.device.type == "cpu")
        if output_attentions or stepwise:
            out, weights = eager_attention(query, key, value, bias, probability)
        else:
            out = F.scaled_dot_product_attention(query, key, value, bias, probability, scale=1.0)
            weights = None
        out = self.linear_out(out.transpose(1, 2).flatten(2))  # (B, T, D)
        return out, weights if output_attentions else None

    def _heads(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, H, T, d)
        return x.view(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)

    def _relative(self, query: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled (B, H, T, d) queries and the (2T, D) table -> queries with u, and the relative scores."""
        scale = self.head_size**-0.5
        projected = self.linear_pos(table).unflatten(-1, (self.heads, self.head_size)).permute(1, 2, 0)  # (H, d, 2T)
        by_distance = (query + (self.pos_bias_v * scale)[:, None]) @ projected  # (B, H, T, 2T)
        return query + (self.pos_bias_u * scale)[:, None], shift(by_distance)

    @staticmethod
    def _exclude_padding(bias: Tensor | None, frame_mask: Tensor, dtype: torch.dtype) -> Tensor:
        # Half of the lowest finite number and not -inf: a clip without any valid frame must give finite weights, and
        # adding a score to it must not overflow.
        lowest = torch.finfo(dtype).min / 2
        padded = ~frame_mask[:, None, None, :]  # (B, 1, 1, T)
        if bias is None:
            bias = torch.zeros((), dtype=dtype, device=frame_mask.device).expand(padded.shape)
        return bias.masked_fill(padded, lowest)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float
) -> tuple[Tensor, Tensor]:
    """Attention step by step: -> (B, H, T, d) outputs and the (B, H, T, T) weights after dropout, as the references."""
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    weights = dropout(weights, probability, training=probability > 0)
    return weights @ value, weights
