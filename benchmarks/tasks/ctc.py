"""A step of CTC fine-tuning, as the presets say: 100 hours of LibriSpeech, the feature encoder not trained."""

from __future__ import annotations

from typing import Any

import torch
from networks import LETTERS, SAMPLE_RATE, Network
from torch import Tensor

from .common import Run
from .training import Objective, TrainingStep

DEFAULTS = {"size": "base", "positions": ["relative"], "seconds": [15.0], "batch": [5], "rounds": 3}
LETTERS_A_SECOND = 14  # of LibriSpeech


class Transcripts(Objective):
    """Random letters; SpecAugment's masks are drawn inside both networks."""

    frozen = True

    def inputs(self, clips: int, samples: int) -> tuple[dict[str, Tensor], int]:
        letters = max(1, round(LETTERS_A_SECOND * samples / SAMPLE_RATE))
        return {"labels": torch.randint(4, len(LETTERS), (clips, letters))}, clips


def run(run: Run, network: Network) -> dict[str, Any]:
    """Measure a case."""
    step = TrainingStep(run, network, Transcripts)
    return step.measure() if run.settings.largest is None else step.largest(run.settings.largest)
