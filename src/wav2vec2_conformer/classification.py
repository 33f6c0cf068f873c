"""Recordings of any length -> one of a model's classes, with scores: keywords, emotions, languages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audio import AudioError
from .loading import label_names, load_head, usable_device
from .modeling import Wav2Vec2ConformerForSequenceClassification
from .recordings import (
    BATCH_SECONDS,
    AveragedModel,
    Progress,
    Source,
    checked_source,
    only_result,
)

# B batch, N samples, C classes

__all__ = ["AudioClassifier", "Classification"]

WINDOW = 30.0  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What a recording is taken for.

    Args:
        labels: the model's classes, in the order of their ids.
        scores: (C,) float32 probabilities: they sum to 1, or each stands alone in a multi-label model.
        duration: of the recording, in seconds.
    """

    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    duration: float

    @property
    def label(self) -> str:
        """The class with the highest score."""
        return self.labels[int(self.scores.argmax())]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` best classes with their scores, best first; equal scores in the order of the ids."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order]


class AudioClassifier(AveragedModel[Classification]):
    """Says which of its classes a recording belongs to.

    A recording of up to 30 s is seen at once. A longer one is cut into windows of 30 s, and its scores are the mean of
    the windows' probabilities, weighted by their frames: a class that is heard in half of the time gets half. (The mean
    of log probabilities would let one window that excludes a class outvote all others.)

    Args:
        model: a sequence classification model.
        normalize: whether waveforms are normalised, as its feature extractor says; each window alone.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window of up to
            30 s.
        compute_type: "float32", "bfloat16", "float16" or "int8", to which the model is converted in place.

    Raises:
        ValueError: `id2label` of the model's configuration does not name its classes.
    """

    def __init__(
        self,
        model: Wav2Vec2ConformerForSequenceClassification,
        *,
        normalize: bool,
        device: str | torch.device = "cpu",
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
    ) -> None:
        super().__init__(
            model, normalize=normalize, device=device, batch_seconds=batch_seconds, compute_type=compute_type
        )
        self.labels = label_names(model.config)
        self.multi_label = model.config.problem_type == "multi_label_classification"

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
    ) -> Self:
        """Load a model.

        Args:
            model: a folder, such as `train sequence` leaves, or a Hub id.
            device: `None`: a CUDA device if there is one, else the CPU.
            batch_seconds: as in the constructor.
            compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8"; measured when loaded, see `conversion`.

        Raises:
            ValueError: as `load_head` raises it: no model, a damaged one, or one of another kind.
            OSError: there is no such model on the Hub, or it cannot be reached.
        """
        device = usable_device(device)  # before anything is loaded
        network, normalize = load_head(model, Wav2Vec2ConformerForSequenceClassification, purpose="classify with")
        return cls(network, normalize=normalize, device=device, batch_seconds=batch_seconds, compute_type=compute_type)

    def classify(self, source: Source, *, sample_rate: int | None = None) -> Classification:
        """Classify one recording.

        Args:
            source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
            sample_rate: of an array, in Hz; needed there and refused elsewhere.

        Raises:
            AudioError: it is missing, empty, truncated, no audio, or too short for a frame.
            ValueError: an array without `sample_rate`, or a file with one.
        """
        return only_result(self.classify_many([checked_source(source, sample_rate, "classify")]))

    def classify_many(
        self, sources: Iterable[Source], *, progress: Progress | None = None
    ) -> Iterator[Classification | AudioError]:
        """Classify recordings, one result each and in their order, as soon as each is done.

        A recording that `classify` would refuse gives its `AudioError` in place of a result; the others go on. Arrays
        are taken to be mono at 16 kHz.

        Args:
            sources: as in `classify`.
            progress: called with the seconds of audio that have gone through since the last call.
        """
        return self._results(sources, progress, window=WINDOW, overlap=0.0)

    def _outputs(self, values: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(values, mask).logits.float()  # (B, C)
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def _answer(self, mean: Tensor, duration: float) -> Classification:
        return Classification(self.labels, mean.float().numpy(), duration)
