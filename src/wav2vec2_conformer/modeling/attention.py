"""Multi-head self-attention with relative, rotary or no positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig
from .dropout import dropout
from .linear import Linear
from .positions import apply_rotary
from .quantized import linear_layers
from .recompute import recomputed_by_clip

# B batch, T frames, D hidden size, H heads, d head size

__all__ = ["SelfAttention"]

Positions = Tensor | tuple[Tensor, Tensor] | None
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]


# Query rows whose relative scores are computed at once in inference. All of a 15 s clip's take 72 MB a layer, and fresh
# memory of that size costs more time than the product that fills it; 128 rows' worth is used again and again.
BLOCK = 128


def shift(scores: Tensor, keys: int) -> Tensor:
    """(..., n, keys + n) scores by distance -> the (..., n, keys) view with out[i, j] = scores[i, n-1-i+j].

    Entry (i, j) lies at i*(keys+n) + n-1-i+j = (n-1) + i*(keys+n-1) + j of the flattened scores, so that cutting off
    the first n-1 numbers and reading rows of keys+n-1 puts it in row i, column j. No copy is made.
    """
    rows = scores.shape[-2]
    flat = scores.flatten(-2).narrow(-1, rows - 1, rows * (keys + rows - 1))
    return flat.view(*flat.shape[:-1], rows, keys + rows - 1)[..., :keys]


class SelfAttention(nn.Module):
    """Scaled dot-product attention; scores ((q+u)·k + (q+v)·W_pos p) / sqrt(d) with relative positions."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.position_embeddings_type = config.position_embeddings_type
        self.dropout = config.attention_dropout
        self.linear_q = Linear(config.hidden_size, config.hidden_size)
        self.linear_k = Linear(config.hidden_size, config.hidden_size)
        self.linear_v = Linear(config.hidden_size, config.hidden_size)
        self.linear_out = Linear(config.hidden_size, config.hidden_size)
        if self.position_embeddings_type == "relative":
            self.linear_pos = Linear(config.hidden_size, config.hidden_size, bias=False)
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
        projected = linear_layers(((self.linear_q, mixed), (self.linear_k, mixed), (self.linear_v, x)))
        query, key, value = map(self._heads, projected)  # (B, H, T, d)
        query = query * self.head_size**-0.5

        probability = self.dropout if self.training else 0.0
        table = None
        if self.position_embeddings_type == "relative":
            table = self.linear_pos(cast(Tensor, positions))  # (2T, D)
        # On a CPU, torch has no fused kernel with dropout: its step-by-step one would run, with a slower dropout. In
        # half precision, its fused ones take longer than products and a softmax, forward and backward alike.
        on_cpu, half = x.device.type == "cpu", query.itemsize == 2
        inference = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        stepwise = self.config._attn_implementation == "eager"
        stepwise = stepwise or (on_cpu and (probability > 0 or (half and torch.is_grad_enabled())))
        attend = eager_attention if stepwise or output_attentions else fused_attention
        if attend is fused_attention and inference and half and on_cpu:
            attend = half_attention
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        weights = None
        if stepwise and not output_attentions:
            # More than half of what a step of a base-sized model would keep are scores and weights.
            def outputs(*inputs: Tensor) -> Tensor:  # of some clips
                return self._attend(attend, table, probability, *inputs)[0]

            size = query.numel() // self.head_size * query.shape[2] * query.itemsize
            inputs = (query, key, value, frame_mask)
            out = recomputed_by_clip(outputs, *inputs, size=size, random=probability > 0, costly=True)
        else:
            out, weights = self._attend(attend, table, probability, query, key, value, frame_mask)
        out = self.linear_out(out.transpose(1, 2).flatten(2))  # (B, T, D)
        return out, weights if output_attentions else None

    def _heads(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, H, T, d)
        return x.view(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)

    def _attend(
        self,
        attend: Attend,
        table: Tensor | None,
        probability: float,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of (B, H, T, d) scaled queries, with scores by distance where the (2T, D) table is given."""
        scale, frames = self.head_size**-0.5, query.shape[2]
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if table is None:
            whole = whole or attend is not half_attention
        else:
            projected = table.view(2 * frames, self.heads, self.head_size).transpose(0, 1)  # (H, 2T, d)
            projected = projected if whole else projected.contiguous()
            biases = (self.pos_bias_u, self.pos_bias_v)
            query, position = (query + (u * scale)[:, None].to(query.dtype) for u in biases)
        outs, weights = [], []
        for first in [0] if whole else range(0, frames, BLOCK):
            rows, bias = slice(first, frames if whole else min(first + BLOCK, frames)), None
            if table is not None:
                # Row m of the table is distance T-1-m; these n queries meet no others than these.
                columns = projected[:, frames - rows.stop : 2 * frames - first].transpose(1, 2)  # (H, d, T + n)
                bias = shift(by_head(position[:, :, rows], columns), frames)  # (B, H, n, T)
            out, weight = attend(query[:, :, rows], key, value, exclude_padding(bias, frame_mask, query), probability)
            outs.append(out)
            weights.append(weight)
        if len(outs) == 1:
            return outs[0], weights[0]
        return torch.cat(outs, 2), torch.cat(cast(list[Tensor], weights), 2) if weights[0] is not None else None


def by_head(query: Tensor, columns: Tensor) -> Tensor:
    """(B, H, n, d) x (H, d, m) -> (B, H, n, m), one product a head for the whole batch."""
    batch, heads, rows, size = query.shape
    product = query.transpose(0, 1).reshape(heads, batch * rows, size) @ columns
    return product.view(heads, batch, rows, columns.shape[-1]).transpose(0, 1)


def exclude_padding(bias: Tensor | None, frame_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Scores to add, with padded keys (frame_mask False, (B, T)) out of reach."""
    if frame_mask is None:
        return bias
    # Half of the lowest finite number and not -inf: a clip without any valid frame must give finite weights, and
    # adding a score to it must not overflow.
    lowest = torch.finfo(like.dtype).min / 2
    padded = ~frame_mask[:, None, None, :]  # (B, 1, 1, T)
    if bias is None:
        bias = like.new_zeros(()).expand(padded.shape)
    return bias.masked_fill(padded, lowest)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float
) -> tuple[Tensor, Tensor | None]:
    """torch's fused attention on scaled queries: (B, H, T, d) outputs, no weights."""
    return F.scaled_dot_product_attention(query, key, value, bias, probability, scale=1.0), None


def half_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float
) -> tuple[Tensor, Tensor | None]:
    """Fused attention's stand-in for half precision in inference on a CPU, for some queries at a time: no weights.

    torch's fused kernel takes longer for half precision than for float32 there. The scores are rounded to half
    precision; the softmax sums in float32.
    """
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores += bias
    return torch.softmax(scores, dim=-1) @ value, None


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float
) -> tuple[Tensor, Tensor | None]:
    """Attention step by step: -> (B, H, T, d) outputs and the (B, H, T, T) weights after dropout, as the references."""
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    # In half precision, too, softmax computes in float32; asked for a float32 result, it would write twice as much.
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    weights = dropout(weights, probability, training=probability > 0)
    return weights @ value, weights
