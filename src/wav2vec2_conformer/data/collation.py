"""Items -> a batch: padded for CTC, for classes and for speakers a frame; cropped and masked for pre-training."""

# B batch, N samples, T frames, L labels, K negatives, S speakers

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from ..audio import SAMPLE_RATE
from .dataset import SkippedItem, SpeechItem, Waveform
from .segments import Segment, speakers_of

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


def few_lengths(samples: int, *, down: bool = False) -> int:
    """The next length of 8 an octave, at most an eighth longer (`down`: shorter); from 1 to 16 s there are 33 of them.

    In bfloat16 a CPU's kernels are generated for a shape when it is first met, which makes a small model's training
    step 1.2 to 1.6 times as long (`benchmarks/batch_shapes.py`).
    """
    step = 1 << max(0, samples.bit_length() - 4)
    return (samples if down else samples + step - 1) // step * step


def pad(waveforms: Sequence[Waveform], *, rounded: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (N,) -> `input_values` (B, N), padded with 0 on the right, and `attention_mask` (B, N), 1 = real.

    N is the longest waveform's length; where it is `rounded`, the next of `few_lengths`.
    """
    samples = max((len(waveform) for waveform in waveforms), default=0)
    samples = few_lengths(samples) if rounded else samples
    input_values = torch.zeros(len(waveforms), samples)
    attention_mask = torch.zeros(len(waveforms), samples, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        input_values[row, : len(waveform)] = torch.from_numpy(waveform)
        attention_mask[row, : len(waveform)] = 1
    return input_values, attention_mask


def crop_start(item: SpeechItem, longest: int | None) -> int:
    """Where a crop of at most `longest` samples begins in an item; a function of the item's draw alone."""
    room = len(item["input_values"]) - longest if longest else 0
    return int(np.random.default_rng(item["draw"]).integers(room + 1)) if room > 0 else 0


class CTCCollator:
    """Pads items to the longest of the batch and leaves out those that CTC cannot learn from.

    Args:
        frames_of: Samples -> frames of the model. An utterance with fewer frames than its labels need has an infinite
            loss, and one without any frame cannot enter the model: both are left out and named. None: no such check.
            With workers started by spawn or forkserver it is pickled: give a function, not a lambda.
        rounded: whether batches have one of a few lengths (`few_lengths`).
    """

    def __init__(self, frames_of: Callable[[int], int] | None = None, *, rounded: bool = False) -> None:
        self._frames_of, self._rounded = frames_of, rounded

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> CTCBatch:
        kept, skipped = sort_out(items, self._too_short)
        input_values, attention_mask = pad([item["input_values"] for item in kept], rounded=self._rounded)
        length = max((len(item["labels"]) for item in kept), default=0)
        labels = torch.full((len(kept), length), LABEL_PADDING, dtype=torch.long)
        for row, item in enumerate(kept):
            labels[row, : len(item["labels"])] = torch.tensor(item["labels"], dtype=torch.long)
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


class ClassBatch(TypedDict):
    """A batch of whole clips; pop `skipped_names` before calling the model with the rest.

    `input_values` (B, N) float32, padded with 0; `attention_mask` (B, N) long, 1 = real; `labels` (B,) long class ids,
    -100 where an utterance's class is not one of the model's.
    """

    input_values: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    skipped_names: list[str]


class ClassCollator:
    """Pads items to the longest of the batch, each with its class.

    Args:
        ids: class -> id.
        class_of: item -> class, such as its manifest line's label.
        frames_of: samples -> frames of the model; clips without a frame are left out and named. See `CTCCollator`.
        longest: samples to which longer clips are cut, at a random place; None: they stay whole.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        class_of: Callable[[SpeechItem], str | None],
        frames_of: Callable[[int], int],
        *,
        longest: int | None = None,
    ) -> None:
        self._ids, self._class_of, self._frames_of, self._longest = dict(ids), class_of, frames_of, longest

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> ClassBatch:
        kept, skipped = sort_out(items, partial(without_frame, frames_of=self._frames_of))
        starts = [crop_start(item, self._longest) for item in kept]
        input_values, attention_mask = pad(
            [item["input_values"][start:][: self._longest] for item, start in zip(kept, starts, strict=True)]
        )
        ids = [self._ids.get(self._class_of(item) or "", LABEL_PADDING) for item in kept]
        return ClassBatch(
            input_values=input_values,
            attention_mask=attention_mask,
            labels=torch.tensor(ids, dtype=torch.long),
            skipped_names=skipped,
        )


class FrameBatch(TypedDict):
    """A batch with speakers a frame; pop `skipped_names` before calling the model with the rest.

    `input_values` (B, N) float32, padded with 0; `attention_mask` (B, N) long, 1 = real; `labels` (B, T, S) float32:
    1 where a speaker speaks, -100 in padded frames. The order of the speakers means nothing.
    """

    input_values: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    skipped_names: list[str]


class FrameCollator:
    """Pads items to the longest of the batch, and says who of them speaks in each frame.

    Args:
        frames_of: samples -> frames of the model. See `CTCCollator`.
        centres: (T,) frame indices -> the sample in each frame's middle, at which its speakers are looked up.
        speakers: S, of the model.
        longest: samples to which longer recordings are cut, at a random place; None: they stay whole.
        most: speakers in a crop; one with more is left out and named. None: the labels then have more than S columns.
    """

    def __init__(
        self,
        frames_of: Callable[[int], int],
        centres: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
        speakers: int,
        *,
        longest: int | None = None,
        most: int | None = None,
    ) -> None:
        self._frames_of, self._centres, self._speakers = frames_of, centres, speakers
        self._longest, self._most = longest, most

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> FrameBatch:
        whole, skipped = sort_out(items, partial(without_frame, frames_of=self._frames_of))
        waveforms: list[Waveform] = []
        activities: list[npt.NDArray[np.float32]] = []
        for item in whole:
            start = crop_start(item, self._longest)
            waveform = item["input_values"][start:][: self._longest]
            activity = self._activity(item, start, self._frames_of(len(waveform)))
            if self._most is not None and activity.shape[1] > self._most:
                skipped.append(f"{item['name']}: {activity.shape[1]} speakers, but the model tells {self._most} apart")
                continue
            waveforms.append(waveform)
            activities.append(activity)
        input_values, attention_mask = pad(waveforms)
        frames = max((len(activity) for activity in activities), default=0)
        columns = max([self._speakers, *(activity.shape[1] for activity in activities)])
        labels = torch.full((len(waveforms), frames, columns), float(LABEL_PADDING))
        for row, activity in enumerate(activities):
            labels[row, : len(activity)] = 0
            labels[row, : len(activity), : activity.shape[1]] = torch.from_numpy(activity)
        return FrameBatch(
            input_values=input_values, attention_mask=attention_mask, labels=labels, skipped_names=skipped
        )

    def _activity(self, item: SpeechItem, start: int, frames: int) -> npt.NDArray[np.float32]:
        """(frames, speakers who speak in them), 1 where one does."""
        samples = start + self._centres(np.arange(frames))
        seconds = samples / SAMPLE_RATE / item["stretch"]
        activity = speaker_activity(item["utterance"].segments or (), seconds)
        return activity[:, activity.any(0)]


def speaker_activity(segments: Sequence[Segment], seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """(T, speakers) 1 where a speaker speaks at (T,) `seconds`; the speakers in the order of their first segments."""
    speakers = speakers_of(segments)
    activity = np.zeros((len(seconds), len(speakers)), np.float32)
    for segment in segments:
        activity[(seconds >= segment.start) & (seconds < segment.end), speakers.index(segment.speaker)] = 1
    return activity


def without_frame(item: SpeechItem, *, frames_of: Callable[[int], int]) -> str | None:
    """The reason to leave an item out if it is too short for a frame."""
    samples = len(item["input_values"])
    return None if frames_of(samples) > 0 else f"{samples / SAMPLE_RATE:.3f} s are too short for one frame"


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
        rounded: whether what is shorter than `longest` is cut further, to one of `few_lengths`.
    """

    def __init__(
        self,
        frames_of: Callable[[int], int],
        mask: Callable[[torch.Tensor, int, torch.Generator], torch.Tensor],
        negatives: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
        *,
        shortest: int,
        longest: int,
        rounded: bool = False,
    ) -> None:
        if not 0 < shortest <= longest:
            raise ValueError(f"`shortest` must be above 0 and at most `longest`, got {shortest} and {longest}")
        self._frames_of, self._mask, self._negatives = frames_of, mask, negatives
        self._shortest, self._longest, self._rounded = shortest, longest, rounded

    def __call__(self, items: Sequence[SpeechItem | SkippedItem]) -> PretrainingBatch:
        kept, skipped = sort_out(items, self._too_short)
        samples = min((len(item["input_values"]) for item in kept), default=self._shortest)
        samples = min(samples, self._longest)
        if self._rounded and samples < self._longest:  # those of the full length have that one in common already
            samples = max(self._shortest, few_lengths(samples, down=True))
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
