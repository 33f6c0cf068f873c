"""Training a speech recogniser by CTC, from manifests to a folder with model and processor."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    Wav2Vec2Processor,
    set_seed,
)

from ..audio import SAMPLE_RATE
from ..configuration import Wav2Vec2ConformerConfig
from ..data import (
    Augmentation,
    CTCCollator,
    SpeechDataset,
    TextEncoder,
    build_processor,
    build_vocabulary,
    check_coverage,
    read_manifest,
)
from ..decoding import greedy_texts
from ..evaluation import ErrorRates
from ..lengths import frames_of
from ..modeling import Wav2Vec2ConformerForCTC
from ..modeling.losses import ctc_loss
from ..processing import DEFAULT_MODEL, load_processor, normalizes
from .progress import ProgressBar
from .record import check_settings, prepare_output, record_settings
from .trainer import SpeechLoader, SpeechTrainer

__all__ = ["CTCSettings", "CTCTrainer", "train_ctc"]

logger = logging.getLogger(__name__)


@dataclass
class CTCSettings:
    """Everything that decides a training's result.

    Args:
        train: manifests to learn from; one given twice counts twice.
        dev: manifest whose WER chooses the best model.
        output: folder of the result; its root holds the best model so far, `checkpoint-N` what `resume` needs.
        config: a config.json of a new model (its `vocab_size` comes from the transcripts).
        init: a model to start from instead: a folder or a Hub id. Its vocabulary is kept where it has one.
        epochs: passes over the training data.
        batch_seconds: seconds of audio a batch, padding included.
        max_batch: most utterances a batch.
        accumulate: batches an optimizer step.
        learning_rate: peak of the schedule (linear rise, cosine fall).
        warmup: share of the steps in which the rate rises.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        augment: whether to change speed and add noise.
        freeze_feature_encoder: whether the convolutions stay as they are.
        bf16: whether to compute in bfloat16 where it is safe (losses stay float32).
        evaluate_every: steps between evaluations and checkpoints; 0: once an epoch.
        unknown_limit: largest share of characters that the vocabulary may lack.
        cache_gb: decoded audio kept in memory.
        workers: processes that decode audio.
        seed: of everything random.
    """

    train: list[str]
    dev: str
    output: str
    config: str | None = None
    init: str | None = None
    epochs: float = 30.0
    batch_seconds: float = 60.0
    max_batch: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    augment: bool = True
    freeze_feature_encoder: bool = False
    bf16: bool = False
    evaluate_every: int = 0
    unknown_limit: float = 0.01
    cache_gb: float = 0.0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            above_zero=("epochs", "batch_seconds", "max_batch", "accumulate", "clip"),
            at_least_zero=("learning_rate", "weight_decay", "evaluate_every", "cache_gb", "workers", "seed"),
            shares=("warmup", "unknown_limit"),
        )


class CTCTrainer(SpeechTrainer):
    """A `SpeechTrainer` that reports WER and CER on a development set and keeps the best model."""

    def __init__(self, *args: Any, dev_loader: SpeechLoader, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dev_loader, self.tokenizer = dev_loader, tokenizer

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The development loader."""
        return self.dev_loader

    def compute_loss(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the utterances' CTC losses over the number of utterances of the whole step."""
        outputs = model(inputs["input_values"], inputs["attention_mask"])
        config = self.accelerator.unwrap_model(model).config
        lengths = frames_of(inputs["attention_mask"].sum(-1), config)
        loss = ctc_loss(outputs.logits, inputs["labels"], lengths, blank=config.pad_token_id)
        loss = self.share_of_step(loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def items_of(self, batch: dict[str, Any]) -> int:
        """Utterances."""
        return int(batch["input_values"].shape[0])

    def seconds_of(self, batch: dict[str, Any]) -> float:
        """Seconds of audio."""
        return float(batch["attention_mask"].sum()) / SAMPLE_RATE

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """WER and CER of greedy decoding on the development set, counted utterance by utterance."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        begun, rates = time.monotonic(), ErrorRates()
        skipped = 0
        for batch in self.dev_loader:
            skipped += len(batch["skipped_names"])
            if batch["input_values"].shape[0] == 0:
                continue
            mask = batch["attention_mask"]
            with self.compute_loss_context_manager():
                logits = model(batch["input_values"].to(self.args.device), mask.to(self.args.device)).logits
            lengths = frames_of(mask.sum(-1), model.config)
            for reference, hypothesis in zip(
                batch["texts"], greedy_texts(logits, lengths, self.tokenizer), strict=True
            ):
                rates.add(reference, hypothesis)
        counts = torch.tensor([*rates.counts(), skipped], device=self.args.device)
        total = self.accelerator.reduce(counts, reduction="sum").tolist()
        rates = ErrorRates.from_counts(total[:-1])
        if rates.utterances == 0 and rates.words == 0:
            raise ValueError(f"none of the {total[-1]} utterances of the development set could be read")
        metrics = {
            f"{metric_key_prefix}_wer": rates.wer,
            f"{metric_key_prefix}_cer": rates.cer,
            f"{metric_key_prefix}_skipped": float(total[-1]),
            f"{metric_key_prefix}_runtime": time.monotonic() - begun,
        }
        self.clock += metrics[f"{metric_key_prefix}_runtime"]
        if self.state.best_metric is None or rates.wer < self.state.best_metric:
            self.state.best_metric = rates.wer
            self.save_best()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_ctc(settings: CTCSettings, *, resume: bool = False) -> dict[str, float | None]:
    """Train and return the figures of the best model; its files are in `settings.output`.

    Raises:
        ValueError: settings or data that cannot work, found before anything is computed.
    """
    set_seed(settings.seed)
    output = Path(settings.output)
    checkpoint = prepare_output(output, settings, resume)
    train = [utterance for path in settings.train for utterance in read_manifest(path, require="text")]
    dev = read_manifest(settings.dev, require="text")
    model, processor = prepare_model(settings, [utterance.text or "" for utterance in train])
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    for what, utterances in ((", ".join(settings.train), train), (settings.dev, dev)):
        unknown = check_coverage(
            [utterance.text or "" for utterance in utterances], vocabulary, limit=settings.unknown_limit, what=what
        )
        if unknown:
            logger.warning("%s: %d unknown characters: %s", what, unknown.total(), dict(unknown.most_common(10)))
    encoder = TextEncoder(vocabulary, word_delimiter=tokenizer.word_delimiter_token, unknown_token=tokenizer.unk_token)

    arguments = training_arguments(settings, output)
    augment = Augmentation() if settings.augment else None
    normalize = bool(processor.feature_extractor.do_normalize)
    cache = int(settings.cache_gb * 1e9)
    make: dict[str, Any] = {"seed": settings.seed, "do_normalize": normalize}
    collator = CTCCollator(partial(frames_of, config=model.config))
    train_loader = SpeechLoader(
        SpeechDataset(train, encoder, augment=augment, cache_bytes=cache, **make),
        collator,
        workers=settings.workers,
        batch_seconds=settings.batch_seconds,
        max_batch=settings.max_batch,
        seed=settings.seed,
        rank=arguments.process_index,
        world_size=arguments.world_size,
    )
    if len(dev) < arguments.world_size:
        raise ValueError(f"{settings.dev} has {len(dev)} utterances for {arguments.world_size} processes; give more")
    share = dev[arguments.process_index :: arguments.world_size]  # each utterance is judged once, on one process
    dev_loader = SpeechLoader(
        SpeechDataset(share, encoder, **make),
        CTCCollator(),  # no utterance is too short to be judged
        batch_seconds=max([settings.batch_seconds, *(utterance.duration for utterance in share)]),
        seed=settings.seed,
        shuffle=False,
    )
    record_settings(output, settings)
    trainer = CTCTrainer(
        model,
        arguments,
        train_loader=train_loader,
        dev_loader=dev_loader,
        tokenizer=tokenizer,
        train_dataset=train_loader.dataset,
        eval_dataset=dev_loader.dataset,
        callbacks=[ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    processor.save_pretrained(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    skipped = torch.tensor(trainer.skipped_utterances, device=arguments.device)  # by this process
    return {
        "best_wer": trainer.state.best_metric,  # None where nothing was evaluated
        "steps": float(trainer.state.global_step),
        "skipped_utterances": float(trainer.accelerator.reduce(skipped, reduction="sum")),
        "skipped_steps": float(trainer.skipped_steps),
    }


def prepare_model(settings: CTCSettings, texts: list[str]) -> tuple[Wav2Vec2ConformerForCTC, Wav2Vec2Processor]:
    """A new or a given model, and a processor whose vocabulary fits it."""
    if settings.init and settings.config:
        raise ValueError("give a model to start from (init) or the configuration of a new one (config), not both")
    if settings.init:
        processor = load_processor(settings.init) or build_processor(
            build_vocabulary(texts), do_normalize=normalizes(settings.init) is not False
        )
        ids: dict[str, Any] = token_ids(processor)
        # A head for another vocabulary starts anew; network weights of another shape are an error all the same.
        model = Wav2Vec2ConformerForCTC.from_pretrained(
            settings.init, dtype=torch.float32, ignore_mismatched_sizes=True, **ids
        )
    else:
        processor = build_processor(build_vocabulary(texts))
        config = read_config(Path(settings.config) if settings.config else DEFAULT_MODEL / "config.json")
        for name, value in token_ids(processor).items():
            setattr(config, name, value)
        model = Wav2Vec2ConformerForCTC(config)
    if settings.freeze_feature_encoder:
        model.freeze_feature_encoder()
    return model, processor


def read_config(path: Path) -> Wav2Vec2ConformerConfig:
    """A new model's configuration; fields that this model does not have are named in a warning."""
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); expected a model's config.json") from error
    if not isinstance(fields, dict):
        raise ValueError(f'{path}: expected a JSON object with a model\'s fields, such as {{"hidden_size": 256}}')
    unknown = sorted(fields.keys() - Wav2Vec2ConformerConfig().to_dict().keys())
    if unknown:
        logger.warning("%s: no fields of this model, so without effect: %s", path, ", ".join(unknown))
    return Wav2Vec2ConformerConfig.from_dict(fields)


def token_ids(processor: Wav2Vec2Processor) -> dict[str, int]:
    """What a model's configuration must say about a vocabulary."""
    tokenizer = processor.tokenizer
    return {
        "vocab_size": tokenizer.vocab_size,  # of vocab.json, without tokens added later
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def training_arguments(settings: CTCSettings, output: Path) -> TrainingArguments:
    """The settings in the terms of `transformers.Trainer`."""
    by_steps = settings.evaluate_every > 0
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1: a share of all steps
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        eval_strategy="steps" if by_steps else "epoch",
        save_strategy="steps" if by_steps else "epoch",
        eval_steps=settings.evaluate_every or None,
        save_steps=settings.evaluate_every or 500,
        save_total_limit=None,  # `SpeechTrainer` keeps the newest itself
        logging_steps=20,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        disable_tqdm=True,
        seed=settings.seed,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # Without it, Accelerate takes processes that torchrun started on a machine without a GPU for strangers.
        use_cpu=not torch.accelerator.is_available(),
    )
