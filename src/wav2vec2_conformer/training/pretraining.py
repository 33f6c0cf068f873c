"""Self-supervised pre-training, from recordings without transcripts to a folder with a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments, set_seed

from ..audio import SAMPLE_RATE
from ..configuration import Wav2Vec2ConformerConfig
from ..data import PretrainingCollator, SpeechDataset, Utterance, build_feature_extractor, read_recordings
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForPreTraining
from ..modeling.batch_norm import FrameBatchNorm
from ..modeling.masking import sample_spans, thin_to_equal_counts
from ..modeling.negatives import sample_negatives
from ..modeling.outputs import PretrainingStatistics
from ..processing import model_name
from .collapse import CollapseMonitor
from .precision import computes_bfloat16
from .presets import PRESETS, Preset, load_preset
from .progress import ProgressBar
from .record import check_settings, prepare_output, record_settings
from .report import PRETRAINING, write_report
from .schedules import check_schedule
from .trainer import SpeechLoader, SpeechTrainer, makes_kernels, share_of, trainer_arguments

# B batch, N samples, T frames, K negatives, G codebook groups

__all__ = ["PretrainingSettings", "PretrainingTrainer", "train_pretraining"]

logger = logging.getLogger(__name__)

# Fields of a model that say how it is trained, and not what its weights are: a preset decides them with `init`, too.
RECIPE_FIELDS = frozenset(
    "mask_time_prob mask_time_length mask_time_min_masks num_negatives contrastive_logits_temperature "
    "diversity_loss_weight hidden_dropout attention_dropout activation_dropout conformer_conv_dropout "
    "feat_proj_dropout feat_quantizer_dropout layerdrop".split()
)


@dataclass
class PretrainingSettings:
    """Everything that decides a pre-training's result; the defaults are those of the preset "base".

    Args:
        train: manifests or folders of recordings; one given twice counts twice.
        output: folder of the result; its root holds the best model so far, `checkpoint-N` what `resume` needs.
        dev: manifest or folder whose accuracy chooses the best model; without it the last model is kept.
        init: a model to start from instead of a new one: a folder or a Hub id.
        model: fields of a new model's configuration; with `init` those of them that say how it is trained.
        updates: optimizer steps.
        warmup: share of the updates in which the learning rate rises.
        schedule: "linear" (to 0), "cosine" or "tri-stage" (rise, hold, fall to 5 %).
        learning_rate: the peak of the schedule.
        batch_seconds: seconds of audio a micro-batch.
        max_batch: most recordings a micro-batch.
        accumulate: micro-batches an update and process.
        crop_seconds: what of a recording is used at once, at a random place.
        least_seconds: shorter recordings are left out.
        feature_penalty: weight of the mean square of the convolutional features.
        feature_gradient_scale: what the gradient that enters the convolutional encoder is multiplied by.
        temperature_start: of the Gumbel-softmax; it falls by the same factor each update.
        temperature_end: where it stays.
        temperature_share: share of the updates after which it is there.
        weight_decay: of AdamW, whose betas are 0.9 and 0.98 and epsilon 1e-6.
        clip: largest gradient norm; 0: as it is.
        do_normalize: whether each recording gets zero mean and unit variance; the model's users must do the same.
        bf16: whether to compute in bfloat16 where it is safe (losses stay float32); `None`: where the device has
            instructions for it.
        gradient_checkpointing: whether to compute activations twice instead of keeping them.
        sync_batch_norm: whether batch norms use the statistics of all processes' micro-batches together.
        keep_going: whether to go on where the collapse rule would stop.
        evaluate_every: updates between evaluations and checkpoints.
        log_every: updates between logs.
        cache_gb: decoded audio kept in memory.
        workers: processes that decode audio, draw masks and negatives.
        seed: of everything random.
    """

    train: list[str]
    output: str
    dev: str | None = None
    init: str | None = None
    model: dict[str, Any] = field(default_factory=lambda: read_preset("base").model)
    updates: int = 400_000
    warmup: float = 0.08
    schedule: str = "linear"
    learning_rate: float = 5e-4
    batch_seconds: float = 87.5
    max_batch: int = 256
    accumulate: int = 1
    crop_seconds: float = 15.625
    least_seconds: float = 2.0
    feature_penalty: float = 10.0
    feature_gradient_scale: float = 0.1
    temperature_start: float = 2.0
    temperature_end: float = 0.5
    temperature_share: float = 0.6931
    weight_decay: float = 0.01
    clip: float = 0.0
    do_normalize: bool = False
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = False
    keep_going: bool = False
    evaluate_every: int = 1000
    log_every: int = 20
    cache_gb: float = 0.0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            above_zero=(
                *("updates", "batch_seconds", "max_batch", "accumulate", "crop_seconds", "least_seconds"),
                *("temperature_start", "temperature_end", "evaluate_every", "log_every"),
            ),
            at_least_zero=(
                *("learning_rate", "feature_penalty", "feature_gradient_scale", "weight_decay", "clip", "cache_gb"),
                *("temperature_share", "workers", "seed"),
            ),
            shares=("warmup",),
        )
        check_schedule(self.schedule, self.warmup)
        if self.least_seconds > self.crop_seconds:
            raise ValueError(
                f"`least_seconds` must be at most `crop_seconds`, got {self.least_seconds} and {self.crop_seconds}"
            )
        if self.crop_seconds > self.batch_seconds:
            raise ValueError(
                f"a micro-batch must hold a crop: `batch_seconds` must be at least `crop_seconds`, got "
                f"{self.batch_seconds} and {self.crop_seconds}"
            )

    @classmethod
    def from_preset(cls, preset: str, **given: Any) -> PretrainingSettings:
        """The settings of a preset ("tiny", "base", "large" or a TOML file), changed by those that are given."""
        loaded = read_preset(preset)
        return cls(**{"model": loaded.model, **loaded.training, **given})

    def temperature(self, step: int) -> float:
        """Of the Gumbel-softmax at an update."""
        steps = max(1.0, self.temperature_share * self.updates)
        falling = self.temperature_start * (self.temperature_end / self.temperature_start) ** (step / steps)
        return falling if step < steps else self.temperature_end


def read_preset(name: str) -> Preset:
    """A preset, whose tables hold fields of `Wav2Vec2ConformerConfig` and of `PretrainingSettings`."""
    own = {"train", "output", "dev", "init", "model"}
    return load_preset(
        name,
        PRESETS,
        model_fields=Wav2Vec2ConformerConfig().to_dict(),
        training_fields={f.name for f in fields(PretrainingSettings)} - own,
    )


class FeatureWatch:
    """A hook on the convolutional encoder: scales the gradient that enters it, and keeps its output's mean square."""

    def __init__(self, gradient_scale: float) -> None:
        self.gradient_scale = gradient_scale
        self.mean_square = torch.zeros(())

    def __call__(self, module: nn.Module, inputs: Any, features: Tensor) -> None:
        """Look at (B, T, C) features."""
        if features.requires_grad and self.gradient_scale != 1:
            features.register_hook(self.scale)  # type: ignore[no-untyped-call]
        self.mean_square = features.float().square().mean()

    def scale(self, gradient: Tensor) -> Tensor:
        """Scale the gradient of the features."""
        return gradient * self.gradient_scale


class Totals:
    """Sums over masked frames, on the device, until they are asked for.

    Args:
        groups: G.
        device: where they are.
        means: names of further figures, which `add` takes as means.
    """

    def __init__(self, groups: int, device: torch.device, *means: str) -> None:
        perplexities = [f"{kind}_perplexity_{group + 1}" for kind in ("hard", "soft") for group in range(groups)]
        self.names = ["contrastive", "accuracy", *perplexities, *means]
        self.sums = torch.zeros(1 + len(self.names), device=device)  # the masked frames first

    def add(self, statistics: PretrainingStatistics, contrastive: Tensor, *means: Tensor) -> None:
        """Count a micro-batch; means weigh by its masked frames."""
        masked = statistics.masked.float()
        weighted = torch.cat((statistics.hard_perplexities, statistics.soft_perplexities, *(m.view(1) for m in means)))
        sums = torch.stack((masked, contrastive, statistics.correct.float()))
        self.sums += torch.cat((sums, weighted * masked)).detach()

    def take(self, reduce: Callable[..., Any]) -> dict[str, float]:
        """Means over the masked frames of all processes since the last call; nothing where there was none."""
        masked, *sums = reduce(self.sums, reduction="sum").tolist()
        self.sums = torch.zeros_like(self.sums)
        return {name: total / masked for name, total in zip(self.names, sums, strict=True)} if masked else {}


class PretrainingTrainer(SpeechTrainer):
    """A `SpeechTrainer` for the contrastive task: its items are masked frames."""

    def __init__(
        self, *args: Any, settings: PretrainingSettings, dev_loader: SpeechLoader | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, schedule=(settings.schedule, settings.warmup), **kwargs)
        self.settings, self.dev_loader = settings, dev_loader
        network = self.accelerator.unwrap_model(self.model)
        self.groups: int = network.config.num_codevector_groups
        self.totals = Totals(self.groups, self.args.device, "diversity", "penalty")
        self.frames = self.masked = 0
        self.features = FeatureWatch(settings.feature_gradient_scale)
        network.wav2vec2_conformer.feature_extractor.register_forward_hook(self.features)
        for module in network.modules():
            if isinstance(module, FrameBatchNorm):
                module.synchronised = settings.sync_batch_norm

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The development loader."""
        if self.dev_loader is None:
            raise ValueError("there is nothing to evaluate on; give a development set")
        return self.dev_loader

    def items_of(self, batch: dict[str, Any]) -> int:
        """Masked frames."""
        return int(batch["mask_time_indices"].sum())

    def seconds_of(self, batch: dict[str, Any]) -> float:
        """Seconds of audio."""
        return float(batch["input_values"].numel()) / SAMPLE_RATE

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As in `SpeechTrainer`, at the temperature of the update."""
        network = self.accelerator.unwrap_model(model)
        network.set_gumbel_temperature(self.settings.temperature(self.state.global_step))
        self.frames += inputs["mask_time_indices"].numel()
        self.masked += self.items_of(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrastive, diversity and feature losses, summed over the masked frames, over those of the whole step."""
        if inputs["input_values"].shape[0] == 0:
            # Every recording was skipped. Other processes wait for this one's forward pass; padding counts nowhere.
            nothing = inputs["input_values"].new_zeros(1, inputs["input_values"].shape[1])
            outputs = model(nothing, attention_mask=nothing.long())
            loss = outputs.projected_states.sum() * 0.0
            return (loss, outputs) if return_outputs else loss
        outputs = model(**inputs, output_statistics=True)
        statistics, penalty = outputs.statistics, self.features.mean_square
        diversity = outputs.diversity_loss / statistics.masked.clamp(min=1)
        self.totals.add(statistics, outputs.contrastive_loss, diversity, penalty)
        loss = outputs.loss + self.settings.feature_penalty * penalty * statistics.masked
        loss = self.share_of_step(loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what tells whether it learns."""
        if "loss" in logs:
            logs |= self.totals.take(self.accelerator.reduce)
            logs["temperature"] = self.settings.temperature(max(0, self.state.global_step - 1))
            counts = torch.tensor([self.masked, self.frames], device=self.args.device)
            masked, frames = self.accelerator.reduce(counts, reduction="sum").tolist()
            logs["masked_share"] = masked / max(1, frames)
            self.frames = self.masked = 0
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Contrastive loss and accuracy on the development set; its crops, masks and negatives never change."""
        if self.dev_loader is None:
            self.save_best()
            return {}
        network = self.accelerator.unwrap_model(self.model)
        network.eval()
        begun, totals, skipped = time.monotonic(), Totals(self.groups, self.args.device), 0
        for batch in self.dev_loader:
            skipped += len(batch.pop("skipped_names"))
            if batch["input_values"].shape[0] == 0:
                continue
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                outputs = network(**batch, output_statistics=True)
            totals.add(outputs.statistics, outputs.contrastive_loss)
        found = totals.take(self.accelerator.reduce)
        if not found:
            raise ValueError("none of the recordings of the development set could be read")
        count = self.accelerator.reduce(torch.tensor(skipped, device=self.args.device), reduction="sum")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_skipped"] = float(count)
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - begun
        self.clock += metrics[f"{metric_key_prefix}_runtime"]
        # Not the lowest loss: a collapsed model, whose negatives all equal the target, has none.
        if self.state.best_metric is None or found["accuracy"] > self.state.best_metric:
            self.state.best_metric = found["accuracy"]
            self.save_best()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_pretraining(
    settings: PretrainingSettings, *, resume: bool = False, dry_run: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Pre-train, and return the figures of the result; its files are in `settings.output`.

    Args:
        settings: what to do.
        resume: whether to go on from the last complete checkpoint.
        dry_run: called with each line of a plan, instead of training.

    Raises:
        ValueError: settings or data that cannot work, found before anything is computed.
    """
    if settings.bf16 is None:
        settings = replace(settings, bf16=computes_bfloat16())
    set_seed(settings.seed)
    if settings.init:
        settings = replace(settings, init=model_name(settings.init))  # refuses what is none before anything is read
    output = Path(settings.output)
    checkpoint = None if dry_run else prepare_output(output, settings, resume)
    train = usable_recordings(settings.train, settings)
    dev = usable_recordings([settings.dev], settings) if settings.dev else []
    model = prepare_model(settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    arguments = training_arguments(settings, output)
    loader = partial(make_loader, settings=settings, config=model.config)
    train_loader = loader(
        train,
        cache_bytes=int(settings.cache_gb * 1e9),
        workers=settings.workers,
        rank=arguments.process_index,
        world_size=arguments.world_size,
    )
    share = share_of(dev, arguments, str(settings.dev)) if dev else []
    dev_loader = loader(share, shuffle=False) if share else None
    if dry_run:
        describe(settings, model, train_loader, arguments.world_size, dry_run)
        return {}
    record_settings(output, settings)
    monitor = CollapseMonitor(settings.keep_going)
    trainer = PretrainingTrainer(
        model,
        arguments,
        settings=settings,
        train_loader=train_loader,
        dev_loader=dev_loader,
        train_dataset=train_loader.dataset,
        eval_dataset=dev_loader.dataset if dev_loader else train_loader.dataset,
        callbacks=[ProgressBar(), monitor],
    )
    if trainer.is_world_process_zero():
        build_feature_extractor(do_normalize=settings.do_normalize).save_pretrained(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        write_report(output / "report.png", trainer.state.log_history, PRETRAINING, monitor.diagnosis)
    return {
        "best_accuracy": trainer.state.best_metric,  # None where nothing was evaluated
        "updates": trainer.state.global_step,
        "skipped_recordings": trainer.skipped_by_all(),
        "skipped_updates": trainer.skipped_steps,
        "stopped": None if settings.keep_going else monitor.diagnosis,
    }


def usable_recordings(sources: list[str], settings: PretrainingSettings) -> list[Utterance]:
    """The recordings of manifests and folders that are long enough; what is left out is counted in a warning."""
    found = [utterance for source in sources for utterance in read_recordings(source)]
    kept = [utterance for utterance in found if utterance.duration >= settings.least_seconds]
    if len(kept) < len(found):
        logger.warning(
            "%d of %d recordings are shorter than %g s and left out (`least_seconds`)",
            len(found) - len(kept),
            len(found),
            settings.least_seconds,
        )
    if not kept:
        raise ValueError(f"{', '.join(sources)}: no recording of at least {settings.least_seconds:g} s")
    long = sum(utterance.duration > 4 * settings.crop_seconds for utterance in kept)
    if long:
        logger.warning(
            "%d of %d recordings are longer than four crops of %g s, and an epoch uses one crop of each: cut them to"
            " use all of them",
            long,
            len(kept),
            settings.crop_seconds,
        )
    return kept


def make_loader(
    recordings: list[Utterance],
    *,
    settings: PretrainingSettings,
    config: Wav2Vec2ConformerConfig,
    cache_bytes: int = 0,
    **loading: Any,
) -> SpeechLoader:
    """Batches of crops with their masks and negatives."""
    dataset = SpeechDataset(
        recordings, None, seed=settings.seed, do_normalize=settings.do_normalize, cache_bytes=cache_bytes
    )
    collator = PretrainingCollator(
        partial(frames_of, config=config),
        partial(draw_masks, config=config),
        partial(draw_negatives, count=config.num_negatives),
        shortest=round(settings.least_seconds * SAMPLE_RATE),
        longest=round(settings.crop_seconds * SAMPLE_RATE),
        rounded=makes_kernels(settings.bf16),
    )
    return SpeechLoader(
        dataset,
        collator,
        batch_seconds=settings.batch_seconds,
        max_batch=settings.max_batch,
        longest=settings.crop_seconds,
        seed=settings.seed,
        **loading,
    )


def draw_masks(lengths: Tensor, frames: int, generator: torch.Generator, *, config: Wav2Vec2ConformerConfig) -> Tensor:
    """(B, T) spans, thinned to the same number of masked frames in every row."""
    spans = sample_spans(
        lengths,
        frames,
        probability=config.mask_time_prob,
        span=config.mask_time_length,
        min_spans=config.mask_time_min_masks,
        generator=generator,
    )
    return thin_to_equal_counts(spans, generator=generator)


def draw_negatives(mask: Tensor, generator: torch.Generator, *, count: int) -> Tensor:
    """(B, T, K) other masked frames of the same row."""
    return sample_negatives(mask, count, generator=generator)


def prepare_model(settings: PretrainingSettings) -> Wav2Vec2ConformerForPreTraining:
    """A new or a given model."""
    model: Wav2Vec2ConformerForPreTraining
    if settings.init:
        recipe = {name: value for name, value in settings.model.items() if name in RECIPE_FIELDS}
        model = Wav2Vec2ConformerForPreTraining.from_pretrained(settings.init, dtype=torch.float32, **recipe)
        own = model.config.to_dict()
        other = sorted(name for name, value in settings.model.items() if not same_value(own.get(name), value))
        if other:
            logger.warning("%s keeps its own %s; the preset's are ignored", settings.init, ", ".join(other))
    else:
        model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**settings.model))
    config = model.config
    if config.mask_time_prob <= 0:
        raise ValueError(
            "pre-training recognises masked frames: `mask_time_prob` must be above 0, got 0; 0.65 is usual"
        )
    frames = frames_of(round(settings.least_seconds * SAMPLE_RATE), config)
    if frames < config.mask_time_length:
        raise ValueError(
            f"the shortest recordings must hold a masked span: `least_seconds` {settings.least_seconds:g} gives "
            f"{frames} frames, and `mask_time_length` is {config.mask_time_length}; raise the one or lower the other"
        )
    return model


def same_value(left: Any, right: Any) -> bool:
    """Whether two values of a field are the same, as lists or as tuples."""
    return bool(left == right or (isinstance(left, list | tuple) and list(left) == list(right)))


def describe(
    settings: PretrainingSettings,
    model: Wav2Vec2ConformerForPreTraining,
    loader: SpeechLoader,
    processes: int,
    say: Callable[[str], object],
) -> None:
    """Say what a training would do, after making its first batch."""
    recordings = loader.dataset.utterances  # type: ignore[attr-defined]
    hours = sum(min(u.duration, settings.crop_seconds) for u in recordings) / 3600
    micro_batches = len(loader)
    steps = -(-micro_batches // settings.accumulate)
    batch = next((batch for batch in loader if batch["input_values"].shape[0]), None)
    if batch is None:
        raise ValueError(f"{', '.join(settings.train)}: none of the recordings could be read")
    parameters = sum(p.numel() for p in model.parameters())
    # Weights, gradients and two moments of AdamW in float32; the activations by what one crop keeps for its gradient.
    fixed = 16 * parameters
    crop = {name: value[:1] for name, value in batch.items() if isinstance(value, Tensor)}
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(settings.bf16)):
        kept = activation_bytes(model, crop)
    activations = kept * batch["input_values"].shape[0]
    say(f"precision: {'bfloat16 with float32 losses' if settings.bf16 else 'float32'}")
    say(f"model: {parameters / 1e6:.1f} million parameters")
    say(f"data: {len(recordings)} recordings, {hours:.2f} h an epoch in crops of up to {settings.crop_seconds:g} s")
    say(
        f"effective batch: up to {settings.batch_seconds * settings.accumulate * processes / 3600:.4f} h "
        f"({settings.batch_seconds:g} s x {settings.accumulate} micro-batches x {processes} processes)"
    )
    say(f"updates: {steps} an epoch, {settings.updates} in all, about {settings.updates / steps:.1f} epochs")
    say(f"memory: about {fixed / 1e9:.2f} GB for weights and optimizer, {activations / 1e9:.2f} GB for activations")
    for name, value in batch.items():
        if isinstance(value, Tensor):
            say(f"first batch: {name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}")
    say(f"masked: {batch['mask_time_indices'].float().mean().item():.0%} of its frames")


def activation_bytes(model: Wav2Vec2ConformerForPreTraining, batch: dict[str, Tensor]) -> int:
    """Bytes that one forward pass keeps for its gradient, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch)
    return sum(kept.values())


def training_arguments(settings: PretrainingSettings, output: Path) -> TrainingArguments:
    """The settings in the terms of `transformers.Trainer`; without a development set, evaluating writes the model."""
    return trainer_arguments(
        output,
        max_steps=settings.updates,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_epsilon=1e-6,
        max_grad_norm=settings.clip,
        bf16=bool(settings.bf16),
        evaluate_every=settings.evaluate_every,
        log_every=settings.log_every,
        logging_first_step=True,
        seed=settings.seed,
    )
