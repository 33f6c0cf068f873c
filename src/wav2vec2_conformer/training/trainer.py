"""What every training here shares, on top of `transformers.Trainer`: batches by seconds, honest losses, safe files."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from ..data import LengthBucketSampler, SpeechDataset, Utterance
from ..files import unwritable_as_one_line
from .checkpoints import INCOMPLETE, keep_newest, remove, replace_files
from .schedules import learning_rate_schedule

__all__ = ["NAMED", "SpeechLoader", "SpeechTrainer", "makes_kernels", "share_of", "trainer_arguments"]

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
NAMED = 5  # how many skipped utterances are named; the others are counted


def makes_kernels(bf16: bool | None) -> bool:
    """Whether kernels are made for each new shape of a batch, so that shapes had better come again."""
    return bool(bf16) and not torch.accelerator.is_available()


class EpochSampler(LengthBucketSampler):
    """A batch sampler that takes the dataset's draws along to the next epoch; `longest` seconds of each are used."""

    def __init__(self, dataset: SpeechDataset, *, longest: float = math.inf, **kwargs: Any) -> None:
        super().__init__([min(utterance.duration, longest) for utterance in dataset.utterances], **kwargs)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class SpeechLoader(DataLoader[Any]):
    """Batches of similar length, by total seconds; a function of (seed, epoch) alone, whatever the workers do."""

    def __init__(
        self,
        dataset: SpeechDataset,
        collator: Callable[[Any], Any],
        *,
        workers: int = 0,
        **sampling: Any,
    ) -> None:
        sampler = EpochSampler(dataset, **sampling)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=workers,
            # Without its own generator a loader draws from torch's default one at the start of an epoch, and a resumed
            # run would draw once more than the uninterrupted one.
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        sampler = self.batch_sampler
        if isinstance(sampler, EpochSampler):
            sampler.set_epoch(epoch)


class SkipBadSteps(TrainerCallback):
    """Empties the gradients of an optimizer step that is not finite, so that the step changes nothing."""

    def __init__(self, trainer: SpeechTrainer) -> None:
        self.trainer = trainer
        self.statistics: list[Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The forward pass moves them; one NaN would stay in them for good.
        self.statistics = [buffer.clone() for buffer in running_statistics(cast(nn.Module, self.trainer.model))]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Empty the gradients and put the batch norms' statistics back, where loss or gradient is not finite."""
        trainer = self.trainer
        network = cast(nn.Module, trainer.model)
        if trainer.bad_loss or not math.isfinite(gradient_norm(network)):
            trainer.bad_loss = False
            trainer.skipped_steps += 1
            logger.warning(
                "step %d skipped: its loss or gradient is not finite (%d so far)",
                state.global_step + 1,
                trainer.skipped_steps,
            )
            network.zero_grad(set_to_none=True)
            for buffer, before in zip(running_statistics(network), self.statistics, strict=True):
                buffer.copy_(before)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The buffers of the batch norms."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def gradient_norm(network: nn.Module) -> float:
    """The Euclidean norm of all gradients together; one pass and one synchronisation."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return float(torch.stack(torch._foreach_norm(gradients)).float().norm()) if gradients else 0.0


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn what is raised where a file cannot be written into an `OSError` of one line; delete the folder."""
    remedy = "what was written before is complete. Make room and go on with --resume"
    try:
        with unwritable_as_one_line(folder.parent, remedy):
            yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def draw_seed(*numbers: int) -> int:
    """A seed for torch from numbers that tell one draw from all others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def trainer_arguments(output: Path, *, evaluate_every: int, log_every: int, **own: Any) -> TrainingArguments:
    """What all trainings tell `transformers.Trainer`, and what is a training's own.

    Args:
        output: the folder of the result.
        evaluate_every: steps between evaluations and checkpoints; 0: once an epoch.
        log_every: steps between logs.
        own: further arguments.
    """
    strategy = "steps" if evaluate_every else "epoch"
    return TrainingArguments(
        output_dir=str(output),
        adam_beta2=0.98,
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=evaluate_every or None,
        save_steps=evaluate_every or 500,
        save_total_limit=None,  # `SpeechTrainer` keeps the newest itself
        logging_steps=log_every,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # Without it, Accelerate takes processes that torchrun started on a machine without a GPU for strangers.
        use_cpu=not torch.accelerator.is_available(),
        **own,
    )


def share_of(utterances: list[Utterance], arguments: TrainingArguments, name: str) -> list[Utterance]:
    """The utterances that this process judges: each is judged once, on one process."""
    if len(utterances) < arguments.world_size:
        raise ValueError(f"{name} has {len(utterances)} utterances for {arguments.world_size} processes; give more")
    return utterances[arguments.process_index :: arguments.world_size]


class SpeechTrainer(Trainer):
    """A `transformers.Trainer` over `SpeechLoader`s.

    * The loss of an optimizer step is the sum over its items (utterances, masked frames) divided by their number, over
      all micro-steps and processes. What is random in a micro-step (dropout, Gumbel noise, SpecAugment) is a function
      of the seed, the step and its place in the step, and LayerDrop one of the seed and the step. So accumulating 4
      batches on one process and 1 batch on 4 processes give the same gradient.
    * A step whose loss or gradient is not finite on any process is skipped on all and counted (`skipped_steps`).
    * Utterances that cannot be used are counted, and the first ones named (`skipped_utterances`).
    * Checkpoints are written under a temporary name and renamed. One that cannot be written (a full disk) is an
      `OSError`, and the ones before it stay.
    * Every log has the speed in seconds of audio a second, the share of the time that went into waiting for data, the
      gradient's norm before clipping and what was skipped.

    A task says how many items (`items_of`) and how much audio (`seconds_of`) a batch holds.
    """

    def __init__(
        self,
        *args: Any,
        train_loader: SpeechLoader,
        schedule: tuple[str, float],
        keep_checkpoints: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = schedule  # its name, and the share of the updates in which the rate rises
        self.train_loader = train_loader
        self.keep_checkpoints = keep_checkpoints
        self.skipped_steps = 0
        self.skipped_utterances = 0
        self.used_utterances = 0
        self.bad_loss = False
        self.place = 0  # of the next micro-step in its step
        self.seconds_seen, self.waited, self.clock = 0.0, 0.0, time.monotonic()
        self.model_accepts_loss_kwargs = True  # the loss is divided here, not by the number of micro-steps
        self._writing: Path | None = None
        self.add_callback(SkipBadSteps(self))
        self.remove_callback(PrinterCallback)  # `ProgressBar` takes their place
        self.remove_callback(ProgressCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader as it is: it knows its rank, so Accelerate must not shard it again."""
        return self.train_loader

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate's schedule."""
        if self.lr_scheduler is None:
            name, warmup = self.schedule
            factor = learning_rate_schedule(name, num_training_steps, warmup)
            self.lr_scheduler = LambdaLR(cast(Optimizer, optimizer or self.optimizer), factor)
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimizer step, and the number of their items over all processes."""
        if self.is_over():  # resumed at its end; `Trainer` would take one step more
            self.control.should_training_stop = True
            return [], torch.ones((), device=device)
        begun = time.monotonic()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self.waited += time.monotonic() - begun
        for batch in batches:
            self._report_skipped(batch.pop("skipped_names"))
            self.used_utterances += int(batch["input_values"].shape[0])
        self.place = 0
        count = torch.tensor(sum(self.items_of(batch) for batch in batches), device=device)
        return batches, self.accelerator.reduce(count, reduction="sum").clamp(min=1)

    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.state.global_step >= self.state.max_steps)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss."""
        model.train()
        self._seed_micro_step()
        self.seconds_seen += self.seconds_of(inputs)
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = cast(Tensor, self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))
        finite = torch.isfinite(loss.detach()).float()
        if not bool(self.accelerator.reduce(finite, reduction="sum") == self.accelerator.num_processes):
            self.bad_loss = True  # on every process alike, so that none waits for another in `backward`
            loss = torch.nan_to_num(loss) * 0.0
        # DDP waits for a gradient of every parameter, also where a block was dropped, nothing was masked or a batch has
        # no utterance. On one process AdamW would pass over parameters without one, and train another model.
        loss = loss + 0.0 * torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum()
        self.accelerator.backward(loss)
        return loss.detach()

    def items_of(self, batch: Batch) -> int:
        """How many items of a batch the loss sums over."""
        raise NotImplementedError

    def seconds_of(self, batch: Batch) -> float:
        """Seconds of audio in a batch, without padding."""
        raise NotImplementedError

    def share_of_step(self, loss: Tensor, items: Tensor | int | None) -> Tensor:
        """A sum over a micro-batch's items -> its share of the step's mean; DDP's average over ranks is undone."""
        return loss if items is None else loss * (self.accelerator.num_processes / items)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was seen since the last log."""
        if "loss" in logs:
            now = time.monotonic()
            passed = max(now - self.clock, 1e-9)
            logs["speed"] = self.seconds_seen * self.accelerator.num_processes / passed
            logs["waiting"] = self.waited / passed
            logs["skipped_utterances"] = float(self.skipped_by_all())
            logs["skipped_steps"] = float(self.skipped_steps)
            self.seconds_seen, self.waited, self.clock = 0.0, 0.0, now
        super().log(logs, start_time)

    def skipped_by_all(self) -> int:
        """Utterances that were skipped, over all processes, each of which must call this."""
        return self._over_all(self.skipped_utterances)

    def used_by_all(self) -> int:
        """Utterances that were learnt from, likewise."""
        return self._over_all(self.used_utterances)

    def _over_all(self, count: int) -> int:
        return int(self.accelerator.reduce(torch.tensor(count, device=self.args.device), reduction="sum"))

    def _seed_micro_step(self) -> None:
        seed, step = self.args.seed, self.state.global_step
        place = self.place * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(draw_seed(seed, step, place))
        # One decision for all micro-steps and processes: they wait for one another's blocks in FSDP.
        self.accelerator.unwrap_model(self.model).base_model.layerdrop_seed = draw_seed(seed, step)
        self.place += 1

    def _report_skipped(self, names: list[str]) -> None:
        for name in names:
            self.skipped_utterances += 1
            if self.skipped_utterances <= NAMED:
                logger.warning("skipped %s", name)
            elif self.skipped_utterances == NAMED + 1:
                logger.warning("more utterances are skipped; from here on they are only counted")

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        self._writing = writing = output / (name + INCOMPLETE)
        if self.args.should_save and writing.exists():
            remove(writing)
        try:
            with one_line(writing):
                super()._save_checkpoint(model, trial)
        finally:
            self._writing = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if (output / name).exists():
                remove(output / name)
            (writing / name).rename(output / name)
            writing.rmdir()
            keep_newest(output, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def best_state(self) -> dict[str, Tensor] | None:
        """The weights that `save_best` writes, where they are not simply the model's."""
        return None

    def save_best(self) -> None:
        """Write the model as it is now to the output folder itself, each file in one atomic step."""
        output = Path(str(self.args.output_dir))
        temporary = output / ("best" + INCOMPLETE)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if temporary.exists():
                remove(temporary)
            with one_line(temporary):
                self.accelerator.unwrap_model(self.model).save_pretrained(temporary, state_dict=self.best_state())
            replace_files(temporary, output)
        self.accelerator.wait_for_everyone()
