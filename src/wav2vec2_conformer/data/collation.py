"""Items -> a batch: padded for CTC, cropped and masked for pre-training."""

# B batch, N samples, T frames, L labels, K negatives

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np
import torch

from ..audio import SAMPLE_RATE
from .dataset import SkippedItem, SpeechItem

# The index that Wav2Vec2ForCTC and its relatives leave out of the loss.
LABEL_PADDING = -100


class CTCBatch(TypedDict):
    """A batch; pop `texts` and `skipped_names` before calling the model with the rest.

    `input_values` (B, N) float32, padded with 0; `attention_mask` (B, N) long, 1 = real; `labels` (B, L) long, padded
    with -100; `texts`: B transcripts; `skipped_names`: "name: reason" of each utterance that was left out. If all were
    left out, B, N and L are 0: check `batch["input_values"].shape[0]` and pass over such a batch.
    """

    input_values: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    texts: list[str]
    skipped_names: list[str]


def frames_needed(labels: Sequence[int]) -> int:
    """Return how many frames CTC needs for `labels`: one each, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def sort_out(
    items: Sequence[SpeechItem | SkippedItem], problem: Callable[[SpeechItem], str | None]
) -> tuple[list[SpeechItem], list[str]]:
    """The items that can be used, and "name: reason" of the others; `problem` gives an item's reason, or None."""
    kept: list[SpeechItem] = []
    skipped: list[str] = []
    for item in items:
        if isinstance(item, SkippedItem):
            skipped.append(f"{item.name}: {item.reason}")
        elif (reason := problem(item)) is not None:
            skipped.append(f"{item['name']}: {reason}")
        else:
            kept.append(item)
    return kept, skipped


class CTCCollator:
    """Pads items to the longest of the batch and leaves out those that CTC cannot learn from.

    Args:
        frames_of: Samples -> frames of the model. An utterance with fewer frames than its labels need has an infinite
            loss, and one without any frame cannot enter the model: both are left out and named. None: no such check.
            With workers started by spawn or forkserver it is pickled: give a function, not a lambda.
    """

    def __init__(self, frames_of: Callable[[int], int] | None = None) -> None:
        self._frames_of = frames_of

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> CTCBatch:
        kept, skipped = sort_out(items, self._too_short)
        samples = max((len(item["input_values"]) for item in kept), default=0)
        length = max((len(item["labels"]) for item in kept), default=0)
        input_values = torch.zeros(len(kept), samples)
        attention_mask = torch.zeros(len(kept), samples, dtype=torch.long)
        labels = torch.full((len(kept), length), LABEL_PADDING, dtype=torch.long)
        for row, item in enumerate(kept):
            waveform, ids = torch.from_numpy(item["input_values"]), item["labels"]
            input_values[row, : len(waveform)] = waveform
            attention_mask[row, : len(waveform)] = 1
            labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return CTCBatch(
            input_values=input_values,
            attention_mask=attention_mask,
            labels=labels,
            texts=[item["text"] for item in kept],
            skipped_names=skipped,
        )

    def _too_short(self, item: SpeechItem) -> str | None:
        if self._frames_of is None:
            return None
        frames, needed = self._frames_of(len(item["input_values"])), frames_needed(item["labels"])
        if frames >= max(1, needed):
            return None
        return f"{frames} frames, but its {len(item['labels'])} labels need {max(1, needed)}"


class PretrainingBatch(TypedDict):
    """A batch without padding; pop `skipped_names` before calling the model with the rest.

    `input_values` (B, N) float32; `mask_time_indices` (B, T) bool, the same number of masked frames in every row;
    `sampled_negative_indices` (B, T, K) long, `row * T + frame`.
    """

    input_values: torch.Tensor
    mask_time_indices: torch.Tensor
    sampled_negative_indices: torch.Tensor
    skipped_names: list[str]


class PretrainingCollator:
    """Crops items to the shortest of the batch, and draws masks and negatives, all as a function of the items alone.

    As fairseq does: nothing is padded, and every row has the same number of masked frames.

    Args:
        frames_of: samples -> frames of the model; see `CTCCollator`.
        mask: (lengths (B,), frames, generator) -> (B, frames) bool.
        negatives: (mask, generator) -> (B, T, K) long.
        shortest: samples below which an item is left out and named.
        longest: samples to which longer crops are cut.
    """

    def __init__(
        self,
        frames_of: Callable[[int], int],
        mask: Callable[[torch.Tensor, int, torch.Generator], torch.Tensor],
        negatives: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
        *,
        shortest: int,
        longest: int,
    ) -> None:
        if not 0 < shortest <= longest:
            raise ValueError(f"`shortest` must be above 0 and at most `longest`, got {shortest} and {longest}")
        self._frames_of, self._mask, self._negatives = frames_of, mask, negatives
        self._shortest, self._longest = shortest, longest

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> PretrainingBatch:
        kept, skipped = sort_out(items, self._too_short)
        samples = min((len(item["input_values"]) for item in kept), default=self._shortest)
        samples = min(samples, self._longest)
        seed = int(np.random.SeedSequence([item["draw"] for item in kept]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        input_values = torch.zeros(len(kept), samples)
        for row, item in enumerate(kept):
            room = len(item["input_values"]) - samples
            start = int(torch.randint(room + 1, (), generator=generator))
            input_values[row] = torch.from_numpy(item["input_values"][start : start + samples])
        frames = self._frames_of(samples)
        mask = self._mask(torch.full((len(kept),), frames), frames, generator)
        return PretrainingBatch(
            input_values=input_values,
            mask_time_indices=mask,
            sampled_negative_indices=self._negatives(mask, generator),
            skipped_names=skipped,
        )

    def _too_short(self, item: SpeechItem) -> str | None:
        found = len(item["input_values"])
        if found >= self._shortest:
            return None
        return f"{found / SAMPLE_RATE:.2f} s, shorter than the least of {self._shortest / SAMPLE_RATE:.2f} s"
