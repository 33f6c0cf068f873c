"""What each documented field, argument, output and method does. (`docs/api.md` names the test that covers each.)

Most fields of the configuration are tested by one sentence: with another value the results are those that the installed
transformers gives for it, and not those of the default. Fields of chance (dropout, masks) have a rate at which nothing
is left to chance.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_api import read_legend, read_tables
from test_model import NO_DROPOUT, enlarge, waveforms
from torch import Tensor, nn

import wav2vec2_conformer
from parity.test_live_pretraining import let_equal_rows_be_equal
from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForPreTrainingOutput

# B clips, N samples, T frames, C channels of the last convolution, D hidden size, H heads, L blocks, V vocabulary,
# S labels, Y classes, X width of an x-vector, G codebook groups, P width of the comparison, K negatives: all different
SIZE = {"B": 2, "N": 8000, "T": 24, "C": 8, "D": 32, "H": 4, "L": 3, "V": 11, "S": 12, "Y": 6, "X": 9, "G": 5}
SIZE |= {"P": 7, "K": 10}
SMALL: dict[str, Any] = {
    "vocab_size": SIZE["V"],
    "hidden_size": SIZE["D"],
    "num_hidden_layers": SIZE["L"],
    "num_attention_heads": SIZE["H"],
    "intermediate_size": 40,
    "feat_extract_norm": "layer",
    "conv_dim": (12, 12, 12, 12, 12, 12, SIZE["C"]),
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "conv_depthwise_kernel_size": 7,
    "num_labels": SIZE["Y"],
    "classifier_proj_size": 13,
    "tdnn_dim": (10, 14, 16),
    "tdnn_kernel": (5, 3, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": SIZE["X"],
    "num_codevectors_per_group": 20,
    "num_codevector_groups": SIZE["G"],
    "codevector_dim": 20,
    "proj_codevector_dim": SIZE["P"],
    "num_negatives": SIZE["K"],
    "layerdrop": 0.0,
    **NO_DROPOUT,
}
MODELS = ["Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector", "ForPreTraining"]
each_model = pytest.mark.parametrize("name", MODELS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **values: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(wav2vec2_conformer, f"Wav2Vec2Conformer{name}")(Wav2Vec2ConformerConfig(**{**SMALL, **values}))
    enlarge(model)
    with torch.no_grad():
        if name == "ForPreTraining":  # codes that differ from frame to frame
            model.quantizer.codevectors.copy_(draw(*model.quantizer.codevectors.shape))
            model.quantizer.weight_proj.weight.mul_(8)
    return model.eval()


def inputs(name: str, frames: int = SIZE["T"]) -> dict[str, Tensor]:
    """Two clips with all that a model takes besides them, without padding."""
    found = {"input_values": waveforms(SIZE["N"], SIZE["N"])[0]}
    source = torch.Generator().manual_seed(1)
    if name == "ForCTC":
        labels = torch.tensor([[1, 2, 3, 4, 6], [8, 7, -100, -100, -100]])
        found["labels"] = torch.nn.functional.pad(labels, (0, SIZE["S"] - 5), value=-100)
    elif name == "ForAudioFrameClassification":
        found["labels"] = torch.nn.functional.one_hot(torch.randint(6, (2, frames), generator=source), 6)
    elif name in ("ForSequenceClassification", "ForXVector"):
        found["labels"] = torch.tensor([2, 5])
    elif name == "ForPreTraining":
        mask = torch.zeros(2, frames, dtype=torch.bool)
        mask[0, 2:9] = mask[1, 5:] = True
        found["mask_time_indices"] = mask
        found["sampled_negative_indices"] = wav2vec2_conformer.modeling.sample_negatives(
            mask, SIZE["K"], generator=source
        )
    return found


def tensors(output: Any) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in output.items() if isinstance(value, Tensor)}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference in units of the largest value, of any output; infinite where shapes differ."""
    assert found.keys() == expected.keys()
    if any(found[key].shape != expected[key].shape for key in found):
        return float("inf")
    return max(float((found[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in found)


# --- outputs and arguments ---------------------------------------------------------------------------------------


def shape_of(text: str) -> tuple[int, ...]:
    """`(B, T, D)` in numbers."""
    assert re.fullmatch(r"\((?:[A-Z](?:, [A-Z])*)?\)", text), text
    return tuple(SIZE[letter] for letter in re.findall("[A-Z]", text))


@each_model
def test_outputs_have_the_documented_shapes(name: str) -> None:
    """Every output of `docs/api.md`, in its order, with its shape; all of them where all are asked for."""
    rows = [row for row in read_tables()[f"Wav2Vec2Conformer{name}"] if row.kind == "output"]
    asked = {"output_hidden_states": True, "output_attentions": True}
    if name == "ForPreTraining":
        asked["output_statistics"] = True
    output = build(name)(**inputs(name), **asked)
    assert [row.name for row in rows] == list(output)
    for row in rows:
        value = output[row.name]
        count, _, shape = row.shape.rpartition(" times ")
        if count:
            assert [tuple(part.shape) for part in value] == [shape_of(shape)] * {"L": 3, "L+1": 4}[count], row
        elif isinstance(value, tuple):  # with names of its own
            written = dict(re.findall(r"(\w+) (\(.*?\))", row.shape))
            assert {key: shape_of(part) for key, part in written.items()} == {
                key: tuple(part.shape) for key, part in value._asdict().items()
            }
        else:
            assert value.shape == shape_of(shape), row
    assert set(SIZE) == set(read_legend())
    assert len(set(SIZE.values())) == len(SIZE)


@each_model
def test_tuples_hold_the_outputs_in_their_order(name: str) -> None:
    model = build(name)
    optional = [key for key in inputs(name) if key in ("labels", "sampled_negative_indices")]
    for asked in ({}, {"output_hidden_states": True}, {"output_attentions": True, "output_hidden_states": True}):
        for without in ([], optional):
            batch = {key: value for key, value in inputs(name).items() if key not in without}
            named, plain = model(**batch, **asked), model(**batch, **asked, return_dict=False)
            assert type(plain) is tuple
            assert len(plain) == len(named) == len([value for value in named.values() if value is not None])
            for mine, key in zip(plain, named, strict=True):
                parts = zip(mine, named[key], strict=True) if isinstance(mine, tuple) else [(mine, named[key])]
                assert all(torch.equal(a, b) for a, b in parts), key


@each_model
def test_arguments_overrule_the_configuration(name: str) -> None:
    batch = inputs(name)
    model = build(name, output_hidden_states=True, output_attentions=True)
    assert len(model(**batch).hidden_states) == SIZE["L"] + 1
    assert len(model(**batch).attentions) == SIZE["L"]
    quiet = model(**batch, output_hidden_states=False, output_attentions=False)
    assert quiet.hidden_states is None
    assert quiet.attentions is None
    plain = build(name, return_dict=False)
    assert type(plain(**batch)) is tuple
    assert type(plain(**batch, return_dict=True)) is type(quiet)


@each_model
def test_states_are_those_of_the_network(name: str) -> None:
    model, batch = build(name), inputs(name)
    asked = {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**batch, **asked)
    masks = {key: value for key, value in batch.items() if key == "mask_time_indices"}
    network = model.base_model(batch["input_values"], **masks, **asked)
    for key in ("hidden_states", "attentions"):
        assert all(torch.equal(a, b) for a, b in zip(outputs[key], network[key], strict=True))
    assert torch.equal(network.hidden_states[-1], network.last_hidden_state)
    torch.testing.assert_close(network.attentions[0].sum(-1), torch.ones(2, SIZE["H"], SIZE["T"]))


@each_model
def test_losses_are_there_with_labels_only(name: str) -> None:
    batch = inputs(name)
    outputs = build(name)(**batch)
    losses = [key for key in outputs if "loss" in key]
    for key in losses:
        assert outputs[key].dtype == torch.float32
        assert outputs[key].isfinite()
    batch.pop("labels", None)
    batch.pop("sampled_negative_indices", None)
    bare = build(name)(**batch)
    assert all(getattr(bare, key) is None for key in losses)
    assert list(bare) == [key for key in outputs if key not in losses]
    kinds = {"Model": 0, "ForPreTraining": 3}
    assert len(losses) == kinds.get(name, 1)


@each_model
def test_results_follow_the_attention_mask(name: str) -> None:
    """Samples that the mask leaves out change nothing; without a mask they do."""
    model, batch = build(name), inputs(name)
    mask = waveforms(SIZE["N"], 5000)[1]
    for key in ("labels", "sampled_negative_indices"):
        batch.pop(key, None)
    louder = {**batch, "input_values": batch["input_values"] + (1 - mask) * draw(2, SIZE["N"], seed=5)}
    masked, also_masked = (tensors(model(**one, attention_mask=mask)) for one in (batch, louder))
    assert apart(also_masked, masked) == 0
    assert apart(tensors(model(**louder)), tensors(model(**batch))) > 1e-3


def test_pretraining_statistics() -> None:
    """Frames recognised among their negatives, one at a time; perplexities of each group; nothing unless asked for."""
    model, batch = build("ForPreTraining"), inputs("ForPreTraining")
    output = model(**batch, output_statistics=True)
    assert model(**batch).statistics is None
    found = output.statistics
    targets, negatives = output.projected_quantized_states.flatten(0, 1), batch["sampled_negative_indices"]
    correct = 0
    for row, frame in batch["mask_time_indices"].nonzero().tolist():
        target = output.projected_quantized_states[row, frame]
        others = targets[negatives[row, frame]]
        others = others[(others - target).abs().amax(-1) > 1e-4]  # one that equals the target does not count
        near = [torch.cosine_similarity(output.projected_states[row, frame], one, dim=0) for one in (target, *others)]
        correct += len(others) > 0 and near[0] > max(near[1:])
    assert 0 < correct < batch["mask_time_indices"].sum() == found.masked
    assert found.correct == correct
    torch.testing.assert_close(found.hard_perplexities.sum(), output.codevector_perplexity)
    trained = model.train()(**batch, output_statistics=True)
    torch.testing.assert_close(trained.statistics.soft_perplexities.sum(), trained.codevector_perplexity)
    torch.testing.assert_close(trained.statistics.soft_perplexities, found.soft_perplexities)


def test_pretraining_output_is_a_model_output() -> None:
    """All fields may be left out; what is None is no part of the tuple."""
    fields = dataclasses.fields(Wav2Vec2ConformerForPreTrainingOutput)
    assert all(field.default is None for field in fields)
    assert Wav2Vec2ConformerForPreTrainingOutput().to_tuple() == ()
    states = torch.zeros(1, 2, 3)
    output = Wav2Vec2ConformerForPreTrainingOutput(projected_states=states, attentions=(states,))
    assert output["projected_states"] is output.projected_states is output[0] is states
    assert output.to_tuple() == (states, (states,))
    assert list(output) == ["projected_states", "attentions"]


# --- fields of the configuration ---------------------------------------------------------------------------------

ADAPTER = {"add_adapter": True, "adapter_kernel_size": 3, "num_adapter_layers": 2}
ROTARY = {"position_embeddings_type": "rotary"}
# field: a model that it acts on, another value than in `SMALL`, and what else must be set on both sides
FIELDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "vocab_size": ("ForCTC", 17, {}),
    "hidden_size": ("Model", 40, {}),
    "num_hidden_layers": ("Model", 2, {}),
    "num_attention_heads": ("Model", 2, {}),
    "intermediate_size": ("Model", 24, {}),
    "hidden_act": ("Model", "relu", {}),
    "layer_norm_eps": ("Model", 0.3, {}),
    "feat_extract_norm": ("Model", "group", {}),
    "feat_extract_activation": ("Model", "tanh", {}),
    "conv_dim": ("Model", (8, 9, 10, 11, 12, 13, 14), {}),
    "conv_stride": ("Model", (5, 2, 2, 2, 2, 2, 1), {}),
    "conv_kernel": ("Model", (10, 3, 3, 3, 3, 2, 4), {}),
    "conv_bias": ("Model", False, {}),
    "num_codevectors_per_group": ("ForPreTraining", 30, {}),
    "num_codevector_groups": ("ForPreTraining", 4, {}),
    "contrastive_logits_temperature": ("ForPreTraining", 0.7, {}),
    "codevector_dim": ("ForPreTraining", 30, {}),
    "proj_codevector_dim": ("ForPreTraining", 5, {}),
    "diversity_loss_weight": ("ForPreTraining", 3.0, {}),
    "ctc_loss_reduction": ("ForCTC", "mean", {}),
    "pad_token_id": ("ForCTC", 5, {}),
    "use_weighted_layer_sum": ("ForSequenceClassification", True, {}),
    "classifier_proj_size": ("ForSequenceClassification", 5, {}),
    "tdnn_dim": ("ForXVector", (6, 7, 8), {}),
    "tdnn_kernel": ("ForXVector", (3, 3, 2), {}),
    "tdnn_dilation": ("ForXVector", (2, 3, 1), {}),
    "xvector_output_dim": ("ForXVector", 4, {}),
    "add_adapter": ("ForCTC", True, {"num_adapter_layers": 1}),
    "adapter_kernel_size": ("Model", 4, ADAPTER),
    "adapter_stride": ("Model", 3, ADAPTER),
    "num_adapter_layers": ("Model", 1, ADAPTER),
    "output_hidden_size": ("ForCTC", 20, ADAPTER),
    "position_embeddings_type": ("Model", "rotary", {}),
    "rotary_embedding_base": ("Model", 50, ROTARY),
    "conv_depthwise_kernel_size": ("Model", 3, {}),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_acts_as_in_transformers(field: str) -> None:
    """With another value: that value's results in transformers, by a strict copy of the weights, and not the old ones.

    So the field decides what it decides there, down to the weights that there are.
    """
    name, value, also = FIELDS[field]
    assert value != {**SMALL, **also}.get(field, getattr(Wav2Vec2ConformerConfig(), field))
    before, after = build(name, **also), build(name, **{**also, field: value})
    config = transformers.Wav2Vec2ConformerConfig(
        **{**SMALL, **also, field: value}, attn_implementation="eager", tie_last_hidden_states=True
    )
    peer = getattr(transformers, f"Wav2Vec2Conformer{name}")(config).eval()
    frequencies = {key: tensor for key, tensor in peer.named_buffers() if "inv_freq" in key}
    assert all(torch.equal(tensor, dict(after.named_buffers())[key]) for key, tensor in frequencies.items())
    before, after, peer = before.double(), after.double(), peer.double()
    peer.load_state_dict(after.state_dict(), strict=True)
    if name == "ForPreTraining":
        peer.project_q.register_forward_hook(let_equal_rows_be_equal)

    frames = int(after._get_feat_extract_output_lengths(SIZE["N"], add_adapter=False))
    batch, old_batch = inputs(name, frames), inputs(name)
    for one in (batch, old_batch):
        one["input_values"] = one["input_values"].double()
    with torch.no_grad():
        found, expected, old = tensors(after(**batch)), tensors(peer(**batch)), tensors(before(**old_batch))
    assert "loss" in found or name == "Model"
    # Losses are in float32, and transformers 5 computes the perplexity by another formula.
    assert apart(found, expected) < (1e-4 if name == "ForPreTraining" else 1e-5)
    changed = {key: tensor.shape for key, tensor in after.state_dict().items()} != {
        key: tensor.shape for key, tensor in before.state_dict().items()
    }
    assert changed or apart(found, old) > 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [("bos_token_id", 7), ("eos_token_id", 8), ("max_source_positions", 3), ("num_negatives", 3)],
)
def test_kept_for_files_only(field: str, value: Any, tmp_path: Path) -> None:
    """Tokens for the tokenizer, a limit that there is not here, a number for who draws the negatives: no result moves.

    (24 frames are more than 3 positions, which the first files of the references could not have held.)
    """
    for name in ("ForCTC", "ForPreTraining"):
        plain, changed = build(name), build(name, **{field: value})
        assert getattr(changed.config, field) == value != getattr(plain.config, field)
        assert apart(tensors(changed(**inputs(name))), tensors(plain(**inputs(name)))) == 0
        changed.save_pretrained(tmp_path)
        assert getattr(type(changed).from_pretrained(tmp_path).config, field) == value


@pytest.mark.parametrize(
    ("field", "value", "shape"),
    [("num_conv_pos_embeddings", 6, (32, 8, 6)), ("num_conv_pos_embedding_groups", 2, (32, 16, 8))],
)
def test_conv_positions_are_shapes_in_files_only(field: str, value: int, shape: tuple[int, ...]) -> None:
    plain, changed = build("Model"), build("Model", **{field: value})
    weight = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    assert plain.state_dict()[weight].shape == (32, 8, 8)
    assert changed.state_dict()[weight].shape == shape
    assert apart(tensors(changed(**inputs("Model"))), tensors(plain(**inputs("Model")))) == 0


def test_ctc_zero_infinity() -> None:
    """A clip of 24 frames cannot say 30 labels."""
    labels = torch.randint(1, 11, (1, 30), generator=torch.Generator().manual_seed(0))
    x = waveforms(SIZE["N"])[0]
    assert build("ForCTC")(x, labels=labels).loss == torch.inf
    model = build("ForCTC", ctc_zero_infinity=True)
    assert model(x, labels=labels).loss == 0
    torch.testing.assert_close(model(x, labels=labels[:, :3]).loss, build("ForCTC")(x, labels=labels[:, :3]).loss)


def test_initializer_range() -> None:
    for spread in (0.02, 0.5):
        torch.manual_seed(0)
        model = wav2vec2_conformer.Wav2Vec2ConformerForCTC(
            Wav2Vec2ConformerConfig(**{**SMALL, "initializer_range": spread})
        )
        for layer in (model.lm_head, model.wav2vec2_conformer.encoder.layers[1].ffn1.intermediate_dense):
            assert layer.weight.std().item() == pytest.approx(spread, rel=0.2)
            assert not layer.bias.any()


# field, at a rate of 1: the model, the module whose output is looked at, and the module that the field is closest to
DROPOUTS = {
    "feat_proj_dropout": ("Model", "feature_projection"),
    "activation_dropout": ("Model", "encoder.layers.0.ffn1.intermediate_dropout"),
    "attention_dropout": ("Model", "encoder.layers.1.self_attn_dropout"),
    "conformer_conv_dropout": ("Model", "encoder.layers.1.conv_module"),
    "feat_quantizer_dropout": ("ForPreTraining", "dropout_features"),
    "final_dropout": ("ForCTC", "dropout"),
    "hidden_dropout": ("Model", "encoder.layers.2.ffn2"),
}


@pytest.mark.parametrize("field", DROPOUTS)
def test_dropout_at_a_rate_of_1(field: str) -> None:
    """In training nothing gets through the place that the field names; in evaluation all does, whatever the rate is."""
    name, place = DROPOUTS[field]
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    plain, dropping = (build(name, **{field: rate}, apply_spec_augment=False) for rate in (0.0, 1.0))
    batch = inputs(name)
    assert apart(tensors(dropping(**batch)), tensors(plain(**batch))) == 0
    for model in (plain, dropping):
        model.train().get_submodule(place).register_forward_hook(keep)
        model(**batch)
    through, dropped = seen
    assert through.abs().max() > 0.1
    assert not dropped.any()


def test_what_else_dropout_reaches() -> None:
    """`hidden_dropout` acts before the first block, `attention_dropout` on the weights, too."""
    batch = inputs("Model")
    hidden = build("Model", hidden_dropout=1.0, apply_spec_augment=False).train()
    assert not hidden(**batch, output_hidden_states=True).hidden_states[0].any()
    attention = build("Model", attention_dropout=1.0, apply_spec_augment=False).train()
    assert all(not weights.any() for weights in attention(**batch, output_attentions=True).attentions)


def runs(mask: Tensor) -> list[int]:
    """Lengths of the runs of True in a vector."""
    return [len(run) for run in "".join("x" if value else " " for value in mask.tolist()).split()]


@pytest.mark.parametrize(
    ("rate", "length", "least", "expected"),
    [(1e-9, 5, 1, 5), (1e-9, 3, 1, 3), (1e-9, 1, 4, 4), (0.5, 1, 0, 0.5), (0.25, 1, 0, 0.25), (0.0, 5, 3, 0)],
)
@pytest.mark.parametrize("kind", ["time", "feature"])
def test_spec_augment_masks_as_much_as_configured(
    kind: str, rate: float, length: int, least: int, expected: float
) -> None:
    """`mask_{time,feature}_{prob,length,min_masks}`, where the formula leaves only the places to chance."""
    names = (f"mask_{kind}_prob", f"mask_{kind}_length", f"mask_{kind}_min_masks")
    values = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, **dict(zip(names, (rate, length, least), strict=True))}
    model, plain = (build("Model", **values, apply_spec_augment=augment).train() for augment in (True, False))
    x = waveforms(SIZE["N"], SIZE["N"])[0]
    torch.manual_seed(0)
    masked, whole = (one(x, output_hidden_states=True).hidden_states[0] for one in (model, plain))
    if kind == "time":
        hidden = (masked != whole).any(2)  # (B, T)
        embedding = getattr(model, "masked_spec_embed", torch.zeros(SIZE["D"]))
        assert torch.equal(masked[hidden], embedding.expand(int(hidden.sum()), -1))
    else:
        hidden = (masked != whole).any(1)  # (B, D)
        assert not masked.transpose(1, 2)[hidden].any()
    size = SIZE["T" if kind == "time" else "D"]
    wanted = expected * size if 0 < expected < 1 else expected
    assert hidden.sum(1).tolist() == [wanted] * 2
    if least == 1:
        assert [runs(row) for row in hidden] == [[length]] * 2


# --- methods -----------------------------------------------------------------------------------------------------


@each_model
def test_freezing(name: str) -> None:
    """What is frozen gets no gradient and all else does."""
    batch, whole = inputs(name), name == "Model"
    for method in ["freeze_feature_encoder"] + ["freeze_base_model"] * (name not in ("Model", "ForPreTraining")):
        model = build(name, mask_time_prob=0.5, mask_time_length=2).train()
        getattr(model, method)()
        torch.manual_seed(0)
        output = model(**batch)
        (output.last_hidden_state.sum() if whole else output.loss).backward()
        prefix = "" if whole else "wav2vec2_conformer."
        frozen = prefix + ("feature_extractor." if method == "freeze_feature_encoder" else "")
        for key, parameter in model.named_parameters():
            assert (parameter.grad is None) == key.startswith(frozen), key
            assert parameter.requires_grad != key.startswith(frozen), key


@each_model
def test_get_input_embeddings(name: str) -> None:
    """The layer before the encoder, of which transformers asks gradients where all below new weights is frozen."""
    model = build(name).train()
    model.requires_grad_(False)
    batch = {"input_values": waveforms(SIZE["N"])[0]}
    assert not any(value.requires_grad for value in model(**batch).values())
    model.enable_input_require_grads()
    entering: list[Tensor] = []
    model.base_model.encoder.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    output = model(**batch)
    assert entering[0].requires_grad
    assert output["last_hidden_state" if name == "Model" else 0].requires_grad


@pytest.mark.parametrize("adapter", [False, True])
def test_output_lengths(adapter: bool) -> None:
    """Frames of the last hidden state that are a clip's own; all of them without a mask."""
    model = build("Model", add_adapter=adapter, num_adapter_layers=1)
    x, mask = waveforms(SIZE["N"], 5000, 0)
    states = model(x, attention_mask=mask).last_hidden_state
    lengths = model.output_lengths(mask, states)
    assert lengths.tolist() == ([12, 8, 0] if adapter else [24, 15, 0])
    assert torch.equal(states.abs().sum(-1) > 0, torch.arange(states.shape[1]) < lengths[:, None])
    assert model.output_lengths(None, states).tolist() == [states.shape[1]] * 3


@each_model
def test_a_model_has_its_own_configuration_checked(name: str) -> None:
    """Also where a field was changed after the configuration was built."""
    config = Wav2Vec2ConformerConfig(**SMALL)
    config.conv_depthwise_kernel_size = 8
    with pytest.raises(ValueError, match="must be odd, got 8; use 7 or 9"):
        getattr(wav2vec2_conformer, f"Wav2Vec2Conformer{name}")(config)


@each_model
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, batch = build(name), inputs(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    assert apart(tensors(again(**batch)), tensors(model(**batch))) == 0
    wider = type(model).from_pretrained(tmp_path, attention_dropout=0.25)
    assert wider.config.attention_dropout == 0.25


def test_labels_have_names() -> None:
    """`num_labels`, `id2label` and `label2id` belong together, whichever of them is given."""
    config = Wav2Vec2ConformerConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    named = Wav2Vec2ConformerConfig(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    assert named.num_labels == 2
    again = Wav2Vec2ConformerConfig.from_dict(named.to_dict())
    assert (again.id2label, again.label2id) == (named.id2label, named.label2id)
