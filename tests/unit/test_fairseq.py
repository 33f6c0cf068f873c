"""Settings, letters and refusals of fairseq's checkpoints; what they compute: `parity/test_conversion.py`."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import SafetensorError
from safetensors.torch import save_file

from checkpoints_fairseq import FINE_TUNING, LETTERS, SMALL, STYLES, VOCABULARY, weights, write, write_dictionary
from wav2vec2_conformer import Transcriber, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.checkpoints.fairseq import FairseqCheckpoint, convert_fairseq
from wav2vec2_conformer.checkpoints.fairseq_dictionary import read_dictionary
from wav2vec2_conformer.checkpoints.fairseq_settings import CHOICES, NEEDED, Settings, loss_weights, parse_conv_layers
from wav2vec2_conformer.checkpoints.torch_file import TorchFile
from wav2vec2_conformer.checkpoints.verification import Verification
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.processing import load_processor, normalizes

each_style = pytest.mark.parametrize("style", STYLES)


def config_of(path: Path) -> Any:
    with FairseqCheckpoint(path) as checkpoint:
        return checkpoint.config


# --- settings ----------------------------------------------------------------------------------------------------

NETWORK_FIELDS = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "hidden_act": "swish",
    "conv_dim": (8, 10, 10),
    "conv_kernel": (16, 4, 2),
    "conv_stride": (8, 4, 2),
    "conv_bias": True,
    "conv_depthwise_kernel_size": 5,
    "feat_extract_norm": "layer",
    "feat_projection": True,
    "encoder_layer_norm": "after",
    "position_embeddings_type": "relative",
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 3,
    "num_codevectors_per_group": 6,
    "num_codevector_groups": 2,
    "codevector_dim": 8,
    "proj_codevector_dim": 14,
    "contrastive_logits_temperature": 0.2,
    "num_negatives": 9,
    "mask_time_min_masks": 2,
    "mask_feature_min_masks": 0,
    "feat_quantizer_dropout": 0.15,
}
PRETRAINING_FIELDS = {
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "conformer_conv_dropout"), 0.05),
    "feat_proj_dropout": 0.1,
    "layerdrop": 0.02,
    "mask_time_prob": 0.65,
    "mask_time_length": 7,
    "mask_feature_prob": 0.25,
    "mask_feature_length": 3,
    "apply_spec_augment": True,
    "diversity_loss_weight": 0.2,
    "vocab_size": None,
}
FINE_TUNING_FIELDS = {
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "conformer_conv_dropout"), 0.0),
    "feat_proj_dropout": 0.01,
    "final_dropout": 0.07,
    "layerdrop": 0.11,
    "mask_time_prob": 0.5,
    "mask_time_length": 6,
    "mask_feature_prob": 0.35,
    "mask_feature_length": 4,
    "apply_spec_augment": True,
    "ctc_zero_infinity": True,
    "vocab_size": VOCABULARY,
}


@each_style
@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec_ctc"])
def test_every_setting_arrives(tmp_path: Path, kind: str, style: str) -> None:
    config = config_of(write(tmp_path / "checkpoint.pt", SMALL, kind, style))
    wanted = {**NETWORK_FIELDS, **(PRETRAINING_FIELDS if kind == "wav2vec2" else FINE_TUNING_FIELDS)}
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_fine_tuning_without_masks(tmp_path: Path) -> None:
    """The mask embedding has no place in a model that masks nothing; that it is left out is said."""
    off = {"apply_mask": False, "mask_prob": 0.0, "mask_channel_prob": 0.0}
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc", fine_tuning=off)
    done = convert_fairseq(file, tmp_path / "model", write_dictionary(tmp_path / "dict.ltr.txt"))
    assert done.dropped == {"w2v_encoder.w2v_model.mask_emb": "this configuration masks nothing"}
    model = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "model")
    assert not model.config.apply_spec_augment


def test_settings_that_old_files_do_not_have(tmp_path: Path) -> None:
    """What was not an option when a file was written has fairseq's default."""
    old = {key: value for key, value in SMALL.items() if key not in ("conv_pos_groups", "latent_dim", "mask_length")}
    settings = {**old, "encoder_embed_dim": 16, "final_dim": 0}
    state = weights({**settings, "conv_pos_groups": 16, "latent_dim": 0})
    config = config_of(write(tmp_path / "checkpoint.pt", settings, style="args", state=state))
    assert (config.num_conv_pos_embedding_groups, config.codevector_dim, config.mask_time_length) == (16, 16, 10)


@pytest.mark.parametrize("normalize", [True, False])
@each_style
def test_normalisation(tmp_path: Path, style: str, normalize: bool) -> None:
    for kind in ("wav2vec2", "wav2vec_ctc"):
        file = write(tmp_path / "checkpoint.pt", SMALL, kind, style, normalize=normalize)
        dictionary = write_dictionary(tmp_path / "dict.ltr.txt") if kind == "wav2vec_ctc" else None
        convert_fairseq(file, tmp_path / kind, dictionary)
        assert normalizes(str(tmp_path / kind)) is normalize


def test_the_recipe_is_kept(tmp_path: Path) -> None:
    for style in STYLES:
        convert_fairseq(write(tmp_path / f"{style}.pt", SMALL, style=style), tmp_path / style)
        assert json.loads((tmp_path / style / "fairseq_recipe.json").read_text()) == {
            "feature_grad_mult": 0.1,
            "loss_weights": [0.2, 10.0],
            "latent_temp": [2.0, 0.1, 0.999995],
            "require_same_masks": True,
        }


def test_settings_that_nothing_here_has_are_kept_where_they_are_not_the_defaults(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"mask_selection": "uniform", "mask_other": 0.5, "no_mask_overlap": True}
    usual = {"cross_sample_negatives": 0, "negatives_from_everywhere": False}
    with FairseqCheckpoint(write(tmp_path / "m.pt", {**SMALL, **changes, **usual})) as checkpoint:
        assert checkpoint.recipe.items() >= changes.items()
        assert not checkpoint.recipe.keys() & usual.keys()
    more = {"cross_sample_negatives": 3, "negatives_from_everywhere": True}
    file = write(tmp_path / "m.pt", {**SMALL, **changes, **more}, "wav2vec_ctc", fine_tuning={"mask_other": 0.25})
    with FairseqCheckpoint(file) as checkpoint:
        assert checkpoint.recipe.items() >= {**changes, **more, "mask_other": 0.25}.items()


@pytest.mark.parametrize("value", ["abc", [2.0, float("inf"), 0.9], [2.0, 0.5], 3, "(1, 2, x)", [[1], 2, 3]])
def test_temperatures_that_are_none(tmp_path: Path, value: Any) -> None:
    file = write(tmp_path / "m.pt", {**SMALL, "latent_temp": value}, style="plain")
    with pytest.raises(ValueError, match=r"cfg\.model\.latent_temp must be three numbers .*; got"):
        FairseqCheckpoint(file)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2],
        ),
        (" [(8, 4, 2), (9, 3, 1)] ", [(8, 4, 2), (9, 3, 1)]),
        ("2 * ([(1, 2, 3)] + [[4, 5, 6]])", [(1, 2, 3), (4, 5, 6)] * 2),
    ],
)
def test_convolutions_are_parsed(text: str, layers: list[tuple[int, int, int]]) -> None:
    assert parse_conv_layers(text) == layers == [tuple(layer) for layer in eval(text.strip())]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("__import__('os').system('true')", "Call is not allowed"),
        ("[(512, 10, 5)] + open('x')", "Call is not allowed"),
        ("[(512, 10, __import__('os'))]", "whole number"),
        ("[x for x in ()]", "ListComp is not allowed"),
        ("[(512, 10, 5)] * 10**9", "whole number"),
        ("[(512, 10, 5)] * 1000000", "more than 64"),
        ("[(512, 10, 5)] * -1", "whole number"),
        ("[(512, 10, 0)]", "whole number"),
        ("[(512, 10, True)]", "whole number"),
        ("[(512, 10)]", "three numbers"),
        ("[(512, 10, 5.0)]", "whole number"),
        ("[512]", "three numbers"),
        ("[]", "names no convolution"),
        ("", "conv_feature_layers must be"),
        ("[" * 900, "conv_feature_layers must be"),
        ("-" * 900 + "1", "conv_feature_layers must be"),
        ("[(1, 2, 3)]" + " " * 1000, "longer than 1000"),
    ],
)
def test_convolutions_are_not_evaluated(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_conv_layers(text)


def test_references_between_settings() -> None:
    root: dict[str, Any] = {
        "model": {"a": "${task.b}", "none": "${task.none}", "loop": "${model.loop}", "open": "???"},
        "task": {"b": 3, "none": None},
    }
    settings = Settings(root["model"], root, "cfg.model")
    assert settings.get("a", int, 0) == 3
    assert settings.get("none", int, 7) == 7
    assert settings.get("absent", int, 7) == 7
    with pytest.raises(ValueError, match=r"cfg\.model\.open is '\?\?\?'"):
        settings.get("open", int, 7)
    with pytest.raises(ValueError, match=r"cfg\.model\.loop refers to itself"):
        settings.raw("loop")


@pytest.mark.parametrize(
    "reference",
    ["${nope.nope}", "${task.b.c}", "${.dropout}", "${oc.env:HOME}", "x${task.b}", "${" + "a." * 2**20 + "a}"],
)
def test_references_that_lead_to_nothing(reference: str) -> None:
    """They must not become fairseq's default, which the model was not built with."""
    root = {"model": {"dropout": reference}, "task": {"b": 3}}
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is checked below)
        Settings(root["model"], root, "cfg.model").get("dropout", float, 0.1)
    message = f"cfg.model.dropout refers to {reference[:80]!r}, which leads to nothing in the file"
    assert str(refused.value).startswith(message)


@each_style
def test_references_of_fine_tuning_start_at_the_whole(tmp_path: Path, style: str) -> None:
    changes = {"mask_prob": "${my}" if style == "args" else "${model.my}", "my": 0.31}
    config = config_of(write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", style, fine_tuning=changes))
    assert config.mask_time_prob == 0.31
    changes["mask_prob"] = "much"
    with pytest.raises(
        ValueError, match=r"(args|cfg\.model)\.mask_prob: expected float of at most 1048576, got 'much'"
    ):
        config_of(write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", style, fine_tuning=changes))


@each_style
def test_a_weight_of_the_blank_is_refused(tmp_path: Path, style: str) -> None:
    """fairseq's `get_logits` changes the first column by it."""
    config_of(write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", style, fine_tuning={"blank_weight": 0.0}))
    changes = {"blank_weight": -2, "blank_mode": "set"}
    with pytest.raises(ValueError, match=r"\.blank_weight must be 0, got -2 \(blank_mode 'set'\)"):
        config_of(write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", style, fine_tuning=changes))


def test_a_setting_that_is_no_bool() -> None:
    with pytest.raises(ValueError, match=r"settings\.conv_bias: expected bool, got 'yes'"):
        Settings({"conv_bias": "yes"}).get("conv_bias", bool, False)


@pytest.mark.parametrize("value", ["12", 1.5, True, None, [12], 2**40, {"a": 1}])
def test_a_setting_of_another_type(value: Any) -> None:
    settings = Settings({"encoder_layers": value}, name="cfg.model")
    if value is None:
        assert settings.get("encoder_layers", int, 3) == 3
        return
    with pytest.raises(ValueError, match=r"cfg\.model\.encoder_layers: expected int of at most 1048576, got"):
        settings.get("encoder_layers", int, 3)


@pytest.mark.parametrize(
    ("value", "weights_of"),
    [
        (None, (0.1, 10.0)),
        ("[0.3, 5]", (0.3, 5.0)),
        ([0.3], (0.3, 0.0)),
        ("x(", None),
        ([], None),
        (["a"], None),
        (3, None),
    ],
)
def test_loss_weights(value: Any, weights_of: Any) -> None:
    settings = Settings({} if value is None else {"loss_weights": value}, name="cfg.criterion")
    if weights_of is None:
        with pytest.raises(ValueError, match="must be a list of one or two numbers"):
            loss_weights(settings)
    else:
        assert loss_weights(settings) == weights_of


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"layer_type": "transformer"}, "layer_type must be 'conformer', got 'transformer'; only Wav2Vec2-Conformer"),
    ({"attn_type": ""}, "attn_type must be 'espnet', got ''"),
    ({"quantizer_depth": 2}, "quantizer_depth must be 1, got 2; it is not supported"),
    ({"quantize_input": True}, "quantize_input must be False, got True"),
    ({"target_glu": True}, "target_glu must be False, got True"),
    ({"pos_conv_depth": 5}, "pos_conv_depth must be 1, got 5"),
    ({"codebook_negatives": 10}, "codebook_negatives must be 0, got 10"),
    ({"pos_enc_type": "alibi"}, "pos_enc_type must be one of rel_pos, rope, abs, got 'alibi'"),
    ({"extractor_mode": "instance"}, "extractor_mode must be one of default, layer_norm, got 'instance'"),
    ({"depthwise_conv_kernel_size": 4}, "`conv_depthwise_kernel_size` must be odd, got 4; use 3 or 5"),
    ({"depthwise_conv_kernel_size": 4}, "(in the file: cfg.model.depthwise_conv_kernel_size)"),
    ({"encoder_layers": 1000}, "encoder_layers = 1000, but it has only 103 weights"),
    ({"conv_feature_layers": "import os"}, "conv_feature_layers must be lists"),
    ({"_name": "hubert"}, "fairseq's kind 'hubert'; only 'wav2vec2' and 'wav2vec_ctc'"),
    ({"_name": "data2vec_audio"}, "fairseq's kind 'data2vec_audio'"),
]


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED, ids=lambda value: str(value)[:40])
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "checkpoint.pt", {**SMALL, **changes}, style="plain", state=weights(SMALL))
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is checked below)
        FairseqCheckpoint(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("style", ["args", "plain"])
def test_wav2vec2_without_conformer_blocks(tmp_path: Path, style: str) -> None:
    """Files from before there were conformers do not say of what their blocks are."""
    old = {key: value for key, value in SMALL.items() if key != "layer_type"}
    file = write(tmp_path / "wav2vec_small.pt", old, style=style, state=weights(SMALL))
    with pytest.raises(
        ValueError, match=r"wav2vec_small\.pt: .*layer_type must be 'conformer', got 'transformer'; only"
    ):
        FairseqCheckpoint(file)


def test_the_network_s_settings_lie_in_another_file(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    model = {**FINE_TUNING, "w2v_args": None}
    torch.save({"model": weights(SMALL, "wav2vec_ctc"), "cfg": {"model": model, "task": {"normalize": True}}}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cfg\.model\.w2v_args is missing"):
        FairseqCheckpoint(file)


def test_fine_tuned_from_another_kind_of_model(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m.pt", {**SMALL, "_name": "data2vec_audio"}, "wav2vec_ctc", state=weights(SMALL, "wav2vec_ctc")
    )
    with pytest.raises(ValueError, match=r"w2v_args\.model: .*kind 'data2vec_audio'; expected 'wav2vec2'"):
        FairseqCheckpoint(file)


def test_no_outputs_and_no_network(tmp_path: Path) -> None:
    """Sizes that only the network itself refuses; the file is named all the same."""
    state = weights(SMALL, "wav2vec_ctc")
    state["w2v_encoder.proj.bias"] = torch.zeros(0)
    file = write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", state=state)
    with (
        FairseqCheckpoint(file) as checkpoint,
        pytest.raises(ValueError, match=r"m\.pt: `vocab_size` must be .* got 0"),
    ):
        checkpoint.read_weights()
    del state["w2v_encoder.proj.bias"]
    with pytest.raises(ValueError, match=r"m\.pt: its CTC head is missing"):
        FairseqCheckpoint(write(tmp_path / "m.pt", SMALL, "wav2vec_ctc", state=state))


# --- weights -----------------------------------------------------------------------------------------------------


def test_keys_are_strict_and_all_are_named(tmp_path: Path) -> None:
    state = weights(SMALL)
    del state["encoder.layers.1.self_attn.linear_pos.weight"]
    del state["post_extract_proj.bias"]
    state["label_embs_concat"] = torch.zeros(3)
    state["quantizer.vars"] = torch.zeros(1, 12, 5)
    state["layer_norm.weight"] = torch.ones(10, dtype=torch.int8)
    file = write(tmp_path / "checkpoint.pt", SMALL, state=state)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is checked below)
        convert_fairseq(file, tmp_path / "model")
    assert str(refused.value) == (
        f"{file}: its weights do not belong to the pre-training model that its settings describe: 2 missing "
        "(encoder.layers.1.self_attn.linear_pos.weight, post_extract_proj.bias); 1 unexpected (label_embs_concat); "
        "2 of another shape or kind (layer_norm.weight: expected (10,), got (10,) whole numbers, "
        "quantizer.vars: expected (1, 12, 4), got (1, 12, 5))"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]


def test_sizes_that_the_file_does_not_say(tmp_path: Path) -> None:
    silent = {key: value for key, value in SMALL.items() if key != "encoder_embed_dim"}
    file = write(tmp_path / "checkpoint.pt", silent, state=weights(SMALL))
    with pytest.raises(ValueError, match=r"The settings do not say encoder_embed_dim, so fairseq's defaults are exp"):
        convert_fairseq(file, tmp_path / "model")


def test_many_keys_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "checkpoint.pt", {**SMALL, "encoder_layers": 3}, state=weights(SMALL))
    with pytest.raises(ValueError, match=r"\d\d missing \(encoder\.layers\.2\..*, \.\.\. \d\d more\)"):
        convert_fairseq(file, tmp_path / "model")


def test_leftovers_of_pre_training_are_dropped_by_name(tmp_path: Path) -> None:
    state = weights(SMALL, "wav2vec_ctc")
    state["w2v_encoder.w2v_model.quantizer.vars"] = torch.zeros(1, 2, 3)
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc", state=state)
    done = convert_fairseq(file, tmp_path / "model", write_dictionary(tmp_path / "dict.ltr.txt"))
    assert done.dropped == {"w2v_encoder.w2v_model.quantizer.vars": "only pre-training uses it"}


def test_frequencies_must_agree(tmp_path: Path) -> None:
    rotary = {**SMALL, "pos_enc_type": "rope"}
    state = weights(rotary)
    state["encoder.layers.1.self_attn.rotary_emb.inv_freq"] += 1
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.rotary_emb\.inv_freq differs"):
        convert_fairseq(write(tmp_path / "checkpoint.pt", rotary, state=state), tmp_path / "model")


def test_weights_that_share_their_numbers(tmp_path: Path) -> None:
    """A file of few numbers must not become a large model."""
    wide, numbers = {**SMALL, "encoder_ffn_embed_dim": 4000}, torch.zeros(48000)
    state = {key: numbers[: value.numel()].view(value.shape) for key, value in weights(wide).items()}
    file = write(tmp_path / "checkpoint.pt", wide, state=state)
    with pytest.raises(ValueError, match="share their numbers"):
        FairseqCheckpoint(file)


def flat(state: dict[str, Any]) -> dict[str, Any]:
    """The same weights as parts of one storage, as FSDP keeps them."""
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    whole = torch.cat([value.flatten() for value in floats.values()])
    sizes = [value.numel() for value in floats.values()]
    parts = zip(floats, whole.split(sizes), strict=True)
    return {**state, **{key: part.view(state[key].shape) for key, part in parts}}


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_in_one_storage(tmp_path: Path, legacy: bool) -> None:
    state = weights(SMALL)
    with FairseqCheckpoint(write(tmp_path / "a.pt", SMALL, state=state, legacy=legacy)) as checkpoint:
        expected, _ = checkpoint.read_weights()
    file = write(tmp_path / "flat.pt", SMALL, state=flat(state), legacy=legacy)
    with FairseqCheckpoint(file) as checkpoint:
        found, _ = checkpoint.read_weights()
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_a_damaged_storage_of_many_weights(tmp_path: Path) -> None:
    """Its checksum is compared, though no tensor is all of it."""
    file = write(tmp_path / "flat.pt", SMALL, state=flat(weights(SMALL)))
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
        place = file.read_bytes().index(archive.read(largest)[:64])
    data = bytearray(file.read_bytes())
    data[place + 40] ^= 1
    file.write_bytes(data)
    with FairseqCheckpoint(file) as checkpoint, pytest.raises(ValueError, match=r"flat\.pt: a tensor is damaged"):
        checkpoint.read_weights()


def test_a_file_that_was_closed(tmp_path: Path) -> None:
    file = TorchFile(write(tmp_path / "m.pt", SMALL))
    file.close()
    assert file.file.closed
    assert "model" in file.content


def test_enormous_sizes_allocate_nothing(tmp_path: Path) -> None:
    huge = {**SMALL, "encoder_embed_dim": 2**20, "encoder_ffn_embed_dim": 2**20, "conv_pos_groups": 1}
    file = write(tmp_path / "checkpoint.pt", huge, state=weights(SMALL))
    with pytest.raises(ValueError, match="of another shape or kind"):
        convert_fairseq(file, tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"model": {}, "cfg": {"model": {}}}, "under 'model' there is nothing"),
        ({"model": {"a": 3}, "cfg": {"model": {}}}, "tensors only, got 1 other things"),
        ({"state_dict": {}}, "not a checkpoint of fairseq: expected its weights under 'model'"),
        ([1, 2], "not a checkpoint of fairseq"),
        ({"model": {"a": torch.zeros(1)}}, "expected its settings under 'cfg' or 'args'"),
        ({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(arch="transformer")}, "kind 'transformer'"),
        ({"model": {"a": torch.zeros(1)}, "cfg": {"model": {"_name": ["x"]}}}, r"cfg\.model\._name: expected str, got"),
        ({"model": {"a": torch.zeros(1)}, "cfg": {"model": {"x": 1}}}, r"do not name .* under cfg\.model\._name"),
        ({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=1)}, r"do not name .* under args\.arch"),
    ],
)
def test_what_is_no_checkpoint_of_fairseq(tmp_path: Path, content: Any, problem: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt: .*{problem}"):
        FairseqCheckpoint(tmp_path / "other.pt")


# --- letters -----------------------------------------------------------------------------------------------------


def test_vocabulary_and_processor(tmp_path: Path) -> None:
    """The blank is the first column under our name of it; no letter moves."""
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc")
    convert_fairseq(file, tmp_path / "model", write_dictionary(tmp_path / "dict.ltr.txt"))
    vocabulary = json.loads((tmp_path / "model" / "vocab.json").read_text())
    assert vocabulary == {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS])}
    processor: Any = load_processor(str(tmp_path / "model"))
    ids = [vocabulary[letter] for letter in "TEE|"] + [0, vocabulary["E"], 0]
    assert processor.tokenizer.decode(ids) == "TE E"
    assert processor.tokenizer.pad_token_id == 0
    state = weights(SMALL, "wav2vec_ctc")
    model = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "model")
    assert torch.equal(model.lm_head.bias, state["w2v_encoder.proj.bias"])
    assert model.config.pad_token_id == 0


def test_a_converted_model_transcribes(tmp_path: Path) -> None:
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc", dictionary=LETTERS)
    convert_fairseq(file, tmp_path / "model")
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    transcript = Transcriber.from_pretrained(str(tmp_path / "model")).transcribe(tmp_path / "noise.wav")
    assert set(transcript.text) <= {*LETTERS, " "}
    assert transcript.text


def test_the_checkpoints_own_dictionary(tmp_path: Path) -> None:
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc", dictionary=LETTERS)
    convert_fairseq(file, tmp_path / "own")
    convert_fairseq(file, tmp_path / "both", write_dictionary(tmp_path / "dict.ltr.txt"))
    assert (tmp_path / "own" / "vocab.json").read_text() == (tmp_path / "both" / "vocab.json").read_text()
    swapped = [LETTERS[0], LETTERS[2], LETTERS[1], *LETTERS[3:]]
    with pytest.raises(ValueError, match=r"dict\.ltr\.txt: .*symbol 5 is 'T', but the checkpoint's own .* 'E'"):
        convert_fairseq(file, tmp_path / "other", write_dictionary(tmp_path / "dict.ltr.txt", swapped))


@pytest.mark.parametrize(
    ("letters", "problem"),
    [
        (LETTERS[:-1], "expected 17 different symbols .* got 16"),
        ([*LETTERS, "X"], "expected 17 different symbols .* got 18"),
        (["e", *LETTERS[1:]], "expected the symbol '|' between words"),
        ([*LETTERS[:-1], LETTERS[1]], "line 13: 'E' is there twice"),
    ],
)
def test_a_wrong_dictionary(tmp_path: Path, letters: list[str], problem: str) -> None:
    file = write(tmp_path / "checkpoint.pt", SMALL, "wav2vec_ctc")
    with pytest.raises(ValueError, match=rf"dict\.ltr\.txt.*{problem}".replace("|", r"\|")):
        convert_fairseq(file, tmp_path / "model", write_dictionary(tmp_path / "dict.ltr.txt", letters))
    assert not (tmp_path / "model").exists()


def test_dictionary_files(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("| 5\n# 3\né 2 #fairseq:overwrite\n", encoding="utf-8")
    assert read_dictionary(path) == ["<s>", "<pad>", "</s>", "<unk>", "|", "#", "é"]
    for text, problem in {
        "|\n": "line 1",
        "a 1\nb x\n": "line 2: expected a symbol, a space and a count, got 'b x'",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"dict\.txt, {problem}"):
            read_dictionary(path)
    path.write_text("| 5\n", encoding="utf-8-sig")
    assert read_dictionary(path)[4:] == ["|"]
    with pytest.raises(ValueError, match=r"nowhere\.txt: no such file; expected a dictionary"):
        read_dictionary(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="is no file; expected a dictionary"):
        read_dictionary(tmp_path)
    path.write_bytes(b"\xff\xfe 1\n")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read_dictionary(path)


def test_a_dictionary_is_needed_where_there_are_letters(tmp_path: Path) -> None:
    fine_tuned = write(tmp_path / "ctc.pt", SMALL, "wav2vec_ctc")
    with pytest.raises(ValueError, match=r"ctc\.pt: .* 17 outputs .* --dict dict\.ltr\.txt"):
        convert_fairseq(fine_tuned, tmp_path / "model")
    pretrained = write(tmp_path / "pretrained.pt", SMALL)
    with pytest.raises(ValueError, match=r"pretrained\.pt: a pre-trained model has no letters; leave --dict out"):
        convert_fairseq(pretrained, tmp_path / "model", write_dictionary(tmp_path / "dict.ltr.txt"))
    assert not (tmp_path / "model").exists()


# --- the command and the folder ----------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, dictionary = write(tmp_path / "m.pt", SMALL, "wav2vec_ctc"), write_dictionary(tmp_path / "dict.ltr.txt")
    command = ["convert", "fairseq", str(file), str(tmp_path / "model"), "--dict", str(dictionary), "--verify"]
    assert main(command) == 0
    written, compared = capsys.readouterr().out.splitlines()
    assert written == f"{tmp_path / 'model'}: Wav2Vec2ConformerForCTC with 98 tensors"
    assert compared.startswith("logits: largest difference ")
    assert float(compared.split()[3]) < 1e-4
    assert main(command) == 2
    assert "already there; name a folder that does not exist yet" in capsys.readouterr().err


def test_the_command_fails_where_the_outputs_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wav2vec2_conformer.checkpoints.arithmetic.Arithmetic.feed_forward", lambda self, x, key: x)
    file = write(tmp_path / "m.pt", SMALL)
    assert main(["convert", "fairseq", str(file), str(tmp_path / "model"), "--verify"]) == 1
    assert "the outputs differ by more than 1e-04 of scale" in capsys.readouterr().err


def test_an_output_that_is_not_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it is not the first of the outputs."""
    state = weights(SMALL)
    state["project_q.weight"][0, 0] = float("nan")
    file = write(tmp_path / "m.pt", SMALL, state=state)
    assert main(["convert", "fairseq", str(file), str(tmp_path / "model"), "--verify"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "projected_quantized_states: is not a number"
    assert "an output is not a number" in err
    found = Verification({"a": 1e-7, "b": float("nan")})
    assert not found.passed
    assert math.isnan(found.largest)


def test_what_the_file_does_not_say_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = {key: value for key, value in SMALL.items() if key != "layer_norm_first"}
    file = write(tmp_path / "m.pt", silent)
    assert main(["convert", "fairseq", str(file), str(tmp_path / "model")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "cfg.model.layer_norm_first is not in the file; fairseq's default is taken" in line


def test_what_is_no_file_of_fairseq_s_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.pt").touch()
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    file = str(write(tmp_path / "m.pt", SMALL))
    for name, out, problem in (
        ("/dev/zero", "out", "is a device or pipe, not a file"),
        ("/dev/null", "out", "is a device or pipe, not a file"),
        ("", "out", "'': expected the name of a checkpoint file"),
        (str(tmp_path / "empty.pt"), "out", "the file is empty"),
        (str(tmp_path / "model.safetensors"), "out", "it is a safetensors file, and none that `torch.save` wrote"),
        (file, "m.pt/out", f"no folder can be made there, since {file} is a file"),
    ):
        assert main(["convert", "fairseq", name, str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert problem in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.pt", "m.pt", "model.safetensors"]


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error\nat 3"), RuntimeError("write failed"), OSError(28, "No space")]
)
def test_a_full_disk_on_the_command_line(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("wav2vec2_conformer.checkpoints.fairseq.save_file", fail)
    assert main(["convert", "fairseq", str(write(tmp_path / "m.pt", SMALL)), str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'model'}: the model could not be written (" in line
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_hostile_file_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (shutil.rmtree, (str(tmp_path),))

    file = write(tmp_path / "m.pt", SMALL, extra=Evil())
    assert main(["convert", "fairseq", str(file), str(tmp_path / "model")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"wav2vec2-conformer: {file}: it asks for 'shutil.")
    assert "nothing was executed" in message
    assert file.exists()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(STYLES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_changes_of_the_pickle(tmp_path: Path, style: str, changes: list[tuple[float, int]]) -> None:
    """A changed pickle (with a right checksum) is read, or refused with the file's name; nothing else may happen."""
    whole = tmp_path / f"{style}.pt"
    if not whole.exists():
        write(whole, SMALL, "wav2vec_ctc", style, dictionary=LETTERS)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "changed.pt", "w") as changed:
        for name in archive.namelist():
            data = bytearray(archive.read(name))
            for place, value in changes if name.endswith("data.pkl") else ():
                data[int(place * (len(data) - 1))] = value
            changed.writestr(name, bytes(data))
    message = None
    try:
        with FairseqCheckpoint(tmp_path / "changed.pt") as checkpoint:
            checkpoint.read_weights()
    except ValueError as error:
        message = str(error)
    assert message is None or message.startswith(f"{tmp_path / 'changed.pt'}: ")


def test_a_folder_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "m.pt", SMALL)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("wav2vec2_conformer.checkpoints.fairseq.save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            convert_fairseq(file, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt"]
    (tmp_path / "model").mkdir()  # an empty folder may be there
    convert_fairseq(file, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "model"]


def test_no_file_of_pickles_is_trusted_because_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"model": {}}, 2))
    with pytest.raises(ValueError, match=r"model\.pt: it is a pickle, but none of `torch\.save`"):
        FairseqCheckpoint(tmp_path / "model.pt")


def test_the_document_names_what_is_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    for name, _, _ in NEEDED:
        assert f"`{name}`" in text, name
    for theirs, ours in CHOICES[1][2].items():
        assert f"`{theirs}`" in text
        assert f'"{ours}"' in text


def test_the_documents_command_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("wav2vec2-conformer convert"))
    monkeypatch.chdir(tmp_path)
    write(Path("checkpoint_best.pt"), SMALL, "wav2vec_ctc")
    write_dictionary(Path("dict.ltr.txt"))
    assert main(command.split()[1:]) == 0
    assert Path("my-model", "vocab.json").is_file()
