"""Pre-training against the installed transformers: random small models, outputs, losses and gradients.

Both sides compute losses in float32, which hides differences below 1e-6. So the comparison is made twice: as the two
are, and with `Tensor.float` giving float64 in both heads, where everything must agree to 1e-10.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as reference_module

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.masking import sample_spans
from wav2vec2_conformer.modeling.negatives import sample_negatives
from wav2vec2_conformer.modeling.numpy_sampling import compute_mask_indices, sample_negative_indices
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining

from .random_models import Case, draw_cases, draw_weights, inputs, relative_difference, report
from .test_structure import LARGE, UNUSED, on_meta, shapes

ReferenceForPreTraining = transformers.Wav2Vec2ConformerForPreTraining


def with_quantizer(case: Case) -> Case:
    """The case with a quantizer drawn for it, without adapter, and with a mask embedding."""
    source = torch.Generator().manual_seed(5000 + case.index)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=source))]

    groups = pick(1, 2, 3)
    settings = {
        **case.settings,
        "add_adapter": False,
        "output_hidden_size": case.settings["hidden_size"],
        "apply_spec_augment": True,
        "mask_time_prob": 0.1,
        "feat_quantizer_dropout": 0.0,
        "num_codevector_groups": groups,
        "num_codevectors_per_group": pick(3, 8, 20),
        "codevector_dim": groups * pick(1, 4, 7),
        "proj_codevector_dim": pick(3, 9, 16),
        "num_negatives": pick(1, 4, 12),
        "contrastive_logits_temperature": pick(0.1, 0.5),
        "diversity_loss_weight": pick(0.1, 2.0),
    }
    return dataclasses.replace(case, settings=settings)


CASES = [with_quantizer(case) for case in draw_cases(36)]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


def let_equal_rows_be_equal(_: Any, inputs: tuple[Tensor], projected: Tensor) -> Tensor:
    """Give all frames with the same input to `project_q` the output of the first of them, bit by bit.

    The reference compares these outputs to find negatives that equal the positive, but a matrix product may round equal
    rows differently, depending on where they stand. Then it misses some: with 5 entries and widths of 7 and 16 that
    moved its loss by 12 %. Ours compares codes.
    """
    rows, outputs = inputs[0].detach().flatten(0, 1), projected.flatten(0, 1)
    first = (rows[:, None] == rows[None]).all(-1).long().argmax(1)
    return projected + (outputs[first] - outputs).detach().view_as(projected)  # exact where the two are close


def build(case: Case, padding: str = "invariant") -> tuple[Wav2Vec2ConformerForPreTraining, Any]:
    """Ours and the reference with the same weights, in float64; what is copied goes through strict state dicts."""
    ours = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**case.settings, padding=padding)).double()
    ours.set_attn_implementation(case.attention)
    reference = ReferenceForPreTraining(
        transformers.Wav2Vec2ConformerConfig(**case.settings, attn_implementation="eager", tie_last_hidden_states=True)
    ).double()
    source = torch.Generator().manual_seed(case.index)
    draw_weights(reference, source)
    with torch.no_grad():
        codebook = reference.quantizer.codevectors
        codebook.copy_(torch.randn(codebook.shape, generator=source, dtype=torch.float64))
        # Without a constant part the logits differ most between frames, and so do the codes.
        features = reference.eval().wav2vec2_conformer(inputs(case)["input_values"]).extract_features
        choice = reference.quantizer.weight_proj
        choice.bias.copy_(-choice.weight @ features.flatten(0, 1).mean(0))
    ours.load_state_dict(reference.state_dict())
    reference.project_q.register_forward_hook(let_equal_rows_be_equal)
    for model in (ours, reference):
        model.set_gumbel_temperature((2, 0.7)[case.index % 2])
    return ours.eval(), reference.eval()


def batch_of(case: Case, padded: bool) -> dict[str, Tensor]:
    """Clips with masks and negatives; without `padded`, no attention mask."""
    batch = inputs(case)
    del batch["labels"]
    config = Wav2Vec2ConformerConfig(**case.settings)
    lengths = frames_of(batch["attention_mask"].sum(-1), config)
    frames = frames_of(batch["input_values"].shape[1], config)
    if not padded:
        del batch["attention_mask"]
        lengths = torch.full_like(lengths, frames)
    source = torch.Generator().manual_seed(3000 + case.index)
    mask = sample_spans(lengths, frames, probability=0.4, span=2, min_spans=2, generator=source)
    batch["mask_time_indices"] = mask
    batch["sampled_negative_indices"] = sample_negatives(mask, config.num_negatives, generator=source)
    return batch


def perplexity_of_4_34(probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """What transformers 4.34.0 computes, by its formula."""
    if mask is None:
        mask = torch.ones_like(probabilities[:, 0, 0])
    mean = (probabilities * mask.reshape(-1, 1, 1)).sum(0) / mask.sum()
    return (-(mean * torch.log(mean + 1e-7)).sum(-1)).exp().sum()


def in_float64(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """Let `Tensor.float` give float64 in the heads; the networks below them keep float32 where they ask for it."""
    single, inside = Tensor.float, [False]
    monkeypatch.setattr(Tensor, "float", lambda self: single(self) if inside[0] else self.double())

    def switch(value: bool) -> None:
        inside[0] = value

    for model in models:
        model.wav2vec2_conformer.register_forward_pre_hook(lambda *_: switch(True))
        model.wav2vec2_conformer.register_forward_hook(lambda *_: switch(False))


def outcome(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, losses, and the gradients of the loss."""
    model.zero_grad()
    torch.manual_seed(7)  # the Gumbel noise
    output = model(**batch)
    output.loss.backward()
    found = {name: tensor for name, tensor in output.items() if isinstance(tensor, Tensor)}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def differences(ours: Any, reference: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """Relative difference of everything the two compute; a gradient's scale is at least 1e-3 of the largest one."""
    found, expected = outcome(ours, batch), outcome(reference, batch)
    assert found.keys() == expected.keys()
    assert "grad.quantizer.codevectors" in found
    assert ("grad.quantizer.weight_proj.weight" in found) == ours.training
    largest = max(float(t.abs().max()) for name, t in expected.items() if name.startswith("grad."))
    return {
        name: relative_difference(found[name], tensor, 1e-3 * largest if name.startswith("grad.") else 1e-300)
        for name, tensor in expected.items()
    }


def above(found: dict[str, float], tolerance: float) -> dict[str, float]:
    return {name: difference for name, difference in found.items() if difference > tolerance}


@each_mode
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@each_case
def test_outputs_losses_and_gradients_in_float64(
    case: Case, padded: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = reference_module.Wav2Vec2ConformerGumbelVectorQuantizer
    monkeypatch.setattr(quantizer, "_compute_perplexity", staticmethod(perplexity_of_4_34))
    ours, reference = build(case, padding="reference" if padded else "invariant")
    in_float64(monkeypatch, ours, reference)
    ours.train(training)
    reference.train(training)
    found = differences(ours, reference, batch_of(case, padded))
    assert {"loss", "contrastive_loss", "diversity_loss", "codevector_perplexity"} < found.keys()
    report("pretraining", found)
    assert above(found, 1e-10) == {}


@each_mode
@each_case
def test_as_they_are(case: Case, training: bool) -> None:
    """Losses in float32 on both sides; the perplexity of 5.23.0 differs from 4.34.0's, which ours is, by up to 3e-5."""
    ours, reference = build(case)
    ours.train(training)
    reference.train(training)
    batch = batch_of(case, padded=False)
    with_loss, expected = outcome(ours, batch), outcome(reference, batch)
    apart = with_loss["diversity_loss"] - expected["diversity_loss"]  # near 0 where nearly all entries are used
    assert abs(float(apart)) < 3e-5 * int(batch["mask_time_indices"].sum())
    found = differences(ours, reference, batch)
    del found["diversity_loss"]
    assert max(found.pop("projected_states"), found.pop("projected_quantized_states")) < 1e-10
    assert above(found, 3e-5) == {}


@each_case
def test_the_cases_are_sharp(case: Case) -> None:
    """Codes differ between frames, the noise matters, and the loss is not that of uniform guessing."""
    ours, _ = build(case)
    batch = batch_of(case, padded=False)
    with torch.no_grad():
        still = ours(**batch)
        drawn = ours.train()(**batch)
    assert still.codevector_perplexity > ours.quantizer.groups
    assert relative_difference(drawn.projected_quantized_states, still.projected_quantized_states) > 0.1
    assert still.contrastive_loss > 0


@pytest.mark.parametrize("case", CASES[:12], ids=str)
def test_without_negatives_and_without_mask(case: Case) -> None:
    ours, reference = build(case)
    batch = batch_of(case, padded=False)
    del batch["sampled_negative_indices"]
    for masked in (True, False):
        if not masked:
            del batch["mask_time_indices"]
        with torch.no_grad():
            found, expected = ours(**batch), reference(**batch)
            pair = ours(**batch, return_dict=False, output_hidden_states=True, output_attentions=True)
        assert found.loss is None
        assert found.contrastive_loss is None
        assert found.diversity_loss is None
        for name in ("projected_states", "projected_quantized_states"):
            assert relative_difference(found[name], expected[name]) < 1e-10
        assert relative_difference(found.codevector_perplexity, expected.codevector_perplexity) < 3e-5
        assert isinstance(pair, tuple)
        assert [type(part) for part in pair] == [Tensor, Tensor, Tensor, tuple, tuple]
        assert relative_difference(pair[0], found.projected_states) < 1e-10
        assert len(pair[3]) == len(pair[4]) + 1 == case.settings["num_hidden_layers"] + 1


@pytest.mark.parametrize("case", CASES[:12], ids=str)
@each_mode
def test_negatives_of_unmasked_frames(case: Case, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_sample_negative_indices` without a mask draws from all frames: the value is still the reference's."""
    ours, reference = build(case)
    in_float64(monkeypatch, ours, reference)
    ours.train(training)
    reference.train(training)
    batch = batch_of(case, padded=False)
    np.random.seed(case.index)
    drawn = _sample_negative_indices(tuple(batch["mask_time_indices"].shape), case.settings["num_negatives"])
    batch["sampled_negative_indices"] = torch.from_numpy(drawn)
    found, expected = outcome(ours, batch), outcome(reference, batch)
    assert relative_difference(found["contrastive_loss"], expected["contrastive_loss"]) < 1e-10


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_masks_as_integers_and_numpy_negatives(case: Case) -> None:
    """The seed's way of preparing a batch, with our helpers on one side and its own on the other."""
    ours, reference = build(case)
    batch = batch_of(case, padded=False)
    shape = tuple(batch["mask_time_indices"].shape)
    losses = []
    for model, spans, negatives in (
        (ours, compute_mask_indices, sample_negative_indices),
        (reference, reference_module._compute_mask_indices, _sample_negative_indices),
    ):
        np.random.seed(case.index)
        mask = spans(shape=shape, mask_prob=0.4, mask_length=2, min_masks=2)
        drawn = negatives(features_shape=shape, num_negatives=5, mask_time_indices=mask)
        batch["mask_time_indices"] = torch.tensor(mask, dtype=torch.long)
        batch["sampled_negative_indices"] = torch.tensor(drawn, dtype=torch.long)
        losses.append(model(**batch).loss.detach())
    assert relative_difference(losses[0], losses[1]) < 1e-5


def test_contrastive_logits() -> None:
    source = torch.Generator().manual_seed(0)
    target, negatives, predicted = (torch.randn(n, 2, 7, 5, generator=source) for n in (1, 4, 1))
    arguments = target, negatives, predicted[0], 0.3
    found = Wav2Vec2ConformerForPreTraining.compute_contrastive_logits(*arguments)
    assert found.shape == (5, 2, 7)
    expected = ReferenceForPreTraining.compute_contrastive_logits(*arguments)
    torch.testing.assert_close(found, expected)
    half = [part.bfloat16() for part in arguments[:3]]
    assert Wav2Vec2ConformerForPreTraining.compute_contrastive_logits(*half).dtype == torch.bfloat16


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_weights_go_both_ways(case: Case) -> None:
    ours, reference = build(case)
    fresh = ReferenceForPreTraining(reference.config).double().eval()
    result = fresh.load_state_dict(ours.state_dict(), strict=True)
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    waveforms = inputs(case)["input_values"]
    with torch.no_grad():
        assert torch.equal(fresh(waveforms).projected_states, reference(waveforms).projected_states)


@pytest.mark.parametrize("position", ["relative", "rotary"])
def test_large_models(position: str) -> None:
    settings = {**LARGE, "position_embeddings_type": position}
    ours = on_meta(Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerConfig, settings)
    reference = on_meta(ReferenceForPreTraining, transformers.Wav2Vec2ConformerConfig, settings)
    assert shapes(ours.state_dict()) == shapes(reference.state_dict())
    assert ours.num_parameters() == reference.num_parameters() - UNUSED


def test_initial_values_are_distributed_as_in_the_reference() -> None:
    settings = {**LARGE, "num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 64, "conv_dim": (32,) * 7}
    torch.manual_seed(0)
    ours = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**settings)).state_dict()
    reference = ReferenceForPreTraining(transformers.Wav2Vec2ConformerConfig(**settings)).state_dict()
    names = [name for name in reference if name.startswith(("quantizer", "project"))]
    assert len(names) == 7
    for name in names:
        for statistic in (torch.mean, torch.std, torch.amax):
            a, b = float(statistic(ours[name])), float(statistic(reference[name]))
            assert a == pytest.approx(b, rel=0.15, abs=0.02 * float(reference[name].abs().max())), name
