"""Reading ahead changes nothing but the time; batches are of similar windows, within their budget, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wav2vec2_conformer.reading import ReadAhead
from wav2vec2_conformer.recordings import SPREAD, Recording, Window, similar_batches


def test_items_come_in_their_order() -> None:
    with ReadAhead(iter(range(100)), 3) as items:
        assert list(items) == list(range(100))
        assert list(items) == []  # asked again


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with ReadAhead(broken(), 5) as items:
        assert next(items) == 1
        for _ in range(2):
            with pytest.raises(KeyError, match="broken"):
                next(items)


def test_only_so_many_items_are_made_ahead_and_none_once_it_is_left() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    before = threading.active_count()
    with ReadAhead(endless(), 4) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == 6  # one taken, four in the queue, one in hand
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert len(made) == 6


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120))
def test_batches_are_similar_within_their_budget_and_in_order(lengths: list[int], most: int) -> None:
    recording = Recording("a")
    windows = [
        Window(recording, np.zeros(length, np.float32), number, 0, last=True) for number, length in enumerate(lengths)
    ]
    batches = list(similar_batches(windows, most))
    flat = [window for batch in batches for window in batch]
    assert sorted(window.first_frame for window in flat) == list(range(len(lengths)))
    assert [len(w.samples) for w in flat] == sorted(lengths, reverse=True)
    for length in set(lengths):  # equal ones as they came
        numbers = [w.first_frame for w in flat if len(w.samples) == length]
        assert numbers == sorted(numbers)
    for batch in batches:
        longest = len(batch[0].samples)
        assert len(batch) == 1 or longest * len(batch) <= most
        assert all(len(w.samples) >= (1 - SPREAD) * longest for w in batch)
