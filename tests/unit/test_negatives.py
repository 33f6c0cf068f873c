"""Negatives, numpy's draws of the references, equal mask counts, and the contrastive loss of given negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import _compute_mask_indices

from wav2vec2_conformer.modeling.losses import contrastive_loss, diversity_loss
from wav2vec2_conformer.modeling.masking import sample_spans, thin_to_equal_counts
from wav2vec2_conformer.modeling.negatives import sample_negatives
from wav2vec2_conformer.modeling.numpy_sampling import compute_mask_indices, sample_negative_indices


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_mask(rows: int, frames: int, share: float, seed: int) -> Tensor:
    return torch.rand(rows, frames, generator=generator(seed)) < share


# --- negatives ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 30), st.floats(0, 1), st.integers(0, 9), st.integers(0, 1000))
def test_negatives_are_other_masked_frames_of_the_row(
    rows: int, frames: int, share: float, count: int, seed: int
) -> None:
    mask = draw_mask(rows, frames, share, seed)
    found = sample_negatives(mask, count, generator=generator(seed))
    assert found.shape == (rows, frames, count)
    assert found.dtype == torch.long
    assert torch.equal(found, sample_negatives(mask, count, generator=generator(seed)))
    for row in range(rows):
        inside = found[row] - row * frames
        places = set(mask[row].nonzero().flatten().tolist())
        for frame in range(frames):
            drawn = set(inside[frame].tolist())
            if frame not in places:
                assert drawn <= {0}
            elif len(places) == 1:
                assert drawn <= {frame}
            else:
                assert drawn <= places - {frame}


def test_draws_differ_between_seeds_and_use_the_default_generator() -> None:
    mask = torch.ones(1, 50, dtype=torch.bool)
    torch.manual_seed(0)
    first, second = sample_negatives(mask, 5), sample_negatives(mask, 5)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, sample_negatives(mask, 5))


def frequencies(indices: Tensor, frames: int) -> Tensor:
    """(T, K) draws, many times over -> (T, T) counts of negative for positive."""
    counts = torch.zeros(frames, frames)
    return counts.scatter_add(1, indices, torch.ones(indices.shape))


def test_distribution_is_the_references() -> None:
    """Uniform over the other masked frames: ours and transformers' counts both, within five standard errors."""
    mask = torch.tensor([[True, False, True, True, False, True, True, False]])
    draws, frames = 8000, mask.shape[1]
    np.random.seed(0)
    theirs = torch.from_numpy(_sample_negative_indices((1, frames), draws, mask.numpy()))[0].long()
    ours = sample_negatives(mask, draws, generator=generator(0))[0]
    masked = mask[0].nonzero().flatten()
    for indices in (theirs, ours):
        counts = frequencies(indices, frames)[masked][:, masked]
        assert not counts.diagonal().any()
        others = counts[~torch.eye(len(masked), dtype=torch.bool)]
        assert len(others) == 20
        assert (others - draws / 4).abs().max() < 5 * math.sqrt(draws * 0.25 * 0.75)


def test_no_host_synchronisation() -> None:
    """On the meta device nothing has a value that the host could wait for."""
    mask = torch.empty(3, 20, dtype=torch.bool, device="meta")
    assert sample_negatives(mask, 7).shape == (3, 20, 7)
    assert thin_to_equal_counts(mask).shape == (3, 20)


# --- equal counts ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 5), st.integers(0, 30), st.floats(0, 1), st.integers(0, 1000))
def test_equal_counts(rows: int, frames: int, share: float, seed: int) -> None:
    mask = draw_mask(rows, frames, share, seed)
    thinned = thin_to_equal_counts(mask, generator=generator(seed))
    assert not (thinned & ~mask).any()
    before, after = mask.sum(1), thinned.sum(1)
    fewest = min((count for count in before.tolist() if count), default=0)
    assert after.tolist() == [fewest if count else 0 for count in before.tolist()]
    assert torch.equal(thinned[before == fewest], mask[before == fewest])
    assert torch.equal(thinned, thin_to_equal_counts(mask, generator=generator(seed)))


def test_what_is_unmasked_is_uniform() -> None:
    rows = 20000
    mask = torch.zeros(rows, 10, dtype=torch.bool)
    mask[:, 2:8] = True
    mask[0, 4:] = False  # two positions: the others keep two of six
    thinned = thin_to_equal_counts(mask, generator=generator(0))
    kept = thinned[1:].sum(0)
    assert kept[:2].sum() == kept[8:].sum() == 0
    assert (kept[2:8] - rows / 3).abs().max() < 5 * math.sqrt(rows * 2 / 9)


def test_spans_thinned_stay_in_the_clip() -> None:
    lengths = torch.tensor([60, 44, 4, 31])
    spans = sample_spans(lengths, 60, probability=0.65, span=5, min_spans=1, generator=generator(0))
    thinned = thin_to_equal_counts(spans, generator=generator(1))
    counts = thinned.sum(1).tolist()
    assert counts[2] == 0  # shorter than a span
    assert counts[0] == counts[1] == counts[3] > 0
    assert not (thinned & (torch.arange(60) >= lengths[:, None])).any()


# --- the references' numpy draws ---------------------------------------------------------------------------------


def outcome(call: Callable[..., Any], seed: int, *args: Any, **kwargs: Any) -> Any:
    """The result and the state of numpy's generator after it, or the type of the error."""
    np.random.seed(seed)
    try:
        result = call(*args, **kwargs)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        return type(error)
    return result.dtype, result.shape, result.tolist(), np.random.rand()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 45), min_size=1, max_size=4),
    st.integers(0, 45),
    st.floats(0, 1.2),
    st.integers(0, 12),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 1000),
)
def test_masks_are_the_references(
    lengths: list[int], size: int, probability: float, span: int, min_masks: int, masked: bool, seed: int
) -> None:
    """Also where it raises, and where the attention mask has more positions than the shape."""
    mask = (torch.arange(45) < torch.tensor(lengths)[:, None]).long() if masked else None
    arguments = (len(lengths), size), probability, span, mask, min_masks
    found = outcome(compute_mask_indices, seed, *arguments)
    assert found == outcome(_compute_mask_indices, seed, *arguments)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(2, 30), st.floats(0, 1), st.integers(0, 9), st.booleans(), st.integers(0, 1000))
def test_negatives_are_the_references(
    rows: int, frames: int, share: float, count: int, masked: bool, seed: int
) -> None:
    """Also where a row has one masked frame or none."""
    mask = draw_mask(rows, frames, share, seed).numpy() if masked else None
    found = outcome(sample_negative_indices, seed, (rows, frames), count, mask)
    assert found == outcome(_sample_negative_indices, seed, (rows, frames), count, mask)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((2, 6), np.ones((2, 5), dtype=bool)),
        ((2, 6), np.ones((1, 6), dtype=bool)),
        ((2, 6), np.eye(2, 6, dtype=int)),
        ((2, 6), np.ones((2, 6), dtype=np.int64)),
        ((2, 6), [[1] * 6] * 2),
        ((1, 1), None),
    ],
)
def test_negatives_raise_where_the_reference_raises(shape: tuple[int, int], mask: Any) -> None:
    found = outcome(sample_negative_indices, 0, shape, 3, mask)
    assert found == outcome(_sample_negative_indices, 0, shape, 3, mask)


def test_masks_raise_where_the_reference_raises() -> None:
    rows = torch.ones(2, 10, dtype=torch.long)
    for arguments in (
        ((2, 10), 0.5, 2, rows.float()),
        ((2, 10), 0.5, 0),
        ((2, 10), 0.5, 11),
        ((2, 10), 0.5, 2, rows.numpy()),
        ((2, 10), 0.5, 2, rows[0]),
        ((3, 10), 0.5, 2, rows),
        ((3, 10), 0.5, 2, rows[:1]),
    ):
        found = outcome(compute_mask_indices, 0, *arguments)
        assert found == outcome(_compute_mask_indices, 0, *arguments), arguments
    with pytest.raises(ValueError, match="at least 1, got 0"):
        compute_mask_indices((2, 10), 0.5, 0)
    with pytest.raises(ValueError, match="at most the number of positions, 10, got 11"):
        compute_mask_indices((2, 10), 0.5, 11)


# --- the contrastive loss ----------------------------------------------------------------------------------------

ROWS, FRAMES, WIDTH, GROUPS, COUNT = 3, 12, 6, 2, 5


def draw_problem(seed: int = 0, share: float = 0.5) -> dict[str, Any]:
    source = generator(seed)
    codes = torch.randint(3, (ROWS, FRAMES, GROUPS), generator=source)
    table = torch.randn(9, WIDTH, generator=source)
    mask = draw_mask(ROWS, FRAMES, share, seed)
    return {
        "predictions": torch.randn(ROWS, FRAMES, WIDTH, generator=source).requires_grad_(),
        "targets": table[codes[..., 0] * 3 + codes[..., 1]].requires_grad_(),
        "codes": codes,
        "mask": mask,
        "negatives": sample_negatives(mask, COUNT, generator=source),
        "temperature": 0.2,
    }


def brute_force(problem: dict[str, Any]) -> Tensor:
    """Frame by frame, negative by negative."""
    targets, codes = problem["targets"].flatten(0, 1), problem["codes"].flatten(0, 1)
    total = torch.zeros(())
    for place in problem["mask"].flatten().nonzero().flatten().tolist():
        prediction = problem["predictions"].flatten(0, 1)[place]
        others = [i for i in problem["negatives"].flatten(0, 1)[place].tolist() if not codes[i].equal(codes[place])]
        cosines = [F.cosine_similarity(prediction, targets[i], dim=0) for i in (place, *others)]
        total = total - (torch.stack(cosines) / problem["temperature"]).log_softmax(0)[0]
    return total


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_contrastive_loss_by_brute_force(seed: int, share: float) -> None:
    problem = draw_problem(seed, share)
    inputs = [problem["predictions"], problem["targets"]]
    found, expected = contrastive_loss(**problem).loss, brute_force(problem)
    torch.testing.assert_close(found, expected)
    if problem["mask"].any():
        torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))
    else:
        assert found == 0
        assert not any(gradient.any() for gradient in torch.autograd.grad(found, inputs))


def test_negatives_of_unmasked_frames_are_not_read() -> None:
    problem = draw_problem()
    found = contrastive_loss(**problem).loss
    problem["negatives"] = problem["negatives"].masked_fill(~problem["mask"].unsqueeze(-1), 10**9)
    assert torch.equal(contrastive_loss(**problem).loss, found)


@pytest.mark.parametrize("wrong", ["other row", "next row", "before", "far", "offset forgotten", "padding"])
def test_negatives_elsewhere_are_refused(wrong: str) -> None:
    problem = draw_problem()
    row, frame = map(int, problem["mask"].nonzero()[-1])
    assert row == 2
    problem["mask"][:, 0] = False
    problem["valid"] = torch.ones(ROWS, FRAMES, dtype=torch.bool)
    problem["valid"][:, 0] = False
    names = {"other row": 4, "next row": ROWS * FRAMES, "before": -1, "far": 10**12, "offset forgotten": 3}
    problem["negatives"] = sample_negatives(problem["mask"], COUNT, generator=generator(0))
    contrastive_loss(**problem)
    problem["negatives"][row, frame, 2] = names.get(wrong, row * FRAMES)
    with pytest.raises(ValueError, match=r"another utterance or in the padding.*`sample_negatives`"):
        contrastive_loss(**problem)


@pytest.mark.parametrize("shape", [(ROWS, FRAMES), (ROWS, FRAMES - 1, COUNT), (ROWS, COUNT, FRAMES), (FRAMES, ROWS, 1)])
def test_negatives_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    problem = draw_problem()
    problem["negatives"] = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"of shape \(3, 12, number of negatives\), got"):
        contrastive_loss(**problem)


def test_one_masked_frame_and_only_equal_negatives() -> None:
    """Without a negative that counts there is nothing to tell apart: the loss is 0, and so are its gradients."""
    problem = draw_problem()
    lone = torch.zeros(ROWS, FRAMES, dtype=torch.bool)
    lone[0, 3] = lone[2, 11] = True
    for mask, codes in ((lone, problem["codes"]), (problem["mask"], torch.zeros_like(problem["codes"]))):
        negatives = sample_negatives(mask, COUNT, generator=generator(0))
        found = contrastive_loss(**{**problem, "mask": mask, "codes": codes, "negatives": negatives}).loss
        assert found == 0
        for gradient in torch.autograd.grad(found, [problem["predictions"], problem["targets"]]):
            assert not gradient.any()


def test_zero_vectors_are_finite() -> None:
    problem = draw_problem()
    problem["predictions"] = torch.zeros(ROWS, FRAMES, WIDTH, requires_grad=True)
    found = contrastive_loss(**problem).loss
    assert found.isfinite()
    assert torch.autograd.grad(found, problem["predictions"])[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_loss_is_float32(dtype: torch.dtype) -> None:
    """Of half-precision inputs too, also under autocast: nothing between the inputs and the loss is rounded to half."""
    problem = draw_problem()
    for name in ("predictions", "targets"):
        problem[name] = problem[name].detach().to(dtype)
    found = contrastive_loss(**problem).loss
    assert found.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(**problem).loss, found)
    for name in ("predictions", "targets"):
        problem[name] = problem[name].float()
    torch.testing.assert_close(found, contrastive_loss(**problem).loss)


def test_many_groups() -> None:
    """Codes are compared group by group: no product of group sizes can overflow."""
    problem = draw_problem()
    codes = torch.zeros(ROWS, FRAMES, 16, dtype=torch.long)
    codes[..., 0] = torch.arange(FRAMES)  # all frames differ, in the first of 16 groups of 320
    distinct = contrastive_loss(**{**problem, "codes": codes}).loss
    codes = codes.flip(-1)
    assert torch.equal(contrastive_loss(**{**problem, "codes": codes}).loss, distinct)
    torch.testing.assert_close(distinct, brute_force({**problem, "codes": codes}))


def test_diversity_loss() -> None:
    assert diversity_loss(torch.tensor(160.0), 640, torch.tensor(12)).item() == pytest.approx(9.0)
    assert diversity_loss(torch.tensor(640.0), 640, torch.tensor(12)) == 0
    assert diversity_loss(torch.tensor(2.0), 640, torch.tensor(0)) == 0
    assert diversity_loss(torch.tensor(2.0, dtype=torch.bfloat16), 640, torch.tensor(300)).dtype == torch.float32
