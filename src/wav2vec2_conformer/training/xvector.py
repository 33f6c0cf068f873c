"""Training speaker embeddings (x-vectors) by AM-softmax over the speakers of the training data."""

from __future__ import annotations

import logging
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

from ..audio import SAMPLE_RATE
from ..calibration import write_threshold
from ..data import ClassCollator, Utterance
from ..evaluation.trials import all_pairs, score_trials
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForXVector
from ..modeling.losses import IGNORED
from .finetuning import fine_tune
from .record import check_settings
from .settings import FineTuningSettings, check_crop
from .tasks import DEV_SECONDS, Batch, Scores, Task, in_turn

# B batch, X width of an embedding

__all__ = ["XVectorSettings", "train_xvector"]


logger = logging.getLogger(__name__)


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
        check_crop(self.crop_seconds, self.batch_seconds)


class XVectorTask(Task[XVectorSettings]):
    """The classes are the speakers of the training manifests; the figure is the EER over all pairs of the dev set."""

    metric, higher, field, learnt = "eer", False, "speaker", 0.05
    model_class = Wav2Vec2ConformerForXVector

    def few(self, count: int) -> list[Utterance]:
        """Of half as many speakers, two and more of each."""
        speakers = Counter(utterance.speaker for utterance in self.train)
        often = [name for name, utterances in speakers.items() if utterances > 1][: max(2, count // 2)]
        return in_turn([utterance for utterance in self.train if utterance.speaker in often], "speaker", max(4, count))

    def build(self) -> None:
        """With one class direction a training speaker."""
        names = sorted({str(utterance.speaker) for utterance in self.train})
        if len(names) < 2:
            raise ValueError(f"all training utterances are by {names[0]!r}; give two speakers or more")
        counts = Counter(str(utterance.speaker) for utterance in self.dev)
        if len(counts) < 2 or max(counts.values()) < 2:
            raise ValueError(
                f"{self.dev_name}: pairs are judged: give two speakers or more, and two utterances or more of one "
                f"of them; got {len(self.dev)} utterances of {len(counts)} speakers"
            )
        heard = counts.keys() & set(names)
        if heard and not self.settings.overfit:
            logger.warning(
                "%s: %d of %d speakers are in the training data, too; EER and threshold will be better than for others",
                *(self.dev_name, len(heard), len(counts)),
            )
        self.speakers = {name: number for number, name in enumerate(sorted(counts))}
        self.names = self.classify(names, last="objective", problem_type=None)

    def longest(self, *, training: bool) -> float | None:
        """One crop."""
        return self.settings.crop_seconds if training else DEV_SECONDS

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Crops with speakers' ids; of development utterances, with ids of the development speakers."""
        ids = {name: number for number, name in enumerate(self.names)} if training else self.speakers
        longest = round((self.longest(training=training) or 0) * SAMPLE_RATE)
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
        write_threshold(output, best["threshold"], eer=best["eer"], data=self.dev_name)


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
