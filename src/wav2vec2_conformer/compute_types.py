"""Computing in fewer bits: what a network becomes, how much faster that is here, and how far off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import SAMPLE_RATE
from .modeling.inference_linear import replace_linear_layers
from .modeling.packed import PackedLinear, can_pack

# B batch, N samples, T frames, D hidden size

__all__ = ["COMPUTE_TYPES", "Conversion", "convert", "convert_checked"]

COMPUTE_TYPES = ("float32", "bfloat16", "float16", "int8")
LARGEST_ERROR = 0.1  # trained models are 1 to 6 % off; beyond this, letters begin to change
PROBE = 4.0  # seconds
RUNS = 3
NOISE = 0.15  # by which speeds of so few runs differ by chance


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of a conversion, measured on a few seconds of sound.

    Args:
        compute_type: one of `COMPUTE_TYPES`.
        speedup: how many times as fast as float32.
        error: root mean square of the hidden states' difference over that of their variation.
    """

    compute_type: str
    speedup: float
    error: float

    def __str__(self) -> str:
        told = f"{self.compute_type}: {self.speedup:.2f} times as fast as float32, hidden states {self.error:.1%} off"
        if self.speedup > 1 + NOISE:
            return told
        return told + ("; float32 is faster here" if self.speedup < 1 - NOISE else "; float32 is about as fast here")


def convert(model: Any, compute_type: str) -> None:
    """Make a network compute in another type, in place; for inference.

    int8 stands for the linear layers of the conformer blocks (`model.quantize`); what is around them computes in
    bfloat16, where the processor has instructions for it. In bfloat16 on such a processor the same layers are packed.
    Neither kind of model can be trained, saved or converted any more.

    Args:
        model: of this package.
        compute_type: one of `COMPUTE_TYPES`.

    Raises:
        ValueError: there is no such type, the model's device has no such products, or it was converted before.
    """
    if compute_type not in COMPUTE_TYPES:
        raise ValueError(f"`compute_type` must be one of {', '.join(COMPUTE_TYPES)}, got {compute_type!r}")
    if model.is_converted:
        raise ValueError(f"the model was converted already; load it anew to compute in {compute_type}")
    if compute_type == "int8":
        model.quantize("int8")
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            model.to(torch.bfloat16)
    else:
        model.to(getattr(torch, compute_type))
        if compute_type == "bfloat16" and model.device.type == "cpu" and can_pack():
            replace_linear_layers(model.base_model.encoder.layers, PackedLinear)
    if model.is_converted:
        model.base_model.feature_extractor.keep_matrices()
        model.requires_grad_(False)
        model.train(False)


def convert_checked(model: Any, compute_type: str) -> Conversion | None:
    """`convert`, measured against float32; None for float32 itself, in which a converted model stays what it is.

    Raises:
        ValueError: as `convert`; or the outputs are too far from those in float32. The model is converted by then.
    """
    if compute_type == "float32" and (model.dtype == torch.float32 or model.is_converted):
        return None
    convert(model, "float32")
    if compute_type == "float32":
        return None
    before, slow = hidden_states(model)
    convert(model, compute_type)
    after, fast = hidden_states(model)
    spread = (before - before.mean(1, keepdim=True)).norm()
    error = float((after - before).norm() / spread.clamp_min(torch.finfo(torch.float32).tiny))
    if not error <= LARGEST_ERROR:  # NaN is refused, too
        raise ValueError(
            f"in {compute_type} this model's hidden states are {error:.0%} off (at most {LARGEST_ERROR:.0%} is "
            "accepted): its results would be others; load it anew and use float32, or bfloat16 in place of int8 or "
            "float16"
        )
    return Conversion(compute_type, slow / fast, error)


@torch.inference_mode()
def hidden_states(model: Any) -> tuple[Tensor, float]:
    """(1, T, D) float32 of the probe, and the seconds that they take: the fastest of a few runs."""
    values = torch.from_numpy(probe())[None].to(model.device, model.dtype)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        states = model.base_model(values)[0].float().cpu()  # waits for the device
        times.append(time.perf_counter() - begun)
    return states, min(times)


def probe() -> np.ndarray:
    """(N,) float32, zero mean, unit variance: buzzes of changing pitch and timbre, hisses and pauses, like speech."""
    generator = np.random.default_rng(0)
    time_axis = np.arange(SAMPLE_RATE // 5) / SAMPLE_RATE
    pieces = []
    for number in range(round(PROBE * 5)):
        harmonics = np.arange(1, 30)[:, None]
        pitch, peaks = generator.uniform(90, 250), generator.uniform(300, 3000, 3)
        strength = sum(1 / (1 + ((pitch * harmonics - peak) / 150) ** 2) for peak in peaks)
        buzz = (strength * np.sin(2 * np.pi * pitch * harmonics * time_axis)).sum(0)
        hiss = generator.standard_normal(time_axis.size)
        pieces.append((buzz, buzz, hiss, 0.01 * hiss)[number % 4] * np.hanning(time_axis.size))
    sound = np.concatenate(pieces)
    standard: np.ndarray = ((sound - sound.mean()) / sound.std()).astype(np.float32)
    return standard
