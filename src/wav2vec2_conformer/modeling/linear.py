"""Linear layers that take the faster of two kernels on a CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, T frames, I inputs, O outputs

__all__ = ["Linear", "linear", "multiplies_bfloat16"]


def is_by_intel() -> bool:
    """Whether the processor is Intel's, for which torch's BLAS, MKL, is made."""
    try:
        told = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not on Linux
        told = platform.processor()
    return "GenuineIntel" in told


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# At the sizes of a large model, oneDNN's convolution of kernel 1 beats the BLAS product by 6 to 23 % on AMD's
# processors, and loses a little on small ones; on Intel's it loses up to a fifth (`benchmarks/linear.py`). Processors
# of other kinds have their own BLAS.
ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and platform.system() != "Darwin"  # whose x86 processors are all Intel's
    and not is_by_intel()
)
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
