"""Training a classifier of whole clips: keywords, emotions, languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import set_seed

from ..data import ClassCollator, Utterance
from ..evaluation.classification import ConfusionMatrix
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForSequenceClassification
from ..modeling.losses import IGNORED
from .finetuning import fine_tune
from .settings import FineTuningSettings
from .tasks import Batch, Scores, Task, in_turn

# B batch, C classes

__all__ = ["SequenceSettings", "train_sequence"]


@dataclass
class SequenceSettings(FineTuningSettings):
    """Everything that decides a training's result.

    Args:
        balance: whether utterances of rare classes weigh more, so that all classes weigh the same together.
    """

    balance: bool = False


class SequenceTask(Task[SequenceSettings]):
    """The classes are the labels of the training manifests; a development utterance of another one is an error."""

    metric, higher, field, learnt = "accuracy", True, "label", 0.95
    model_class = Wav2Vec2ConformerForSequenceClassification

    def few(self, count: int) -> list[Utterance]:
        """Of all classes in turn."""
        return in_turn(self.train, "label", count)

    def build(self) -> None:
        """With one output a class."""
        counts = Counter(str(utterance.label) for utterance in self.train)
        names = sorted(counts)
        unknown = sorted({str(utterance.label) for utterance in self.dev} - set(names))
        if unknown:
            raise ValueError(
                f"{self.dev_name}: {len(unknown)} labels that the training data lacks: {', '.join(unknown[:5])}; "
                "add training utterances of them or take these lines out"
            )
        if len(names) < 2:
            raise ValueError(f"all training utterances have the label {names[0]!r}; give two classes or more")
        self.names = self.classify(names, last="classifier", problem_type="single_label_classification")
        shares = torch.tensor([counts[name] for name in self.names]) / len(self.train)
        self.weights = 1 / (shares * len(self.names)) if self.settings.balance else torch.ones(len(self.names))

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Clips with class ids."""
        ids = {name: number for number, name in enumerate(self.names)}
        return ClassCollator(ids, lambda item: item["utterance"].label, partial(frames_of, config=self.model.config))

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross entropy, summed over utterances."""
        weights = self.weights.to(outputs.logits.device)
        return F.cross_entropy(outputs.logits.float(), batch["labels"], weights, ignore_index=IGNORED, reduction="sum")

    def scores(self) -> Scores:
        """A confusion matrix."""
        return ConfusionScores(self.names)


class ConfusionScores(Scores):
    """Accuracy and macro-F1 of the most likely classes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.confusion = ConfusionMatrix(names)

    def add(self, batch: Batch, outputs: Any) -> None:
        """Count the most likely class of each clip."""
        for reference, hypothesis in zip(batch["labels"].tolist(), outputs.logits.argmax(-1).tolist(), strict=True):
            self.confusion.counts[reference, hypothesis] += 1

    def merge(self, others: Sequence[Self]) -> None:
        """Add the matrices."""
        for other in others:
            self.confusion.counts += other.confusion.counts

    def figures(self) -> dict[str, float]:
        """Shares from 0 to 1."""
        return {"accuracy": self.confusion.accuracy, "macro_f1": self.confusion.macro_f1}


def train_sequence(settings: SequenceSettings, *, resume: bool = False) -> dict[str, Any]:
    """Train and return the figures of the best model; see `fine_tune`."""
    set_seed(settings.seed)
    return fine_tune(SequenceTask(settings), resume=resume)
