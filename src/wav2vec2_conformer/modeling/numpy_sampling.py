"""The references' masks and negatives, draw by draw: for scripts that prepare batches with numpy.

Both functions draw from numpy's global generator, and a given `np.random.seed` gives exactly what transformers gives.
Training here uses `sample_spans` and `sample_negatives`, which draw from the same distributions without a loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# B batch, T positions, K negatives

__all__ = ["compute_mask_indices", "sample_negative_indices"]


def compute_mask_indices(
    shape: tuple[int, int],
    mask_prob: float,
    mask_length: int,
    attention_mask: Tensor | None = None,
    min_masks: int = 0,
) -> NDArray[np.bool_]:
    """Draw masked spans (SpecAugment, Park et al. 2019), exactly as transformers does for a numpy seed.

    Args:
        shape: (B, T).
        mask_prob: share of positions covered, counted before overlap.
        mask_length: positions of one span.
        attention_mask: (B, T) tensor, 1 = valid, right padding; spans start where they fit into the valid positions.
        min_masks: least number of spans.

    Returns:
        (B, T) bool, True = masked. A row that gets no span while others do has its last position masked, as in the
        references; where that is padding, the pre-training loss leaves it out.

    Raises:
        ValueError: `mask_length` is below 1 or above T.
    """
    rows, size = shape
    if mask_length < 1:
        raise ValueError(f"`mask_length` must be at least 1, got {mask_length}")
    if mask_length > size:
        raise ValueError(f"`mask_length` must be at most the number of positions, {size}, got {mask_length}")
    rounding = np.random.rand(1).item()  # numpy's global generator is the contract here

    def spans_of(length: int) -> int:
        spans = max(int(mask_prob * length / mask_length + rounding), min_masks)
        if spans * mask_length > size:
            spans = size // mask_length
        return min(spans, max(length - mask_length + 1, 0))

    most = spans_of(size)
    if most == 0:
        return np.zeros((rows, size), dtype=bool)
    lengths = [size] * rows if attention_mask is None else attention_mask.detach().sum(-1).tolist()
    masks = np.zeros((len(lengths), size), dtype=bool)
    for mask, length in zip(masks, lengths, strict=True):
        spans = spans_of(length)
        if spans > most:
            raise ValueError(f"`attention_mask` has a row of {length} valid positions, but there are only {size}")
        starts = np.random.choice(np.arange(length - mask_length + 1), spans, replace=False)
        if spans == 0:
            mask[-1] = True
        mask[np.minimum(starts[:, None] + np.arange(mask_length), size - 1)] = True
    return np.broadcast_to(masks, (rows, size)).copy()


def sample_negative_indices(
    features_shape: tuple[int, int], num_negatives: int, mask_time_indices: NDArray[Any] | None = None
) -> NDArray[np.int32]:
    """Draw negatives among the masked frames of each utterance, exactly as transformers does for a numpy seed.

    Args:
        features_shape: (B, T).
        num_negatives: K.
        mask_time_indices: (B, T) array, True or 1 = masked; `None`: every frame is.

    Returns:
        (B, T, K) int32, `row * T + frame`; frames that are not masked name the first frame of their row.

    Raises:
        ValueError: an utterance has one masked frame only, and so no negatives. (`sample_negatives` goes on.)
    """
    rows, frames = features_shape
    masks = np.ones((rows, frames), dtype=bool) if mask_time_indices is None else mask_time_indices.astype(bool)
    indices = np.zeros((rows, frames, num_negatives), dtype=np.int32)
    for row in range(rows):
        places = np.arange(frames)[masks[row]]
        others = len(places) - 1
        draws = np.random.randint(0, others, size=(len(places), num_negatives))
        draws += draws >= np.arange(len(places))[:, None]  # step over the positive
        indices[row][masks[row]] = places[draws]
        indices[row] += row * frames
    return indices
