"""Training speaker embeddings (x-vectors) by AM-softmax over the speakers of the training data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from ..data import ClassCollator
from ..evaluation.trials import all_pairs, score_trials
from ..files import replacing
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForXVector, Wav2Vec2ConformerPreTrainedModel
from ..modeling.losses import IGNORED
from .finetuning import fine_tune
from .record import check_settings
from .settings import FineTuningSettings
from .tasks import Batch, Scores, Task

# B batch, X width of an embedding

__all__ = ["XVectorSettings", "train_xvector"]


@dataclass
class XVectorSettings(FineTuningSettings):
    """Everything that decides a training's result.

    Args:
        crop_seconds: what of a training recording is used at once, at a random place.
    """

    crop_seconds: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, above_zero=("crop_seconds",))


class XVectorTask(Task[XVectorSettings]):
    """The classes are the speakers of the training manifests; the figure is the EER over all pairs of the dev set."""

    metric, higher, field, learnt = "eer", False, "speaker", 0.05
    model_class = Wav2Vec2ConformerForXVector

    def build(self) -> Wav2Vec2ConformerPreTrainedModel:
        """With one class direction a training speaker."""
        self.names = sorted({str(utterance.speaker) for utterance in self.train})
        if len(self.names) < 2:
            raise ValueError(f"all training utterances are by {self.names[0]!r}; give two speakers or more")
        counts = Counter(str(utterance.speaker) for utterance in self.dev)
        if len(counts) < 2 or max(counts.values()) < 2:
            raise ValueError(
                f"{self.settings.dev}: pairs are judged: give two speakers or more, and two utterances or more of one "
                f"of them; got {len(self.dev)} utterances of {len(counts)} speakers"
            )
        self.speakers = {name: number for number, name in enumerate(sorted(counts))}
        return self.classify(self.names)

    @property
    def longest(self) -> float | None:
        """One crop."""
        return self.settings.crop_seconds

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Crops with speakers' ids; of development utterances, all of them, with ids of the development speakers."""
        ids = {name: number for number, name in enumerate(self.names)} if training else self.speakers
        longest = round(self.settings.crop_seconds * 16_000) if training else None
        return ClassCollator(ids, "speaker", partial(frames_of, config=self.model.config), longest=longest)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """With labels, which the class directions need, while training."""
        return super().inputs(batch) | ({"labels": batch["labels"]} if self.model.training else {})

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """AM-softmax, summed over utterances."""
        loss: Tensor = outputs.loss * (batch["labels"] != IGNORED).sum()
        return loss

    def scores(self) -> Scores:
        """Embeddings."""
        return EmbeddingScores()

    def finish(self, output: Path, best: dict[str, float]) -> None:
        """The threshold at which `verify` decides."""
        with replacing(output / "verification.json") as temporary:
            found = {"threshold": best["threshold"], "eer": best["eer"], "data": self.settings.dev}
            temporary.write_text(json.dumps(found, indent=2) + "\n")


class EmbeddingScores(Scores):
    """Equal error rate over all pairs of utterances."""

    def __init__(self) -> None:
        self.embeddings: list[np.ndarray] = []  # (B, X) of unit length
        self.speakers: list[int] = []

    def add(self, batch: Batch, outputs: Any) -> None:
        """Keep the embeddings: X numbers an utterance."""
        self.embeddings.append(torch.nn.functional.normalize(outputs.embeddings.float(), dim=-1).cpu().numpy())
        self.speakers += batch["labels"].tolist()

    def merge(self, others: Sequence[Self]) -> None:
        """Pairs reach across processes."""
        for other in others:
            self.embeddings += other.embeddings
            self.speakers += other.speakers

    def figures(self) -> dict[str, float]:
        """EER (a share) and the threshold at it."""
        embeddings, speakers = np.concatenate(self.embeddings), np.array(self.speakers)
        curve = score_trials(embeddings, all_pairs(speakers, np.zeros_like(speakers))).curve
        return {"eer": curve.eer, "threshold": curve.eer_threshold}


def train_xvector(settings: XVectorSettings, *, resume: bool = False) -> dict[str, Any]:
    """Train and return the figures of the best model; see `fine_tune`."""
    set_seed(settings.seed)
    return fine_tune(XVectorTask(settings), resume=resume)
