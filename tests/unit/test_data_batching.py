"""The batch sampler's properties: each utterance once, the budget kept, a function of (seed, epoch) alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wav2vec2_conformer.data import LengthBucketSampler

BUDGET = 20.0
lengths = st.lists(
    st.one_of(st.floats(0.01, BUDGET), st.sampled_from([0.1, 1.0, 1.01, BUDGET])), min_size=1, max_size=120
)
options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "shuffle": st.booleans(),
        "spread": st.floats(0, 0.9),
        "max_batch": st.none() | st.integers(1, 8),
    }
)


@settings(max_examples=100, deadline=None)
@given(lengths, options, st.integers(0, 1000))
def test_each_once_within_budget_same_count(durations: list[float], options: dict[str, Any], epoch: int) -> None:
    sampler = LengthBucketSampler(durations, batch_seconds=BUDGET, **options)
    for number in (epoch, epoch + 1):
        sampler.set_epoch(number)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
        assert all(batch for batch in batches)
        assert max(max(durations[i] for i in batch) * len(batch) for batch in batches) <= BUDGET
        if options["max_batch"]:
            assert max(map(len, batches)) <= options["max_batch"]
        # Deterministic: the same again, and the same from a sampler made anew (a resumed run).
        anew = LengthBucketSampler(durations, batch_seconds=BUDGET, **options)
        anew.set_epoch(number)
        assert batches == list(sampler) == list(anew)


@settings(max_examples=100, deadline=None)
@given(lengths, options, st.integers(1, 5))
def test_ranks_share_the_batches_evenly(durations: list[float], options: dict[str, Any], world_size: int) -> None:
    whole = list(LengthBucketSampler(durations, batch_seconds=BUDGET, **options))
    ranks = [
        LengthBucketSampler(durations, batch_seconds=BUDGET, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in ranks]
    assert {len(share) for share in shares} == {len(sampler) for sampler in ranks} == {-(-len(whole) // world_size)}
    taken = [tuple(share[step]) for step in range(len(shares[0])) for share in shares]
    # Disjoint, in the order of the whole, but for the repeated first batches that even out the end.
    assert taken[: len(whole)] == [tuple(batch) for batch in whole]
    assert len(taken) - len(whole) < world_size
    assert set(taken[len(whole) :]) <= set(taken[: len(whole)])


def test_epochs_differ_in_order_and_in_company() -> None:
    durations = np.random.default_rng(0).uniform(1, 16, 2000).tolist()
    sampler = LengthBucketSampler(durations, batch_seconds=100, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    shared = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(shared) < 0.1 * len(first)
    assert list(LengthBucketSampler(durations, batch_seconds=100, seed=4)) != first


def test_padding_stays_within_the_spread_and_batches_are_full() -> None:
    durations = np.random.default_rng(0).uniform(1, 16, 2000)
    batches = list(LengthBucketSampler(durations.tolist(), batch_seconds=100, seed=0, spread=0.1))
    padded = sum(durations[batch].max() * len(batch) for batch in batches)
    assert padded / durations.sum() < 1.08
    assert padded / len(batches) > 0.85 * 100


def test_without_shuffling_the_longest_come_first() -> None:
    durations = [1.0, 9.0, 3.0, 9.0, 2.0]
    sampler = LengthBucketSampler(durations, batch_seconds=10, seed=0, shuffle=False)
    assert list(sampler) == [[1], [3], [2, 4, 0]]
    sampler.set_epoch(5)
    assert list(sampler) == [[1], [3], [2, 4, 0]]


def test_budget_holds_where_division_rounds() -> None:
    for count in range(1, 200):
        longest = BUDGET / count
        (first, *_) = LengthBucketSampler([longest] * (count + 1), batch_seconds=BUDGET, seed=0, shuffle=False)
        assert len(first) * longest <= BUDGET
        assert len(first) in (count - 1, count)


def test_too_long_utterances_are_counted_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 utterances are longer.*31.5 s, at index 2.*at least 32"):
        LengthBucketSampler([1.0, 25.0, 31.5], batch_seconds=20, seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"durations": []}, "non-empty"),
        ({"durations": [1.0, 0.0]}, "above 0 seconds: 1 of 2 are not, the first is 0.0 at index 1"),
        ({"durations": [float("nan")]}, "above 0 seconds"),
        ({"batch_seconds": 0}, "`batch_seconds` must be above 0"),
        ({"seed": -1}, "`seed` must be 0 or more"),
        ({"spread": 1.0}, "`spread` must be"),
        ({"max_batch": 0}, "`max_batch` must be"),
        ({"rank": 2, "world_size": 2}, "`rank` must be from 0 to 1"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], message: str) -> None:
    arguments = {"durations": [1.0], "batch_seconds": 10, "seed": 0} | changed
    with pytest.raises(ValueError, match=message):
        LengthBucketSampler(**arguments)


def test_negative_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="`epoch` must be"):
        LengthBucketSampler([1.0], batch_seconds=1, seed=0).set_epoch(-1)


def test_counts_every_index_once_with_equal_lengths() -> None:
    batches = list(LengthBucketSampler([1.0] * 50, batch_seconds=8, seed=0))
    assert Counter(map(len, batches)) == Counter({8: 6, 2: 1})
