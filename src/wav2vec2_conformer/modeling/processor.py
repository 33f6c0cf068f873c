"""What this machine's processor computes fast."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

__all__ = ["ONEDNN", "WIDE_ONEDNN", "multiplies_bfloat16"]


def processor() -> str:
    """What the system tells about the processor."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not on Linux
        return platform.processor()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies in float32 faster than torch's BLAS, MKL, which takes half vectors on AMD's processors.

    Processors of other kinds have their own BLAS, and all of Apple's x86 ones are Intel's.
    """
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and platform.system() != "Darwin"
        and "GenuineIntel" not in processor()
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def computes_full_width() -> bool:
    """Whether an AMD processor computes on whole vectors of 512 bits at once, as from Zen 5 (family 26) on."""
    told = processor()
    family = re.search(r"family\s*:?\s*(\d+)", told, re.IGNORECASE) if "AuthenticAMD" in told else None
    return family is not None and int(family[1]) >= 26 and torch.cpu._is_avx512_supported()


ONEDNN = prefers_onednn()
WIDE_ONEDNN = ONEDNN and computes_full_width()
