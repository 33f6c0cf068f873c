"""A clip gives what it gives alone, whatever it is batched with and whatever stands in its padding."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.lengths import frame_mask, frames_of
from wav2vec2_conformer.modeling.batch_norm import FrameBatchNorm

Variant = tuple[str | None, str, bool]  # position_embeddings_type, feat_extract_norm, add_adapter
VARIANTS: list[Variant] = list(itertools.product(["relative", "rotary", None], ["layer", "group"], [False, True]))
WITHOUT_ADAPTER = [variant for variant in VARIANTS if not variant[2]]
FILLS = {"zeros": 0.0, "noise": None, "1e3": 1e3, "nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}
CLIPS = [8000, 5000, 2720, 401]
NO_DROPOUT = dict.fromkeys(
    [f"{name}_dropout" for name in ("hidden", "activation", "attention", "feat_proj", "final", "conformer_conv")], 0.0
)
BLANK = 2


@torch.no_grad()
def enlarge(model: nn.Module) -> None:
    """Draw weights, biases and statistics so large that attention is far from uniform and padding would show."""
    source = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=source)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("bias") or "pos_bias" in name:
            parameter.copy_(0.3 * noise)
        elif parameter.dim() > 1:
            gain = 2.0 if "linear_q" in name or "linear_k" in name or "linear_pos" in name else 1.2
            parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
    for module in model.modules():
        if isinstance(module, FrameBatchNorm):
            module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=source))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=source))


def build(variant: Variant, **values: Any) -> Wav2Vec2ConformerForCTC:
    positions, norm, adapter = variant
    options: dict[str, Any] = {
        "position_embeddings_type": positions,
        "feat_extract_norm": norm,
        "add_adapter": adapter,
        "num_adapter_layers": 2,
        "output_hidden_size": 24 if adapter else None,
        "vocab_size": 11,
        "pad_token_id": BLANK,
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
    }
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**options, **values}))
    enlarge(model)
    return model.eval()


cached = functools.cache(build)  # for tests that only evaluate


def draw_clips(lengths: list[int], seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=source) for length in lengths]


def collate(clips: list[Tensor], size: int | None = None, fill: float | None = 0.0) -> tuple[Tensor, Tensor]:
    """Pad clips to `size` samples with `fill` (None: noise) -> (B, N) samples and mask."""
    size = max(len(clip) for clip in clips) if size is None else size
    shape = len(clips), size
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(99)) if fill is None else torch.full(shape, fill)
    batch = batch.to(clips[0].dtype)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
        mask[row, : len(clip)] = 1
    return batch, mask


@torch.no_grad()
def evaluate(model: Wav2Vec2ConformerForCTC, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Logits, last hidden state, features and all hidden states."""
    inner = model.wav2vec2_conformer(x, attention_mask=mask, output_hidden_states=True)
    return [model(x, attention_mask=mask).logits, inner.last_hidden_state, inner.extract_features, *inner.hidden_states]


def assert_rows_are_alone(
    model: Wav2Vec2ConformerForCTC, clips: list[Tensor], batched: list[Tensor], tolerance: float = 1e-5
) -> None:
    """Valid frames of each row equal the clip alone; the rest is 0, and the blank's argmax in the logits."""
    adapter = model.config.add_adapter
    # Logits and last hidden state come after the adapter, the other tensors before it.
    after = [adapter, adapter, *[False] * (len(batched) - 2)]
    for row, clip in enumerate(clips):
        alone = evaluate(model, clip[None])
        for index, (inside, expected) in enumerate(zip(batched, alone, strict=True)):
            frames = frames_of(len(clip), model.config, add_adapter=after[index])
            assert expected.shape[1] == frames
            assert inside.isfinite().all()
            if frames:
                error = (inside[row, :frames] - expected[0]).abs().max()
                assert error <= tolerance * expected.abs().max(), (row, index)
            padding = inside[row, frames:]
            assert (padding.argmax(-1) == BLANK).all() if index == 0 else (padding == 0).all()


def leak(model: Wav2Vec2ConformerForCTC, clips: list[Tensor], batched: list[Tensor]) -> float:
    """Largest difference of the logits from the clips alone, relative to their scale."""
    worst = 0.0
    for row, clip in enumerate(clips):
        alone = evaluate(model, clip[None])[0]
        error = (batched[0][row, : alone.shape[1]] - alone[0]).abs().max() / alone.abs().max()
        worst = max(worst, error.item())
    return worst


# --- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("fill", FILLS)
def test_batched_is_alone(variant: Variant, fill: str) -> None:
    model, clips = cached(variant), draw_clips(CLIPS)
    batched = evaluate(model, *collate(clips, 8000 + 2 * 320, FILLS[fill]))
    assert_rows_are_alone(model, clips, batched)
    assert leak(model, clips, batched) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reference_padding_leaks(variant: Variant) -> None:
    """The setup of these tests shows a leak where there is one: the references', on the same weights and clips."""
    model, clips = cached(variant, padding="reference"), draw_clips(CLIPS[:3])
    assert leak(model, clips, evaluate(model, *collate(clips))) > 0.02
    alone, given = evaluate(model, clips[0][None]), evaluate(cached(variant), clips[0][None])
    assert all(map(torch.equal, alone, given))  # without padding the two are the same network


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_batched_is_alone_in_float64(variant: Variant) -> None:
    """No small leak hides behind the rounding of float32."""
    model, clips = build(variant).double(), [clip.double() for clip in draw_clips(CLIPS)]
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, 9000, None)), tolerance=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6000), min_size=1, max_size=3), st.integers(0, 1500), st.sampled_from([0.0, None, 1e3]))
def test_batched_is_alone_at_any_length(variant: Variant, lengths: list[int], extra: int, fill: float | None) -> None:
    model, clips = cached(variant), draw_clips(lengths, seed=sum(lengths))
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, max(lengths) + extra, fill)))


@pytest.mark.parametrize("variant", WITHOUT_ADAPTER, ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
def test_adapters_of_other_kernels(variant: Variant, kernel: int) -> None:
    positions, norm, _ = variant
    model = cached((positions, norm, True), adapter_kernel_size=kernel)
    clips = draw_clips([8000, 5000, 720, 400, 0])
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, 9000, None)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_order_of_the_batch_does_not_matter(variant: Variant) -> None:
    model, clips = cached(variant), draw_clips([*CLIPS, 0])
    expected = evaluate(model, *collate(clips))
    for order in ([4, 3, 2, 1, 0], [2, 4, 0, 3, 1]):
        permuted = evaluate(model, *collate([clips[i] for i in order]))
        for ours, theirs in zip(permuted, expected, strict=True):
            assert (ours - theirs[order]).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("variant", WITHOUT_ADAPTER, ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions_of_valid_frames(variant: Variant, implementation: str) -> None:
    model, clips = build(variant).wav2vec2_conformer, draw_clips(CLIPS)
    model.set_attn_implementation(implementation)
    x, mask = collate(clips, None, None)
    with torch.no_grad():
        batched = model(x, attention_mask=mask, output_attentions=True).attentions
        for row, clip in enumerate(clips):
            frames = frames_of(len(clip), model.config)
            for inside, alone in zip(batched, model(clip[None], output_attentions=True).attentions, strict=True):
                assert (inside[row, :, :frames, :frames] - alone[0]).abs().max() <= 1e-5
                assert (inside[row, :, :frames, frames:] == 0).all()


# --- short clips -------------------------------------------------------------------------------------------------

SHORT = {0: 0, 1: 0, 9: 0, 399: 0, 400: 1, 401: 1}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.filterwarnings("error")
def test_short_clips_alone(variant: Variant) -> None:
    model = cached(variant)
    for clip, frames in zip(draw_clips(list(SHORT)), SHORT.values(), strict=True):
        results = evaluate(model, clip[None])
        assert results[0].shape == (1, frames, 11)
        assert all(result.shape[1] == frames for result in results)
        assert all(result.isfinite().all() for result in results)
        masked = evaluate(model, *collate([clip]))
        for ours, theirs in zip(masked, results, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("beside", [[6000], [], [401]], ids=["long", "one another", "400"])
def test_short_clips_in_a_batch(variant: Variant, beside: list[int]) -> None:
    model, clips = cached(variant), draw_clips([*SHORT, *beside])
    batched = evaluate(model, *collate(clips, None, None))
    assert_rows_are_alone(model, clips, batched)
    paths = batched[0].argmax(-1)
    assert (paths[:4] == BLANK).all()  # an empty text for clips without a frame


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_rows_of_padding_only(variant: Variant) -> None:
    model = cached(variant)
    for size in (0, 399, 5000):
        batched = evaluate(model, *collate(draw_clips([0, 0]), size, None))
        assert_rows_are_alone(model, draw_clips([0, 0]), batched)
        assert batched[0].shape[:2] == (2, frames_of(size, model.config))


# --- losses and gradients in evaluation --------------------------------------------------------------------------

LABELS = torch.tensor([[1, 3], [4, -100], [5, -100], [6, -100]])


def step(model: nn.Module, x: Tensor, mask: Tensor | None, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and all gradients, None as zeros."""
    model.zero_grad()
    loss = model(x, attention_mask=mask, labels=labels).loss
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


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_of_a_batch_is_the_sum_of_the_losses_alone(variant: Variant) -> None:
    """And so are the gradients; a clip without a frame adds nothing."""
    model, clips = build(variant), draw_clips([8000, 5000, 4000, 399])
    loss, gradients = step(model, *collate(clips, 8640, None), LABELS)
    alone = [step(model, clip[None], None, LABELS[i : i + 1]) for i, clip in enumerate(clips)]
    assert alone[3][0] == 0
    assert loss.item() == pytest.approx(sum(value.item() for value, _ in alone), rel=1e-5)
    summed = {name: sum(part[name] for _, part in alone) for name in gradients}
    assert_same(gradients, summed, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_rows_of_padding_leave_gradients_finite_and_unchanged(variant: Variant, training: bool) -> None:
    model, clips = build(variant, apply_spec_augment=False, **NO_DROPOUT).train(training), draw_clips([8000, 5000])
    loss, gradients = step(copy.deepcopy(model), *collate(clips), LABELS[:2])
    more = collate([*clips, *draw_clips([0, 399])], 8640, None)
    with_empty, others = step(model, *more, LABELS)
    assert with_empty.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same(others, gradients, 2e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_training_step_without_any_frame(norm: str, training: bool) -> None:
    for size in (0, 9, 399, 5000):
        for variant in (("relative", norm, False), ("rotary", norm, True)):
            model = build(variant).train(training)
            lengths = [0, 1] if size else [0, 0]
            loss, gradients = step(model, *collate(draw_clips(lengths), size, None), LABELS[:2])
            assert loss == 0
            assert all((gradient == 0).all() for gradient in gradients.values())


# --- training ----------------------------------------------------------------------------------------------------


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.double() for name, buffer in model.named_buffers() if "running" in name}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_training_does_not_see_the_padding(variant: Variant) -> None:
    """Loss, gradients and statistics with dropout and SpecAugment, for any content of the padding."""
    model = build(variant, mask_time_prob=0.3, mask_time_length=3, mask_feature_prob=0.1, mask_feature_length=2).train()
    clips = draw_clips(CLIPS)
    results = {}
    for name, fill in FILLS.items():
        twin = copy.deepcopy(model)
        torch.manual_seed(0)
        results[name] = *step(twin, *collate(clips, 8640, fill), LABELS), statistics(twin)
    loss, gradients, stored = results["zeros"]
    assert loss.isfinite()
    assert (stored["wav2vec2_conformer.encoder.layers.0.conv_module.batch_norm.running_mean"] != 0).all()
    for name, (other_loss, other_gradients, other_stored) in results.items():
        assert other_loss.item() == pytest.approx(loss.item(), rel=1e-6), name
        assert_same(other_gradients, gradients, 1e-6)
        assert_same(other_stored, stored, 1e-6)


@pytest.mark.parametrize("variant", WITHOUT_ADAPTER, ids=str)
def test_length_of_the_padding_does_not_matter_in_training(variant: Variant) -> None:
    model = build(variant, apply_spec_augment=False, **NO_DROPOUT).train()
    clips, results = draw_clips([8000, 5000, 2720]), []
    for size in (8000, 8001, 8640, 12000):
        twin = copy.deepcopy(model)
        results.append((*step(twin, *collate(clips, size, None), LABELS[:3]), statistics(twin)))
    for loss, gradients, stored in results[1:]:
        assert loss.item() == pytest.approx(results[0][0].item(), rel=1e-5)
        assert_same(gradients, results[0][1], 2e-5)
        assert_same(stored, results[0][2], 1e-5)


@pytest.mark.parametrize("variant", WITHOUT_ADAPTER, ids=str)
@pytest.mark.parametrize("padding", ["invariant", "reference"])
def test_batch_norm_counts_valid_frames_only(variant: Variant, padding: str) -> None:
    """Running statistics move to those of the valid frames, put end to end. (The references count padding too.)"""
    model = build(variant, apply_spec_augment=False, padding=padding, **NO_DROPOUT).train()
    clips = draw_clips(CLIPS)
    norms = [block.conv_module.batch_norm for block in model.wav2vec2_conformer.encoder.layers]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    seen: list[Tensor] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x, mask = collate(clips, 8640, None)
    model(x, attention_mask=mask)
    lengths = torch.tensor([frames_of(len(clip), model.config) for clip in clips])
    for norm, frames, (mean, variance) in zip(norms, seen, before, strict=True):
        valid = frames[frame_mask(lengths, frames.shape[1])]
        assert valid.shape == (24 + 15 + 8 + 1, 32)
        expected = 0.9 * mean + 0.1 * valid.mean(0), 0.9 * variance + 0.1 * valid.var(0)
        if padding == "invariant":
            torch.testing.assert_close(norm.running_mean, expected[0])
            torch.testing.assert_close(norm.running_var, expected[1])
            assert norm.num_batches_tracked == 1
        else:
            assert (norm.running_mean - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", WITHOUT_ADAPTER, ids=str)
def test_training_beside_empty_clips_is_training_alone(variant: Variant) -> None:
    """One real clip among empty ones: its batch statistics, and so its logits, are its own."""
    model = build(variant, apply_spec_augment=False, **NO_DROPOUT).train()
    twin = copy.deepcopy(model)
    (clip,) = draw_clips([5000])
    alone = model(clip[None]).logits
    batched = twin(*collate([clip, *draw_clips([0, 399])], 8000, None)).logits
    assert (batched[0, :15] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()
    assert_same(statistics(twin), statistics(model), 1e-5)


def test_spans_of_a_clip_do_not_depend_on_the_fill_but_lie_in_the_clip() -> None:
    model = build(("relative", "layer", False), mask_time_prob=0.5, mask_time_length=4, **NO_DROPOUT).train()
    x, mask = collate(draw_clips([8000, 5000, 399]), None, None)
    torch.manual_seed(0)
    states = model.wav2vec2_conformer(x, attention_mask=mask, output_hidden_states=True).hidden_states[0]
    hidden = (states == model.wav2vec2_conformer.masked_spec_embed).all(-1)
    assert hidden[:2].any(1).all()
    assert not hidden[1, 15:].any()
    assert not hidden[2].any()
    assert (states[1, 15:] == 0).all()
