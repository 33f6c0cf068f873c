"""Linear layers that take the faster of two kernels on a CPU."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, T frames, I inputs, O outputs

__all__ = ["Linear", "linear"]

# oneDNN's convolution of kernel 1 beats the BLAS product by 6 to 23 % at the sizes of a large model on x86, and loses a
# little on small ones (`benchmarks/linear.py`). Other processors have their own fast BLAS.
ONEDNN = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
FEWEST_ROWS, SMALLEST_WEIGHT = 512, 1 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, T, I) x (O, I) -> (B, T, O)."""
    large = x.dim() == 3 and x.shape[0] * x.shape[1] >= FEWEST_ROWS and weight.numel() >= SMALLEST_WEIGHT
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if not (ONEDNN and large and x.device.type == "cpu" and x.dtype == torch.float32) or plain:
        return F.linear(x, weight, bias)
    image = x.transpose(1, 2).unsqueeze(2)  # (B, I, 1, T), a view; see `convolution.py`
    return F.conv2d(image, weight[:, :, None, None], bias).squeeze(2).transpose(1, 2)


class Linear(nn.Linear):
    """`nn.Linear` on `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
