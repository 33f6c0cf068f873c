"""The network's behaviour: outputs, masks, training mode, precision, compilation. (Its numbers: `tests/parity`.)"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2ConformerConfig as PeerConfig
from transformers import Wav2Vec2ConformerForCTC as PeerForCTC
from transformers import Wav2Vec2ConformerModel as PeerModel

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel
from wav2vec2_conformer.lengths import frame_mask
from wav2vec2_conformer.modeling.batch_norm import FrameBatchNorm

POSITIONS = ["relative", "rotary", None]
SAMPLES, FRAMES = 8000, 24
NO_DROPOUT = dict.fromkeys(
    [f"{name}_dropout" for name in ("hidden", "activation", "attention", "feat_proj", "final", "conformer_conv")], 0.0
)
TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_dim": (8,) * 7,
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "conv_depthwise_kernel_size": 7,
    "layerdrop": 0.0,
}


@torch.no_grad()
def enlarge(model: nn.Module, seed: int = 0) -> None:
    """Draw weights, biases and statistics so large that attention is far from uniform."""
    source = torch.Generator().manual_seed(seed)
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


def ctc(seed: int = 0, **values: Any) -> Wav2Vec2ConformerForCTC:
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**TINY, **values}))
    enlarge(model, seed)
    return model.eval()


def base(seed: int = 0, **values: Any) -> Wav2Vec2ConformerModel:
    return ctc(seed, **values).wav2vec2_conformer


def waveforms(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and its attention mask."""
    size = max(lengths)
    noise = torch.randn(len(lengths), size, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    return noise * mask, mask


LABELS = torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Equal keys, and values equal to `tolerance` of the largest of them all."""
    assert ours.keys() == theirs.keys()
    scale = max(value.abs().max().item() for value in theirs.values())
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= tolerance * scale, name


# --- outputs -----------------------------------------------------------------------------------------------------


def test_weights_of_these_tests_make_attention_far_from_uniform() -> None:
    for positions in POSITIONS:
        outputs = base(position_embeddings_type=positions)(waveforms(SAMPLES)[0], output_attentions=True)
        assert all(weights.amax(-1).mean() > 4 / FRAMES for weights in outputs.attentions)


@pytest.mark.parametrize("adapter", [False, True])
def test_hidden_states_and_attentions(adapter: bool) -> None:
    model = base(add_adapter=adapter)
    x, mask = waveforms(SAMPLES, 5000)
    outputs = model(x, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(2, FRAMES, 32)] * 4
    assert [tuple(a.shape) for a in outputs.attentions] == [(2, 4, FRAMES, FRAMES)] * 3
    assert outputs.extract_features.shape == (2, FRAMES, 8)
    if adapter:
        assert outputs.last_hidden_state.shape == (2, 3, 32)
    else:
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        assert not torch.equal(outputs.hidden_states[-1], outputs.hidden_states[-2])
    bare = model(x, attention_mask=mask)
    assert bare.hidden_states is None
    assert bare.attentions is None
    assert torch.allclose(bare.last_hidden_state, outputs.last_hidden_state, atol=1e-5)


def test_config_asks_for_outputs_and_arguments_overrule_it() -> None:
    model = base(output_hidden_states=True, output_attentions=True)
    x, _ = waveforms(SAMPLES)
    assert len(model(x).hidden_states) == 4
    assert len(model(x).attentions) == 3
    quiet = model(x, output_hidden_states=False, output_attentions=False)
    assert quiet.hidden_states is None
    assert quiet.attentions is None


def test_tuples_of_the_base_model() -> None:
    model, peer = base(), PeerModel(PeerConfig(**TINY)).eval()
    x, mask = waveforms(SAMPLES, 5000)
    for flags in ({}, {"output_hidden_states": True}, {"output_hidden_states": True, "output_attentions": True}):
        named = model(x, attention_mask=mask, **flags)
        plain = model(x, attention_mask=mask, return_dict=False, **flags)
        theirs = peer(x, attention_mask=mask, return_dict=False, **{k: v for k, v in flags.items() if "att" not in k})
        assert isinstance(plain, tuple)
        assert len(plain) == 2 + len(flags)
        assert torch.equal(plain[0], named.last_hidden_state)
        assert torch.equal(plain[1], named.extract_features)
        assert [part.shape for part in plain[:2]] == [part.shape for part in theirs[:2]]
        if flags:
            assert all(map(torch.equal, plain[2], named.hidden_states))
            assert len(plain[2]) == len(theirs[2]) == 4
        if len(flags) == 2:
            assert all(map(torch.equal, plain[3], named.attentions))


def test_tuples_of_the_ctc_model() -> None:
    model, peer = ctc(), PeerForCTC(PeerConfig(**TINY)).eval()
    x, mask = waveforms(SAMPLES, 5000)
    everything = {"attention_mask": mask, "output_hidden_states": True, "output_attentions": True}
    named = model(x, labels=LABELS, **everything)
    assert list(named.keys()) == ["loss", "logits", "hidden_states", "attentions"]
    plain = model(x, labels=LABELS, return_dict=False, **everything)
    assert len(plain) == 4
    assert torch.equal(plain[0], named.loss)
    assert torch.equal(plain[1], named.logits)
    assert all(map(torch.equal, plain[2], named.hidden_states))
    assert all(map(torch.equal, plain[3], named.attentions))
    for arguments in ({"labels": LABELS}, {}):
        ours, theirs = model(x, return_dict=False, **arguments), peer(x, return_dict=False, **arguments)
        assert [part.shape for part in ours] == [part.shape for part in theirs]
    assert ctc(return_dict=False)(x)[0].shape == (2, FRAMES, 11)


@pytest.mark.parametrize("positions", POSITIONS)
def test_attentions_are_the_same_under_sdpa_and_eager(positions: str | None) -> None:
    model = base(position_embeddings_type=positions)
    x, mask = waveforms(SAMPLES, 5000)
    found = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        outputs = model(x, attention_mask=mask, output_attentions=True, output_hidden_states=True)
        assert len(outputs.attentions) == 3
        found[implementation] = outputs
    for ours, theirs in zip(found["sdpa"].attentions, found["eager"].attentions, strict=True):
        assert torch.equal(ours, theirs)
    weights = found["eager"].attentions[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, FRAMES))
    assert (weights[1, :, :, 15:] == 0).all()  # 5000 samples are 15 frames; padding is no key
    assert (weights[1, :, :, :15] > 0).any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_implementation_switches_at_runtime(positions: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base(position_embeddings_type=positions)
    x, mask = waveforms(SAMPLES, 5000)
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    assert model.config._attn_implementation == "sdpa"
    with_sdpa = model(x, attention_mask=mask).last_hidden_state
    assert len(calls) == 3
    model.set_attn_implementation("eager")
    step_by_step = model(x, attention_mask=mask).last_hidden_state
    assert len(calls) == 3
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(x, attention_mask=mask).last_hidden_state, with_sdpa)
    assert len(calls) == 6
    scale = step_by_step.abs().max()
    assert (with_sdpa - step_by_step).abs().max() <= 1e-5 * scale


def test_eager_from_the_start() -> None:
    config = Wav2Vec2ConformerConfig(**TINY, attn_implementation="eager")
    assert Wav2Vec2ConformerModel(config).config._attn_implementation == "eager"


# --- masks -------------------------------------------------------------------------------------------------------


def given_mask() -> Tensor:
    mask = torch.zeros(2, FRAMES, dtype=torch.bool)
    mask[0, 3:9] = True
    mask[1, 10:12] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_given_mask_is_used(augment: bool, training: bool, dtype: torch.dtype) -> None:
    """Also with apply_spec_augment=False (the references ignore it there) and outside training."""
    model = base(apply_spec_augment=augment, mask_time_prob=0.5, **NO_DROPOUT).train(training)
    x, _ = waveforms(SAMPLES, SAMPLES)
    mask = given_mask()
    outputs = model(x, mask_time_indices=mask.to(dtype), output_hidden_states=True)
    embeddings = outputs.hidden_states[0]
    assert torch.equal(embeddings[mask], model.masked_spec_embed.expand(8, -1))
    unmasked = base(apply_spec_augment=False, **NO_DROPOUT)(x, output_hidden_states=True)
    assert torch.equal(embeddings[~mask], unmasked.hidden_states[0][~mask])
    assert torch.equal(outputs.extract_features, unmasked.extract_features)  # the quantizer reads them unmasked


def test_given_mask_without_an_embedding() -> None:
    model = base(mask_time_prob=0.0, mask_feature_prob=0.0)
    assert not hasattr(model, "masked_spec_embed")
    x, _ = waveforms(SAMPLES, SAMPLES)
    model(x)
    with pytest.raises(ValueError, match=r"no mask embedding .* `mask_time_prob` and `mask_feature_prob` are both 0"):
        model(x, mask_time_indices=given_mask())
    assert hasattr(base(mask_time_prob=0.0, mask_feature_prob=0.1), "masked_spec_embed")


def test_given_mask_of_a_wrong_shape() -> None:
    model = base()
    x, _ = waveforms(SAMPLES, SAMPLES)
    with pytest.raises(ValueError, match=r"`mask_time_indices` must be of shape \(2, 24\), got \(2, 23\)"):
        model(x, mask_time_indices=given_mask()[:, 1:])


def test_spec_augment_in_training_only() -> None:
    options = {"mask_time_prob": 0.4, "mask_time_length": 3, "mask_feature_prob": 0.3, "mask_feature_length": 4}
    model = base(**options, **NO_DROPOUT)
    x, mask = waveforms(SAMPLES, 5000)
    plain = model(x, attention_mask=mask, output_hidden_states=True).hidden_states[0]
    assert torch.equal(model(x, attention_mask=mask, output_hidden_states=True).hidden_states[0], plain)

    model.train()
    torch.manual_seed(3)
    masked = model(x, attention_mask=mask, output_hidden_states=True).hidden_states[0]
    zeroed = (masked == 0).all(1)  # (B, D): channels that are 0 in every frame
    assert zeroed.any(1).all()
    expected = model.masked_spec_embed.masked_fill(zeroed.unsqueeze(1), 0)  # (B, 1, D)
    hidden = (masked == expected).all(-1)  # (B, T)
    assert hidden[:, :15].any(1).all()
    assert not hidden[1, 15:].any()  # spans lie in valid frames; padding is 0
    kept = ~hidden & frame_mask(torch.tensor([FRAMES, 15]), FRAMES)
    assert torch.equal(masked[kept], plain.masked_fill(zeroed.unsqueeze(1), 0)[kept])
    torch.manual_seed(4)
    assert not torch.equal(model(x, attention_mask=mask, output_hidden_states=True).hidden_states[0], masked)

    model.config.apply_spec_augment = False
    unaugmented = model(x, attention_mask=mask, output_hidden_states=True).hidden_states[0]
    assert torch.equal(unaugmented, plain)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_no_attention_mask_means_every_sample_is_real(positions: str | None, norm: str, training: bool) -> None:
    model = ctc(position_embeddings_type=positions, feat_extract_norm=norm, **NO_DROPOUT).train(training)
    twin = copy.deepcopy(model)
    x, mask = waveforms(SAMPLES, SAMPLES)
    torch.manual_seed(0)  # SpecAugment draws the same spans in both
    without = model(x, labels=LABELS)
    torch.manual_seed(0)
    with_ones = twin(x, attention_mask=mask, labels=LABELS)
    scale = without.logits.abs().max()
    assert (without.logits - with_ones.logits).abs().max() <= 1e-5 * scale
    without.loss.backward()
    with_ones.loss.backward()
    assert_same(gradients(model), gradients(twin), 2e-5)
    assert_same(statistics(model), statistics(twin), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8])
def test_attention_mask_of_any_whole_type(dtype: torch.dtype) -> None:
    model = ctc()
    x, mask = waveforms(SAMPLES, 5000)
    expected = model(x, attention_mask=mask, labels=LABELS)
    result = model(x, attention_mask=mask.to(dtype), labels=LABELS)
    assert torch.equal(result.logits, expected.logits)
    assert torch.equal(result.loss, expected.loss)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(SAMPLES,), (2, 1, SAMPLES), ()])
def test_input_that_is_no_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`input_values` must be a floating-point batch of waveforms of shape"):
        ctc()(torch.zeros(shape))


def test_input_of_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"floating-point .* got \(2, 8000\) of torch.int16"):
        ctc()(torch.zeros(2, SAMPLES, dtype=torch.int16))


@pytest.mark.parametrize("shape", [(2, FRAMES), (1, SAMPLES), (SAMPLES,)])
def test_attention_mask_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`attention_mask` must have the shape of `input_values`, .* not frames"):
        ctc()(torch.zeros(2, SAMPLES), attention_mask=torch.ones(shape, dtype=torch.long))


def test_label_outside_the_vocabulary() -> None:
    model = ctc()
    x, _ = waveforms(SAMPLES)
    assert model(x, labels=torch.tensor([[10, -100]])).loss.isfinite()
    with pytest.raises(ValueError, match="below vocab_size = 11, got 11"):
        model(x, labels=torch.tensor([[1, 11]]))


def test_vocabulary_size_is_needed() -> None:
    with pytest.raises(ValueError, match=r"needs `config.vocab_size`, got None; pass it, .*vocab_size="):
        Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**TINY, "vocab_size": None}))
    Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**{**TINY, "vocab_size": None}))


def test_labels_may_be_empty() -> None:
    loss = ctc()(waveforms(SAMPLES)[0], labels=torch.zeros(1, 0, dtype=torch.long)).loss
    assert loss.isfinite()
    assert loss > 0  # the path of blanks alone


# --- training ----------------------------------------------------------------------------------------------------


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.double() for name, b in model.named_buffers() if "running" in name or "tracked" in name}


def test_freeze_feature_encoder() -> None:
    model = ctc(**NO_DROPOUT).train()
    model.freeze_feature_encoder()
    model(waveforms(SAMPLES)[0], labels=LABELS[:1]).loss.backward()
    for name, parameter in model.named_parameters():
        inside = name.startswith("wav2vec2_conformer.feature_extractor.")
        assert parameter.requires_grad != inside
        assert (parameter.grad is None) == inside or name.endswith("masked_spec_embed")
    lone = base()
    lone.freeze_feature_encoder()
    assert not any(p.requires_grad for p in lone.feature_extractor.parameters())


def test_every_parameter_has_a_gradient() -> None:
    for positions in POSITIONS:
        options = {"mask_time_prob": 0.5, "mask_time_length": 2, "add_adapter": True, "output_hidden_size": 24}
        model = ctc(position_embeddings_type=positions, **options).train()
        x, mask = waveforms(SAMPLES, 5000)
        torch.manual_seed(0)
        model(x, attention_mask=mask, labels=LABELS[:, :1]).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, masked: bool) -> None:
    """Dropout, SpecAugment and LayerDrop included; BatchNorm counts the batch once though `forward` runs twice."""
    plain = ctc(mask_time_prob=0.4, mask_time_length=3, layerdrop=0.4).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    x, mask = waveforms(SAMPLES, 5000)
    initial, skipped = statistics(plain), 0
    losses = []
    for seed in range(2):
        for model in (plain, checkpointed):
            model.zero_grad()
            torch.manual_seed(seed)
            loss = model(x, attention_mask=mask if masked else None, labels=LABELS).loss
            loss.backward()
            losses.append(loss.item())
        assert losses[-1] == pytest.approx(losses[-2], rel=1e-6)
        assert_same(gradients(checkpointed), gradients(plain), 1e-6)
        blocks = plain.wav2vec2_conformer.encoder.layers
        skipped += sum(block.ffn1_layer_norm.weight.grad is None for block in blocks)
    assert skipped > 0  # a block was skipped in at least one of the steps
    after = statistics(plain)
    assert_same(statistics(checkpointed), after, 1e-6)
    counts = [after[name].item() - initial[name].item() for name in after if "tracked" in name]
    assert set(counts) <= {0, 1, 2}
    assert sum(counts) > 0
    assert any((after[name] != initial[name]).any() for name in after if "running_mean" in name)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_checkpointing_really_recomputes() -> None:
    model = ctc(**NO_DROPOUT).train()
    calls = []
    model.wav2vec2_conformer.encoder.layers[0].conv_module.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(waveforms(SAMPLES)[0], labels=LABELS[:1]).loss.backward()
    assert len(calls) == 2
    norm = model.wav2vec2_conformer.encoder.layers[0].conv_module.batch_norm
    assert norm.num_batches_tracked == 1


def test_batch_norm_follows_torchs() -> None:
    """Output, gradients and running statistics of a training step and of evaluation, against nn.BatchNorm1d."""
    ours, theirs = FrameBatchNorm(6), nn.BatchNorm1d(6)
    enlarge(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
    for _ in range(2):
        out, batch = ours(x)
        ours.commit(batch)
        expected = theirs(x.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 2
    scale, shift = ours.folded(torch.float32)
    torch.testing.assert_close(x * scale + shift, theirs.eval()(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_keeps_float32_statistics_of_half_precision_frames(dtype: torch.dtype, masked: bool) -> None:
    norm = FrameBatchNorm(6).to(dtype)
    x = (torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0)) * 30 + 5).to(dtype)
    out, batch = norm(x, torch.ones(4, 50, dtype=torch.bool) if masked else None)
    assert out.dtype == dtype
    assert batch.mean.dtype == batch.variance.dtype == torch.float32
    torch.testing.assert_close(batch.mean, x.float().mean((0, 1)))
    torch.testing.assert_close(batch.variance, x.float().var((0, 1)))


@pytest.mark.parametrize("valid", [0, 1])
def test_batch_norm_learns_nothing_from_fewer_than_two_frames(valid: int) -> None:
    norm = FrameBatchNorm(6)
    enlarge(norm)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    out, batch = norm(torch.randn(2, 3, 6), frame_mask(torch.tensor([valid, 0]), 3))
    norm.commit(batch)
    assert out.isfinite().all()
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)


def test_layerdrop_skips_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base(layerdrop=0.5, apply_spec_augment=False, **NO_DROPOUT).train()
    monkeypatch.setattr(model, "_draw_layerdrop", lambda: [False, True, False])
    outputs = model(waveforms(SAMPLES, SAMPLES)[0], output_hidden_states=True, output_attentions=True)
    states = outputs.hidden_states
    assert len(states) == 4
    assert torch.equal(states[2], states[1])
    assert not torch.equal(states[1], states[0])
    assert torch.equal(states[3], outputs.last_hidden_state)
    assert [weights is None for weights in outputs.attentions] == [False, True, False]
    outputs.last_hidden_state.square().sum().backward()
    used = [any(p.grad is not None for p in block.parameters()) for block in model.encoder.layers]
    assert used == [True, False, True]
    tracked = [block.conv_module.batch_norm.num_batches_tracked.item() for block in model.encoder.layers]
    assert tracked == [1, 0, 1]


def test_layerdrop_of_everything_and_of_nothing() -> None:
    x, _ = waveforms(SAMPLES)
    model = base(layerdrop=1.0, apply_spec_augment=False, **NO_DROPOUT)
    kept = model(x, output_hidden_states=True).hidden_states  # evaluation keeps every block
    assert not torch.equal(kept[1], kept[0])
    states = model.train()(x, output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert all(torch.equal(state, states[0]) for state in states[:3])
    assert torch.equal(states[3], model.encoder.layer_norm(states[0]))
    assert base(layerdrop=0.0).train()._draw_layerdrop() is None


def test_layerdrop_rate() -> None:
    model = base(layerdrop=0.3).train()
    torch.manual_seed(0)
    drawn = torch.tensor([model._draw_layerdrop() for _ in range(2000)], dtype=torch.float32)
    assert drawn.shape == (2000, 3)
    assert (drawn.mean(0) - 0.3).abs().max() < 0.05


def test_deterministic() -> None:
    x, mask = waveforms(SAMPLES, 5000)
    model = ctc(layerdrop=0.3)
    assert torch.equal(model(x, attention_mask=mask).logits, model(x, attention_mask=mask).logits)
    model.train()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(copy.deepcopy(model)(x, attention_mask=mask).logits)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_after_inference_mode() -> None:
    """Nothing computed under inference_mode is kept for later (the references' rotary cache is)."""
    for positions in POSITIONS:
        model = ctc(position_embeddings_type=positions)
        x, mask = waveforms(SAMPLES, 5000)
        with torch.inference_mode():
            model(x, attention_mask=mask)
        model.train()
        model(x, attention_mask=mask, labels=LABELS).loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(positions: str | None, dtype: torch.dtype) -> None:
    model = ctc(position_embeddings_type=positions)
    x, mask = waveforms(SAMPLES, 5000, 0)
    expected = model(x, attention_mask=mask).logits[:2, :15]
    half = copy.deepcopy(model).to(dtype)
    logits = half(x.to(dtype), attention_mask=mask).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    error = (logits[:2, :15].float() - expected).abs().max() / expected.abs().max()
    assert error < (0.15 if dtype == torch.bfloat16 else 0.02)
    other = ctc(1, position_embeddings_type=positions)(x, attention_mask=mask).logits[:2, :15]
    assert (other - expected).abs().max() / expected.abs().max() > 0.5  # the bound says something


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_and_frequencies_stay_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = ctc(position_embeddings_type="rotary")
    kept = {name: b.clone() for name, b in model.named_buffers() if b.is_floating_point()}
    assert len(kept) == 3 * 2 + 1
    model.save_pretrained(tmp_path)
    loaded = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, dtype=dtype)
    for half in (copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(torch.float64).to(dtype), loaded):
        assert half.lm_head.weight.dtype == dtype
        for name, before in kept.items():
            buffer = half.get_buffer(name)
            assert buffer.dtype in (torch.float32, torch.float64), name
            assert torch.equal(buffer.float(), before), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_trains(dtype: torch.dtype, masked: bool) -> None:
    model = ctc(apply_spec_augment=False, **NO_DROPOUT).train()
    half = copy.deepcopy(model).to(dtype)
    x, mask = waveforms(SAMPLES, 5000)
    options = {"attention_mask": mask if masked else None, "labels": LABELS}
    expected = model(x, **options).loss
    loss = half(x.to(dtype), **options).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(half).values())
    assert_same(statistics(half), statistics(model), 0.05)


def test_autocast_trains() -> None:
    model = ctc(apply_spec_augment=False, **NO_DROPOUT).train()
    x, mask = waveforms(SAMPLES, 5000)
    expected = copy.deepcopy(model)(x, attention_mask=mask, labels=LABELS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, attention_mask=mask, labels=LABELS).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("positions", POSITIONS)
def test_nothing_is_stale_after_a_change_of_type(positions: str | None) -> None:
    model = ctc(position_embeddings_type=positions)
    x, mask = waveforms(SAMPLES, 5000)
    model(x, attention_mask=mask)
    model.double()
    fresh = ctc(position_embeddings_type=positions).double()
    result = model(x.double(), attention_mask=mask).logits
    assert result.dtype == torch.float64
    assert torch.equal(result, fresh(x.double(), attention_mask=mask).logits)
    model.float()
    assert torch.equal(model(x, attention_mask=mask).logits, ctc(position_embeddings_type=positions)(x, mask).logits)


def test_rotary_angles_are_wide_in_a_half_model() -> None:
    """1500 frames: in bfloat16 the angle itself would be wrong by several radians."""
    model = base(position_embeddings_type="rotary")
    probe = torch.zeros(1, 1500, 32)
    exact_cos, exact_sin = model.encoder.embed_positions(probe.double())
    half_cos, half_sin = model.bfloat16().encoder.embed_positions(probe.bfloat16())
    assert half_cos.dtype == torch.bfloat16
    assert (half_cos.double() - exact_cos).abs().max() < 0.005
    assert (half_sin.double() - exact_sin).abs().max() < 0.005


# --- buffers, synchronisation, compilation -----------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_buffer_grows(positions: str | None) -> None:
    model = ctc(position_embeddings_type=positions)
    before = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    objects = {id(value) for module in model.modules() for value in vars(module).values() if torch.is_tensor(value)}
    model(waveforms(SAMPLES)[0])
    model(waveforms(3 * SAMPLES)[0])
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == before
    assert objects == {
        id(value) for module in model.modules() for value in vars(module).values() if torch.is_tensor(value)
    }
    kinds = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    rotary = {"inv_freq"} if positions == "rotary" else set()
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"} | rotary


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forward_needs_no_host_synchronisation(positions: str | None, training: bool, implementation: str) -> None:
    """Tensors on the meta device have no values, so waiting for one is an error there."""
    values = {**TINY, "num_hidden_layers": 1, "mask_feature_prob": 0.2, "add_adapter": True}
    values["attn_implementation"] = implementation
    config = Wav2Vec2ConformerConfig(**values, position_embeddings_type=positions)
    with torch.device("meta"):
        model = Wav2Vec2ConformerForCTC(config).train(training)
        x, mask = torch.empty(2, SAMPLES), torch.empty(2, SAMPLES, dtype=torch.long)
        for attention_mask in (None, mask):
            outputs = model(x, attention_mask=attention_mask, output_hidden_states=True)
            assert outputs.logits.shape == (2, 3, 11)
            outputs.logits.sum().backward()
        with pytest.raises((RuntimeError, NotImplementedError)):  # checking labels does wait, outside the graph
            model(x, labels=torch.empty(2, 3, dtype=torch.long))


def compiled_and_eager(backend: str, dynamic: bool | None = None, **values: Any) -> tuple[Any, Any]:
    torch._dynamo.reset()
    # Two convolutions instead of seven: compilation takes its time by layers, not by sizes.
    short = {"num_hidden_layers": 1, "conv_dim": (8, 8), "conv_kernel": (10, 40), "conv_stride": (5, 64)}
    eager = ctc(**short, **values)
    return torch.compile(copy.deepcopy(eager), fullgraph=True, backend=backend, dynamic=dynamic), eager


def compare(compiled: Any, eager: Any, seed: int, *lengths: int) -> None:
    """Logits and, in training, gradients and statistics of one step."""
    x, mask = waveforms(*lengths)
    results = []
    for model in (compiled, eager):
        torch.manual_seed(seed)
        results.append(model(x, attention_mask=mask).logits)
    scale = results[1].abs().max()
    assert (results[0] - results[1]).abs().max() <= 1e-5 * scale
    if not eager.training:
        return
    for model, logits in zip((compiled, eager), results, strict=True):
        model.zero_grad()
        logits.square().sum().backward()
    original = compiled._orig_mod
    assert_same(gradients(original), gradients(eager), 2e-5)
    assert_same(statistics(original), statistics(eager), 1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_compiles_in_evaluation(positions: str | None) -> None:
    compiled, eager = compiled_and_eager("aot_eager", position_embeddings_type=positions)
    with torch.no_grad():
        compare(compiled, eager, 0, SAMPLES, 5000)


AUGMENTED = {
    "mask_time_prob": 0.4,
    "mask_time_length": 3,
    "mask_feature_prob": 0.2,
    "mask_feature_length": 4,
    **NO_DROPOUT,
}


@pytest.mark.parametrize("positions", POSITIONS)
def test_compiles_in_training_with_spec_augment(positions: str | None) -> None:
    compiled, eager = compiled_and_eager("eager", position_embeddings_type=positions, **AUGMENTED)
    compiled.train()
    eager.train()
    compare(compiled, eager, 0, SAMPLES, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("positions", POSITIONS)
def test_compiles_in_training_with_dynamic_lengths(positions: str | None) -> None:
    compiled, eager = compiled_and_eager("eager", dynamic=True, position_embeddings_type=positions, **AUGMENTED)
    compiled.train()
    eager.train()
    for seed, lengths in enumerate(((SAMPLES, 5000), (SAMPLES + 999, 3000, 4000), (400, 5600))):
        compare(compiled, eager, seed, *lengths)


def test_compiles_with_dropout_and_reproduces() -> None:
    """In a compiled graph torch's own dropout runs, with other draws than ours: same seed, same result, no break."""
    compiled, _ = compiled_and_eager("eager")
    compiled.train()
    x, mask = waveforms(SAMPLES, 5000)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(compiled(x, attention_mask=mask).logits)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.slow
def test_compiles_with_inductor_and_dynamic_lengths() -> None:
    compiled, eager = compiled_and_eager("inductor", dynamic=True, feat_extract_norm="group")
    with torch.no_grad():
        for lengths in ((SAMPLES, 5000), (9111, 400, 7000), (5600, 5600)):
            compare(compiled, eager, 0, *lengths)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_compiles_at_most_once_more_for_each_dynamic_dimension(positions: str | None, masked: bool) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    eager = ctc(
        num_hidden_layers=1,
        conv_dim=(8, 8),
        conv_kernel=(10, 40),
        conv_stride=(5, 64),
        position_embeddings_type=positions,
    )
    compiled = torch.compile(eager, fullgraph=True, backend=counted)
    with torch.no_grad():
        for clips, samples, most in (
            (2, 6800, 1),
            (2, 5600, 2),
            (2, 7001, 2),
            (3, 7001, 3),
            (4, 9000, 3),
            (5, 2222, 3),
        ):
            x, mask = waveforms(*[samples] * clips)
            mask[0, 3000:] = 0
            given = {"attention_mask": mask} if masked else {}
            assert (compiled(x, **given).logits - eager(x, **given).logits).abs().max() < 1e-4
            assert len(graphs) <= most
