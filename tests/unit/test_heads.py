"""The heads for clips, frames and speakers: labels, losses, outputs, loading, precision. (Numbers: `tests/parity`.)"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import NO_DROPOUT, SAMPLES, TINY, assert_same, enlarge, gradients, waveforms
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.lengths import frame_mask, tdnn_context, tdnn_lengths
from wav2vec2_conformer.modeling.frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from wav2vec2_conformer.modeling.layer_mixture import LayerMixtureModel, mix_layers
from wav2vec2_conformer.modeling.losses import am_softmax_loss, class_ids, class_loss, multi_label_loss
from wav2vec2_conformer.modeling.sequence_classification import (
    Wav2Vec2ConformerForSequenceClassification,
    mean_pooling,
)
from wav2vec2_conformer.modeling.xvector import TDNNLayer, Wav2Vec2ConformerForXVector, statistics_pooling

HEADS: dict[str, type[LayerMixtureModel]] = {
    "sequence": Wav2Vec2ConformerForSequenceClassification,
    "frame": Wav2Vec2ConformerForAudioFrameClassification,
    "xvector": Wav2Vec2ConformerForXVector,
}
CLASSES, FRAMES = 5, 24
SIZES: dict[str, Any] = {
    **TINY,
    "num_labels": CLASSES,
    "classifier_proj_size": 12,
    "tdnn_dim": (10, 12, 14),
    "tdnn_kernel": (5, 3, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": 9,
}
each_head = pytest.mark.parametrize("head", HEADS)
each_weighted = pytest.mark.parametrize("weighted", [False, True], ids=["last", "weighted"])


def build(head: str, **values: Any) -> Any:
    model = HEADS[head](Wav2Vec2ConformerConfig(**{**SIZES, **values}))
    enlarge(model)
    return model.eval()


def labels_for(head: str, clips: int = 2) -> Tensor:
    shape = (clips, FRAMES) if head == "frame" else (clips,)
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(3))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- outputs -----------------------------------------------------------------------------------------------------


@each_head
@each_weighted
def test_what_is_returned(head: str, weighted: bool) -> None:
    """Hidden states and attentions only when asked for, also where a mixture of the states is computed."""
    model, (x, mask) = build(head, use_weighted_layer_sum=weighted), waveforms(SAMPLES, 5000)
    plain = model(x, attention_mask=mask)
    names = ["logits", "embeddings"] if head == "xvector" else ["logits"]
    assert list(plain) == names
    labelled = model(x, attention_mask=mask, labels=labels_for(head))
    assert list(labelled) == ["loss", *names]
    assert labelled.loss.shape == ()
    assert labelled.loss.dtype == torch.float32
    full = model(x, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert list(full) == [*names, "hidden_states", "attentions"]
    assert [tuple(state.shape) for state in full.hidden_states] == [(2, FRAMES, 32)] * 4
    assert len(full.attentions) == 3
    shape = {"sequence": (2, CLASSES), "frame": (2, FRAMES, CLASSES), "xvector": (2, 9)}[head]
    assert plain.logits.shape == shape
    torch.testing.assert_close(full.logits, plain.logits)
    always = build(head, use_weighted_layer_sum=weighted, output_hidden_states=True)
    assert len(always(x).hidden_states) == 4
    assert always(x, output_hidden_states=False).hidden_states is None
    assert isinstance(build(head, return_dict=False)(x), tuple)


def test_mixture_of_layers() -> None:
    states = [draw(2, 7, 4, seed=seed) for seed in range(3)]
    weights = torch.tensor([0.3, -1.0, 2.0])
    expected = torch.einsum("nbtd,n->btd", torch.stack(states), weights.softmax(0))
    torch.testing.assert_close(mix_layers(states, weights), expected)
    half = mix_layers([state.bfloat16() for state in states], weights.bfloat16())
    assert half.dtype == torch.bfloat16


@each_head
def test_an_extreme_mixture_is_one_layer(head: str) -> None:
    model, (x, _) = build(head, use_weighted_layer_sum=True), waveforms(SAMPLES)
    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor([-1e4, -1e4, -1e4, 0.0]))
    last = build(head)
    last.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(x).logits, last(x).logits)


@each_head
def test_the_mixture_survives_layerdrop(head: str) -> None:
    """A skipped block hands on what entered it, so the mixture always has L+1 states."""
    model = build(head, use_weighted_layer_sum=True, layerdrop=0.7, apply_spec_augment=False, **NO_DROPOUT).train()
    for seed in range(4):
        torch.manual_seed(seed)
        model.zero_grad()
        model(waveforms(SAMPLES)[0], labels=labels_for(head, 1)).loss.backward()
        assert model.layer_weights.grad.isfinite().all()


@pytest.mark.parametrize("head", ["sequence", "frame"])
def test_no_adapter_under_these_heads(head: str) -> None:
    with pytest.raises(ValueError, match=r"classification reads .* expects `add_adapter=False`, got True; turn"):
        build(head, add_adapter=True)


def test_xvectors_take_the_adapters_width_and_frames() -> None:
    model = build("xvector", add_adapter=True, output_hidden_size=20, num_adapter_layers=1)
    assert model.projector.in_features == 20
    assert model(waveforms(SAMPLES, 5000)[0]).embeddings.shape == (2, 9)


def test_a_mixture_of_layers_passes_the_adapter_by() -> None:
    options = {"use_weighted_layer_sum": True, "output_hidden_size": 20, "num_adapter_layers": 1}
    with pytest.warns(UserWarning, match="`add_adapter=True` has no effect on x-vectors under .*; turn one"):
        model = build("xvector", add_adapter=True, **options)
    plain = build("xvector", **options)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".adapter." not in k})
    x, mask = waveforms(SAMPLES, 5000)
    assert torch.equal(model(x, attention_mask=mask).logits, plain(x, attention_mask=mask).logits)


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["sequence", "xvector"])
def test_labels_of_clips(head: str) -> None:
    model, (x, _) = build(head), waveforms(SAMPLES, SAMPLES, SAMPLES)
    labels = torch.tensor([2, 0, 4])
    loss = model(x, labels=labels).loss
    assert torch.equal(model(x, labels=labels[:, None]).loss, loss)
    assert torch.equal(model(x, labels=labels.to(torch.uint8)).loss, loss)
    with_ignored = model(x, labels=torch.tensor([2, -100, 4])).loss
    torch.testing.assert_close(with_ignored, model(x[[0, 2]], labels=labels[[0, 2]]).loss)
    assert model(x, labels=torch.full((3,), -100)).loss == 0


@pytest.mark.parametrize("head", ["sequence", "xvector"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 5]), r"at least 0 and below num_labels = 5, or -100 .*, got 5; .*num_labels="),
        (torch.tensor([-1, 1]), r"at least 0 and below num_labels = 5, or -100 .*, got -1"),
        (torch.tensor([1.0, 2.0]), r"whole numbers of shape \(2,\), got \(2,\) of torch.float32; one-hot rows become"),
        (torch.eye(5, dtype=torch.long)[:2], r"whole numbers of shape \(2,\), got \(2, 5\) of torch.int64; one-hot"),
        (torch.tensor([1]), r"whole numbers of shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_labels_of_clips(head: str, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(head)(waveforms(SAMPLES, SAMPLES)[0], labels=labels)


def test_one_hot_labels_are_class_ids() -> None:
    model, (x, mask) = build("frame"), waveforms(SAMPLES, 5000)
    ids = labels_for("frame")
    ids[0, 3:5] = -100
    loss = model(x, attention_mask=mask, labels=ids).loss
    rows = F.one_hot(ids.clamp(min=0), CLASSES)
    rows[0, 3:5] = -100  # as a collator pads
    small = model(x, attention_mask=mask, labels=ids.clamp(min=0).to(torch.uint8)).loss
    assert torch.equal(small, model(x, attention_mask=mask, labels=ids.clamp(min=0)).loss)
    for kind in (torch.long, torch.float32, torch.float16):
        assert torch.equal(model(x, attention_mask=mask, labels=rows.to(kind)).loss, loss)
    assert torch.equal(model(x, mask, ids).loss, loss)  # the reference's order of arguments
    logits = model(x, attention_mask=mask).logits
    counted = frame_mask(torch.tensor([FRAMES, 15]), FRAMES) & (ids != -100)
    torch.testing.assert_close(loss, F.cross_entropy(logits[counted], ids[counted]))


def test_a_row_without_a_class_is_the_first_class() -> None:
    """As in the seed, where a one-hot row means its argmax."""
    model, (x, _) = build("frame"), waveforms(SAMPLES)
    zeros = torch.zeros(1, FRAMES, CLASSES)
    assert torch.equal(model(x, labels=zeros).loss, model(x, labels=torch.zeros(1, FRAMES, dtype=torch.long)).loss)
    assert torch.equal(model(x, labels=zeros.bool()).loss, model(x, labels=zeros).loss)


def test_multi_label_frames() -> None:
    model, (x, mask) = build("frame", problem_type="multi_label_classification"), waveforms(SAMPLES, 5000)
    targets = (draw(2, FRAMES, CLASSES) > 0).long()
    counted = frame_mask(torch.tensor([FRAMES, 15]), FRAMES)
    logits = model(x, attention_mask=mask).logits
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets[counted].float())
    for labels in (targets, targets.float(), targets.bool()):
        torch.testing.assert_close(model(x, attention_mask=mask, labels=labels).loss, expected)
    targets[:, 2, 1] = -100
    counted = counted.unsqueeze(-1) & (targets != -100)
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets[counted].float())
    torch.testing.assert_close(model(x, attention_mask=mask, labels=targets).loss, expected)
    soft = torch.full((2, FRAMES, CLASSES), 0.25)
    assert model(x, labels=soft).loss.isfinite()


@pytest.mark.parametrize("kind", [torch.long, torch.float32])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_padded_frames_count_in_the_reference_only(kind: torch.dtype, problem: str | None) -> None:
    ours, theirs = (build("frame", problem_type=problem, padding=padding) for padding in ("invariant", "reference"))
    x, mask = waveforms(SAMPLES, 5000)
    labels = F.one_hot(labels_for("frame"), CLASSES).to(kind)
    other = labels.clone()
    other[1, 15:] = 1 - other[1, 15:]
    assert ours(x, mask, labels).loss == ours(x, mask, other).loss
    assert theirs(x, mask, labels).loss != theirs(x, mask, other).loss


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        (None, torch.zeros(1, 23), r"class ids of shape \(1, 24\) or one-hot of \(1, 24, 5\) .*, got \(1, 23\); `_get"),
        (None, torch.zeros(1, FRAMES, 4), r"one-hot of \(1, 24, 5\) .*, got \(1, 24, 4\)"),
        (None, torch.zeros(1, FRAMES), r"whole numbers of shape \(1, 24\), got \(1, 24\) of torch.float32"),
        (None, torch.full((1, FRAMES), 5), r"below num_labels = 5, .* got 5"),
        ("multi_label_classification", torch.zeros(1, FRAMES), r"targets of shape \(1, 24, 5\) .*, got \(1, 24\)"),
        ("multi_label_classification", torch.full((1, FRAMES, 5), 3), r"multi-label .* in \[0, 1\], .* got 3; class"),
        ("multi_label_classification", torch.full((1, FRAMES, 5), -0.5), r"multi-label .* got -0.5"),
        ("multi_label_classification", torch.full((1, FRAMES, 5), float("nan")), r"multi-label .* got nan"),
    ],
)
def test_wrong_labels_of_frames(problem: str | None, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("frame", problem_type=problem)(waveforms(SAMPLES)[0], labels=labels)


# --- losses ------------------------------------------------------------------------------------------------------


def test_class_loss_is_torchs() -> None:
    logits, labels = draw(4, 6, 7), torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_loss(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    labels[1, 2:] = -100
    torch.testing.assert_close(class_loss(logits, labels), F.cross_entropy(logits.transpose(1, 2), labels))
    for empty in (class_loss(logits, labels.fill_(-100)), class_loss(logits[:, :0], labels[:, :0])):
        assert empty == 0
    assert multi_label_loss(logits, torch.full((4, 6, 7), -100)) == 0


def test_class_ids_keep_what_is_ignored() -> None:
    ids = class_ids(torch.tensor([[3], [-100]], dtype=torch.int32), (2,), 4)
    assert ids.tolist() == [3, -100]
    assert ids.dtype == torch.int64
    assert class_ids(torch.zeros(0, dtype=torch.long), (0,), 4).shape == (0,)


def plain_am_softmax(vectors: Tensor, directions: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Equation 6 of Wang et al. 2018, a row and a class at a time."""
    losses = []
    for vector, label in zip(vectors, labels.tolist(), strict=True):
        cosines = [F.cosine_similarity(vector, direction, dim=0) for direction in directions.T]
        right = torch.exp(scale * (cosines[label] - margin))
        others = sum(torch.exp(scale * cosine) for j, cosine in enumerate(cosines) if j != label)
        losses.append(-torch.log(right / (right + others)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("scale", "margin"), [(30.0, 0.4), (5.0, 0.0)])
def test_am_softmax(scale: float, margin: float) -> None:
    vectors, directions = draw(4, 6).double(), draw(6, 3, seed=1).double()
    labels = torch.tensor([0, 2, 1, 1])
    expected = plain_am_softmax(vectors, directions, labels, scale, margin)
    torch.testing.assert_close(am_softmax_loss(vectors, directions, labels, scale=scale, margin=margin), expected)
    if scale == 30:
        torch.testing.assert_close(am_softmax_loss(vectors, directions, labels), expected)
    else:  # without a margin it is the cross entropy of the cosines
        cosines = F.normalize(vectors, dim=1) @ F.normalize(directions, dim=0)
        torch.testing.assert_close(expected, F.cross_entropy(scale * cosines, labels))


def test_am_softmax_of_a_zero_vector_has_no_gradient() -> None:
    """A clip without a frame gives one in a fresh model; a normalisation by 1e-12 would make its gradient 1e13."""
    vectors = torch.cat((torch.zeros(1, 6), draw(2, 6))).requires_grad_()
    am_softmax_loss(vectors, draw(6, 3, seed=1), torch.tensor([0, 1, 2])).backward()
    assert vectors.grad is not None
    assert (vectors.grad[0] == 0).all()
    assert vectors.grad[1:].abs().max() > 0
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_are_in_at_least_float32(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits, labels = draw(4, 6).to(dtype), torch.tensor([0, 2, 1, -100])
    directions = draw(6, 3, seed=1).to(dtype)
    for of_logits, reference in (
        (class_loss(logits, labels), class_loss(logits.to(wide), labels)),
        (multi_label_loss(logits, logits > 0), multi_label_loss(logits.to(wide), logits > 0)),
        (am_softmax_loss(logits, directions, labels), am_softmax_loss(logits.to(wide), directions.to(wide), labels)),
    ):
        assert of_logits.dtype == wide
        torch.testing.assert_close(of_logits, reference)


def test_am_softmax_is_float32_under_autocast() -> None:
    vectors, directions, labels = draw(4, 6), draw(6, 3, seed=1), torch.tensor([0, 2, 1, 1])
    expected = am_softmax_loss(vectors, directions, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(am_softmax_loss(vectors, directions, labels), expected)


# --- pooling and the TDNN ----------------------------------------------------------------------------------------


def test_pooling_is_torchs_on_valid_frames() -> None:
    x, lengths = draw(5, 9, 4), torch.tensor([9, 5, 2, 1, 0])
    valid = frame_mask(lengths, 9)
    means, statistics = mean_pooling(x, valid), statistics_pooling(x, valid)
    for row, length in enumerate(lengths.tolist()):
        inside = x[row, :length]
        mean = inside.mean(0) if length else torch.zeros(4)
        deviation = inside.std(0) if length > 1 else torch.zeros(4)
        torch.testing.assert_close(means[row], mean)
        torch.testing.assert_close(statistics[row], torch.cat((mean, deviation)))


def test_pooling_has_finite_gradients() -> None:
    """Also where nothing varies, where the slope of the root is infinite, and where nothing is valid."""
    x = torch.cat((torch.ones(1, 6, 4), draw(3, 6, 4))).requires_grad_()
    statistics_pooling(x, frame_mask(torch.tensor([6, 6, 1, 0]), 6)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[3] == 0).all()


def test_pooling_of_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 3000, 2), 100.0, dtype=torch.float16)  # the sum is 300000, float16 ends at 65504
    x[:, ::2] += 8
    valid = torch.ones(1, 3000, dtype=torch.bool)
    assert mean_pooling(x, valid).tolist() == [[104.0, 104.0]]
    torch.testing.assert_close(statistics_pooling(x, valid).float(), torch.tensor([[104.0, 104.0, 4.0, 4.0]]))


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (1, 3), (3, 1), (3, 2), (5, 3)])
def test_tdnn_layer_is_a_dilated_convolution(kernel: int, dilation: int) -> None:
    layer, x = TDNNLayer(6, 8, kernel, dilation), draw(2, 20, 6)
    weight = layer.kernel.weight.view(8, kernel, 6).transpose(1, 2)
    expected = F.conv1d(x.transpose(1, 2), weight, layer.kernel.bias, dilation=dilation).relu().transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


def test_a_replaced_kernel_takes_effect() -> None:
    """Adapters such as LoRA put another module in a linear layer's place."""
    model, (x, _) = build("xvector"), waveforms(SAMPLES)
    before = model(x).embeddings
    model.tdnn[0].kernel = nn.Sequential(model.tdnn[0].kernel, nn.Linear(10, 10))
    assert (model(x).embeddings - before).abs().max() > 1e-3


layers = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layers, st.integers(0, 40))
def test_tdnn_lengths(sizes: list[tuple[int, int]], frames: int) -> None:
    kernels, dilations = zip(*sizes, strict=True)
    config = Wav2Vec2ConformerConfig(tdnn_dim=[4] * len(sizes), tdnn_kernel=kernels, tdnn_dilation=dilations)
    x = torch.empty(1, 4, max(frames, tdnn_context(config)), device="meta")
    for kernel, dilation in sizes:
        x = F.conv1d(x, torch.empty(4, 4, kernel, device="meta"), dilation=dilation)
    outputs = x.shape[2] if frames else 0
    assert tdnn_lengths(frames, config) == outputs
    assert tdnn_lengths(torch.tensor([frames]), config).tolist() == [outputs]


def test_tdnn_lengths_of_the_released_geometry() -> None:
    model, reference = build("xvector"), build("xvector", padding="reference")
    config = Wav2Vec2ConformerConfig()
    assert tdnn_context(config) == 15
    assert [tdnn_lengths(n, config) for n in (0, 1, 14, 15, 16, 49)] == [0, 1, 1, 1, 2, 35]
    assert model._get_tdnn_output_lengths(20) == 20 - 4 - 2 * 2
    assert reference._get_tdnn_output_lengths(20) == 20 - 4 - 2  # forgets the dilation
    assert model._get_tdnn_output_lengths(torch.tensor([0, 3, 20])).tolist() == [0, 1, 12]


@pytest.mark.parametrize("samples", [400, 1400, 2900])
def test_a_clip_shorter_than_the_context_is_followed_by_zeros(samples: int) -> None:
    model, (x, mask) = build("xvector"), waveforms(samples)
    projected = model.projector(model.wav2vec2_conformer(x).last_hidden_state)
    assert projected.shape[1] < tdnn_context(model.config) == 9
    out = F.pad(projected, (0, 0, 0, 9 - projected.shape[1]))
    for layer in model.tdnn:
        out = layer(out)
    assert out.shape[1] == 1
    expected = model.feature_extractor(torch.cat((out[:, 0], torch.zeros(1, 14)), dim=-1))
    torch.testing.assert_close(model(x).embeddings, expected)
    torch.testing.assert_close(model(x, attention_mask=mask).embeddings, expected)


# --- weights -----------------------------------------------------------------------------------------------------


@each_head
def test_initial_values(head: str) -> None:
    torch.manual_seed(0)
    wide = {"xvector_output_dim": 100, "num_labels": 100, "classifier_proj_size": 100}
    model: Any = HEADS[head](Wav2Vec2ConformerConfig(**{**SIZES, **wide, "use_weighted_layer_sum": True}))
    assert torch.equal(model.layer_weights, torch.full((4,), 0.25))
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.classifier.bias == 0).all()
    if head == "xvector":
        assert model.objective.weight.std().item() == pytest.approx(1, rel=0.1)
        assert model.tdnn[0].kernel.weight.std().item() == pytest.approx(0.02, rel=0.2)


@each_head
def test_a_head_on_a_checkpoint_without_one(head: str, tmp_path: Path) -> None:
    """The network comes from the file, the head at its initial values: layer weights and class directions too."""
    base = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**TINY))
    base.save_pretrained(tmp_path)
    options = {k: v for k, v in SIZES.items() if k not in TINY}
    model, info = HEADS[head].from_pretrained(
        tmp_path, **options, use_weighted_layer_sum=True, output_loading_info=True
    )
    assert "layer_weights" in info["missing_keys"]
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.wav2vec2_conformer.state_dict()[name], tensor)
    assert torch.equal(model.layer_weights, torch.full((4,), 0.25))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if head == "xvector":
        assert 0.6 < model.objective.weight.std().item() < 1.4


@each_head
@each_weighted
def test_saving_and_loading(head: str, weighted: bool, tmp_path: Path) -> None:
    model, (x, _) = build(head, use_weighted_layer_sum=weighted), waveforms(SAMPLES)
    model.save_pretrained(tmp_path)
    again = HEADS[head].from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(x).logits, model(x).logits)
    assert again.config.num_labels == CLASSES


@each_head
def test_freezing(head: str) -> None:
    model = build(head, use_weighted_layer_sum=True)
    model.freeze_feature_encoder()
    encoder = "wav2vec2_conformer.feature_extractor."
    assert all(p.requires_grad != n.startswith(encoder) for n, p in model.named_parameters())
    model.freeze_base_model()
    assert all(p.requires_grad != n.startswith("wav2vec2_conformer.") for n, p in model.named_parameters())
    model.train()(waveforms(SAMPLES)[0], labels=labels_for(head, 1)).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {
        n for n, p in model.named_parameters() if n.startswith("wav2vec2_conformer.")
    }


@each_head
def test_every_parameter_has_a_gradient(head: str) -> None:
    model = build(head, use_weighted_layer_sum=True, mask_time_prob=0.5, mask_time_length=2).train()
    x, mask = waveforms(SAMPLES, 5000)
    torch.manual_seed(0)
    model(x, attention_mask=mask, labels=labels_for(head)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@each_head
def test_gradient_checkpointing_changes_nothing(head: str) -> None:
    plain = build(head, use_weighted_layer_sum=True, apply_spec_augment=False).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    x, mask = waveforms(SAMPLES, 5000)
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        model(x, attention_mask=mask, labels=labels_for(head)).loss.backward()
    assert_same(gradients(checkpointed), gradients(plain), 1e-6)


def test_learns() -> None:
    """A few steps of each head on two clips: the loss falls to a fraction."""
    x, mask = waveforms(SAMPLES, 5000)
    for head in HEADS:
        model = build(head, use_weighted_layer_sum=True, apply_spec_augment=False, **NO_DROPOUT).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(25):
            loss = model(x, attention_mask=mask, labels=labels_for(head)).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0], head


# --- precision, synchronisation, compilation ---------------------------------------------------------------------


@each_head
@each_weighted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(head: str, weighted: bool, dtype: torch.dtype) -> None:
    model, (x, mask) = build(head, use_weighted_layer_sum=weighted), waveforms(SAMPLES, 5000)
    expected = model(x, attention_mask=mask, labels=labels_for(head))
    half = copy.deepcopy(model).to(dtype)
    found = half(x.to(dtype), attention_mask=mask, labels=labels_for(head))
    assert found.logits.dtype == dtype
    assert found.loss.dtype == torch.float32
    error = (found.logits.float() - expected.logits).abs().max() / expected.logits.abs().max()
    assert error < (0.15 if dtype == torch.bfloat16 else 0.02)
    found.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(half).values())


@each_head
def test_autocast_trains(head: str) -> None:
    model = build(head, use_weighted_layer_sum=True, apply_spec_augment=False, **NO_DROPOUT).train()
    x, mask = waveforms(SAMPLES, 5000)
    expected = copy.deepcopy(model)(x, attention_mask=mask, labels=labels_for(head)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, attention_mask=mask, labels=labels_for(head)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@each_head
@each_weighted
@pytest.mark.parametrize("padding", ["invariant", "reference"])
def test_forward_needs_no_host_synchronisation(head: str, weighted: bool, padding: str) -> None:
    """Tensors on the meta device have no values, so waiting for one is an error there."""
    with torch.device("meta"):
        model = HEADS[head](Wav2Vec2ConformerConfig(**SIZES, use_weighted_layer_sum=weighted, padding=padding)).train()
        x, mask = torch.empty(2, SAMPLES), torch.empty(2, SAMPLES, dtype=torch.long)
        for attention_mask in (None, mask):
            model(x, attention_mask=attention_mask).logits.sum().backward()


@pytest.mark.parametrize(("head", "training"), [("sequence", False), ("frame", True), ("xvector", False)])
def test_compiles_up_to_the_logits(head: str, training: bool) -> None:
    torch._dynamo.reset()
    short = {"num_hidden_layers": 1, "conv_dim": (8, 8), "conv_kernel": (10, 40), "conv_stride": (5, 64)}
    eager = build(head, use_weighted_layer_sum=True, apply_spec_augment=False, **short, **NO_DROPOUT).train(training)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="eager")
    for lengths in ((SAMPLES, 5000), (SAMPLES + 999, 3000, 4000)):  # the second with dynamic sizes
        x, mask = waveforms(*lengths)
        expected, found = eager(x, attention_mask=mask).logits, compiled(x, attention_mask=mask).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@each_head
def test_no_warnings(head: str) -> None:
    x, mask = waveforms(SAMPLES, 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(head)(x, attention_mask=mask, labels=labels_for(head)).loss.backward()
