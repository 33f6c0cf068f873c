"""What a task of fine-tuning is: the model, the batches, the loss and the figures; the rest is common to all."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback, Wav2Vec2FeatureExtractor

from ..checkpoints.model_folder import without_report
from ..configuration import Wav2Vec2ConformerConfig
from ..data import Augmentation, TextEncoder, Utterance, build_feature_extractor, read_manifest
from ..modeling import Wav2Vec2ConformerPreTrainedModel
from ..processing import DEFAULT_MODEL, model_name, normalizes
from .settings import FineTuningSettings, read_config

__all__ = ["DEV_SECONDS", "Batch", "Scores", "Task", "in_turn"]

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
DEV_SECONDS = 60.0  # of a development recording, where one part of it is judged
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
        drawn: names of its weights that were not in `init`.
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
        if settings.init:
            self.settings = settings = copy(settings)  # the caller's stay as they are
            settings.init = model_name(settings.init or "")  # refuses what is none before anything is read
        self.train = [line for path in settings.train for line in read_manifest(path, require=self.field)]
        self.dev_name = "the training data" if settings.overfit else str(settings.dev)
        if settings.overfit:
            self.train = self.few(settings.overfit)
            self.dev = list(self.train)
        else:
            self.dev = read_manifest(settings.dev or "", require=self.field)
        if not settings.overfit and settings.dev in settings.train:
            logger.warning(
                "%s is learnt from and judged on: the figures say nothing about other recordings", settings.dev
            )
        self.model: Wav2Vec2ConformerPreTrainedModel
        self.drawn: set[str] = set()
        self.build()

    def few(self, count: int) -> list[Utterance]:
        """Training utterances for a self-check, of the kind that the task needs."""
        return random.Random(self.settings.seed).sample(self.train, min(count, len(self.train)))

    @abstractmethod
    def build(self) -> None:
        """Set `model`, new or given."""

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

    def augmentation(self) -> Augmentation:
        """What happens to training waveforms where `augment` is set."""
        return Augmentation()

    def callbacks(self) -> list[TrainerCallback]:
        """What changes from step to step, if anything does."""
        return []

    def longest(self, *, training: bool) -> float | None:
        """Seconds of a recording that are used at once; None: all of it."""
        return None

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What of a batch the model is called with."""
        return {"input_values": batch["input_values"], "attention_mask": batch["attention_mask"]}

    def logits_of(self, outputs: Any, batch: Batch) -> Tensor:
        """The logits that the network computed, whose scale is watched."""
        logits: Tensor = outputs.logits
        return logits

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

    def classify(self, names: Sequence[str], *, last: str | None = None, **fields: Any) -> list[str]:
        """Build a model whose outputs are called `names`, from `init` or new from `config`; the names in their order.

        The order is that of `init`, where it has the same names. Where its names are others, the module called `last`,
        whose outputs they are, starts anew, also if there are as many.
        """
        before: list[str] = []
        if self.settings.init:
            known = Wav2Vec2ConformerConfig.from_pretrained(self.settings.init).id2label
            before = list((known or {}).values())
        ordered = before if sorted(before) == sorted(names) else list(names)
        labels = {"id2label": dict(enumerate(ordered)), "label2id": {name: i for i, name in enumerate(ordered)}}
        self.model = self.load(**labels, **fields)
        if last and len(before) == len(names) and ordered != before:
            logger.warning("%s tells other classes apart: its last layer starts anew", self.settings.init)
            head = self.model.get_submodule(last)
            for parameter in head.parameters():
                setattr(parameter, "_is_hf_initialized", False)  # noqa: B010 (what was loaded is not drawn again)
            self.model._init_weights(head)
        return ordered

    def load(self, **fields: Any) -> Wav2Vec2ConformerPreTrainedModel:
        """`init` with another head where it needs one, or a new model of `config`; in both, these fields are set."""
        settings = self.settings
        fields = settings.model | fields | (QUIET if settings.overfit else {})
        if settings.init:
            # A head of another size starts anew; network weights of another shape are an error all the same.
            with without_report():
                model, found = self.model_class.from_pretrained(
                    settings.init,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **fields,
                )
            self.drawn = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
        else:
            config = read_config(Path(settings.config) if settings.config else DEFAULT_MODEL / "config.json")
            config = Wav2Vec2ConformerConfig.from_dict(config.to_dict() | fields)
            model = self.model_class(config)
            self.drawn = set(model.state_dict())
        if settings.freeze_feature_encoder:
            model.freeze_feature_encoder()
        loaded: Wav2Vec2ConformerPreTrainedModel = model
        return loaded


def in_turn(utterances: Sequence[Utterance], field: str, count: int) -> list[Utterance]:
    """`count` utterances of all classes or speakers in turn, the first ones of each first."""
    kinds: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        kinds.setdefault(str(getattr(utterance, field)), []).append(utterance)
    rounds = zip_longest(*kinds.values())
    return [utterance for together in rounds for utterance in together if utterance is not None][:count]


# A self-check on a few utterances wants to learn them by heart.
QUIET = dict.fromkeys(
    "hidden_dropout attention_dropout activation_dropout conformer_conv_dropout feat_proj_dropout final_dropout "
    "layerdrop mask_time_prob mask_feature_prob".split(),
    0.0,
)
