"""Ours against the installed transformers: random small models, float64, outputs and gradients to 1e-10 of scale."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from .random_models import (
    ADAPTERS,
    NORMS,
    POSITIONS,
    Case,
    build,
    differences,
    draw_cases,
    flip_positions,
    inputs,
    loss_is_comparable,
    relative_difference,
    report,
)

CASES = draw_cases(54)


def check(found: dict[str, float], with_loss: bool) -> None:
    loss = found.pop("loss", 0.0)
    assert {name: d for name, d in found.items() if d > 1e-10} == {}
    if with_loss:
        assert loss < 1e-5  # both compute losses in float32


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_gradients_and_statistics(case: Case, masked: bool, training: bool) -> None:
    ours, reference = build(case, padding="reference" if masked else "invariant")
    ours.train(training)
    reference.train(training)
    batch = inputs(case)
    if not masked:
        del batch["attention_mask"]
    with_loss = loss_is_comparable(case)
    if not with_loss:
        del batch["labels"]
    found = differences(ours, reference, batch)
    report("ctc", {name: value for name, value in found.items() if name != "loss"})
    assert ("loss" in found) == with_loss
    assert sum(name.endswith("running_var") for name in found) == case.settings["num_hidden_layers"]
    check(found, with_loss)


@pytest.mark.parametrize("case", CASES[:18], ids=str)
def test_base_model_with_given_masks(case: Case) -> None:
    """Frames that the caller masks, the features for the quantizer, attentions, and plain tuples."""
    masks = {"apply_spec_augment": True, "mask_time_prob": 0.1}
    case = dataclasses.replace(case, settings={**case.settings, **masks})
    ours, reference = (model.wav2vec2_conformer for model in build(case))
    assert ours.masked_spec_embed.abs().max() > 0.5
    waveforms = inputs(case)["input_values"]
    frames = int(ours._get_feat_extract_output_lengths(waveforms.shape[1], add_adapter=False))
    given = torch.rand((len(waveforms), frames), generator=torch.Generator().manual_seed(case.index)) < 0.3
    with torch.no_grad():
        plain = ours(waveforms)
        found = ours(waveforms, mask_time_indices=given, output_attentions=True)
        expected = reference(waveforms, mask_time_indices=given, output_attentions=True)
        pair = ours(waveforms, mask_time_indices=given, return_dict=False)
    for name in ("last_hidden_state", "extract_features"):
        assert relative_difference(found[name], expected[name]) < 1e-10
    assert len(found.attentions) == case.settings["num_hidden_layers"]
    for weights, wanted in zip(found.attentions, expected.attentions, strict=True):
        assert relative_difference(weights, wanted) < 1e-10
    assert relative_difference(plain.last_hidden_state, expected.last_hidden_state) > 1e-2
    assert isinstance(pair, tuple)
    assert len(pair) == 2
    assert relative_difference(pair[0], expected.last_hidden_state) < 1e-10
    assert torch.equal(pair[1], found.extract_features)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_weights_go_both_ways(case: Case) -> None:
    """`build` copies from the reference to ours; this is the way back, strictly as well."""
    ours, reference = build(case)
    fresh = type(reference)(reference.config).double().eval()
    result = fresh.load_state_dict(ours.state_dict(), strict=True)
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    waveforms = inputs(case)["input_values"]
    with torch.no_grad():
        assert torch.equal(fresh(waveforms).logits, reference(waveforms).logits)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_weights_make_attention_and_positions_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above would prove little."""
    ours, _ = build(case)
    waveforms = inputs(case)["input_values"]
    # Without positions nothing but the content tells frames apart, and deeper blocks see them more and more alike.
    limit = 0.95 if case.settings["position_embeddings_type"] is None else 0.8
    with torch.no_grad():
        output = ours(waveforms, output_attentions=True)
        for weights in output.attentions:
            entropy = -torch.xlogy(weights, weights).sum(-1).mean()
            assert entropy < limit * math.log(weights.shape[-1])
        flip_positions(monkeypatch)
        moved = relative_difference(ours(waveforms).logits, output.logits)
    assert (moved > 1e-2) == (case.settings["position_embeddings_type"] is not None)


def test_the_cases_cover_what_they_should() -> None:
    settings = [case.settings for case in CASES]
    assert len(CASES) >= 40
    combinations = {
        (
            s["position_embeddings_type"],
            s["feat_extract_norm"],
            ADAPTERS[0 if not s["add_adapter"] else 1 + (s["output_hidden_size"] != s["hidden_size"])],
        )
        for s in settings
    }
    assert combinations == set(itertools.product(POSITIONS, NORMS, ADAPTERS))
    for name, values in {
        "hidden_act": 3,
        "num_attention_heads": 4,
        "conv_depthwise_kernel_size": 5,
        "conv_bias": 2,
        "vocab_size": 3,
        "ctc_loss_reduction": 2,
        "adapter_kernel_size": 3,
        "layer_norm_eps": 2,
        "max_source_positions": 2,
    }.items():
        assert len({s[name] for s in settings}) == values, name
    assert {case.attention for case in CASES} == {"sdpa", "eager"}
    assert {case.lengths[0] % 2 for case in CASES} == {1}
    assert sum(loss_is_comparable(case) for case in CASES) >= 30
    # Padding must matter to the reference, or the padded comparison would say nothing about its leaks.
    assert all(min(case.lengths) < max(case.lengths) for case in CASES)
