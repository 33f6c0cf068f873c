"""Items -> a padded batch for CTC training."""

# B batch, N samples, L labels

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypedDict

import torch

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
        kept: list[SpeechItem] = []
        skipped: list[str] = []
        for item in items:
            if isinstance(item, SkippedItem):
                skipped.append(f"{item.name}: {item.reason}")
            elif (reason := self._too_short(item)) is not None:
                skipped.append(f"{item['name']}: {reason}")
            else:
                kept.append(item)

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
