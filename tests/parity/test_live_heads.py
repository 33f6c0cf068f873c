"""The heads against the installed transformers: random small models, float64, everything to 1e-10 of scale."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from wav2vec2_conformer.modeling.layer_mixture import LayerMixtureModel
from wav2vec2_conformer.modeling.sequence_classification import Wav2Vec2ConformerForSequenceClassification
from wav2vec2_conformer.modeling.xvector import Wav2Vec2ConformerForXVector

from .random_models import Case, draw_cases, draw_weights, inputs, relative_difference, report

HEADS: dict[str, type[LayerMixtureModel]] = {
    "sequence": Wav2Vec2ConformerForSequenceClassification,
    "frame": Wav2Vec2ConformerForAudioFrameClassification,
    "xvector": Wav2Vec2ConformerForXVector,
}
SIZES = {"num_labels": 6, "classifier_proj_size": 9, "xvector_output_dim": 11}


def head_case(case: Case, head: str) -> Case:
    """A case of the network, completed for a head as far as the reference can follow.

    The reference's x-vectors have the encoder's width whatever the adapter's is, and raise on clips shorter than the
    TDNN's context; its mixture of layers cannot hold what the adapter gives.
    """
    pick = torch.Generator().manual_seed(case.index)
    adapter = head == "xvector" and case.settings["add_adapter"]
    layers = 2 if adapter else 3
    tdnn = {
        "tdnn_dim": torch.randint(4, 12, (layers,), generator=pick).tolist(),
        "tdnn_kernel": torch.randint(2, 4, (layers,), generator=pick).tolist(),
        "tdnn_dilation": torch.randint(1, 4, (layers,), generator=pick).tolist(),
    }
    if adapter:
        tdnn |= {"tdnn_kernel": [2, 1], "tdnn_dilation": [1, 3], "num_adapter_layers": 1}
    else:
        tdnn["tdnn_kernel"][1] = 1
    settings = {**case.settings, **SIZES, **tdnn, "add_adapter": adapter}
    settings |= {"output_hidden_size": settings["hidden_size"]}
    settings |= {"use_weighted_layer_sum": not adapter and case.index % 2 == 0}
    return replace(case, settings=settings)


CASES = [(head, head_case(case, head)) for head in HEADS for case in draw_cases(18)]
IDS = [f"{head}-{case}" for head, case in CASES]
each_case = pytest.mark.parametrize(("head", "case"), CASES, ids=IDS)


def build(head: str, case: Case, padding: str = "invariant") -> tuple[Any, Any]:
    """Ours and the reference with the same weights, copied through strict state dicts."""
    ours = HEADS[head](Wav2Vec2ConformerConfig(**case.settings, padding=padding)).double()
    ours.set_attn_implementation(case.attention)
    peer: Any = getattr(transformers, HEADS[head].__name__)
    config = transformers.Wav2Vec2ConformerConfig(
        **case.settings, attn_implementation="eager", tie_last_hidden_states=True
    )
    reference = peer(config).double()
    draw_weights(reference, torch.Generator().manual_seed(case.index))
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours.eval(), reference.eval()


def head_inputs(head: str, case: Case) -> dict[str, Tensor]:
    batch = inputs(case)
    clips, samples = batch["input_values"].shape
    generator = torch.Generator().manual_seed(case.index)
    frames = frames_of(samples, Wav2Vec2ConformerConfig(**case.settings), add_adapter=False)
    shape = (clips, frames) if head == "frame" else (clips,)
    ids = torch.randint(SIZES["num_labels"], shape, generator=generator)
    batch["labels"] = torch.nn.functional.one_hot(ids, SIZES["num_labels"]) if head == "frame" else ids
    return batch


def outcome(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, gradients of the loss and of fixed random projections of the outputs, and statistics."""
    model.zero_grad()
    output = model(**batch, output_hidden_states=True)
    generator = torch.Generator().manual_seed(0)
    total = output.loss
    for name in ("logits", "embeddings"):
        if name in output:
            weights = torch.randn(output[name].shape, generator=generator, dtype=torch.float64)
            total = total + (output[name] * weights).sum()
    total.backward()
    found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    if not model.config.add_adapter:  # transformers 5 puts the adapter's output last, 4.34.0 and ours the encoder's
        found |= {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {name: b.double() for name, b in model.named_buffers() if "running" in name or "tracked" in name}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@each_case
def test_outputs_losses_gradients_and_statistics(head: str, case: Case, masked: bool, training: bool) -> None:
    ours, reference = build(head, case, padding="reference" if masked else "invariant")
    ours.train(training)
    reference.train(training)
    batch = head_inputs(head, case)
    if not masked:
        del batch["attention_mask"]
    found, expected = outcome(ours, batch), outcome(reference, batch)
    assert found.keys() == expected.keys()
    assert "loss" in found
    assert ("grad.layer_weights" in found) == case.settings["use_weighted_layer_sum"]
    assert ("grad.objective.weight" in found) == (head == "xvector")
    largest = max(float(t.abs().max()) for name, t in expected.items() if name.startswith("grad."))
    apart = {
        name: relative_difference(found[name], tensor, 1e-3 * largest if name.startswith("grad.") else 1e-300)
        for name, tensor in expected.items()
    }
    report(head, apart)
    assert {name: difference for name, difference in apart.items() if difference > 1e-10} == {}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weighted", [False, True])
def test_names_shapes_and_signatures(head: str, weighted: bool) -> None:
    settings = {**draw_cases(1)[0].settings, **SIZES, "use_weighted_layer_sum": weighted, "tdnn_dim": (7, 8, 9, 10, 11)}
    peer: Any = getattr(transformers, HEADS[head].__name__)
    with torch.device("meta"):
        ours: Any = HEADS[head](Wav2Vec2ConformerConfig(**settings))
        reference = peer(transformers.Wav2Vec2ConformerConfig(**settings))
    for of in ("state_dict", "named_parameters"):
        names = {k: v.shape for k, v in dict(getattr(ours, of)()).items()}
        theirs = {k: v.shape for k, v in dict(getattr(reference, of)()).items()}
        unused = {k for k in theirs if "pos_conv_embed" in k and of == "named_parameters"}
        assert names == {k: v for k, v in theirs.items() if k not in unused}
    common = ["input_values", "attention_mask"]
    asks = ["output_attentions", "output_hidden_states", "return_dict"]
    documented = [*common, "labels", *asks] if head == "frame" else [*common, *asks, "labels"]
    assert list(inspect.signature(ours.forward).parameters) == documented
    for method in ("freeze_feature_encoder", "freeze_base_model"):
        assert callable(getattr(ours, method))


@pytest.mark.parametrize("head", HEADS)
def test_weights_go_both_ways(head: str) -> None:
    """`build` copies from the reference to ours; this is the way back, strictly as well."""
    case = head_case(draw_cases(1)[0], head)
    ours, reference = build(head, case)
    fresh = type(reference)(reference.config).double().eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    waveforms = inputs(case)["input_values"]
    with torch.no_grad():
        assert torch.equal(fresh(waveforms).logits, reference(waveforms).logits)


@pytest.mark.parametrize("head", HEADS)
def test_plain_tuples(head: str) -> None:
    case = head_case(draw_cases(1)[0], head)
    ours, reference = build(head, case, padding="reference")
    batch = head_inputs(head, case)
    for asked in ({}, {"output_hidden_states": True}):
        with torch.no_grad():
            found = ours(**batch, **asked, return_dict=False)
            expected = reference(**batch, **asked, return_dict=False)
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert type(mine) is type(theirs)
            if isinstance(mine, Tensor):
                assert relative_difference(mine, theirs) < 1e-10


def test_short_clips_in_a_batch_count_as_in_the_reference() -> None:
    """Lengths below zero included, which pool from the right end; where it pools nothing it is NaN, and we are 0."""
    case = head_case(draw_cases(1)[0], "xvector")
    ours, reference = build("xvector", case, padding="reference")
    waveforms = inputs(case)["input_values"]
    waveforms = waveforms[:1].repeat(5, 1)
    mask = (torch.arange(waveforms.shape[1]) < torch.tensor([waveforms.shape[1], 0, 9, 300, 2000])[:, None]).long()
    with torch.no_grad():
        found, expected = (model(waveforms, attention_mask=mask).embeddings for model in (ours, reference))
    finite = expected.isfinite().all(-1)
    assert finite.sum() >= 2
    assert found.isfinite().all()
    assert relative_difference(found[finite], expected[finite]) < 1e-10


def test_the_cases_cover_what_they_should() -> None:
    for head in HEADS:
        settings = [case.settings for name, case in CASES if name == head]
        assert {s["use_weighted_layer_sum"] for s in settings} == {True, False}
        assert {s["position_embeddings_type"] for s in settings} == {"relative", "rotary", None}
        assert {s["feat_extract_norm"] for s in settings} == {"layer", "group"}
    xvectors = [case.settings for name, case in CASES if name == "xvector"]
    assert {s["add_adapter"] for s in xvectors} == {True, False}
    dilated = [
        any(k > 1 and d > 1 for k, d in zip(s["tdnn_kernel"], s["tdnn_dilation"], strict=True)) for s in xvectors
    ]
    assert sum(dilated) >= 5
