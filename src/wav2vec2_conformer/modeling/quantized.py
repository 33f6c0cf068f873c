"""Linear layers in 8-bit integers, for inference on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from .linear import Linear
from .wide_buffers import WideBuffers

# N rows (frames of all clips), I inputs, O outputs

__all__ = ["QuantizedLinear", "quantize_linear_layers"]

BLOCK = 1 << 18  # numbers
LARGEST = 127  # symmetric: -128 is left out


class QuantizedLinear(WideBuffers):
    """A linear layer whose weights are integers with one scale an output, and whose inputs become so row by row.

    A row's scale is that row's own largest number, so that no frame's result depends on other frames or clips. Only the
    product is in integers, summed in 32 bits. What goes in and comes out is of the network's type around it.

    Args:
        weight: (O, I), float.
        bias: (O,), or None.
    """

    weight: Tensor  # (O, I) int8
    scale: Tensor  # (O,) float32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        wide = weight.detach().float()
        scale = scales(wide)
        self.register_buffer("weight", torch.round(wide / scale).to(torch.int8))
        self.register_buffer("scale", scale.squeeze(-1))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O); no gradients."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a quantized model cannot be trained: train first, and quantize what came out")
        rows = x.detach().flatten(0, -2)  # (N, I)
        out = x.new_empty(rows.shape[0], self.weight.shape[0])
        if rows.shape[0] == 0:
            return out.view(*x.shape[:-1], out.shape[1])
        integers = torch.empty_like(rows, dtype=torch.int8)
        scale = rows.new_empty(rows.shape[0], 1, dtype=torch.float32)
        for some in blocks(rows):
            block = rows[some].float()
            scale[some] = scales(block)
            integers[some] = (block / scale[some]).round_()
        product = torch._int_mm(integers, self.weight.t())  # (N, O) int32
        bias = cast(Tensor | None, self.bias)
        for some in blocks(product):
            block = product[some].float().mul_(self.scale)
            out[some] = block.mul_(scale[some]) if bias is None else torch.addcmul(bias, block, scale[some], out=block)
        return out.view(*x.shape[:-1], out.shape[1])


def blocks(rows: Tensor) -> Iterator[slice]:
    """Some rows at a time: what is made of them on the way stays in the cache, in place of fresh memory each time."""
    step = max(1, BLOCK // rows.shape[1])
    for first in range(0, rows.shape[0], step):
        yield slice(first, first + step)


def scales(rows: Tensor) -> Tensor:
    """(N, 1): what a row's largest number is divided by to become the largest integer; above 0."""
    # Two passes that only read are faster than one that writes absolute values to fresh memory.
    largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))
    return (largest / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)


def quantize_linear_layers(blocks: nn.Module) -> int:
    """Put integers in the place of all linear layers of conformer blocks; how many there were.

    Convolutions of kernel 1 count as linear layers. Norms, other convolutions, attention's products, the feature
    encoder and the heads stay as they are: they are small, or sensitive.
    """
    found = 0
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            pointwise = type(child) is nn.Conv1d and child.kernel_size == (1,)
            if isinstance(child, Linear) or pointwise:
                weight = cast(Tensor, child.weight)
                setattr(module, name, QuantizedLinear(weight.flatten(1), cast(Tensor | None, child.bias)))
                found += 1
    return found
