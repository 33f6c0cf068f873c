"""Which number formats this machine computes in."""

from __future__ import annotations

import torch

from ..modeling.processor import multiplies_bfloat16

__all__ = ["computes_bfloat16"]


def computes_bfloat16() -> bool:
    """Whether the device that a training uses has instructions for bfloat16, which are then twice as fast or more."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.accelerator.is_available():  # Apple's GPUs: memory is saved, but no time
        return False
    return multiplies_bfloat16()
