"""Training a classifier of frames to tell speakers apart (diarization), whatever the order of the speakers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor
from transformers import set_seed

from ..audio import SAMPLE_RATE
from ..configuration import Wav2Vec2ConformerConfig
from ..data import FrameCollator, Segment, find_segments, speakers_of
from ..evaluation.diarization import DiarizationErrors
from ..lengths import frame_centres, frame_edges, frames_of
from ..modeling import Wav2Vec2ConformerForAudioFrameClassification
from ..modeling.losses import permutation_invariant_loss
from .finetuning import fine_tune
from .record import check_settings
from .settings import FineTuningSettings, check_crop
from .tasks import DEV_SECONDS, Batch, Scores, Task

# B batch, T frames, S speakers

__all__ = ["FrameSettings", "train_frame"]

MOST_SPEAKERS = 6  # all orders of them are compared


@dataclass
class FrameSettings(FineTuningSettings):
    """Everything that decides a training's result.

    Args:
        speakers: how many the model tells apart; 0: as many as speak in one of the training recordings.
        crop_seconds: what of a training recording is used at once, at a random place.
    """

    speakers: int = 0
    crop_seconds: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, above_zero=("crop_seconds",), at_least_zero=("speakers",))
        check_crop(self.crop_seconds, self.batch_seconds)


class FrameTask(Task[FrameSettings]):
    """Who speaks in each frame; several may."""

    metric, higher, field, learnt = "der", False, "segments", 0.05
    model_class = Wav2Vec2ConformerForAudioFrameClassification

    def build(self) -> None:
        """With one output a speaker."""
        most = max(len(speakers_of(utterance.segments or ())) for utterance in self.train)
        self.speakers = self.settings.speakers or most
        if not 1 <= self.speakers <= MOST_SPEAKERS:
            raise ValueError(
                f"a model tells 1 to {MOST_SPEAKERS} speakers apart, got {self.speakers}; set `speakers`: "
                "recordings are used in crops, and crops with more speakers are left out"
            )
        if not any(utterance.segments for utterance in self.dev):
            raise ValueError(f"{self.dev_name}: nobody speaks in any of these recordings")
        names = [f"speaker {number + 1}" for number in range(self.speakers)]
        self.classify(names, problem_type="multi_label_classification")

    def longest(self, *, training: bool) -> float | None:
        """One crop."""
        return self.settings.crop_seconds if training else DEV_SECONDS

    def collator(self, *, training: bool) -> Callable[[Any], Any]:
        """Crops with their speakers a frame; in development recordings, however many speak."""
        config = self.model.config
        return FrameCollator(
            partial(frames_of, config=config),
            partial(frame_centres, config=config),
            self.speakers,
            longest=round((self.longest(training=training) or 0) * SAMPLE_RATE),
            most=self.speakers if training else None,
        )

    def items_of(self, batch: Batch) -> int:
        """Frames."""
        return int((batch["labels"][..., 0] >= 0).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Permutation-invariant, summed over frames."""
        return permutation_invariant_loss(outputs.logits, batch["labels"])

    def scores(self) -> Scores:
        """Diarization errors."""
        return DiarizationScores(self.model.config)


class DiarizationScores(Scores):
    """Diarization error rate of what the model hears in each frame, against the frames' labels."""

    def __init__(self, config: Wav2Vec2ConformerConfig) -> None:
        self.config = config
        self.errors = DiarizationErrors()

    def add(self, batch: Batch, outputs: Any) -> None:
        """Compare each recording."""
        samples = batch["attention_mask"].sum(-1).tolist()
        rows = zip(samples, batch["labels"].cpu(), outputs.logits.float().cpu(), strict=True)
        for length, labels, logits in rows:
            valid = labels[:, 0] >= 0
            edges = frame_edges(int(valid.sum()), length, self.config) / SAMPLE_RATE

            def segments_of(active: Tensor, edges: Any = edges) -> list[Segment]:
                return [
                    Segment(start, end, str(speaker)) for start, end, speaker in find_segments(active.numpy(), edges)
                ]

            self.errors.add(segments_of(labels[valid] > 0.5), segments_of(logits[valid] > 0))

    def merge(self, others: Sequence[Self]) -> None:
        """Add the seconds."""
        counts = zip(*(scores.errors.counts() for scores in (self, *others)), strict=True)
        self.errors = DiarizationErrors.from_counts([sum(numbers) for numbers in counts])

    def figures(self) -> dict[str, float]:
        """Shares of the speakers' time."""
        errors, speech = self.errors, max(self.errors.speech, 1e-9)
        parts = {name: getattr(errors, name) / speech for name in ("missed", "false_alarm", "confusion")}
        return {"der": sum(parts.values()), **parts}


def train_frame(settings: FrameSettings, *, resume: bool = False) -> dict[str, Any]:
    """Train and return the figures of the best model; see `fine_tune`."""
    set_seed(settings.seed)
    return fine_tune(FrameTask(settings), resume=resume)
