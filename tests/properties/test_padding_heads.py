"""Every head gives a clip what it gives it alone, whatever it is batched with and whatever stands in its padding."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_padding import CLIPS, FILLS, NO_DROPOUT, assert_same, collate, draw_clips, enlarge, statistics, step
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frames_of, tdnn_context
from wav2vec2_conformer.modeling.frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from wav2vec2_conformer.modeling.layer_mixture import LayerMixtureModel
from wav2vec2_conformer.modeling.sequence_classification import Wav2Vec2ConformerForSequenceClassification
from wav2vec2_conformer.modeling.xvector import Wav2Vec2ConformerForXVector

HEADS: dict[str, type[LayerMixtureModel]] = {
    "sequence": Wav2Vec2ConformerForSequenceClassification,
    "frame": Wav2Vec2ConformerForAudioFrameClassification,
    "xvector": Wav2Vec2ConformerForXVector,
    "xvector+adapter": Wav2Vec2ConformerForXVector,
}
CLASSES = 5
Variant = tuple[str, str | None, str, bool]  # head, position_embeddings_type, feat_extract_norm, weighted sum
VARIANTS: list[Variant] = [
    (head, position, norm, weighted)
    for head, position, norm, weighted in itertools.product(
        HEADS, ["relative", "rotary", None], ["layer", "group"], [False, True]
    )
    if not (head == "xvector+adapter" and weighted)
]
FEWER = [variant for variant in VARIANTS if variant[1] == "relative"]
SHORT = [0, 1, 9, 399, 400, 401]


def build(variant: Variant, **values: Any) -> LayerMixtureModel:
    head, positions, norm, weighted = variant
    options: dict[str, Any] = {
        "position_embeddings_type": positions,
        "feat_extract_norm": norm,
        "use_weighted_layer_sum": weighted,
        "add_adapter": "adapter" in head,
        "output_hidden_size": 24 if "adapter" in head else None,
        "num_adapter_layers": 1,
        "num_labels": CLASSES,
        "classifier_proj_size": 12,
        "tdnn_dim": (10, 12, 14),
        "tdnn_kernel": (3, 2, 1),
        "tdnn_dilation": (1, 3, 1),
        "xvector_output_dim": 9,
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
    model = HEADS[head](Wav2Vec2ConformerConfig(**{**options, **values}))
    enlarge(model)
    if weighted:
        with torch.no_grad():
            model.layer_weights.copy_(torch.tensor([0.5, -1.0, 0.8]))
    return model.eval()


cached = functools.cache(build)  # for tests that only evaluate


@torch.no_grad()
def evaluate(model: LayerMixtureModel, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    output = model(x, attention_mask=mask)
    return {name: output[name] for name in ("logits", "embeddings") if name in output}


def assert_rows_are_alone(
    model: LayerMixtureModel, clips: list[Tensor], batched: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Each row equals the clip alone; padded frames have the logits of a zero vector."""
    by_frames = isinstance(model, Wav2Vec2ConformerForAudioFrameClassification)
    for row, clip in enumerate(clips):
        for name, expected in evaluate(model, clip[None]).items():
            assert batched[name].isfinite().all()
            assert expected.isfinite().all()
            inside, alone = batched[name][row], expected[0]
            if by_frames:
                assert alone.shape == (frames_of(len(clip), model.config), CLASSES)
                bias = model.classifier.bias.expand_as(inside[len(alone) :])
                torch.testing.assert_close(inside[len(alone) :], bias)
                inside = inside[: len(alone)]
            assert inside.shape == alone.shape
            if alone.numel():
                assert (inside - alone).abs().max() <= tolerance * alone.abs().max(), (row, name)


# --- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_batched_is_alone(variant: Variant) -> None:
    model, clips = cached(variant), draw_clips(CLIPS)
    for fill in FILLS.values():
        assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, 8000 + 2 * 320, fill)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_batched_is_alone_in_float64(variant: Variant) -> None:
    """No small leak hides behind the rounding of float32."""
    model, clips = build(variant).double(), [clip.double() for clip in draw_clips(CLIPS)]
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, 9000, None)), tolerance=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reference_padding_leaks(variant: Variant) -> None:
    """The setup of these tests shows a leak where there is one: the references', on the same weights and clips."""
    model, clips = cached(variant, padding="reference"), draw_clips(CLIPS[:3])
    batched, worst = evaluate(model, *collate(clips))["logits"], 0.0
    for row, clip in enumerate(clips):
        alone = evaluate(model, clip[None])["logits"][0]
        assert torch.equal(alone, evaluate(cached(variant), clip[None])["logits"][0])  # the same network
        inside = batched[row][: len(alone)]
        worst = max(worst, float((inside - alone).abs().max() / alone.abs().max()))
    assert worst > 1e-3


@pytest.mark.parametrize("variant", FEWER, ids=str)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6000), min_size=1, max_size=3), st.integers(0, 1500), st.sampled_from([0.0, None, 1e3]))
def test_batched_is_alone_at_any_length(variant: Variant, lengths: list[int], extra: int, fill: float | None) -> None:
    model, clips = cached(variant), draw_clips(lengths, seed=sum(lengths))
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, max(lengths) + extra, fill)))


@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_xvectors_after_adapters_of_other_kernels(norm: str, kernel: int) -> None:
    model = cached(("xvector+adapter", "relative", norm, False), adapter_kernel_size=kernel, num_adapter_layers=2)
    clips = draw_clips([8000, 5000, 720, 400, 0])
    assert_rows_are_alone(model, clips, evaluate(model, *collate(clips, 9000, None)))


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_xvectors_around_the_context(norm: str) -> None:
    """Clips of 0 to 7 frames under a context of 6, alone and beside one another and a long clip."""
    model = cached(("xvector", "relative", norm, False))
    assert tdnn_context(model.config) == 6
    clips = draw_clips([max(80 + 320 * frames, 0) for frames in range(8)])
    assert [frames_of(len(clip), model.config) for clip in clips] == list(range(8))
    for more in ([], draw_clips([9000])):
        assert_rows_are_alone(model, [*clips, *more], evaluate(model, *collate([*clips, *more], None, None)))


# --- short clips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.filterwarnings("error")
def test_short_clips(variant: Variant) -> None:
    """Finite, equal with and without a mask, alone and in a batch; `assert_rows_are_alone` looks at both."""
    model, clips = cached(variant), draw_clips(SHORT)
    for beside in ([], draw_clips([6000])):
        assert_rows_are_alone(model, [*clips, *beside], evaluate(model, *collate([*clips, *beside], None, None)))
    for clip in clips:
        alone, masked = evaluate(model, clip[None]), evaluate(model, *collate([clip]))
        for name, expected in alone.items():
            torch.testing.assert_close(masked[name], expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_clips_without_a_frame_pool_a_zero_vector(variant: Variant) -> None:
    model = cached(variant)
    for size in (0, 399, 5000):
        batched = evaluate(model, *collate(draw_clips([0, 399 if size else 0]), size, None))
        if variant[0] == "frame":
            assert batched["logits"].shape == (2, frames_of(size, model.config), CLASSES)
            expected = model.classifier.bias.expand_as(batched["logits"])
        elif variant[0] == "sequence":
            expected = model.classifier.bias.expand(2, -1)
        else:
            torch.testing.assert_close(batched["embeddings"], model.feature_extractor.bias.expand(2, -1))
            expected = model.classifier(model.feature_extractor.bias).expand(2, -1)
        torch.testing.assert_close(batched["logits"], expected)


# --- losses and gradients ----------------------------------------------------------------------------------------


def labels_for(model: LayerMixtureModel, clips: list[Tensor], size: int, garbage: int = 0) -> Tensor:
    """Labels of each clip; on padded frames stands what nobody may read."""
    source = torch.Generator().manual_seed(7)
    if not isinstance(model, Wav2Vec2ConformerForAudioFrameClassification):
        return torch.randint(CLASSES, (len(clips),), generator=source)
    labels = torch.randint(CLASSES, (len(clips), 60), generator=source)[:, : frames_of(size, model.config)]
    for row, clip in enumerate(clips):
        labels[row, frames_of(len(clip), model.config) :] = garbage
    return labels


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_of_a_batch_is_the_mean_of_the_losses_alone(variant: Variant) -> None:
    """Over the clips, or over the frames of all clips; the gradients too."""
    model, clips = build(variant), draw_clips([8000, 5000, 4000, 1200])
    labels = labels_for(model, clips, 8640, garbage=999)
    loss, gradients = step(model, *collate(clips, 8640, None), labels)
    frames = [frames_of(len(clip), model.config) for clip in clips]
    shares = [count / sum(frames) for count in frames] if variant[0] == "frame" else [1 / len(clips)] * len(clips)
    alone = []
    for row, clip in enumerate(clips):
        own = labels[row : row + 1, : frames[row]] if variant[0] == "frame" else labels[row : row + 1]
        alone.append(step(model, clip[None], None, own))
    expected = sum(share * value.item() for share, (value, _) in zip(shares, alone, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    summed = {
        name: sum(share * part[name] for share, (_, part) in zip(shares, alone, strict=True)) for name in gradients
    }
    assert_same(gradients, summed, 2e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_training_does_not_see_the_padding(variant: Variant) -> None:
    """Loss, gradients and statistics with dropout and SpecAugment, for any content of the padding."""
    model = build(variant, mask_time_prob=0.3, mask_time_length=3, mask_feature_prob=0.1, mask_feature_length=2).train()
    clips, results = draw_clips(CLIPS), {}
    for name, fill in FILLS.items():
        twin = copy.deepcopy(model)
        torch.manual_seed(0)
        labels = labels_for(model, clips, 8640, garbage=len(results) * 77 - 100)
        results[name] = *step(twin, *collate(clips, 8640, fill), labels), statistics(twin)
    loss, gradients, stored = results["zeros"]
    assert loss.isfinite()
    for name, (other_loss, other_gradients, other_stored) in results.items():
        assert other_loss.item() == pytest.approx(loss.item(), rel=1e-6), name
        assert_same(other_gradients, gradients, 1e-6)
        assert_same(other_stored, stored, 1e-6)


@pytest.mark.parametrize("variant", FEWER, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_rows_of_padding_leave_gradients_finite(variant: Variant, training: bool) -> None:
    """A row without a frame trains biases at most; labelled -100 it changes nothing at all."""
    model = build(variant, apply_spec_augment=False, **NO_DROPOUT).train(training)
    clips, empty = draw_clips([8000, 5000]), draw_clips([0, 399])
    labels = labels_for(model, clips, 8000)
    loss, gradients = step(copy.deepcopy(model), *collate(clips), labels)
    rows = torch.full((2, *labels.shape[1:]), -100)
    batch = collate([*clips, *empty], 8000, None)
    with_empty, others = step(copy.deepcopy(model), *batch, torch.cat((labels, rows)))
    assert with_empty.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same(others, gradients, 2e-5)
    counted, others = step(model, *batch, torch.cat((labels, rows.clamp(min=1))))
    assert counted.isfinite()
    assert all(gradient.isfinite().all() for gradient in others.values())


@pytest.mark.parametrize("variant", FEWER, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_training_step_without_any_frame(variant: Variant, training: bool) -> None:
    for size in (0, 9, 399, 5000):
        model = build(variant).train(training)
        clips = draw_clips([0, 1] if size else [0, 0])
        loss, gradients = step(model, *collate(clips, size, None), labels_for(model, clips, size))
        assert loss.isfinite()
        assert (loss == 0) == (variant[0] == "frame")
        for name, gradient in gradients.items():
            assert gradient.isfinite().all(), name
            assert not name.startswith("wav2vec2_conformer.") or (gradient == 0).all(), name
