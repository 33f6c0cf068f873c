"""The settings that all tasks of fine-tuning share."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from ..configuration import Wav2Vec2ConformerConfig
from .presets import load_preset
from .record import check_settings
from .schedules import check_schedule

__all__ = ["FineTuningSettings", "check_crop", "read_config"]

logger = logging.getLogger(__name__)


@dataclass
class FineTuningSettings:
    """Everything that decides a training's result.

    Args:
        train: manifests to learn from; one given twice counts twice.
        output: folder of the result; its root holds the best model so far, `checkpoint-N` what `resume` needs.
        dev: manifest whose figure chooses the best model; needed unless `overfit` is set.
        config: a config.json of a new model.
        init: a model to start from instead: a folder or a Hub id.
        model: fields of the model's configuration that differ from those of `config` or `init`.
        epochs: passes over the training data.
        updates: optimizer steps, in place of `epochs` where it is above 0.
        batch_seconds: seconds of audio a batch, padding included.
        max_batch: most utterances a batch.
        accumulate: batches an optimizer step.
        learning_rate: peak of the schedule.
        head_learning_rate: peak for what is above the network; None: the same.
        schedule: "cosine" (linear rise, then half a cosine to 0), "linear" or "tri-stage" (rise, hold, fall to 5 %).
        warmup: share of the steps in which the rate rises.
        weight_decay: of AdamW.
        clip: largest gradient norm; 0: as it is.
        freeze_feature_encoder: whether the convolutions stay as they are.
        freeze_updates: updates in which only the head learns. The network runs in training mode all the same: its
            weights stay, while the statistics of its batch norms follow the new data.
        lora: rank of low-rank adapters of the attention's projections (Hu et al. 2021), which learn in place of the
            network; 0: the network learns itself. The saved model has them merged in.
        augment: whether to change speed, narrow the band and add noise.
        bf16: whether to compute in bfloat16 where it is safe (losses stay float32).
        gradient_checkpointing: whether to compute activations twice instead of keeping them.
        evaluate_every: steps between evaluations and checkpoints; 0: once an epoch.
        log_every: steps between logs.
        patience: evaluations without a better figure after which training stops; 0: never.
        overfit: learn only this many utterances by heart, without augmentation, dropout and masks, and judge on them:
            a check of data and settings. 0: no.
        cache_gb: decoded audio kept in memory.
        workers: processes that decode audio.
        seed: of everything random.
    """

    presets: ClassVar[tuple[str, ...]] = ()

    train: list[str]
    output: str
    dev: str | None = None
    config: str | None = None
    init: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    epochs: float = 30.0
    updates: int = 0
    batch_seconds: float = 60.0
    max_batch: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    freeze_feature_encoder: bool = False
    freeze_updates: int = 0
    lora: int = 0
    augment: bool = True
    bf16: bool = False
    gradient_checkpointing: bool = False
    evaluate_every: int = 0
    log_every: int = 20
    patience: int = 0
    overfit: int = 0
    cache_gb: float = 0.0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            above_zero=("epochs", "batch_seconds", "max_batch", "accumulate", "log_every"),
            at_least_zero=(
                *("learning_rate", "weight_decay", "evaluate_every", "cache_gb", "workers", "seed"),
                *("updates", "freeze_updates", "lora", "patience", "overfit", "clip"),
            ),
            shares=("warmup",),
        )
        if self.head_learning_rate is not None and not self.head_learning_rate >= 0:
            raise ValueError(f"`head_learning_rate` must be at least 0, got {self.head_learning_rate}")
        check_schedule(self.schedule, self.warmup)
        if self.init and self.config:
            raise ValueError(
                "give a model to start from (`init`) or the configuration of a new one (`config`), not both"
            )
        if self.dev is None and not self.overfit:
            raise ValueError("a development set (`dev`) must choose the best model; only `overfit` goes without")
        if self.overfit:
            self.augment = False
            if self.dev is not None:
                logger.warning("`overfit` judges on the utterances that it learns: %s is not used", self.dev)

    @classmethod
    def from_preset(cls, preset: str | None, **given: Any) -> Self:
        """The settings of a preset (a name or a TOML file), changed by those that are given; None: the defaults."""
        if preset is None:
            return cls(**given)
        own = {"train", "output", "dev", "init", "config", "model"}
        loaded = load_preset(
            preset,
            cls.presets,
            model_fields=Wav2Vec2ConformerConfig().to_dict(),
            training_fields={f.name for f in fields(cls)} - own,
        )
        recipe = dict(loaded.training)
        if "epochs" in given and "updates" not in given:
            recipe.pop("updates", None)  # which would go before the epochs that were asked for
        return cls(**{"model": loaded.model, **recipe, **given})


def check_crop(crop_seconds: float, batch_seconds: float) -> None:
    """Refuse crops that do not fit into a batch."""
    if crop_seconds > batch_seconds:
        raise ValueError(
            f"a batch must hold a crop: `batch_seconds` must be at least `crop_seconds`, got {batch_seconds:g} and "
            f"{crop_seconds:g}"
        )


def read_config(path: Path) -> Wav2Vec2ConformerConfig:
    """A new model's configuration; fields that this model does not have are named in a warning."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        problem = "a folder" if path.is_dir() else "no such file" if not path.exists() else error.strerror
        raise ValueError(f"{path}: expected a file, the config.json of a model, got {problem}; correct it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); expected a model's config.json") from error
    if not isinstance(found, dict):
        raise ValueError(f'{path}: expected a JSON object with a model\'s fields, such as {{"hidden_size": 256}}')
    unknown = sorted(found.keys() - Wav2Vec2ConformerConfig().to_dict().keys() - {"use_cache"})  # of transformers' own
    if unknown:
        logger.warning("%s: no fields of this model, so without effect: %s", path, ", ".join(unknown))
    return Wav2Vec2ConformerConfig.from_dict(found)
