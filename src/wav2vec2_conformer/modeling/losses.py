"""Losses: pure functions in float32, each with its reduction."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lengths import frame_mask

# B batch, T frames, V vocabulary, S labels or speakers, P width of a comparison, G codebook groups, K negatives

__all__ = [
    "IGNORED",
    "Contrast",
    "am_softmax_loss",
    "class_ids",
    "class_loss",
    "contrastive_loss",
    "ctc_loss",
    "diversity_loss",
    "multi_label_loss",
    "permutation_invariant_loss",
]


def ctc_loss(
    logits: Tensor,
    labels: Tensor,
    lengths: Tensor,
    *,
    blank: int,
    reduction: str = "sum",
    zero_infinity: bool = False,
    prior_scale: float = 0.0,
) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006).

    A clip without a frame has no share in the loss, whatever its labels are.

    With a `prior_scale` above 0 each token's probability is divided by that power of its mean over the batch's valid
    frames (Zeyer et al. 2021, "Why does CTC result in peaky behavior?"). How common a token is then says nothing about
    where it is, so that the first alignments give every label its share of the frames, and a network learns what labels
    sound like instead of how common they are. The loss is then no negative log probability, and may be below 0.

    Args:
        logits: (B, T, V).
        labels: (B, S); negative entries and entries equal to `blank` are left out.
        lengths: (B,) valid frames of each clip.
        blank: the blank's column.
        reduction: `"sum"` over the clips, `"mean"` (each clip's loss divided by its number of labels, then the mean
            over the clips that have a frame) or `"none"` for (B,) losses.
        zero_infinity: whether a clip with more labels than frames counts 0 instead of infinity.
        prior_scale: the power, from 0 (ordinary CTC) to 1; no gradient goes through the mean.

    Returns:
        () or (B,) float32.

    Raises:
        ValueError: `prior_scale` is not from 0 to 1.
    """
    if not 0 <= prior_scale <= 1:
        raise ValueError(f"`prior_scale` must be from 0 to 1, got {prior_scale}")
    if logits.shape[1] == 0:
        losses = logits.float().sum((1, 2))  # zeros that still lead back to the network's output
        return losses if reduction == "none" else losses.sum()
    lengths = lengths.long()  # a mask of floats gives lengths of floats
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)  # (T, B, V)
    lengths = lengths.clamp(max=logits.shape[1])
    wanted = (labels >= 0) & (labels != blank) & (lengths > 0)[:, None]
    counts = wanted.sum(-1)
    ctc = partial(
        F.ctc_loss,
        targets=labels[wanted],
        input_lengths=lengths.clamp(min=1),
        target_lengths=counts,
        blank=blank,
        reduction="none",
    )
    with torch.backends.cudnn.flags(enabled=False):
        if not prior_scale:
            losses = ctc(log_probs, zero_infinity=zero_infinity)
        else:
            scores = log_probs - prior_scale * log_priors(log_probs, lengths)
            # torch wants probabilities that sum to 1. A path has one factor of each frame, so what they are divided by
            # to that end is a constant of the clip.
            losses = ctc(scores.log_softmax(-1), zero_infinity=zero_infinity)
            constant = (scores.logsumexp(-1) * frame_mask(lengths, len(scores)).t()).sum(0)
            if zero_infinity:
                with torch.no_grad():
                    possible = ctc(log_probs, zero_infinity=False).isfinite()
                constant = torch.where(possible, constant, 0.0)
            losses = losses - constant
    losses = losses.masked_fill(lengths == 0, 0.0)
    if reduction == "none":
        return losses
    if reduction == "mean":
        return (losses / counts.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)
    return losses.sum()


def log_priors(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """(V,) log of each token's mean probability over the valid frames of (T, B, V); without a gradient."""
    valid = frame_mask(lengths, len(log_probs)).t().unsqueeze(-1)  # (T, B, 1)
    total = (log_probs.detach().exp() * valid).sum((0, 1))
    return (total / valid.sum().clamp(min=1)).clamp(min=torch.finfo(torch.float32).tiny).log()


class Contrast(NamedTuple):
    """What `contrastive_loss` returns.

    Args:
        loss: () float32, the sum over the masked frames; 0 where there is none, and where no frame has negatives that
            count.
        correct: () masked frames whose target is more similar than every negative; a frame without negatives that
            count is not recognised.
    """

    loss: Tensor
    correct: Tensor


def contrastive_loss(
    predictions: Tensor,
    targets: Tensor,
    codes: Tensor,
    mask: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    valid: Tensor | None = None,
) -> Contrast:
    """Cross entropy of each masked frame's target among its negatives, by cosine similarity (Baevski et al. 2020).

    A negative with the codes of the target does not count. An utterance's similarities are one product of its masked
    predictions with its targets, from which the K+1 wanted columns are picked, so no negative is ever copied.

    Args:
        predictions: (B, T, P).
        targets: (B, T, P).
        codes: (B, T, G) integers; frames with the same ones have the same target.
        mask: (B, T) bool, True = the frame counts.
        negatives: (B, T, K) integers, `row * T + frame`; those of unmasked frames are not read.
        temperature: what the similarities are divided by.
        valid: (B, T) bool, False = padding; `None`: every frame is valid.

    Raises:
        ValueError: negatives of another shape, of another utterance or in the padding.
    """
    inside, most = _frames_of_negatives(negatives, mask, valid)
    places = mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, n), masked frames first
    counts = mask.gather(1, places)
    inside = inside.gather(1, places.unsqueeze(-1).expand(-1, -1, negatives.shape[2]))
    columns = torch.cat((places.unsqueeze(-1), inside), dim=-1)  # (B, n, K+1), the positive first
    with torch.autocast(predictions.device.type, enabled=False):
        masked = predictions.gather(1, places.unsqueeze(-1).expand(-1, -1, predictions.shape[2]))
        masked = F.normalize(masked.float(), dim=-1, eps=1e-8)  # (B, n, P)
        similarities = masked @ F.normalize(targets.float(), dim=-1, eps=1e-8).transpose(1, 2)  # (B, n, T)
        logits = similarities.gather(2, columns) / temperature
    equal = torch.ones_like(inside, dtype=torch.bool)
    for group in codes.unbind(-1):  # (B, T)
        picked = group.unsqueeze(1).expand(-1, most, -1).gather(2, columns)
        equal &= picked[..., 1:] == picked[..., :1]
    negative_logits = logits[..., 1:].masked_fill(equal, -torch.inf)
    losses = torch.cat((logits[..., :1], negative_logits), dim=-1).logsumexp(-1) - logits[..., 0]  # (B, n)
    with torch.no_grad():
        closest = F.pad(negative_logits, (1, 0), value=-torch.inf).amax(-1)  # padded, for there may be no negatives
        correct = counts & (closest > -torch.inf) & (logits[..., 0] > closest)
    return Contrast(losses.masked_fill(~counts, 0).sum(), correct.sum())


def _frames_of_negatives(negatives: Tensor, mask: Tensor, valid: Tensor | None) -> tuple[Tensor, int]:
    """Negatives as (B, T, K) frames of their own row, 0 where they are not read, and the highest count of a row."""
    rows, frames = mask.shape
    if negatives.dim() != 3 or negatives.shape[:2] != mask.shape:
        raise ValueError(
            f"the negatives must be of shape ({rows}, {frames}, number of negatives), got {tuple(negatives.shape)}"
        )
    read = mask.unsqueeze(-1)
    inside = negatives.long() - frames * torch.arange(rows, device=negatives.device).view(-1, 1, 1)
    wrong = (inside < 0) | (inside >= frames)
    inside = inside.masked_fill(wrong | ~read, 0)
    if valid is not None:
        wrong = wrong | ~valid.unsqueeze(1).expand(-1, frames, -1).gather(2, inside)
    most, refused = torch.stack((mask.sum(1).amax(), (wrong & read).any().long())).tolist()  # the one synchronisation
    if refused:
        raise ValueError(
            "a masked frame has a negative of another utterance or in the padding; negatives are `row * frames + "
            f"frame`, with {frames} frames a row and `frame` a valid one of the same row: draw them with "
            "`sample_negatives` for masks that keep to the attention mask, as those of `sample_spans` do"
        )
    return inside, most


def diversity_loss(perplexity: Tensor, entries: int, masked: Tensor) -> Tensor:
    """Unused share of the codebook, times the number of masked frames (Baevski et al. 2020, equation 4, as in fairseq).

    Args:
        perplexity: () effectively used entries, summed over the codebook groups.
        entries: all entries, G * V.
        masked: () number of masked frames.
    """
    return (entries - perplexity.float()) / entries * masked


IGNORED = -100  # the label of what has no share in a loss, as everywhere in torch


def class_ids(labels: Tensor, shape: tuple[int, ...], classes: int) -> Tensor:
    """Labels as int64 class ids of `shape`, each in [0, classes) or `IGNORED`; (B, 1) serves for a shape of (B,).

    Raises:
        ValueError: another shape, another kind of number, or a class that there is not.
    """
    if labels.is_floating_point() or labels.shape not in (shape, (*shape, 1)):
        raise ValueError(
            f"`labels` must be class ids: whole numbers of shape {tuple(shape)}, got {tuple(labels.shape)} of "
            f"{labels.dtype}; one-hot rows become class ids by `.argmax(-1)`"
        )
    ids = labels.reshape(shape).long()
    wrong = ((ids < 0) | (ids >= classes)) & (ids != IGNORED)
    if bool(wrong.any()):
        raise ValueError(
            f"`labels` must be at least 0 and below num_labels = {classes}, or {IGNORED} where they should not count, "
            f"got {ids[wrong][0].item()}; a configuration with more classes needs `num_labels=` or `id2label=`"
        )
    return ids


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, the mean over all labels but those of -100.

    Args:
        logits: (..., C).
        labels: (...) class ids.

    Returns:
        () in at least float32; 0 where no label counts.
    """
    wide = _at_least_float32(logits).flatten(0, -2)
    total = F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def multi_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each class, the mean over all targets but negative ones.

    Args:
        logits: (..., C).
        targets: (..., C), the probability of each class, in [0, 1].

    Returns:
        () in at least float32; 0 where no target counts.
    """
    wide, counted = _at_least_float32(logits), targets >= 0
    wanted, weight = targets.clamp(min=0).to(wide.dtype), counted.to(wide.dtype)
    total = F.binary_cross_entropy_with_logits(wide, wanted, weight, reduction="sum")
    return total / counted.sum().clamp(min=1)


def permutation_invariant_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of speakers a frame, under the assignment of outputs to speakers that is best for each clip.

    Source: Fujita et al. 2019, "End-to-end neural speaker diarization with permutation-free objectives". All S!
    assignments are compared.

    Args:
        logits: (B, T, S).
        targets: (B, T, S), 1 where a speaker speaks, 0 where not, -100 in frames that do not count.

    Returns:
        () in at least float32: the sum over the frames that count of the mean over their S outputs.
    """
    wide, counted = _at_least_float32(logits), targets[..., :1] >= 0  # (B, T, 1)
    wide = wide.masked_fill(~counted, 0)
    wanted = targets.masked_fill(~counted, 0).to(wide.dtype)
    silent = F.softplus(wide).masked_fill(~counted, 0).sum(1)  # (B, S) the cost of an output if nobody ever spoke
    with torch.autocast(logits.device.type, enabled=False):
        costs = silent.unsqueeze(2) - wide.transpose(1, 2) @ wanted  # (B, S, S): of output i as speaker j
    speakers = logits.shape[-1]
    orders = torch.tensor(list(permutations(range(speakers))), device=logits.device)  # (S!, S)
    totals = costs[:, torch.arange(speakers, device=logits.device), orders].sum(-1)  # (B, S!)
    return totals.min(-1).values.sum() / speakers


def am_softmax_loss(
    vectors: Tensor, directions: Tensor, labels: Tensor, *, scale: float = 30.0, margin: float = 0.4
) -> Tensor:
    """Cross entropy of scaled cosines, the right class's less a margin (additive margin softmax, Wang et al. 2018).

    A vector of zeros has no direction: its cosines are 0, and it gets no gradient.

    Args:
        vectors: (B, X), of any length.
        directions: (X, C), one column a class, of any length.
        labels: (B,) class ids; a vector labelled -100 has no share.
        scale: what the cosines are multiplied by.
        margin: what the right class's cosine is lessened by.

    Returns:
        () in at least float32, the mean over the labelled vectors; 0 where there is none.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        cosines = _unit(_at_least_float32(vectors), 1) @ _unit(_at_least_float32(directions), 0)  # (B, C)
    right = labels.unsqueeze(1) == torch.arange(directions.shape[1], device=labels.device)
    return class_loss(scale * torch.where(right, cosines - margin, cosines), labels)


def _unit(x: Tensor, dim: int) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return torch.where(length > 1e-12, x / length.clamp(min=1e-12), 0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
