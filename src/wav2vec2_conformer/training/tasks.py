"""What a task of fine-tuning is: the model, the batches, the loss and the figures; the rest is common to all."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from ..configuration import Wav2Vec2ConformerConfig
from ..data import TextEncoder, build_feature_extractor, read_manifest
from ..modeling import Wav2Vec2ConformerPreTrainedModel
from ..processing import DEFAULT_MODEL, normalizes
from .settings import FineTuningSettings, read_config

__all__ = ["Batch", "Scores", "Task"]

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
S = TypeVar("S", bound=FineTuningSettings)


class Scores(ABC):
    """What is counted on a development set, batch by batch; that of several processes is put together."""

    @abstractmethod
    def add(self, batch: Batch, outputs: Any) -> None:
        """Count a batch."""

    @abstractmethod
    def merge(self, others: Sequence[Any]) -> None:
        """Add what other processes counted."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures of all that was counted, at least the task's metric."""


class Task(ABC, Generic[S]):
    """One task: reads and checks the manifests, and builds the model, before anything is computed.

    Attributes:
        metric: the figure of the development set that chooses the best model.
        higher: whether more of it is better.
        field: what every line of a manifest must say.
        model: with its head.
        train, dev: the utterances.
        learnt: the metric's value at which `--overfit` says that the model has learnt its few utterances.
    """

    metric: ClassVar[str]
    higher: ClassVar[bool]
    field: ClassVar[str]
    learnt: ClassVar[float]
    model_class: ClassVar[Any]

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.train = [line for path in settings.train for line in read_manifest(path, require=self.field)]
        if settings.overfit:
            # From the whole of the data, which may be sorted by class or speaker.
            self.train = self.train[:: max(1, len(self.train) // settings.overfit)][: settings.overfit]
            self.dev = list(self.train)
        else:
            self.dev = read_manifest(settings.dev or "", require=self.field)
        self.model: Wav2Vec2ConformerPreTrainedModel = self.build()

    @abstractmethod
    def build(self) -> Wav2Vec2ConformerPreTrainedModel:
        """The model, new or given."""

    @abstractmethod
    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Items -> a batch."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The sum over a batch's items."""

    @abstractmethod
    def scores(self) -> Scores:
        """New counts for a development set."""

    @property
    def encoder(self) -> TextEncoder | None:
        """Of transcripts, where the task has them."""
        return None

    @property
    def normalize(self) -> bool:
        """Whether each waveform gets zero mean and unit variance."""
        return normalizes(self.settings.init) is not False if self.settings.init else True

    @property
    def longest(self) -> float | None:
        """Seconds of a training recording that are used at once; None: all of it."""
        return None

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What of a batch the model is called with."""
        return {"input_values": batch["input_values"], "attention_mask": batch["attention_mask"]}

    def items_of(self, batch: Batch) -> int:
        """How many items of a batch the loss sums over: utterances."""
        return int(batch["input_values"].shape[0])

    def watch(self, figures: dict[str, float]) -> None:
        """Look at a development set's figures for what goes wrong in practice, and say so."""

    def save_processing(self, output: Path) -> None:
        """Write what turns waveforms into the model's inputs."""
        extractor: Wav2Vec2FeatureExtractor = build_feature_extractor(do_normalize=self.normalize)
        extractor.save_pretrained(output)

    def finish(self, output: Path, best: dict[str, float]) -> None:
        """What else a training leaves in its folder, after the best model was written."""

    def classify(self, names: Sequence[str], **fields: Any) -> Wav2Vec2ConformerPreTrainedModel:
        """A model whose outputs are called `names`: from `init`, or new from `config`."""
        labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        return self.load(**labels, **fields)

    def load(self, **fields: Any) -> Wav2Vec2ConformerPreTrainedModel:
        """`init` with another head where it needs one, or a new model of `config`; in both, these fields are set."""
        settings = self.settings
        fields = settings.model | fields | (QUIET if settings.overfit else {})
        if settings.init:
            # A head of another size starts anew; network weights of another shape are an error all the same.
            model = self.model_class.from_pretrained(
                settings.init, dtype=torch.float32, ignore_mismatched_sizes=True, **fields
            )
        else:
            config = read_config(Path(settings.config) if settings.config else DEFAULT_MODEL / "config.json")
            config = Wav2Vec2ConformerConfig.from_dict(config.to_dict() | fields)
            model = self.model_class(config)
        if settings.freeze_feature_encoder:
            model.freeze_feature_encoder()
        loaded: Wav2Vec2ConformerPreTrainedModel = model
        return loaded


# A self-check on a few utterances wants to learn them by heart.
QUIET = dict.fromkeys(
    "hidden_dropout attention_dropout activation_dropout conformer_conv_dropout feat_proj_dropout final_dropout "
    "layerdrop mask_time_prob mask_feature_prob".split(),
    0.0,
)
