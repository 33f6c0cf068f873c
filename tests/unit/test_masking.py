"""Random spans: whole, inside the clip, as many as the formula says, and distributed as in the references."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import _compute_mask_indices

from wav2vec2_conformer.modeling.masking import sample_spans


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(row: Tensor) -> list[tuple[int, int]]:
    """(first, length) of each unbroken run of masked positions."""
    found, position = [], 0
    for masked, group in itertools.groupby(row.tolist()):
        length = len(list(group))
        if masked:
            found.append((position, length))
        position += length
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(0, 10),
    st.floats(0, 1),
    st.integers(1, 15),
    st.integers(0, 4),
    st.integers(0, 1000),
)
def test_spans_are_whole_and_inside(
    lengths: list[int], extra: int, probability: float, span: int, min_spans: int, seed: int
) -> None:
    size = max(lengths) + extra
    mask = sample_spans(
        torch.tensor(lengths), size, probability=probability, span=span, min_spans=min_spans, generator=generator(seed)
    )
    assert mask.shape == (len(lengths), size)
    assert mask.dtype == torch.bool
    for row, length in zip(mask, lengths, strict=True):
        assert all(run >= span and first + run <= length for first, run in runs(row))
        most = min(max(int(probability * length / span) + 1, min_spans), size // span, max(length - span + 1, 0))
        least = min(max(int(probability * length / span), min_spans), size // span, max(length - span + 1, 0))
        assert row.sum() <= most * span
        assert (row.sum() >= span) if least else True
        assert not (length < span and row.any())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 80), st.floats(0, 1), st.integers(0, 6), st.integers(0, 1000))
def test_count_formula(length: int, probability: float, min_spans: int, seed: int) -> None:
    """With spans of one position the masked positions are the spans: distinct starts, counted exactly."""
    mask = sample_spans(
        torch.full((5,), length), 90, probability=probability, span=1, min_spans=min_spans, generator=generator(seed)
    )
    counts = mask.sum(-1).tolist()
    assert len(set(counts)) == 1  # the rounding is drawn once for the batch
    share = float(torch.tensor(probability) * length)
    allowed = {min(max(int(share + up), min_spans), length) for up in (0, 0.999999)}
    assert counts[0] in allowed


def test_rounding_is_fair() -> None:
    """0.3 * 41 = 12.3 spans: 13 of them in 30 % of the draws, else 12."""
    source = generator(0)
    counts = torch.stack(
        [sample_spans(torch.tensor([41]), 41, probability=0.3, span=1, generator=source).sum() for _ in range(2000)]
    )
    assert set(counts.tolist()) == {12, 13}
    assert abs(counts.double().mean().item() - 12.3) < 0.05  # five standard errors


@pytest.mark.parametrize("length", [5, 20])
def test_starts_are_uniform(length: int) -> None:
    span, rows = 4, 20000
    mask = sample_spans(
        torch.full((rows,), length), 20, probability=0.0, span=span, min_spans=1, generator=generator(1)
    )
    assert (mask.sum(-1) == span).all()  # one span each
    starts = mask.float().argmax(-1).bincount(minlength=20)
    places = length - span + 1
    assert starts[places:].sum() == 0
    spread = (rows / places) ** 0.5
    assert (starts[:places] - rows / places).abs().max() < 5 * spread


@pytest.mark.parametrize(
    ("lengths", "size", "options"),
    [
        ([10, 10], 10, {"probability": 0.0, "span": 3}),
        ([10, 7], 10, {"probability": 1.0, "span": 11, "min_spans": 2}),  # longer than the whole axis
        ([0, 0], 12, {"probability": 1.0, "span": 2, "min_spans": 2}),
        ([0, 0], 0, {"probability": 1.0, "span": 2, "min_spans": 2}),
    ],
)
def test_nothing_to_mask(lengths: list[int], size: int, options: dict[str, float]) -> None:
    mask = sample_spans(torch.tensor(lengths), size, **options, generator=generator(0))  # type: ignore[arg-type]
    assert mask.shape == (len(lengths), size)
    assert not mask.any()


def test_short_rows_get_none_beside_long_ones() -> None:
    mask = sample_spans(torch.tensor([40, 9, 10, 0]), 40, probability=0.5, span=10, min_spans=2, generator=generator(3))
    assert mask[0].sum() >= 10
    assert not mask[1].any()
    assert mask[2].tolist() == [True] * 10 + [False] * 30  # the only place it fits
    assert not mask[3].any()


def test_probability_1_can_cover_everything() -> None:
    assert sample_spans(torch.tensor([30]), 30, probability=1.0, span=1, generator=generator(0)).all()


def test_generator_decides_alone() -> None:
    def draw(seed: int) -> Tensor:
        return sample_spans(torch.tensor([50, 30]), 50, probability=0.4, span=5, generator=generator(seed))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(7)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    torch.manual_seed(1)
    assert torch.equal(draw(7), first)
    assert not torch.equal(draw(8), first)


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    yield
    np.random.set_state(state)


LENGTHS = [40, 40, 25, 25, 9, 5]
SIZE, SPAN = 40, 5


def moments(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, B, T) draws -> (B, T) masked share by position, (B, T+1) distribution of the masked number."""
    numbers = masks.sum(-1)
    return masks.float().mean(0), torch.stack([(numbers == n).float().mean(0) for n in range(SIZE + 1)], dim=1)


@pytest.mark.parametrize(("probability", "min_spans"), [(0.3, 0), (0.65, 2), (0.05, 1)])
def test_distribution_is_the_references(probability: float, min_spans: int) -> None:
    draws, source = 2000, generator(5)
    attention = torch.arange(SIZE) < torch.tensor(LENGTHS)[:, None]
    with numpy_seed(5):
        reference = [
            _compute_mask_indices((len(LENGTHS), SIZE), probability, SPAN, attention, min_spans) for _ in range(draws)
        ]
    # Where a row gets fewer spans than the longest one, the references may mark a padded position; it is never read.
    theirs = moments(torch.from_numpy(np.stack(reference)) & attention)

    def ours(share: float) -> tuple[Tensor, Tensor]:
        return moments(
            torch.stack(
                [
                    sample_spans(
                        torch.tensor(LENGTHS), SIZE, probability=share, span=SPAN, min_spans=min_spans, generator=source
                    )
                    for _ in range(draws)
                ]
            )
        )

    def distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))

    assert distance(ours(probability), theirs) < 0.06  # 2000 draws: a difference has a standard error of at most 0.016
    assert distance(ours(probability + 0.2), theirs) > 0.1  # another distribution would be seen


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_break(backend: str) -> None:
    def draw(lengths: Tensor, size: int) -> Tensor:
        return sample_spans(lengths, size, probability=0.4, span=3, min_spans=1)

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    for lengths, size in (([20, 11, 2], 20), ([33, 31, 5], 33)):
        torch.manual_seed(11)
        expected = draw(torch.tensor(lengths), size)
        torch.manual_seed(11)
        assert torch.equal(compiled(torch.tensor(lengths), size), expected)
        assert expected.any()


def test_needs_no_host_synchronisation() -> None:
    """On the meta device nothing has a value that the host could wait for."""
    mask = sample_spans(torch.empty(3, dtype=torch.long, device="meta"), 20, probability=0.4, span=3, min_spans=1)
    assert mask.shape == (3, 20)
