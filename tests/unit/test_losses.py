"""CTC: brute force, torch, reductions, and what does not count."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wav2vec2_conformer.modeling.losses import ctc_loss


def draw_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def brute_force(logits: Tensor, labels: tuple[int, ...], blank: int) -> float:
    """-log of the summed probability of every path that collapses to the labels."""
    log_probs = logits.double().log_softmax(-1).tolist()
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        if collapse(path, blank) == labels:
            total += math.exp(sum(log_probs[t][token] for t, token in enumerate(path)))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("blank", [0, 2])
def test_brute_force(blank: int) -> None:
    a, b = (token for token in range(3) if token != blank)
    cases = [(5, (a, b)), (4, (a, a)), (5, (b,)), (3, ()), (1, (a,)), (4, (a, b, a)), (2, (b, b)), (0, (a,))]
    logits = draw_logits(len(cases), 5, 3)
    labels = torch.full((len(cases), 3), -100)
    for row, (_, wanted) in enumerate(cases):
        labels[row, : len(wanted)] = torch.tensor(wanted, dtype=torch.long)
    lengths = torch.tensor([length for length, _ in cases])
    losses = ctc_loss(logits, labels, lengths, blank=blank, reduction="none")
    expected = [
        brute_force(row[:length], wanted, blank) if length else 0.0
        for row, (length, wanted) in zip(logits, cases, strict=True)
    ]
    assert expected[6] == math.inf  # two equal labels need three frames
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_equals_torch_with_gradients(reduction: str) -> None:
    lengths, counts = torch.tensor([20, 13, 7]), torch.tensor([5, 6, 2])
    labels = torch.randint(1, 9, (3, 6), generator=torch.Generator().manual_seed(1))
    padded = labels.masked_fill(torch.arange(6) >= counts[:, None], -100)
    ours = draw_logits(3, 20, 9).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = ctc_loss(ours, padded, lengths, blank=0, reduction=reduction)
    expected = F.ctc_loss(theirs.log_softmax(-1).transpose(0, 1), labels, lengths, counts, 0, reduction)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_reductions_belong_together() -> None:
    logits, lengths = draw_logits(3, 12, 6), torch.tensor([12, 12, 9])
    labels = torch.tensor([[1, 2, 3, 4], [5, -100, -100, -100], [-100] * 4])
    rows = ctc_loss(logits, labels, lengths, blank=0, reduction="none")
    assert rows.shape == (3,)
    torch.testing.assert_close(ctc_loss(logits, labels, lengths, blank=0), rows.sum())
    # A clip without labels counts its whole loss.
    mean = (rows / torch.tensor([4.0, 1.0, 1.0])).mean()
    torch.testing.assert_close(ctc_loss(logits, labels, lengths, blank=0, reduction="mean"), mean)


def test_negative_and_blank_labels_are_left_out() -> None:
    logits, lengths = draw_logits(2, 15, 7), torch.tensor([15, 10])
    clean = torch.tensor([[1, 2, 2, 5], [4, 6, -100, -100]])
    littered = torch.tensor([[3, 1, -100, 2, 2, -1, 5, 3], [-100, 4, 3, -7, 6, 3, 3, -100]])
    expected = ctc_loss(logits, clean, lengths, blank=3, reduction="none")
    torch.testing.assert_close(ctc_loss(logits, littered, lengths, blank=3, reduction="none"), expected)
    other = ctc_loss(logits, clean.where(clean != 5, 6), lengths, blank=3, reduction="none")
    assert (other[0] - expected[0]).abs() > 0.1  # labels do count
    mean = ctc_loss(logits, littered, lengths, blank=3, reduction="mean")
    torch.testing.assert_close(mean, (expected / torch.tensor([4.0, 2.0])).mean())


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_clips_without_a_frame_have_no_share(reduction: str) -> None:
    logits = draw_logits(3, 9, 5).requires_grad_()
    labels = torch.tensor([[1, 2], [3, 4], [-100, -100]])
    lengths = torch.tensor([9, 0, 0])
    loss = ctc_loss(logits, labels, lengths, blank=0, reduction=reduction)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1:] == 0).all()
    assert (logits.grad[0] != 0).any()
    alone = ctc_loss(logits[:1], labels[:1], lengths[:1], blank=0, reduction="sum")
    expected = {"sum": alone, "mean": alone / 2, "none": torch.stack([alone, alone * 0, alone * 0])}
    torch.testing.assert_close(loss, expected[reduction])


def test_frames_beyond_the_length_do_not_count() -> None:
    logits = draw_logits(2, 12, 5).requires_grad_()
    labels, lengths = torch.tensor([[1, 2], [3, 3]]), torch.tensor([8, 5])
    loss = ctc_loss(logits, labels, lengths, blank=0)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 8:] == 0).all()
    assert (logits.grad[1, 5:] == 0).all()
    cut = [ctc_loss(logits[i : i + 1, :t], labels[i : i + 1], lengths[i : i + 1], blank=0) for i, t in ((0, 8), (1, 5))]
    torch.testing.assert_close(loss, cut[0] + cut[1])


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_no_frames_at_all(reduction: str) -> None:
    logits = torch.zeros(2, 0, 5, requires_grad=True)
    labels, lengths = torch.tensor([[1], [2]]), torch.zeros(2, dtype=torch.long)
    loss = ctc_loss(logits, labels, lengths, blank=0, reduction=reduction)
    assert loss.dtype == torch.float32
    assert loss.tolist() == ([0.0, 0.0] if reduction == "none" else 0.0)
    loss.sum().backward()  # leads back to the logits, so that a training step needs no special case
    assert logits.grad is not None


def test_zero_infinity() -> None:
    labels, lengths = torch.tensor([[1, 2, 3], [1, -100, -100]]), torch.tensor([2, 6])
    logits = draw_logits(2, 6, 5).requires_grad_()
    infinite = ctc_loss(logits, labels, lengths, blank=0, reduction="none")
    assert infinite[0] == math.inf
    losses = ctc_loss(logits, labels, lengths, blank=0, reduction="none", zero_infinity=True)
    assert losses[0] == 0
    torch.testing.assert_close(losses[1], infinite[1])
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] == 0).all()
    assert (logits.grad[1, :6] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_always_float32(dtype: torch.dtype, reduction: str) -> None:
    logits = draw_logits(2, 30, 12, dtype=dtype).requires_grad_()
    labels, lengths = torch.tensor([[1, 2, 3], [4, 5, -100]]), torch.tensor([30, 22])
    loss = ctc_loss(logits, labels, lengths, blank=0, reduction=reduction)
    assert loss.dtype == torch.float32
    # Nothing but the input's own rounding is lost.
    torch.testing.assert_close(loss, ctc_loss(logits.detach().float(), labels, lengths, blank=0, reduction=reduction))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


def test_float32_under_autocast() -> None:
    logits, labels, lengths = draw_logits(1, 8, 5), torch.tensor([[1, 2]]), torch.tensor([8])
    expected = ctc_loss(logits, labels, lengths, blank=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ctc_loss(logits, labels, lengths, blank=0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_lengths_past_the_end_mean_all_frames() -> None:
    logits, labels = draw_logits(1, 8, 5), torch.tensor([[1, 2]])
    loss = ctc_loss(logits, labels, torch.tensor([11]), blank=0)
    torch.testing.assert_close(loss, ctc_loss(logits, labels, torch.tensor([8]), blank=0))


@pytest.mark.parametrize("prior_scale", [0.3, 1.0])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_priors_are_divided_out_and_gradients_are_those_of_brute_force(prior_scale: float, zero_infinity: bool) -> None:
    cases = [(5, (1, 2)), (4, (1, 1)), (3, ()), (4, (2, 1, 2)), (0, (1,)), *([(2, (1, 1))] if zero_infinity else [])]
    logits = draw_logits(len(cases), 5, 3).requires_grad_()
    labels = torch.full((len(cases), 3), -100)
    for row, (_, wanted) in enumerate(cases):
        labels[row, : len(wanted)] = torch.tensor(wanted, dtype=torch.long)
    lengths = torch.tensor([length for length, _ in cases])
    upstream = torch.linspace(0.5, 2.0, len(cases))
    chosen = {"blank": 0, "zero_infinity": zero_infinity, "prior_scale": prior_scale, "reduction": "none"}
    losses = ctc_loss(logits, labels, lengths, **chosen)
    (losses * upstream).sum().backward()

    exact = logits.detach().double().requires_grad_()
    log_probs = exact.log_softmax(-1)
    valid = torch.arange(5) < lengths[:, None]
    scores = log_probs - prior_scale * log_probs.detach().exp()[valid].mean(0).log()
    expected = []
    for row, (length, wanted) in enumerate(cases):
        paths = [path for path in itertools.product(range(3), repeat=length) if collapse(path, 0) == wanted]
        totals = [sum((scores[row, t, token] for t, token in enumerate(path)), exact.sum() * 0) for path in paths]
        expected.append(-torch.logsumexp(torch.stack(totals), 0) if length and paths else exact.sum() * 0)
    (torch.stack(expected) * upstream).sum().backward()
    torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert exact.grad is not None
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(ctc_loss(logits, labels, lengths, **(chosen | {"prior_scale": 0.0})), ctc_loss(
        logits, labels, lengths, blank=0, zero_infinity=zero_infinity, reduction="none"
    ))  # fmt: skip


def test_priors_of_nothing_and_losses_of_zero() -> None:
    logits = draw_logits(2, 3, 4).requires_grad_()
    labels = torch.tensor([[1], [2]])
    loss = ctc_loss(logits, labels, torch.tensor([0, 0]), blank=0, prior_scale=1.0)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))

    # One frame, one path: its probability over its prior, which is the same number, is 1, and its loss 0.
    shares = torch.tensor([0.7, 0.2, 0.1])
    frame = shares.log()[None, None].clone().requires_grad_()
    loss = ctc_loss(frame, torch.tensor([[1]]), torch.tensor([1]), blank=0, prior_scale=1.0, zero_infinity=True)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert frame.grad is not None
    torch.testing.assert_close(frame.grad[0, 0], shares - torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match=r"`prior_scale` must be from 0 to 1, got 1\.5"):
        ctc_loss(frame, torch.tensor([[1]]), torch.tensor([1]), blank=0, prior_scale=1.5)
