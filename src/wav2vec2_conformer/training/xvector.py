"""Training speaker embeddings (x-vectors) by AM-softmax over the speakers of the training data.

A recording that is played faster or slower has another voice. So speeds are more speakers, in place of the same one
(Yamamoto et al. 2019, "Speaker augmentation and bandwidth extension for deep speaker embedding").
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback, set_seed

from ..audio import SAMPLE_RATE
from ..calibration import write_threshold
from ..data import Augmentation, ClassCollator, SpeechItem, Utterance
from ..evaluation.trials import all_pairs, score_trials
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForXVector
from ..modeling.losses import IGNORED
from ..modeling.xvector import AMSoftmax
from .finetuning import fine_tune
from .record import check_settings
from .settings import FineTuningSettings, check_crop
from .tasks import DEV_SECONDS, Batch, Scores, Task, in_turn

# B batch, X width of an embedding

__all__ = ["XVectorSettings", "train_xvector"]


logger = logging.getLogger(__name__)


SPEEDS = (0.9, 1.0, 1.1)


@dataclass
class XVectorSettings(FineTuningSettings):
    """Everything that decides a training's result.

    Args:
        crop_seconds: what of a training recording is used at once, at a random place.
        margin: of AM-softmax: by how much more a recording must look like its speaker than like any other.
        margin_rise: share of the steps in which the margin rises from 0; of speakers who still look alike, a large one
            asks too much.
    """

    crop_seconds: float = 4.0
    margin: float = 0.4
    margin_rise: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, above_zero=("crop_seconds",), at_least_zero=("margin",), shares=("margin_rise",))
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
        if self.settings.augment:
            names = sorted(at_speed(name, speed) for name in names for speed in SPEEDS)
        self.names = self.classify(names, last="objective", problem_type=None)
        # Only directions count. As long as they are drawn, they would hardly turn at AdamW's steps.
        self.objective: AMSoftmax = self.model.get_submodule("objective")  # type: ignore[assignment]
        self.objective.weight.data = F.normalize(self.objective.weight.data, dim=0)

    def callbacks(self) -> list[TrainerCallback]:
        """The margin's rise."""
        return [RisingMargin(self.objective, self.settings.margin, self.settings.margin_rise)]

    def augmentation(self) -> Augmentation:
        """Every speed is one of `SPEEDS`."""
        return Augmentation(speed_factors=SPEEDS)

    def longest(self, *, training: bool) -> float | None:
        """One crop."""
        return self.settings.crop_seconds if training else DEV_SECONDS

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Crops with speakers' ids; of development utterances, with ids of the development speakers."""
        ids = {name: number for number, name in enumerate(self.names)} if training else self.speakers
        longest = round((self.longest(training=training) or 0) * SAMPLE_RATE)
        return ClassCollator(ids, voice, partial(frames_of, config=self.model.config), longest=longest)

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


class RisingMargin(TrainerCallback):
    """Sets the margin of the step to come: a function of the step alone, so that a resumed run goes on as it was."""

    def __init__(self, objective: AMSoftmax, margin: float, share: float) -> None:
        self.objective, self.margin, self.share = objective, margin, share

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rise = self.share * state.max_steps
        self.objective.margin = self.margin * min(1.0, state.global_step / rise if rise else 1.0)


def at_speed(speaker: str, speed: float) -> str:
    """The name of a speaker whose recordings are played `speed` times as fast."""
    return speaker if speed == 1.0 else f"{speaker} x {speed:g}"


def voice(item: SpeechItem) -> str:
    """Who is heard in an item: its speaker, or the one that another speed makes."""
    speed = min(SPEEDS, key=lambda speed: abs(1 / speed - item["stretch"]))
    return at_speed(str(item["utterance"].speaker), speed)


class EmbeddingScores(Scores):
    """Equal error rate over all pairs of utterances."""

    def __init__(self) -> None:
        self.embeddings: list[np.ndarray] = []  # (B, X) of unit length
        self.speakers: list[int] = []

    def add(self, batch: Batch, outputs: Any) -> None:
        """Keep the embeddings: X numbers an utterance."""
        self.embeddings.append(F.normalize(outputs.embeddings.float(), dim=-1).cpu().numpy())
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
