"""Training a speech recogniser by CTC."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, Wav2Vec2Processor, set_seed

from ..audio import SAMPLE_RATE
from ..data import CTCCollator, TextEncoder, build_processor, build_vocabulary, check_coverage
from ..decoding import greedy_texts
from ..evaluation import ErrorRates
from ..lengths import frame_mask, frames_of
from ..modeling import Wav2Vec2ConformerForCTC
from ..modeling.losses import ctc_loss
from ..processing import load_processor
from .finetuning import fine_tune
from .monitors import BlankMonitor
from .presets import CTC_PRESETS
from .record import check_settings
from .settings import FineTuningSettings
from .tasks import Batch, Scores, Task
from .trainer import makes_kernels

__all__ = ["CTCSettings", "train_ctc"]

RAREST = 1e-5  # share of the frames that a token which is in no transcript begins with

logger = logging.getLogger(__name__)


@dataclass
class CTCSettings(FineTuningSettings):
    """Everything that decides a training's result.

    The vocabulary is that of `init`, where it has one, or else that of the training transcripts.

    Args:
        unknown_limit: largest share of characters that the vocabulary may lack.
        prior_share: share of the steps in which each letter's and the blank's probability is divided by how common it
            is (`ctc_loss`), wholly in three quarters of them and then less and less. It helps a new head off the
            plateau on which CTC writes the commonest letters. How common is counted in each batch of a process, so
            that accumulated batches are then not quite one large batch.
    """

    presets = CTC_PRESETS

    unknown_limit: float = 0.01
    prior_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, shares=("unknown_limit", "prior_share"))


class FadingPriors(TrainerCallback):
    """Sets how much of the priors a step's loss divides by: 1 in three quarters of the share, then falling to 0."""

    def __init__(self, task: CTCTask, share: float) -> None:
        self.task, self.share = task, share

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A function of the step alone, so that a resumed run goes on with it."""
        left = 1 - state.global_step / max(1.0, self.share * state.max_steps)
        self.task.prior_scale = min(1.0, max(0.0, 4 * left))


class CTCTask(Task[CTCSettings]):
    """Transcripts, and WER of greedy decoding."""

    metric, higher, field, learnt = "wer", False, "text", 0.05
    model_class = Wav2Vec2ConformerForCTC
    prior_scale = 0.0

    def build(self) -> None:
        """With one output a token of the vocabulary; transcripts that it lacks much of are refused."""
        settings, texts = self.settings, [utterance.text or "" for utterance in self.train]
        self.blanks = BlankMonitor()
        saved = load_processor(settings.init) if settings.init else None
        self.processor: Wav2Vec2Processor = saved or build_processor(
            build_vocabulary(texts), do_normalize=super().normalize
        )
        vocabulary = self.processor.tokenizer.get_vocab()
        for what, utterances in ((", ".join(settings.train), self.train), (self.dev_name, self.dev)):
            spoken = [utterance.text or "" for utterance in utterances]
            unknown = check_coverage(spoken, vocabulary, limit=settings.unknown_limit, what=what)
            if unknown:
                logger.warning("%s: %d unknown characters: %s", what, unknown.total(), dict(unknown.most_common(10)))
        self.model = self.load(**token_ids(self.processor), problem_type=None)
        if "lm_head.bias" in self.drawn:
            bias = self.model.lm_head.bias
            frames = sum(
                frames_of(round(utterance.duration * SAMPLE_RATE), self.model.config) for utterance in self.train
            )
            labels = [self.encoder.encode(text) for text in texts]
            with torch.no_grad():
                bias.copy_(initial_bias(labels, frames, len(bias), blank=self.processor.tokenizer.pad_token_id))

    @property
    def encoder(self) -> TextEncoder:
        """Characters -> ids."""
        tokenizer = self.processor.tokenizer
        return TextEncoder(
            tokenizer.get_vocab(), word_delimiter=tokenizer.word_delimiter_token, unknown_token=tokenizer.unk_token
        )

    @property
    def normalize(self) -> bool:
        """As the processor says."""
        return bool(self.processor.feature_extractor.do_normalize)

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Clips with transcripts; no development utterance is too short to be judged."""
        return CTCCollator(
            partial(frames_of, config=self.model.config) if training else None,
            rounded=makes_kernels(self.settings.bf16),
        )

    def logits_of(self, outputs: Any, batch: Batch) -> Tensor:
        """Those of real frames: padded ones say blank, whatever was computed."""
        lengths = self._frames(batch)
        logits: Tensor = outputs.logits[frame_mask(lengths, outputs.logits.shape[1])]
        return logits

    def _frames(self, batch: Batch) -> Tensor:
        """(B,) of each utterance."""
        lengths: Tensor = frames_of(batch["attention_mask"].sum(-1), self.model.config)
        return lengths

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The sum of the utterances' CTC losses."""
        lengths = self._frames(batch)
        blank = self.processor.tokenizer.pad_token_id
        return ctc_loss(outputs.logits, batch["labels"], lengths, blank=blank, prior_scale=self.prior_scale)

    def callbacks(self) -> list[TrainerCallback]:
        """The priors' fading."""
        share = self.settings.prior_share
        return [FadingPriors(self, share)] if share else []

    def scores(self) -> Scores:
        """WER, CER, and how much of what is written is blank."""
        return CTCScores(self.model.config, self.processor.tokenizer)

    def watch(self, figures: dict[str, float]) -> None:
        """A model that goes on writing nothing."""
        self.blanks.look(figures["empty"])

    def save_processing(self, output: Path) -> None:
        """Feature extractor and tokenizer."""
        self.processor.save_pretrained(output)


class CTCScores(Scores):
    """Error rates of greedy decoding, counted utterance by utterance."""

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rates = ErrorRates()
        self.empty = self.blank = self.frames = 0

    def add(self, batch: Batch, outputs: Any) -> None:
        """Decode a batch."""
        lengths = frames_of(batch["attention_mask"].sum(-1), self.config)
        for reference, hypothesis in zip(
            batch["texts"], greedy_texts(outputs.logits, lengths, self.tokenizer), strict=True
        ):
            self.rates.add(reference, hypothesis)
            self.empty += not hypothesis
        for row, length in zip(outputs.logits.argmax(-1), lengths.tolist(), strict=True):
            self.blank += int((row[:length] == self.config.pad_token_id).sum())
            self.frames += length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": None}  # other processes have their own

    def merge(self, others: Sequence[Self]) -> None:
        """Add the counts."""
        counts = zip(*(scores.rates.counts() for scores in (self, *others)), strict=True)
        self.rates = ErrorRates.from_counts([sum(numbers) for numbers in counts])
        for other in others:
            self.empty += other.empty
            self.blank += other.blank
            self.frames += other.frames

    def figures(self) -> dict[str, float]:
        """Error rates, the share of frames that say blank, and of utterances for which nothing was written."""
        return {
            "wer": self.rates.wer,
            "cer": self.rates.cer,
            "blank": self.blank / max(1, self.frames),
            "empty": self.empty / max(1, self.rates.utterances),
        }


def train_ctc(settings: CTCSettings, *, resume: bool = False) -> dict[str, Any]:
    """Train and return the figures of the best model; see `fine_tune`."""
    set_seed(settings.seed)
    return fine_tune(CTCTask(settings), resume=resume)


def initial_bias(labels: Sequence[Sequence[int]], frames: int, tokens: int, *, blank: int) -> Tensor:
    """(V,) log of the share of the frames that each token gets if each label has one and blank has the others.

    What a new head begins with. Without it the first thing that is learnt is how common each letter is, by a pull that
    is the same in every frame; where there are few hours to learn from, it turns all hidden states into one constant
    before any sound is told from another (`recipes/pretraining/RESULTS.md`).
    """
    counts = torch.bincount(
        torch.tensor([label for text in labels for label in text], dtype=torch.long), minlength=tokens
    )
    shares = (counts / max(frames, 1)).clamp(min=RAREST)
    shares[blank] = max(1 - float(shares.sum()), 0.1)  # also where there are about as many labels as frames
    return shares.log()


def token_ids(processor: Wav2Vec2Processor) -> dict[str, int]:
    """What a model's configuration must say about a vocabulary."""
    tokenizer = processor.tokenizer
    return {
        "vocab_size": tokenizer.vocab_size,  # of vocab.json, without tokens added later
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
