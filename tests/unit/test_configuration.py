"""The configuration: the seed's fields and defaults, files of the references, and refusals that say what to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Wav2Vec2ConformerConfig as PeerConfig

from wav2vec2_conformer import Wav2Vec2ConformerConfig

# Our own fields, which the seed does not have, with their defaults.
OWN: dict[str, Any] = {
    "padding": "invariant",
    "adapter_attn_dim": None,
    "encoder_layer_norm": "after",
    "feat_projection": True,
}

SHARED = Path(__file__).resolve().parents[3] / "shared"

# Every field of the seed document's Wav2Vec2ConformerConfig with its default.
SEED: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": (512, 512, 512, 512, 512, 512, 512),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "apply_spec_augment": True,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
    "num_codevectors_per_group": 320,
    "num_codevector_groups": 2,
    "contrastive_logits_temperature": 0.1,
    "num_negatives": 100,
    "codevector_dim": 256,
    "proj_codevector_dim": 256,
    "diversity_loss_weight": 0.1,
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": False,
    "use_weighted_layer_sum": False,
    "classifier_proj_size": 256,
    "tdnn_dim": (512, 512, 512, 512, 1500),
    "tdnn_kernel": (5, 3, 3, 1, 1),
    "tdnn_dilation": (1, 2, 3, 1, 1),
    "xvector_output_dim": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "add_adapter": False,
    "adapter_kernel_size": 3,
    "adapter_stride": 2,
    "num_adapter_layers": 3,
    "output_hidden_size": None,
    "position_embeddings_type": "relative",
    "rotary_embedding_base": 10000,
    "max_source_positions": 5000,
    "conv_depthwise_kernel_size": 31,
    "conformer_conv_dropout": 0.1,
}


def test_table_is_the_seed_documents() -> None:
    documents = list((SHARED / "reference").glob("seed-000_*.md"))
    if not documents:
        pytest.skip("the seed document lies outside the repository")
    text = documents[0].read_text()
    start = text.index("( vocab\\_size = None")
    signature = text[start : text.index("\\*\\*kwargs", start)]
    written = "".join(f"{name} = {default!r}" for name, default in SEED.items()).replace("_", "\\_")
    assert signature == "( " + written


def test_defaults_are_the_seeds() -> None:
    config = Wav2Vec2ConformerConfig()
    resolved = {**SEED, "output_hidden_size": 768}  # None means hidden_size
    assert {name: getattr(config, name) for name in SEED} == resolved
    assert {name: type(getattr(config, name)) for name in SEED} == {name: type(resolved[name]) for name in SEED}
    assert config.padding == "invariant"


def test_dictionary_is_the_references_and_our_fields() -> None:
    ours, theirs = Wav2Vec2ConformerConfig().to_dict(), PeerConfig().to_dict()
    assert ours == {**theirs, **OWN}


@pytest.mark.parametrize("name", sorted(SEED))
def test_every_field_is_taken_and_kept(name: str) -> None:
    other: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_act": "swish",
        "feat_extract_norm": "layer",
        "feat_extract_activation": "relu",
        "conv_dim": (8,) * 7,
        "conv_stride": (5, 2, 2, 2, 2, 2, 1),
        "conv_kernel": (10, 3, 3, 3, 3, 2, 3),
        "ctc_loss_reduction": "mean",
        "tdnn_dim": (8, 8, 8, 8, 9),
        "tdnn_kernel": (5, 3, 3, 1, 2),
        "tdnn_dilation": (1, 2, 3, 1, 2),
        "position_embeddings_type": "rotary",
        "output_hidden_size": 64,
        "conv_depthwise_kernel_size": 15,
        "num_attention_heads": 8,
    }
    default = SEED[name]
    if name in other:
        value = other[name]
    elif isinstance(default, bool):
        value = not default
    elif isinstance(default, int):
        value = default * 2 + (default == 0)
    else:
        value = default + 0.25
    config = Wav2Vec2ConformerConfig(**{name: value})
    assert getattr(config, name) == value != default
    again = Wav2Vec2ConformerConfig.from_dict(json.loads(config.to_json_string()))
    stored = getattr(again, name)
    assert (tuple(stored) if isinstance(stored, list) else stored) == value


def test_json_round_trip(tmp_path: Path) -> None:
    config = Wav2Vec2ConformerConfig(
        vocab_size=33,
        position_embeddings_type=None,
        padding="reference",
        conv_dim=(*(16,) * 6, 768),
        hidden_dropout=0.25,
        encoder_layer_norm="before",
        feat_projection=False,
    )
    config.save_pretrained(tmp_path)
    again = Wav2Vec2ConformerConfig.from_pretrained(tmp_path)
    assert again.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)
    assert again.padding == "reference"
    assert again.position_embeddings_type is None
    assert (again.encoder_layer_norm, again.feat_projection) == ("before", False)


def test_derived_fields() -> None:
    config = Wav2Vec2ConformerConfig(hidden_size=64, num_attention_heads=4)
    assert config.inputs_to_logits_ratio == 320
    assert config.num_feat_extract_layers == 7
    assert config.output_hidden_size == 64


def test_stored_layer_count_is_derived_and_not_read() -> None:
    config = Wav2Vec2ConformerConfig.from_dict({"num_feat_extract_layers": 99})
    assert config.num_feat_extract_layers == 7
    assert config.to_dict()["num_feat_extract_layers"] == 7


def test_unknown_keys_load_and_stay() -> None:
    values = {"hidden_size": 96, "gradient_checkpointing": False, "finetuning_task": "asr", "my_note": {"a": [1, 2]}}
    config = Wav2Vec2ConformerConfig.from_dict(values)
    assert config.hidden_size == 96
    assert config.my_note == {"a": [1, 2]}
    assert json.loads(config.to_json_string())["my_note"] == {"a": [1, 2]}


def test_references_file_loads_and_ours_loads_there(tmp_path: Path) -> None:
    theirs = PeerConfig(vocab_size=50, hidden_size=96, position_embeddings_type="rotary", feat_extract_norm="layer")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Wav2Vec2ConformerConfig.from_pretrained(tmp_path / "theirs")
    assert (ours.vocab_size, ours.hidden_size, ours.position_embeddings_type) == (50, 96, "rotary")
    ours.save_pretrained(tmp_path / "ours")
    back = PeerConfig.from_pretrained(tmp_path / "ours")
    assert back.to_dict() == {**theirs.to_dict(), **OWN}


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="the golden files lie outside the repository")
def test_golden_files_load() -> None:
    files = sorted((SHARED / "golden").glob("*/config.json"))
    assert len(files) >= 10
    for file in files:
        written = json.loads(file.read_text())
        config = Wav2Vec2ConformerConfig.from_pretrained(file.parent)
        for name in SEED.keys() & written.keys():
            value = getattr(config, name)
            assert (list(value) if isinstance(value, tuple) else value) == written[name], (file, name)
        assert config.padding == "invariant"


REFUSALS: list[tuple[dict[str, Any], list[str]]] = [
    ({"conv_depthwise_kernel_size": 32}, ["conv_depthwise_kernel_size", "odd", "got 32", "use 31 or 33"]),
    ({"conv_depthwise_kernel_size": 2}, ["use 1 or 3"]),
    ({"num_attention_heads": 10}, ["num_attention_heads", "divide", "hidden_size", "10", "768", "hidden_size=770"]),
    ({"hidden_size": 4, "num_attention_heads": 16}, ["hidden_size=16"]),
    (
        {"hidden_size": 36, "num_attention_heads": 12, "position_embeddings_type": "rotary"},
        ["even head size", "36 / 12"],
    ),
    ({"hidden_size": 33, "num_attention_heads": 3}, ["even `hidden_size`", "33", "use 34"]),
    ({"feat_extract_norm": "batch"}, ["feat_extract_norm", "'group', 'layer'", "got 'batch'"]),
    ({"feat_extract_norm": None}, ["feat_extract_norm", "got None"]),
    ({"position_embeddings_type": "alibi"}, ["position_embeddings_type", "'relative', 'rotary', None", "got 'alibi'"]),
    ({"ctc_loss_reduction": "none"}, ["ctc_loss_reduction", "'sum', 'mean'", "got 'none'"]),
    ({"adapter_attn_dim": 0}, ["adapter_attn_dim", "at least 1", "got 0"]),
    ({"padding": "right"}, ["padding", "'invariant', 'reference'", "got 'right'"]),
    ({"encoder_layer_norm": "first"}, ["encoder_layer_norm", "'after', 'before'", "got 'first'"]),
    ({"feat_projection": None}, ["feat_projection", "True, False", "got None"]),
    ({"feat_projection": False}, ["feat_projection=False", "512", "768", "use feat_projection=True"]),
    ({"hidden_act": "swisch"}, ["hidden_act", "'gelu' or 'swish'", "got 'swisch'"]),
    ({"feat_extract_activation": None}, ["feat_extract_activation", "got None"]),
    ({"conv_dim": (512,) * 6}, ["`conv_dim`, `conv_stride`, `conv_kernel`", "conv_dim has 6", "conv_stride has 7"]),
    ({"conv_stride": (5, 2)}, ["conv_stride has 2", "conv_kernel has 7"]),
    ({"conv_dim": (), "conv_stride": (), "conv_kernel": ()}, ["one entry a layer"]),
    ({"conv_kernel": (10, 3, 3, 3, 3, 2, 0)}, ["conv_kernel", "at least 1", "got 0"]),
    ({"conv_stride": (5, 2, 2, 2, 2, 2, True)}, ["conv_stride", "got True"]),
    ({"conv_dim": (512.0,) * 7}, ["conv_dim", "whole numbers", "got 512.0"]),
    ({"conv_dim": None}, ["conv_dim", "list", "got None"]),
    ({"conv_dim": 512}, ["conv_dim", "list", "got 512"]),
    ({"tdnn_kernel": (5, 3, 3, 1)}, ["tdnn_kernel has 4", "tdnn_dim has 5"]),
    ({"tdnn_dilation": (1, 2, 3, 1, -1)}, ["tdnn_dilation", "got -1"]),
    ({"codevector_dim": 255}, ["codevector_dim", "num_codevector_groups", "255", "2"]),
    ({"num_conv_pos_embedding_groups": 5}, ["num_conv_pos_embedding_groups", "divide", "got 5", "use 1"]),
    ({"initializer_range": -0.1}, ["initializer_range", "at least 0", "-0.1"]),
    ({"initializer_range": None}, ["initializer_range", "got None"]),
    ({"layer_norm_eps": 0.0}, ["layer_norm_eps", "greater than 0", "0.0"]),
    ({"layer_norm_eps": "1e-5"}, ["layer_norm_eps", "got '1e-5'"]),
    ({"contrastive_logits_temperature": 0}, ["contrastive_logits_temperature", "greater than 0"]),
    ({"diversity_loss_weight": float("nan")}, ["diversity_loss_weight", "nan"]),
]


@pytest.mark.parametrize(("values", "parts"), REFUSALS, ids=lambda value: str(value)[:60])
def test_refused_with_the_remedy(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is checked below)
        Wav2Vec2ConformerConfig(**values)
    for part in parts:
        assert part in str(refusal.value)


RATES = (
    "hidden_dropout activation_dropout attention_dropout feat_proj_dropout feat_quantizer_dropout final_dropout "
    "conformer_conv_dropout layerdrop mask_time_prob mask_feature_prob"
).split()


@pytest.mark.parametrize("name", RATES)
def test_rates_lie_between_0_and_1(name: str) -> None:
    for value in (0, 0.0, 1, 1.0, 0.5):
        assert getattr(Wav2Vec2ConformerConfig(**{name: value}), name) == value
    for value in (-0.01, 1.01, 10, float("nan"), None, "0.1", True):
        with pytest.raises(ValueError, match=rf"`{name}` is a probability: it must lie in \[0, 1\], got"):
            Wav2Vec2ConformerConfig(**{name: value})


SIZES = {
    name: 0 if name in ("num_hidden_layers", "num_adapter_layers") or name.endswith("min_masks") else 1
    for name, default in SEED.items()
    if isinstance(default, int) and not isinstance(default, bool) and not name.endswith("token_id")
} | {"vocab_size": 1, "output_hidden_size": 1}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes_are_whole_and_large_enough(name: str) -> None:
    for value in (-1, SIZES[name] - 1, True, False, 2.0, "3"):
        with pytest.raises(ValueError, match=rf"`{name}` must be a whole number of at least {SIZES[name]}, got"):
            Wav2Vec2ConformerConfig(**{name: value})


def test_no_layers_and_zero_masks_are_possible() -> None:
    config = Wav2Vec2ConformerConfig(num_hidden_layers=0, num_adapter_layers=0, mask_time_min_masks=0)
    assert (config.num_hidden_layers, config.num_adapter_layers, config.mask_time_min_masks) == (0, 0, 0)


def test_file_with_an_impossible_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2-conformer", "conv_depthwise_kernel_size": 30}')
    with pytest.raises(ValueError, match="use 29 or 31"):
        Wav2Vec2ConformerConfig.from_pretrained(tmp_path)
