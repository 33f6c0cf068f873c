"""Linear layers that take the faster of two kernels on a CPU."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import as_image, is_traced
from .processor import ONEDNN, WIDE_ONEDNN

# I inputs, O outputs

__all__ = ["Linear", "linear"]

# On AMD's processors up to Zen 4, oneDNN gains 6 to 23 % at the sizes of a large model and loses a little on small
# ones; from Zen 5 on it is up to 2.5 times as fast, and level at 4 million products (`benchmarks/linear.py`).
FEWEST_ROWS, SMALLEST_WEIGHT, FEWEST_PRODUCTS = 512, 1 << 20, 1 << 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., I) x (O, I) -> (..., O)."""
    inference = not (torch.is_grad_enabled() or is_traced() or torch.is_autocast_enabled("cpu"))
    if ONEDNN and inference and torch._C._get_mkldnn_enabled():
        tensors = (x, weight) if bias is None else (x, weight, bias)
        if all(map(is_float32, tensors)) and is_large(x.numel(), weight):
            return onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def is_large(numbers: int, weight: Tensor) -> bool:
    """Whether oneDNN is worth its calls for so many inputs of an (O, I) weight."""
    if WIDE_ONEDNN:
        return numbers * weight.shape[0] >= FEWEST_PRODUCTS
    return numbers >= FEWEST_ROWS * weight.shape[1] and weight.numel() >= SMALLEST_WEIGHT


def is_float32(x: Tensor) -> bool:
    """Whether a tensor is in float32 on a CPU, and none of the kinds that libraries put in a weight's place."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., I) x (O, I) -> (..., O) by oneDNN; no gradients."""
    if WIDE_ONEDNN:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    # As a convolution of kernel 1: level with the product for many rows, and what was measured on Zen 4.
    out = as_image(x.reshape(1, -1, x.shape[-1]), weight.unsqueeze(2), bias)
    return out.reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` on `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
