"""What every training here shares, on top of `transformers.Trainer`: batches by seconds, honest losses, safe files."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..data import CTCBatch, LengthBucketSampler, SpeechDataset
from .checkpoints import INCOMPLETE, keep_newest, remove, replace_files

__all__ = ["SpeechLoader", "SpeechTrainer"]

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
NAMED = 5  # how many skipped utterances are named; the others are counted


class EpochSampler(LengthBucketSampler):
    """A batch sampler that takes the dataset's augmentations along to the next epoch."""

    def __init__(self, dataset: SpeechDataset, **kwargs: Any) -> None:
        super().__init__([utterance.duration for utterance in dataset.utterances], **kwargs)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class SpeechLoader(DataLoader[Any]):
    """Batches of similar length, by total seconds; a function of (seed, epoch) alone, whatever the workers do."""

    def __init__(
        self, dataset: SpeechDataset, collator: Callable[[Any], CTCBatch], *, workers: int = 0, **sampling: Any
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
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if trainer.bad_loss or not all_finite(gradients):
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


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are finite; one pass and one synchronisation."""
    return not tensors or bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all())


class SpeechTrainer(Trainer):
    """A `transformers.Trainer` over `SpeechLoader`s.

    * The loss of an optimizer step is the sum over its utterances divided by their number, over all micro-steps and
      processes: accumulating 4 batches on one process and 1 batch on 4 processes give the same gradient.
    * A step whose loss or gradient is not finite on any process is skipped on all and counted (`skipped_steps`).
    * Utterances that cannot be used are counted, and the first ones named (`skipped_utterances`).
    * Checkpoints are written under a temporary name and renamed.
    """

    def __init__(self, *args: Any, train_loader: SpeechLoader, keep_checkpoints: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_loader = train_loader
        self.keep_checkpoints = keep_checkpoints
        self.skipped_steps = 0
        self.skipped_utterances = 0
        self.bad_loss = False
        self.model_accepts_loss_kwargs = True  # the loss is divided here, not by the number of micro-steps
        self._writing: Path | None = None
        self.add_callback(SkipBadSteps(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader as it is: it knows its rank, so Accelerate must not shard it again."""
        return self.train_loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimizer step, and the number of their utterances over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        for batch in batches:
            self._report_skipped(batch.pop("skipped_names"))
        count = torch.tensor(sum(batch["input_values"].shape[0] for batch in batches), device=device)
        return batches, self.accelerator.reduce(count, reduction="sum").clamp(min=1)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = cast(Tensor, self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))
        finite = torch.isfinite(loss.detach()).float()
        if not bool(self.accelerator.reduce(finite, reduction="sum") == self.accelerator.num_processes):
            self.bad_loss = True  # on every process alike, so that none waits for another in `backward`
            loss = torch.nan_to_num(loss) * 0.0
        if self.accelerator.num_processes > 1:
            # DDP waits for a gradient of every parameter, also where a block was dropped, nothing was masked or a
            # batch has no utterance.
            loss = loss + 0.0 * torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum()
        self.accelerator.backward(loss)
        return loss.detach()

    def share_of_step(self, loss: Tensor, utterances: Tensor | int | None) -> Tensor:
        """A sum over a micro-batch's utterances -> its share of the step's mean; DDP's average over ranks is undone."""
        return loss if utterances is None else loss * (self.accelerator.num_processes / utterances)

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
        self._writing = output / (name + INCOMPLETE)
        if self.args.should_save and self._writing.exists():
            remove(self._writing)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            writing, self._writing = self._writing, None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if (output / name).exists():
                remove(output / name)
            (writing / name).rename(output / name)
            writing.rmdir()
            keep_newest(output, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def save_best(self) -> None:
        """Write the model as it is now to the output folder itself, each file in one atomic step."""
        output = Path(str(self.args.output_dir))
        temporary = output / ("best" + INCOMPLETE)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if temporary.exists():
                remove(temporary)
            self.accelerator.unwrap_model(self.model).save_pretrained(temporary)
            replace_files(temporary, output)
        self.accelerator.wait_for_everyone()
