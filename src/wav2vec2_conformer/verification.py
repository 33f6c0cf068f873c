"""Recordings of any length -> vectors that say who speaks, and whether two of them are the same speaker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audio import AudioError
from .calibration import read_threshold
from .loading import load_head, usable_device
from .modeling import Wav2Vec2ConformerForXVector
from .processing import model_name
from .recordings import (
    BATCH_SECONDS,
    AveragedModel,
    Progress,
    Source,
    checked_source,
    only_result,
)

# B batch, N samples, X width of the embedding

__all__ = ["SpeakerEncoder", "similarity"]

WINDOW = 30.0  # seconds


def similarity(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Cosine of the angle between two vectors (X,), in [-1, 1]; 0 where one of them is zero and has no direction.

    Raises:
        ValueError: the vectors are not of one width.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two vectors of one width, got shapes {a.shape} and {b.shape}; embed both alike")
    return float(np.clip(unit_length(a.astype(np.float64)) @ unit_length(b.astype(np.float64)), -1, 1))


def unit_length(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """(X,) with length 1; the zero vector stays."""
    largest = np.abs(vector).max(initial=0.0)  # whose squares neither overflow nor vanish
    if largest == 0:
        return vector
    scaled = vector / largest
    unit: NDArray[np.float64] = scaled / np.linalg.norm(scaled)
    return unit


class SpeakerEncoder(AveragedModel[NDArray[np.float32]]):
    """Gives a recording's speaker as a vector of unit length: the nearer two vectors, the likelier one speaker.

    It is the x-vector model's `embeddings`, scaled. A recording of up to 30 s is seen at once. A longer one is cut into
    windows of 30 s, and its vector is the mean of their embeddings, weighted by their frames, then scaled.

    Args:
        model: an x-vector model.
        normalize: whether waveforms are normalised, as its feature extractor says; each window alone.
        threshold: the cosine similarity from which on two recordings are taken for one speaker; `None`: unknown.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window of up to
            30 s.
        compute_type: "float32", "bfloat16", "float16" or "int8", to which the model is converted in place.
    """

    def __init__(
        self,
        model: Wav2Vec2ConformerForXVector,
        *,
        normalize: bool,
        threshold: float | None = None,
        device: str | torch.device = "cpu",
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
    ) -> None:
        super().__init__(
            model, normalize=normalize, device=device, batch_seconds=batch_seconds, compute_type=compute_type
        )
        self.threshold = threshold

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
    ) -> Self:
        """Load a model, and the threshold of the file `verification.json` beside it, where there is one.

        Args:
            model: a folder, such as `train xvector` leaves, or a Hub id.
            device: `None`: a CUDA device if there is one, else the CPU.
            batch_seconds: as in the constructor.
            compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8"; measured when loaded, see `conversion`.

        Raises:
            ValueError: as `load_head` raises it: no model, a damaged one, or one of another kind; or
                `verification.json` holds no threshold.
            OSError: there is no such model on the Hub, or it cannot be reached.
        """
        device = usable_device(device)  # before anything is loaded
        network, normalize = load_head(
            model,
            Wav2Vec2ConformerForXVector,
            purpose="compare speakers with",
            unused=("classifier.", "objective."),  # of training: they come after the embedding
        )
        threshold = read_threshold(model_name(model))
        return cls(
            network,
            normalize=normalize,
            threshold=threshold,
            device=device,
            batch_seconds=batch_seconds,
            compute_type=compute_type,
        )

    def embed(self, source: Source, *, sample_rate: int | None = None) -> NDArray[np.float32]:
        """The vector (X,) of one recording's speaker, of length 1.

        Args:
            source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
            sample_rate: of an array, in Hz; needed there and refused elsewhere.

        Raises:
            AudioError: it is missing, empty, truncated, no audio, or too short for a frame.
            ValueError: an array without `sample_rate`, or a file with one.
        """
        return only_result(self.embed_many([checked_source(source, sample_rate, "embed")]))

    def embed_many(
        self, sources: Iterable[Source], *, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32] | AudioError]:
        """Vectors (X,) of recordings, one each and in their order, as soon as each is done.

        A recording that `embed` would refuse gives its `AudioError` in place of a vector; the others go on. Arrays are
        taken to be mono at 16 kHz.

        Args:
            sources: as in `embed`.
            progress: called with the seconds of audio that have gone through since the last call.
        """
        return self._results(sources, progress, window=WINDOW, overlap=0.0)

    def _outputs(self, values: Tensor, mask: Tensor) -> Tensor:
        embeddings: Tensor = self.model(values, mask).embeddings.float()  # (B, X)
        return embeddings

    def _answer(self, mean: Tensor, duration: float) -> NDArray[np.float32]:
        return unit_length(mean.numpy()).astype(np.float32)
