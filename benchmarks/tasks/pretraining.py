"""A step of pre-training, masks and negatives included.

Each side draws them as its users do: transformers with numpy and a Python loop, ours with the collator's functions,
which training calls in worker processes; the share that they take of a step is told apart.
"""

from __future__ import annotations

from typing import Any

import torch
from networks import Network
from torch import Tensor
from transformers.models.wav2vec2 import modeling_wav2vec2

from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.training.pretraining import draw_masks, draw_negatives

from .common import Run
from .training import Objective, TrainingStep

DEFAULTS = {"size": "base", "positions": ["relative"], "seconds": [15.0], "batch": [5], "rounds": 3}


class MasksAndNegatives(Objective):
    """As `run_wav2vec2_pretraining_no_trainer.py` draws them, or as `train pretraining` does."""

    frozen = False

    def __init__(self, config: Any, family: str) -> None:
        super().__init__(config, family)
        self.generator = torch.Generator().manual_seed(0)

    def inputs(self, clips: int, samples: int) -> tuple[dict[str, Tensor], int]:
        frames = frames_of(samples, self.config)
        mask, negatives = (self.our_draw if self.family == "ours" else self.their_draw)(clips, frames)
        return {"mask_time_indices": mask, "sampled_negative_indices": negatives}, int(mask.sum())

    def their_draw(self, clips: int, frames: int) -> tuple[Tensor, Tensor]:
        """(B, T) masks and (B, T, K) negatives."""
        config, shape = self.config, (clips, frames)
        mask = modeling_wav2vec2._compute_mask_indices(
            shape, config.mask_time_prob, config.mask_time_length, min_masks=config.mask_time_min_masks
        )
        negatives = modeling_wav2vec2._sample_negative_indices(shape, config.num_negatives, mask)
        return torch.from_numpy(mask), torch.from_numpy(negatives)

    def our_draw(self, clips: int, frames: int) -> tuple[Tensor, Tensor]:
        """(B, T) masks and (B, T, K) negatives."""
        mask = draw_masks(torch.full((clips,), frames), frames, self.generator, config=self.config)
        return mask, draw_negatives(mask, self.generator, count=self.config.num_negatives)


def run(run: Run, network: Network) -> dict[str, Any]:
    """Measure a case."""
    step = TrainingStep(run, network, MasksAndNegatives)
    return step.measure() if run.settings.largest is None else step.largest(run.settings.largest)
