"""The quantizer: straight-through Gumbel-softmax, lookup, perplexities, and what the head does with its temperature."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.modeling.quantizer import GumbelQuantizer, perplexities

GROUPS, ENTRIES, WIDTH, FEATURES = 3, 6, 4, 5
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 3,
    "num_codevector_groups": GROUPS,
    "num_codevectors_per_group": ENTRIES,
    "codevector_dim": GROUPS * WIDTH,
    "proj_codevector_dim": 7,
    "num_negatives": 4,
}


def build() -> GumbelQuantizer:
    source = torch.Generator().manual_seed(0)
    settings = {**SMALL, "conv_dim": (*SMALL["conv_dim"][:-1], FEATURES)}
    quantizer = GumbelQuantizer(Wav2Vec2ConformerConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return quantizer


def draw_features(rows: int = 2, frames: int = 9) -> Tensor:
    return torch.randn(rows, frames, FEATURES, generator=torch.Generator().manual_seed(1), requires_grad=True)


def test_evaluation_takes_the_most_likely_entries() -> None:
    quantizer, features = build(), draw_features()
    found = quantizer(features)
    logits = quantizer.weight_proj(features).view(2, 9, GROUPS, ENTRIES)
    assert torch.equal(found.codes, logits.argmax(-1))
    codebook = quantizer.codevectors.view(GROUPS, ENTRIES, WIDTH)
    for row, frame in ((0, 0), (1, 8)):
        parts = [codebook[g, found.codes[row, frame, g]] for g in range(GROUPS)]
        assert torch.equal(found.vectors[row, frame], torch.cat(parts))
    found.vectors.square().sum().backward()
    assert features.grad is None
    assert quantizer.weight_proj.weight.grad is None
    used = quantizer.codevectors.grad.view(GROUPS, ENTRIES, WIDTH).abs().sum(-1) > 0
    assert torch.equal(used, F.one_hot(found.codes, ENTRIES).sum((0, 1)) > 0)


def test_training_is_the_straight_through_estimator() -> None:
    """Values are those of the drawn entries, gradients those of the softmax with the same noise."""
    quantizer, features = build().train(), draw_features()
    quantizer.temperature = 0.8
    torch.manual_seed(3)
    found = quantizer(features)
    goal = torch.randn(found.vectors.shape, generator=torch.Generator().manual_seed(2))
    gradient = torch.autograd.grad((found.vectors * goal).sum(), [features, quantizer.codevectors])

    torch.manual_seed(3)
    logits = quantizer.weight_proj(features).view(-1, ENTRIES)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / 0.8).softmax(-1)
    codebook = quantizer.codevectors.view(GROUPS, ENTRIES, WIDTH)
    assert torch.equal(found.codes, soft.argmax(-1).view(2, 9, GROUPS))
    chosen = F.one_hot(found.codes, ENTRIES).float()
    torch.testing.assert_close(found.vectors, torch.einsum("btgv,gvd->btgd", chosen, codebook).flatten(-2))
    relaxed = torch.einsum("btgv,gvd->btgd", soft.view(chosen.shape), codebook.detach()).flatten(-2)
    torch.testing.assert_close(gradient[0], torch.autograd.grad((relaxed * goal).sum(), features)[0])
    parts = torch.einsum("btgv,btgd->gvd", chosen, goal.unflatten(-1, (GROUPS, WIDTH)))
    torch.testing.assert_close(gradient[1].view(parts.shape), parts)


def test_temperature_decides_how_sharp_the_gradient_is_not_what_is_drawn() -> None:
    quantizer, features = build().train(), draw_features()
    results = []
    for temperature in (0.1, 2.0, 50.0):
        quantizer.temperature = temperature
        torch.manual_seed(0)
        results.append(quantizer(features))
    assert all(torch.equal(result.codes, results[0].codes) for result in results)
    assert all(result.perplexity == results[0].perplexity for result in results)


def test_perplexity_of_known_distributions() -> None:
    assert perplexities(torch.full((2, 8), 1 / 8)).sum().item() == pytest.approx(16, rel=1e-5)
    assert perplexities(F.one_hot(torch.tensor([0, 3, 3]), 8).float()).sum().item() == pytest.approx(3, rel=1e-5)
    assert perplexities(torch.zeros(2, 8)).tolist() == [1, 1]


@pytest.mark.parametrize("training", [False, True])
def test_perplexities_count_masked_frames_only(training: bool) -> None:
    quantizer, features = build().train(training), draw_features()
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(4)) < 0.5
    torch.manual_seed(0)
    found = quantizer(features, mask)
    soft = quantizer.weight_proj(features).view(2, 9, GROUPS, ENTRIES).softmax(-1)[mask].mean(0)
    hard = F.one_hot(found.codes, ENTRIES).float()[mask].mean(0)
    torch.testing.assert_close(found.soft_perplexities, perplexities(soft))
    torch.testing.assert_close(found.hard_perplexities, perplexities(hard))
    assert found.perplexity == (found.soft_perplexities if training else found.hard_perplexities).sum()
    assert found.perplexity.requires_grad == training
    assert not found.soft_perplexities.requires_grad
    torch.manual_seed(0)
    whole = quantizer(features)
    shares = F.one_hot(found.codes, ENTRIES).float().mean((0, 1))
    torch.testing.assert_close(whole.hard_perplexities, perplexities(shares))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frames", [0, 4])
def test_nothing_masked_and_nothing_there(training: bool, frames: int) -> None:
    quantizer, features = build().train(training), draw_features(2, frames)
    found = quantizer(features, torch.zeros(2, frames, dtype=torch.bool))
    assert found.vectors.shape == (2, frames, GROUPS * WIDTH)
    assert found.codes.shape == (2, frames, GROUPS)
    assert found.soft_perplexities.tolist() == found.hard_perplexities.tolist() == [1] * GROUPS
    if training:
        (found.perplexity + found.vectors.sum()).backward()
        assert all(p.grad.isfinite().all() for p in quantizer.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype, training: bool) -> None:
    quantizer, features = build().to(dtype).train(training), draw_features().to(dtype)
    found = quantizer(features)
    assert found.vectors.dtype == dtype
    assert found.perplexity.dtype == torch.float32
    rows = quantizer.codevectors[0].detach().view(GROUPS, ENTRIES, WIDTH)
    picked = torch.stack([rows[g, found.codes[..., g]] for g in range(GROUPS)], dim=2).flatten(-2)
    assert torch.equal(found.vectors, picked)  # exactly entries of the codebook, in every type


# --- the head around it ------------------------------------------------------------------------------------------


def test_set_gumbel_temperature() -> None:
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL))
    assert model.quantizer.temperature == 2
    model.set_gumbel_temperature(0.5)
    assert model.quantizer.temperature == 0.5
    assert copy.deepcopy(model).quantizer.temperature == 0.5


def test_freeze_feature_encoder() -> None:
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL))
    model.freeze_feature_encoder()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith("wav2vec2_conformer.feature_extractor.") for name in frozen)


def test_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="add_adapter=False"):
        Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL, add_adapter=True))


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Every weight comes back; a head that the file lacks starts at its own initial values."""
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL))
    model.save_pretrained(tmp_path / "whole")
    again = Wav2Vec2ConformerForPreTraining.from_pretrained(tmp_path / "whole")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

    model.wav2vec2_conformer.save_pretrained(tmp_path / "base")
    fresh, info = Wav2Vec2ConformerForPreTraining.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert len(info["missing_keys"]) == 7
    assert fresh.quantizer.weight_proj.weight.std() > 0.7
    assert not fresh.quantizer.weight_proj.bias.any()
    assert 0 <= fresh.quantizer.codevectors.min() < 0.1 < 0.9 < fresh.quantizer.codevectors.max() <= 1
    assert 0.2 < fresh.project_hid.weight.abs().max() <= 1 / 16**0.5
    assert 0.1 < fresh.project_q.bias.abs().max() <= 1 / 12**0.5


def test_negatives_need_a_mask() -> None:
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL))
    with pytest.raises(ValueError, match="without `mask_time_indices`"):
        model(torch.randn(1, 2000), sampled_negative_indices=torch.zeros(1, 5, 4, dtype=torch.long))


@pytest.mark.parametrize("training", [False, True])
def test_quantizer_dropout_acts_in_training_only(training: bool) -> None:
    model = Wav2Vec2ConformerForPreTraining(
        Wav2Vec2ConformerConfig(**SMALL, feat_quantizer_dropout=0.9, mask_time_prob=0.0, layerdrop=0.0)
    ).train(training)
    seen: list[Tensor] = []
    model.quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)))
    assert ((seen[0] == 0).float().mean() > 0.5) == training
