"""Fine-tuning: one trainer and one order of events for all tasks, from manifests to a folder with a model."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..audio import SAMPLE_RATE
from ..data import SpeechDataset
from .lora import add_lora, merged_state
from .monitors import Drift, RootMeanSquare
from .progress import ProgressBar
from .record import prepare_output, record_settings
from .report import FINE_TUNING, write_report
from .settings import FineTuningSettings
from .tasks import Batch, Task
from .trainer import NAMED, SpeechLoader, SpeechTrainer, share_of, trainer_arguments

__all__ = ["FineTuningTrainer", "fine_tune"]

logger = logging.getLogger(__name__)


class FrozenNetwork(TrainerCallback):
    """Lets only the head learn at first: the network computes in training mode, without gradients.

    Its weights stay as they are, while the statistics of its batch norms follow the new data. Its parameters stay ones
    that need gradients, since DDP counts on the same ones in every step.
    """

    def __init__(self, network: nn.Module, updates: int) -> None:
        self.network, self.updates = network, updates
        self.frozen = False
        self.before = True
        network.register_forward_pre_hook(self.enter)
        network.register_forward_hook(self.leave, always_call=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.updates >= state.max_steps:
            logger.warning(
                "only the head will learn: all %d updates are within the %d of `freeze_updates`",
                *(state.max_steps, self.updates),
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.frozen = state.global_step < self.updates

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.frozen:  # AdamW passes over what has no gradient; of zeros it would still shrink the weights
            for parameter in self.network.parameters():
                parameter.grad = None

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Before the network's forward pass."""
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.before and not self.frozen)

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """After it, however it ended."""
        torch.set_grad_enabled(self.before)


class FineTuningTrainer(SpeechTrainer):
    """A `SpeechTrainer` for a `Task`, which judges on a development set and keeps the best model."""

    def __init__(self, *args: Any, task: Task[Any], dev_loader: SpeechLoader, **kwargs: Any) -> None:
        super().__init__(*args, schedule=(task.settings.schedule, task.settings.warmup), **kwargs)
        self.task, self.dev_loader = task, dev_loader
        self.judged = False  # whether the development set has been gone through
        self.logits = RootMeanSquare(self.args.device)
        self.drift = Drift(self.accelerator.unwrap_model(self.model).base_model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The development loader."""
        return self.dev_loader

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW; the head with a learning rate of its own, where the settings say one."""
        settings = self.task.settings
        if self.optimizer is not None or settings.head_learning_rate is None:
            return super().create_optimizer()
        network: Any = self.accelerator.unwrap_model(self.model)
        decayed = set(self.get_decay_parameter_names(network))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                key = name.startswith(f"{network.base_model_prefix}."), name in decayed
                groups.setdefault(key, []).append(parameter)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(
            [
                {
                    "params": parameters,
                    "lr": settings.learning_rate if in_network else settings.head_learning_rate,
                    "weight_decay": settings.weight_decay if with_decay else 0.0,
                }
                for (in_network, with_decay), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer

    def items_of(self, batch: Batch) -> int:
        """What the task says."""
        return self.task.items_of(batch)

    def seconds_of(self, batch: Batch) -> float:
        """Seconds of audio."""
        return float(batch["attention_mask"].sum()) / SAMPLE_RATE

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the task's losses over the items of the whole step."""
        outputs = model(**self.task.inputs(inputs))
        self.logits.add(self.task.logits_of(outputs, inputs))
        loss = self.share_of_step(self.task.loss(outputs, inputs), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the scale of the logits, and how far the network is from where it began."""
        if "loss" in logs:
            logs["logit_scale"] = self.logits.take()
            logs["drift"] = self.drift.measure()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The task's figures on the development set, counted batch by batch; the best model is kept."""
        model: Any = self.accelerator.unwrap_model(self.model)
        model.eval()
        begun, scores, seen, skipped = time.monotonic(), self.task.scores(), 0, 0
        for batch in self.dev_loader:
            names = batch.pop("skipped_names")
            if not self.judged:
                for name in names[: max(0, NAMED - skipped)]:
                    logger.warning("not judged: %s", name)
            skipped += len(names)
            if batch["input_values"].shape[0] == 0:
                continue
            seen += batch["input_values"].shape[0]
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                outputs = model(**self.task.inputs(batch))
            scores.add(batch, outputs)
        # One list of all processes' counts; on one process it is the list that went in.
        (scores, seen, skipped), *others = gather_object([(scores, seen, skipped)])
        scores.merge([other for other, _, _ in others])
        seen, skipped = seen + sum(n for _, n, _ in others), skipped + sum(n for _, _, n in others)
        if seen == 0:
            raise ValueError(f"none of the {skipped} utterances of {self.task.dev_name} could be used")
        self.judged = True
        figures = scores.figures()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics[f"{metric_key_prefix}_skipped"] = float(skipped)
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - begun
        self.clock += metrics[f"{metric_key_prefix}_runtime"]
        self.task.watch(figures)
        if self.is_better(figures[self.task.metric]):
            self.state.best_metric = figures[self.task.metric]
            self.save_best()
            if self.args.should_save:
                self.task.finish(Path(str(self.args.output_dir)), figures)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.gives_up():
            logger.warning("no better %s for %d evaluations: stopping", self.task.metric, self.task.settings.patience)
            self.control.should_training_stop = True
        return metrics

    def is_over(self) -> bool:
        """Also where it has given up, as a continued run finds in its logs."""
        return super().is_over() or self.gives_up()

    def gives_up(self) -> bool:
        """Whether nothing has become better for too long."""
        return bool(0 < self.task.settings.patience <= self.evaluations_since_best())

    def is_better(self, value: float) -> bool:
        """Than the best figure so far, or as good: of two such models the later one has learnt more."""
        best = self.state.best_metric
        return best is None or (value >= best if self.task.higher else value <= best)

    def evaluations_since_best(self) -> int:
        """Counted in the logs, which a continued run has, too."""
        values = [
            log[f"eval_{self.task.metric}"] for log in self.state.log_history if f"eval_{self.task.metric}" in log
        ]
        if not values:
            return 0
        best = max(values) if self.task.higher else min(values)
        return len(values) - 1 - values.index(best)

    def best_state(self) -> dict[str, Tensor] | None:
        """The weights to be kept, where they are not simply the model's."""
        return merged_state(self.accelerator.unwrap_model(self.model)) if self.task.settings.lora else None


def fine_tune(task: Task[Any], *, resume: bool = False) -> dict[str, Any]:
    """Train and return the figures of the best model; its files are in the settings' output folder.

    Raises:
        ValueError: settings or data that cannot work, found before anything is computed.
    """
    settings: FineTuningSettings = task.settings
    output = Path(settings.output)
    checkpoint = prepare_output(output, settings, resume)
    if settings.lora:
        add_lora(task.model, settings.lora)
    if settings.gradient_checkpointing:
        task.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    arguments = training_arguments(settings, output)
    train_loader, dev_loader = make_loaders(task, arguments)
    record_settings(output, settings)
    callbacks = [ProgressBar(), *task.callbacks()]
    if settings.freeze_updates:
        callbacks.append(FrozenNetwork(task.model.base_model, settings.freeze_updates))
    trainer = FineTuningTrainer(
        task.model,
        arguments,
        task=task,
        train_loader=train_loader,
        dev_loader=dev_loader,
        train_dataset=train_loader.dataset,
        eval_dataset=dev_loader.dataset,
        callbacks=callbacks,
    )
    task.save_processing(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        write_report(output / "report.png", trainer.state.log_history, FINE_TUNING)
    skipped = trainer.skipped_by_all()
    if trainer.used_by_all() == 0 and skipped:
        raise ValueError(f"none of {skipped} training utterances could be used, so nothing was learnt; see above why")
    result = {
        f"best_{task.metric}": trainer.state.best_metric,  # None where nothing was evaluated
        "steps": trainer.state.global_step,
        "skipped_utterances": skipped,
        "skipped_steps": trainer.skipped_steps,
    }
    if settings.overfit:
        result["learnt"] = learnt(task, trainer.state.best_metric)
    return result


def learnt(task: Task[Any], best: float | None) -> bool:
    """Whether a self-check passed; what to look at where it did not."""
    found = best is not None and (best >= task.learnt if task.higher else best <= task.learnt)
    if not found:
        logger.warning(
            "the model could not learn %d utterances by heart (%s %s, expected %g): look at transcripts or labels and "
            "listen to the audio; then try a higher learning rate or more epochs",
            len(task.train),
            task.metric,
            "unknown" if best is None else f"{best:.3g}",
            task.learnt,
        )
    return found


def make_loaders(task: Task[Any], arguments: TrainingArguments) -> tuple[SpeechLoader, SpeechLoader]:
    """The training batches of this process, and its share of the development set."""
    settings: FineTuningSettings = task.settings
    make: dict[str, Any] = {"seed": settings.seed, "do_normalize": task.normalize}
    longest, longest_dev = task.longest(training=True) or math.inf, task.longest(training=False) or math.inf
    train_loader = SpeechLoader(
        SpeechDataset(
            task.train,
            task.encoder,
            augment=task.augmentation() if settings.augment else None,
            cache_bytes=int(settings.cache_gb * 1e9),
            **make,
        ),
        task.collator(training=True),
        workers=settings.workers,
        batch_seconds=settings.batch_seconds,
        max_batch=settings.max_batch,
        seed=settings.seed,
        rank=arguments.process_index,
        world_size=arguments.world_size,
        longest=longest,
    )
    share = share_of(task.dev, arguments, task.dev_name)
    dev_loader = SpeechLoader(
        SpeechDataset(share, task.encoder, **make),
        task.collator(training=False),
        batch_seconds=max(settings.batch_seconds, *(min(utterance.duration, longest_dev) for utterance in share)),
        max_batch=settings.max_batch,
        longest=longest_dev,
        seed=settings.seed,
        shuffle=False,
    )
    return train_loader, dev_loader


def training_arguments(settings: FineTuningSettings, output: Path) -> TrainingArguments:
    """The settings in the terms of `transformers.Trainer`."""
    return trainer_arguments(
        output,
        num_train_epochs=settings.epochs,
        max_steps=settings.updates or -1,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        evaluate_every=settings.evaluate_every,
        log_every=settings.log_every,
        seed=settings.seed,
    )
