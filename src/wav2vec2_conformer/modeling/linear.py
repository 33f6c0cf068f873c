"""Linear layers that take the faster of two kernels on a CPU."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import is_traced
from .processor import ONEDNN, WIDE_ONEDNN

# I inputs, O outputs

__all__ = ["Linear", "linear"]

# On AMD's processors up to Zen 4, oneDNN gains 6 to 23 % at the sizes of a large model and loses a little on small
# ones; from Zen 5 on it is up to 2.5 times as fast, and level at 4 million products (`benchmarks/linear.py`).
FEWEST_ROWS, SMALLEST_WEIGHT, FEWEST_PRODUCTS = 512, 1 << 20, 1 << 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., I) x (O, I) -> (..., O)."""
    rows = x.numel() // weight.shape[1]
    large = rows >= FEWEST_ROWS and weight.numel() >= SMALLEST_WEIGHT
    large |= WIDE_ONEDNN and rows * weight.numel() >= FEWEST_PRODUCTS
    plain = torch.is_grad_enabled() or is_traced() or torch.is_autocast_enabled("cpu")
    if not (ONEDNN and large and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32) or plain:
        return F.linear(x, weight, bias)
    return onednn(x, weight, bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., I) x (O, I) -> (..., O) by oneDNN; no gradients."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


class Linear(nn.Linear):
    """`nn.Linear` on `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
