"""Pre-training in a padded batch is pre-training of each clip: outputs, losses and gradients."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frame_mask, frames_of
from wav2vec2_conformer.modeling.masking import sample_spans
from wav2vec2_conformer.modeling.negatives import sample_negatives
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining

VARIANTS = list(itertools.product(["relative", "rotary", None], ["layer", "group"]))
FILLS = {"zeros": 0.0, "noise": None, "1e3": 1e3, "nan": float("nan"), "-inf": -float("inf")}
CLIPS = [8000, 5000, 2720, 401]  # 24, 15, 8 and 1 frames
NO_DROPOUT = dict.fromkeys(
    [f"{name}_dropout" for name in ("hidden", "activation", "attention", "feat_proj", "final", "conformer_conv")], 0.0
)
GROUPS = 2

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def build(variant: tuple[str | None, str], **values: Any) -> Wav2Vec2ConformerForPreTraining:
    """A model whose weights are so large that padding would show."""
    positions, norm = variant
    options: dict[str, Any] = {
        "position_embeddings_type": positions,
        "feat_extract_norm": norm,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "hidden_act": "swish",
        "conv_dim": (8,) * 7,
        "conv_bias": True,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "conv_depthwise_kernel_size": 7,
        "layerdrop": 0.0,
        "num_codevector_groups": GROUPS,
        "num_codevectors_per_group": 10,
        "codevector_dim": 12,
        "proj_codevector_dim": 14,
        "num_negatives": 6,
        "diversity_loss_weight": 0.5,
        **NO_DROPOUT,
    }
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**{**options, **values})).eval()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias") or "pos_bias" in name:
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 2:
                gain = 2.0 if "linear_q" in name or "linear_k" in name or "linear_pos" in name else 1.2
                parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
        # Without a constant part the logits differ most between frames, and so do the codes.
        features = model.wav2vec2_conformer(draw_clips(CLIPS)[0][None]).extract_features[0]
        choice = model.quantizer.weight_proj
        choice.bias.copy_(-choice.weight @ features.mean(0))
    return model


cached = functools.cache(build)  # for tests that only evaluate


def draw_clips(lengths: list[int]) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=source) for length in lengths]


def collate(clips: list[Tensor], size: int, fill: float | None = 0.0) -> dict[str, Tensor]:
    """Pad clips to `size` samples with `fill` (None: noise)."""
    shape = len(clips), size
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(99)) if fill is None else torch.full(shape, fill)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
        mask[row, : len(clip)] = 1
    return {"input_values": batch.to(clips[0].dtype), "attention_mask": mask}


def draw_task(model: Wav2Vec2ConformerForPreTraining, lengths: list[int], size: int) -> tuple[dict[str, Tensor], Any]:
    """Masks and negatives for a padded batch, and the same ones for each clip alone."""
    config, source = model.config, torch.Generator().manual_seed(5)
    frames, valid = frames_of(size, config), [frames_of(length, config) for length in lengths]
    mask = sample_spans(torch.tensor(valid), frames, probability=0.5, span=2, min_spans=1, generator=source)
    mask |= (frame_mask(torch.tensor(valid), frames)) & (torch.arange(frames) == 0)  # the shortest clips too
    negatives = sample_negatives(mask, config.num_negatives, generator=source)
    alone = [
        {
            "mask_time_indices": mask[row : row + 1, :count],
            "sampled_negative_indices": negatives[row : row + 1, :count] - row * frames,
        }
        for row, count in enumerate(valid)
    ]
    return {"mask_time_indices": mask, "sampled_negative_indices": negatives}, alone


def step(model: nn.Module, batch: dict[str, Tensor], field: str = "loss") -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and all gradients, None as zeros; the Gumbel noise is the same each time."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**batch)[field]
    loss.backward()
    return loss.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    scale = max(value.abs().max().item() for value in theirs.values())
    assert scale > 0
    for name, value in ours.items():
        assert value.isfinite().all(), name
        assert (value - theirs[name]).abs().max() <= tolerance * scale, name


# float32 rounding, which depends on the kernels that torch picks, reaches 1.04e-5 of scale with these large weights:
# float64 shows that nothing but rounding is left.
@each_variant
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-5), (torch.float64, 1e-11)])
def test_batched_is_alone(variant: tuple[str | None, str], fill: str, dtype: torch.dtype, bound: float) -> None:
    model = copy.deepcopy(cached(variant)).to(dtype)
    clips = [clip.to(dtype) for clip in draw_clips([*CLIPS, 399])]
    task, each = draw_task(model, [*CLIPS, 399], 8640)
    batch = collate(clips, 8640, FILLS[fill])
    batch["input_values"] = batch["input_values"].to(dtype)
    with torch.no_grad():
        batched = model(**batch, **task)
        total = torch.zeros(())
        for row, (clip, own) in enumerate(zip(clips, each, strict=True)):
            alone = model(clip[None], **own)
            frames = frames_of(len(clip), model.config)
            for name in ("projected_states", "projected_quantized_states"):
                assert alone[name].shape == (1, frames, 14)
                if frames:
                    error = (batched[name][row, :frames] - alone[name][0]).abs().max()
                    assert error <= bound * alone[name].abs().max()
                assert not batched[name][row, frames:].any()
            total += alone.contrastive_loss
    assert batched.contrastive_loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert total > 0


@each_variant
def test_reference_padding_leaks(variant: tuple[str | None, str]) -> None:
    """The setup of these tests shows a leak where there is one."""
    model, clips = cached(variant, padding="reference"), draw_clips(CLIPS)
    with torch.no_grad():
        batched = model(**collate(clips, 8640)).projected_states
        alone = model(clips[1][None]).projected_states
    assert (batched[1, :15] - alone[0]).abs().max() > 0.02 * alone.abs().max()


@each_variant
def test_gradients_of_a_batch_are_the_sums_alone(variant: tuple[str | None, str]) -> None:
    model, clips = build(variant).double(), [clip.double() for clip in draw_clips([*CLIPS, 399])]
    task, each = draw_task(model, [*CLIPS, 399], 8640)
    _, gradients = step(model, {**collate(clips, 8640, None), **task}, "contrastive_loss")
    alone = [
        step(model, {"input_values": clip[None], **own}, "contrastive_loss")[1]
        for clip, own in zip(clips, each, strict=True)
    ]
    assert_same(gradients, {name: sum(part[name] for part in alone) for name in gradients}, 1e-5)


@each_variant
@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_the_padding_does_not_matter(variant: tuple[str | None, str], training: bool) -> None:
    """Loss and gradients for any content of the padding, and for masks that reach into it."""
    model, clips = build(variant).train(training), draw_clips(CLIPS)
    task, _ = draw_task(model, CLIPS, 8640)
    valid = frame_mask(torch.tensor([frames_of(length, model.config) for length in CLIPS]), 26)
    wider = {**task, "mask_time_indices": task["mask_time_indices"] | ~valid}
    loss, gradients = step(copy.deepcopy(model), {**collate(clips, 8640), **task})
    for fill, masks in itertools.product(FILLS.values(), (task, wider)):
        other, others = step(copy.deepcopy(model), {**collate(clips, 8640, fill), **masks})
        assert other.item() == pytest.approx(loss.item(), rel=1e-6)
        assert_same(others, gradients, 1e-6)


@each_variant
def test_length_of_the_padding_and_rows_of_padding_do_not_matter(variant: tuple[str | None, str]) -> None:
    """Perplexity and both losses; in evaluation, because the Gumbel noise depends on the size of the batch."""
    model = build(variant).double()
    results = []
    for lengths, size in ((CLIPS, 8000), (CLIPS, 12000), ([*CLIPS, 0, 399], 8640)):
        task, _ = draw_task(model, CLIPS, 8000)
        frames, mask = frames_of(size, model.config), task["mask_time_indices"]
        wider = torch.zeros(len(lengths), frames, dtype=torch.bool)
        wider[:4, :24] = mask
        rows = torch.arange(4).view(-1, 1, 1)
        negatives = torch.zeros(len(lengths), frames, 6, dtype=torch.long)
        negatives[:4, :24] = task["sampled_negative_indices"] - rows * 24 + rows * frames
        batch = collate([clip.double() for clip in draw_clips(lengths)], size, None)
        batch |= {"mask_time_indices": wider, "sampled_negative_indices": negatives}
        with torch.no_grad():
            output = model(**batch)
        gradients = step(model, batch)[1]
        scalars = output.loss, output.contrastive_loss, output.diversity_loss, output.codevector_perplexity
        results.append(([value.item() for value in scalars], gradients))
    for scalars, gradients in results[1:]:
        assert scalars == pytest.approx(results[0][0], rel=1e-5)
        assert_same(gradients, results[0][1], 1e-5)


@each_variant
def test_perplexity_without_masks_is_over_valid_frames(variant: tuple[str | None, str]) -> None:
    model, (clip,) = cached(variant), draw_clips([5000])
    with torch.no_grad():
        alone = model(clip[None]).codevector_perplexity
        batched = model(**collate([clip, *draw_clips([0, 399])], 8640, None)).codevector_perplexity
    assert batched.item() == pytest.approx(alone.item(), rel=1e-5)


def test_negatives_in_the_padding_are_refused() -> None:
    clips = draw_clips(CLIPS)
    task, _ = draw_task(cached(VARIANTS[0]), CLIPS, 8640)
    row, frame = map(int, task["mask_time_indices"].nonzero()[-1])
    task["sampled_negative_indices"][row, frame, 0] = row * 26 + 25
    with pytest.raises(ValueError, match="in the padding"):
        cached(VARIANTS[0])(**collate(clips, 8640), **task)
    assert cached(VARIANTS[0], padding="reference")(**collate(clips, 8640), **task).loss.isfinite()


@each_variant
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [[0], [399], [0, 399], [401], [8000, 5000]], ids=str)
def test_one_masked_frame_and_none(variant: tuple[str | None, str], training: bool, lengths: list[int]) -> None:
    """Finite: without negatives the contrastive loss is 0, without masked frames the whole loss is."""
    model, size = build(variant).train(training), max(*lengths, 1)
    frames = frames_of(size, model.config)
    batch = collate(draw_clips(lengths), size)
    for one in (False, True):
        mask = torch.zeros(len(lengths), frames, dtype=torch.bool)
        if one and frames:
            mask[0, 0] = True
        negatives = sample_negatives(mask, 6, generator=torch.Generator().manual_seed(0))
        batch |= {"mask_time_indices": mask, "sampled_negative_indices": negatives}
        output = model(**batch)
        assert output.contrastive_loss == 0
        assert (output.diversity_loss > 0) == bool(mask.any())
        assert output.codevector_perplexity.isfinite()
        _, gradients = step(model, batch)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
