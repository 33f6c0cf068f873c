"""Compare a converted model with the arithmetic of the checkpoint that it came from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from .arithmetic import Arithmetic
from .fairseq import FairseqCheckpoint

__all__ = ["Verification", "verify"]

TOLERANCE = 1e-4  # of the largest number; float32 gives about 1e-6


@dataclass(frozen=True)
class Verification:
    """How far the converted model is from the source's arithmetic.

    Args:
        compared: name of an output -> largest difference in units of the output's largest number.
    """

    compared: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest of the differences; NaN if one of them is."""
        differences = self.compared.values()
        return math.nan if any(map(math.isnan, differences)) else max(differences)  # `max` may pass over a NaN

    @property
    def passed(self) -> bool:
        """Whether the two compute the same."""
        return all(difference <= TOLERANCE for difference in self.compared.values())  # False for NaN


def verify(path: str | os.PathLike[str], folder: str | os.PathLike[str], seconds: float = 1.0) -> Verification:
    """Compare the model in a folder with the fairseq checkpoint that it was converted from, on a fixed waveform.

    Args:
        path: the checkpoint.
        folder: the converted model.
        seconds: of the waveform.
    """
    waveform = torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with FairseqCheckpoint(path) as checkpoint, torch.no_grad():
        expected = Arithmetic(checkpoint).run(waveform)
        if checkpoint.kind == "wav2vec_ctc":
            model: Any = Wav2Vec2ConformerForCTC.from_pretrained(folder, dtype=torch.float32).eval()
        else:
            model = Wav2Vec2ConformerForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
        output = model(waveform.float()[None])
        compared = {}
        for name, tensor in expected.items():
            found = getattr(output, name)[0].double()
            if found.shape != tensor.shape:
                raise ValueError(f"{folder}: {name} has the shape {tuple(found.shape)}, expected {tuple(tensor.shape)}")
            scale = float(tensor.abs().max())
            compared[name] = float((found - tensor).abs().max()) / (scale or 1.0)  # of nothing but zeros: as it is
    return Verification(compared)
