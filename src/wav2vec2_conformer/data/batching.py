"""Batches of utterances of similar length, by seconds instead of by count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class _Window(NamedTuple):
    """Positions [start, stop) of the sorted order, to be cut into batches of `batch_size`."""

    start: int
    stop: int
    batch_size: int


class LengthBucketSampler(Sampler[list[int]]):
    """A batch sampler: lists of indices of utterances of similar length, with a bounded padded size.

    The padded size of a batch, its longest duration times its count, is at most `batch_seconds`. (Speed perturbation
    may lengthen waveforms afterwards.) Every utterance comes once an epoch, over all
    ranks together. With several ranks, the first batches of the epoch are repeated at its end where the batches do
    not divide evenly: every rank has the same number of batches, so none waits for another for ever. The batches are
    a function of (seed, epoch) alone, and their number is the same in every epoch.

    Args:
        durations: Seconds of each utterance, each above 0 and at most `batch_seconds`.
        batch_seconds: The largest padded size of a batch in seconds.
        seed: A number from 0 up; with the epoch it decides the order.
        shuffle: False: every epoch the same batches, longest first, so that memory problems show at once.
        spread: How much shorter than the longest of its batch an utterance may be for the sake of mixing, as a share.
            Larger values mix batches better and pad more: 0.1 pads 5 % on average.
        max_batch: The largest count of utterances in a batch, or None.
        rank, world_size: Which share of the batches this process takes.

    Raises:
        ValueError: an argument is out of its range, or utterances are longer than `batch_seconds`.
    """

    def __init__(
        self,
        durations: Sequence[float],
        *,
        batch_seconds: float,
        seed: int,
        shuffle: bool = True,
        spread: float = 0.1,
        max_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be from 0 to {world_size - 1} with `world_size` {world_size}, got {rank}")
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}")
        if not 0 <= spread < 1:
            raise ValueError(f"`spread` must be from 0 to below 1, got {spread}; 0.1 is usual")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"`max_batch` must be 1 or more, or None, got {max_batch}")
        seconds = np.asarray(durations, dtype=np.float64)
        _check_durations(seconds, batch_seconds)

        # Longest first; the stable sort makes the order of equal lengths that of the manifest.
        self._order = np.argsort(-seconds, kind="stable")
        self._windows = _plan(seconds[self._order], batch_seconds, max_batch, spread)
        self._batches = sum(math.ceil((w.stop - w.start) / w.batch_size) for w in self._windows)
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0 up) whose batches the next iteration gives."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be 0 or more, got {epoch}")
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank, the same for every rank and epoch."""
        return math.ceil(self._batches / self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch_batches()
        for position in range(self._rank, len(self) * self._world_size, self._world_size):
            yield batches[position % len(batches)]

    def _epoch_batches(self) -> list[list[int]]:
        # Every rank draws the same numbers, so that together they take each batch once.
        generator = np.random.default_rng([self._seed, self._epoch])
        batches: list[list[int]] = []
        for start, stop, batch_size in self._windows:
            members = self._order[start:stop]
            if self._shuffle:
                members = generator.permutation(members)
            batches.extend(members[i : i + batch_size].tolist() for i in range(0, len(members), batch_size))
        if not self._shuffle:
            return batches
        return [batches[i] for i in generator.permutation(len(batches))]


def _check_durations(seconds: np.ndarray, batch_seconds: float) -> None:
    if seconds.ndim != 1 or seconds.size == 0:
        raise ValueError(f"`durations` must be a non-empty list of seconds, got shape {seconds.shape}")
    if not batch_seconds > 0:
        raise ValueError(f"`batch_seconds` must be above 0, got {batch_seconds}")
    bad = np.flatnonzero(~(np.isfinite(seconds) & (seconds > 0)))
    if bad.size:
        raise ValueError(
            f"`durations` must be above 0 seconds: {bad.size} of {seconds.size} are not, the first is"
            f" {seconds[bad[0]]} at index {bad[0]}; leave those utterances out"
        )
    long = np.flatnonzero(seconds > batch_seconds)
    if long.size:
        raise ValueError(
            f"{long.size} of {seconds.size} utterances are longer than `batch_seconds` {batch_seconds:g} (the longest:"
            f" {seconds.max():g} s, at index {seconds.argmax()}); raise `batch_seconds` to at least"
            f" {math.ceil(seconds.max())}, or leave them out or cut them"
        )


def _plan(descending: np.ndarray, batch_seconds: float, max_batch: int | None, spread: float) -> list[_Window]:
    """Cut the sorted order into windows, once for all epochs.

    The batches of a window have the count that fits the budget with the window's longest utterance. So any order of
    its members keeps the budget, an epoch may shuffle them freely, and the number of batches never changes (it would
    with lengths jittered anew in each epoch). A window is as many whole batches as there are utterances within
    `spread` of its longest, at least one: every batch is full, only the very last of the plan may be smaller. Where
    lengths are sparse (mostly the longest ones), a window is a single batch whose members stay together in every
    epoch; only its place changes.
    """
    windows: list[_Window] = []
    start, count = 0, len(descending)
    ascending = -descending  # as searchsorted wants it
    while start < count:
        longest = float(descending[start])
        batch_size = max(1, int(batch_seconds // longest))
        if batch_size > 1 and batch_size * longest > batch_seconds:  # rounding of the division
            batch_size -= 1
        if max_batch is not None:
            batch_size = min(batch_size, max_batch)
        similar = int(np.searchsorted(ascending, -longest * (1.0 - spread), side="right")) - start
        stop = min(count, start + batch_size * max(1, similar // batch_size))
        windows.append(_Window(start, stop, batch_size))
        start = stop
    return windows
