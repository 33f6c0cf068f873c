"""What `inspect_model` says of a model, what it warns of, and that it never loads the weights."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from test_model import TINY
from torch import Tensor

from checkpoints_fairseq import SMALL, write
from wav2vec2_conformer import Inspection, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, inspect_model
from wav2vec2_conformer.auto import MODELS
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.cli.inspect import sized
from wav2vec2_conformer.data import build_processor
from wav2vec2_conformer.inspection import Speed
from wav2vec2_conformer.inspection.pitfalls import TEMPLATE
from wav2vec2_conformer.inspection.speed import estimate_speed, is_bounded
from wav2vec2_conformer.modeling.unused import UnusedTensors
from wav2vec2_conformer.processing import DEFAULT_MODEL

LETTERS = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"])}
CTC: dict[str, Any] = {**TINY, "vocab_size": len(LETTERS)}
# The released large models, as their config.json has them.
LARGE: dict[str, Any] = {
    **TEMPLATE,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "swish",
    "vocab_size": 32,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "codevector_dim": 768,
    "proj_codevector_dim": 768,
}
PREFIX = "wav2vec2_conformer."
FREQUENCIES = PREFIX + "encoder.embed_positions.inv_freq"


@pytest.fixture(autouse=True)
def _no_measurement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed differs each time; `test_speed...` asks for it."""
    if "speed" not in request.node.name:
        monkeypatch.setattr("wav2vec2_conformer.inspection.model.estimate_speed", lambda *_: None)


def save(folder: Path, model: Any = Wav2Vec2ConformerForCTC, **values: Any) -> Path:
    """A small model with its processor."""
    torch.manual_seed(0)
    model(Wav2Vec2ConformerConfig(**{**CTC, **values})).save_pretrained(folder)
    build_processor(LETTERS).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


def kinds(folder: Path) -> list[str]:
    return [pitfall.kind for pitfall in inspect_model(folder).pitfalls]


def only(folder: Path, kind: str) -> str:
    """The message of the one pitfall there is."""
    (pitfall,) = inspect_model(folder).pitfalls
    assert pitfall.kind == kind
    return pitfall.message


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None], name: str = "model.safetensors") -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    (folder / "model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name, metadata={"format": "pt"})


def to_bin(folder: Path) -> None:
    change_weights(folder, lambda state: None, "pytorch_model.bin")


# --- what it says ------------------------------------------------------------------------------------------------


def test_the_default_model() -> None:
    found = inspect_model()
    assert (found.path, found.architecture, found.vocab_size) == (DEFAULT_MODEL, "Wav2Vec2ConformerForCTC", 31)
    assert (found.position_embeddings, found.feature_extractor_norm, found.encoder_layer_norm) == (
        "rotary",
        "layer",
        "after",
    )
    assert (found.frames_per_second, found.receptive_field_ms) == (50.0, 52.5)
    assert found.vocabulary is not None
    assert sorted(found.vocabulary.characters) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert found.vocabulary.special_tokens == ("<pad>", "<s>", "</s>", "<unk>")
    assert (found.vocabulary.blank, found.vocabulary.word_delimiter, found.vocabulary.size) == ("<pad>", "|", 31)
    assert (found.licence, found.languages, found.do_normalize) == ("apache-2.0", (), True)
    assert found.pitfalls == ()


@pytest.mark.parametrize("positions", ["relative", "rotary", "convolutional", None])
@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)
def test_sizes_are_those_of_the_loaded_model(tmp_path: Path, model: Any, positions: str | None) -> None:
    """Numbers and bytes in every precision, counted without the weights and with them."""
    adapted = model.__name__.endswith(("Model", "CTC", "XVector"))  # the other heads cannot follow one
    save(tmp_path, model, position_embeddings_type=positions, num_labels=5, add_adapter=adapted)
    found = inspect_model(tmp_path)
    loaded = model.from_pretrained(tmp_path)
    assert found.pitfalls == ()
    assert found.architecture == model.__name__
    assert found.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert found.buffers == sum(buffer.numel() for buffer in loaded.buffers())
    carried = sum(tensor.numel() for tensor in loaded.state_dict().values())
    assert found.unused == carried - found.parameters - found.buffers
    assert (found.unused > 0) == any(isinstance(module, UnusedTensors) for module in loaded.modules())
    assert sum(found.stored.values()) == carried
    assert (found.blocks, found.width) == (loaded.config.num_hidden_layers, loaded.config.hidden_size)
    assert found.position_embeddings == positions
    for name, size in found.memory.items():
        loaded = model.from_pretrained(tmp_path, dtype=getattr(torch, name))
        assert size == sum(t.numel() * t.element_size() for t in (*loaded.parameters(), *loaded.buffers()))
    labelled = "Classification" in model.__name__ or "XVector" in model.__name__
    assert found.num_labels == (5 if labelled else None)
    assert found.vocab_size == (len(LETTERS) if model is Wav2Vec2ConformerForCTC else None)


def test_frames_after_the_adapter(tmp_path: Path) -> None:
    plain = inspect_model(save(tmp_path / "plain"))
    shortened = inspect_model(save(tmp_path / "short", add_adapter=True, num_adapter_layers=2, adapter_stride=3))
    assert shortened.frames_per_second == pytest.approx(plain.frames_per_second / 9)


def test_languages(tmp_path: Path) -> None:
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**CTC, adapter_attn_dim=3))
    model.save_pretrained(tmp_path)
    build_processor(LETTERS).save_pretrained(tmp_path)
    model.save_adapter(tmp_path, "eng")
    torch.save({}, tmp_path / "adapter.azj-script_latin.bin")
    (tmp_path / "adapter.txt").touch()
    found = inspect_model(tmp_path)
    assert (found.languages, found.pitfalls) == (("azj-script_latin", "eng"), ())


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# A model\n", "cc-by-4.0"),
        ("---\nlanguage: en\nlicense:  'mit' \ntags: []\n---\n", "mit"),
        ("# A model\nlicense: none of a front matter\n", None),
        ("---\nlanguage: en\n---\nlicense: too late\n", None),
        ("---\nlicense: never closed\n", None),
        ("", None),
    ],
)
def test_licence(folder: Path, card: str, licence: str | None) -> None:
    assert inspect_model(folder).licence is None
    (folder / "README.md").write_text(card)
    assert inspect_model(folder).licence == licence


def test_a_model_of_the_hub_that_was_downloaded(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = str(folder / "config.json")
    monkeypatch.setattr(
        "wav2vec2_conformer.inspection.model.try_to_load_from_cache",
        lambda name, file: cached if (name, file) == ("owner/model", "config.json") else None,
    )
    assert inspect_model("owner/model") == inspect_model(folder)
    with pytest.raises(ValueError, match="'owner/other': no such folder, and no model of the Hub that has been"):
        inspect_model("owner/other")


# --- every kind of file ------------------------------------------------------------------------------------------


def same_but_files(found: Inspection, other: Inspection) -> bool:
    return dataclasses.replace(found, files=(), path=Path()) == dataclasses.replace(other, files=(), path=Path())


def test_all_kinds_of_files_say_the_same(folder: Path) -> None:
    whole = inspect_model(folder)
    assert whole.files == ("model.safetensors",)
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder)
    sharded = folder.with_name("sharded")
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="4KB")
    found = inspect_model(sharded)
    assert len(found.files) > 3
    assert same_but_files(found, whole)
    to_bin(folder)
    found = inspect_model(folder)
    assert found.files == ("pytorch_model.bin",)
    assert same_but_files(found, whole)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = {}
    for name in set(index["weight_map"].values()):
        shards[name] = name.replace(".safetensors", ".bin")
        torch.save(load_file(sharded / name), sharded / shards[name])
        (sharded / name).unlink()
    index["weight_map"] = {key: shards[name] for key, name in index["weight_map"].items()}
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same_but_files(inspect_model(sharded), whole)


@pytest.mark.parametrize("positions", ["relative", "convolutional"])
def test_old_names_of_weight_norm(tmp_path: Path, positions: str) -> None:
    save(tmp_path, position_embeddings_type=positions)

    def rename(state: dict[str, Tensor]) -> None:
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            key = PREFIX + "encoder.pos_conv_embed.conv."
            state[key + old] = state.pop(key + new)

    change_weights(tmp_path, rename)
    assert kinds(tmp_path) == []


def test_a_head_that_is_missing_or_too_many(tmp_path: Path) -> None:
    """A bare network's file for a model with a head, and the other way round, load; both is said."""
    bare = save(tmp_path / "bare", MODELS["AutoModel"])
    change_json(bare / "config.json", architectures=["Wav2Vec2ConformerForCTC"])
    assert only(bare, "missing_weights") == (
        "2 (lm_head.bias, lm_head.weight) are not in the files, and will be drawn at random"
    )
    Wav2Vec2ConformerForCTC.from_pretrained(bare)
    headed = save(tmp_path / "headed")
    change_json(headed / "config.json", architectures=["Wav2Vec2ConformerModel"])
    assert only(headed, "unexpected_weights").startswith("2 (lm_head.bias, lm_head.weight) have no place")
    MODELS["AutoModel"].from_pretrained(headed)


# --- what it warns of --------------------------------------------------------------------------------------------


def set_frequencies(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({FREQUENCIES: change(state[FREQUENCIES])})


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda exact: exact, []),
        (lambda exact: exact.half().float(), ["rounded_frequencies"]),
        (lambda exact: exact.half(), ["rounded_frequencies"]),
        (lambda exact: exact.bfloat16().float(), ["rounded_frequencies"]),
        (lambda exact: exact * 1.001, []),
    ],
    ids=["exact", "rounded", "stored in half", "bfloat16", "others"],
)
def test_rounded_frequencies(tmp_path: Path, name: str, change: Any, expected: list[str]) -> None:
    save(tmp_path, position_embeddings_type="rotary", hidden_size=24, num_attention_heads=2)
    change_weights(tmp_path, set_frequencies(change), name)
    assert kinds(tmp_path) == expected


def test_frequencies_that_no_rounding_changes(tmp_path: Path) -> None:
    """A head of two channels has the frequency 1 only."""
    save(tmp_path, position_embeddings_type="rotary", hidden_size=8, num_attention_heads=4)
    assert kinds(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    save(tmp_path)
    Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).save_pretrained(tmp_path)
    assert f"weights are stored in {dtype}" in only(tmp_path, "half_precision")
    assert Wav2Vec2ConformerForCTC.from_pretrained(tmp_path).dtype == getattr(torch, dtype)  # what it warns of
    assert inspect_model(tmp_path).stored.keys() == {dtype, "float32", "int64"}  # statistics stay wide


def test_template_dropouts(tmp_path: Path) -> None:
    large = write_large(tmp_path / "large")
    assert kinds(large) == ["template_dropouts"]
    change_json(large / "config.json", hidden_dropout=0.0)
    assert kinds(large) == []


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (PROCESSOR_FILES[:2], ["missing_processor", "missing_processor"]),
        (PROCESSOR_FILES[2:], ["missing_processor"]),
        (PROCESSOR_FILES, ["missing_processor", "missing_processor"]),
    ],
    ids=["feature extractor", "tokenizer", "both"],
)
def test_missing_processor_files(folder: Path, gone: tuple[str, ...], expected: list[str]) -> None:
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    found = inspect_model(folder)
    assert [pitfall.kind for pitfall in found.pitfalls] == expected
    assert found.vocabulary is None
    assert found.do_normalize is (None if "processor_config.json" in gone else True)


def test_only_letters_need_a_tokenizer(tmp_path: Path) -> None:
    save(tmp_path, MODELS["AutoModelForPreTraining"])
    for name in PROCESSOR_FILES[2:]:
        (tmp_path / name).unlink()
    assert kinds(tmp_path) == []


@pytest.mark.parametrize("name", ["vocab.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "3", '{"feature_extractor": 3, "A": {}}', "\x00"])
def test_a_processor_that_cannot_be_read(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    found = inspect_model(folder)
    assert found.parameters > 0
    if content != '{"feature_extractor": 3, "A": {}}':
        assert found.pitfalls


def test_vocabulary_of_another_size(folder: Path) -> None:
    build_processor({**LETTERS, "C": 7}).save_pretrained(folder)
    assert only(folder, "vocabulary_size") == "vocab_size is 7, but the vocabulary has 8 tokens"


def test_another_blank(folder: Path) -> None:
    change_json(folder / "config.json", pad_token_id=6)
    assert only(folder, "other_blank") == "the blank is column 6 by config.json, but 0 by the tokenizer"
    vocabulary = inspect_model(folder).vocabulary
    assert vocabulary is not None
    assert vocabulary.blank == "B"


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("normalize", [True, False])
def test_waveforms_that_are_not_normalised(tmp_path: Path, norm: str, normalize: bool) -> None:
    save(tmp_path, feat_extract_norm=norm)
    build_processor(LETTERS, do_normalize=normalize).save_pretrained(tmp_path)
    assert inspect_model(tmp_path).do_normalize is normalize
    assert kinds(tmp_path) == (["not_normalized"] if norm == "layer" and not normalize else [])


def test_what_the_norm_makes_of_loudness(tmp_path: Path) -> None:
    """The reason for that warning: scale and mean change the features after one kind of norm and not the other."""
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = {}
    for norm in ("group", "layer"):
        torch.manual_seed(0)
        model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**CTC, "feat_extract_norm": norm})).double().eval()
        with torch.no_grad():
            normal, loud = (model.wav2vec2_conformer.feature_extractor(x) for x in (waveform, 9 * waveform + 2))
        difference[norm] = float((loud - normal).abs().max() / normal.abs().max())
    assert difference["group"] < 1e-3 < 0.1 < difference["layer"]


def remove(*keys: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: [state.pop(key) for key in keys] and None


def test_missing_weights_of_the_network(folder: Path) -> None:
    keys = [
        PREFIX + f"encoder.layers.0.ffn{i}.{name}.bias"
        for i in (1, 2)
        for name in ("intermediate_dense", "output_dense")
    ]
    change_weights(folder, remove(*keys, PREFIX + "feature_projection.layer_norm.bias"))
    message = only(folder, "missing_weights")
    assert message.startswith("5 (")
    assert all(key in message for key in keys)
    assert message.endswith(", ...) are not in the files, and loading will be refused")
    with pytest.raises(ValueError, match="5 weights of the network are missing"):
        Wav2Vec2ConformerForCTC.from_pretrained(folder)


def test_what_may_be_missing_without_a_word(tmp_path: Path) -> None:
    save(tmp_path, position_embeddings_type="rotary")
    state = load_file(tmp_path / "model.safetensors")
    change_weights(
        tmp_path, remove(*[k for k in state if any(p in k for p in ("pos_conv_embed", "inv_freq", "num_batches"))])
    )
    assert kinds(tmp_path) == []
    change_weights(tmp_path, remove(PREFIX + "masked_spec_embed"))
    assert only(tmp_path, "missing_weights").endswith(
        "masked_spec_embed) are not in the files, and will be drawn at random"
    )
    Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)


def test_convolutional_positions_may_not_be_missing(tmp_path: Path) -> None:
    save(tmp_path, position_embeddings_type="convolutional")
    change_weights(tmp_path, remove(PREFIX + "encoder.pos_conv_embed.conv.bias"))
    assert only(tmp_path, "missing_weights").endswith("loading will be refused")
    with pytest.raises(ValueError, match="1 weights of the network are missing"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)


def test_unexpected_and_misshapen_weights(folder: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["label_embeddings"] = torch.zeros(3)
        state["lm_head.weight"] = torch.zeros(5, 4)
        state["lm_head.bias"] = torch.zeros(len(LETTERS), dtype=torch.int8)

    width = inspect_model(folder).width
    change_weights(folder, change)
    unexpected, misshapen = inspect_model(folder).pitfalls
    assert (unexpected.kind, misshapen.kind) == ("unexpected_weights", "misshapen_weights")
    assert unexpected.message == "1 (label_embeddings) have no place in the model, and are left out"
    assert misshapen.message == (
        "2 (lm_head.bias (expected (7,), got (7,) of whole numbers), lm_head.weight (expected "
        f"(7, {width}), got (5, 4))) are not as config.json describes them"
    )


def test_a_config_of_another_model(folder: Path) -> None:
    """Fewer, wider blocks than the file has."""
    blocks = inspect_model(folder).blocks
    change_json(folder / "config.json", num_hidden_layers=blocks - 1, intermediate_size=99)
    assert kinds(folder) == ["unexpected_weights", "misshapen_weights"]
    change_json(folder / "config.json", num_hidden_layers=blocks + 1)
    assert kinds(folder) == ["missing_weights", "misshapen_weights"]


def test_absent_shards(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    gone = sorted(set(index.values()))[1:3]
    for name in gone:
        (folder / name).unlink()
    keys = sum(name in gone for name in index.values())
    assert only(folder, "absent_shards") == f"2 ({', '.join(gone)}) with {keys} weights: named by the index, not there"


# --- the weights are not loaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_numbers_are_not_looked_at(tmp_path: Path, name: str) -> None:
    """Bytes that are no numbers anywhere, under an intact header, change nothing."""
    save(tmp_path, position_embeddings_type="relative")
    change_weights(tmp_path, lambda state: None, name)
    before = inspect_model(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if name.endswith(".bin"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if "/data/" in entry.filename:
                    name_and_extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
                    start = entry.header_offset + 30 + sum(name_and_extra)
                    data[start : start + entry.file_size] = b"\xff" * entry.file_size
    else:
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(bytes(data))
    assert inspect_model(tmp_path) == before


def write_large(folder: Path, model: Any = Wav2Vec2ConformerForCTC, **values: Any) -> Path:
    """A model of the released large ones' size, in a file with a header and a hole."""
    config = Wav2Vec2ConformerConfig(**{**LARGE, **values}, architectures=[model.__name__])
    with torch.device("meta"):
        state = model(config).state_dict()
    header, end = {}, 0
    for key, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        dtype = "F32" if tensor.is_floating_point() else "I64"
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    folder.mkdir()
    config.save_pretrained(folder)
    build_processor(LETTERS | {chr(0x3B1 + i): i for i in range(len(LETTERS), 32)}).save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.mark.parametrize(
    ("name", "positions", "numbers"),
    [
        ("AutoModel", "relative", 618_559_104),
        ("AutoModelForCTC", "relative", 618_591_904),
        ("AutoModelForPreTraining", "relative", 620_510_976),
        ("AutoModel", "rotary", 593_344_128),
        ("AutoModelForCTC", "rotary", 593_376_928),
        ("AutoModelForPreTraining", "rotary", 595_296_000),
    ],
)
def test_the_released_sizes(tmp_path: Path, name: str, positions: str, numbers: int) -> None:
    """The references' counts of parameters, of which `pos_conv_embed` is a part there."""
    found = inspect_model(write_large(tmp_path / "large", MODELS[name], position_embeddings_type=positions))
    assert (found.parameters + found.unused, found.unused) == (numbers, 8_389_760)
    assert (found.frames_per_second, found.receptive_field_ms) == (50.0, 25.0)


MEASURE = """
import sys
from pathlib import Path
from wav2vec2_conformer.inspection import inspect_model, model
model.estimate_speed = lambda *_: None
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
inspect_model(sys.argv[1])
before = peak()
found = inspect_model(sys.argv[2])
print(found.parameters, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read as Linux counts them")
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """2.4 GB of weights are inspected in less than 100 MB beyond what a small model takes."""
    small, large = save(tmp_path / "small"), write_large(tmp_path / "large", position_embeddings_type="rotary")
    assert (large / "model.safetensors").stat().st_size > 2.3e9
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parameters, kilobytes = map(int, output.split())
    assert parameters > 5e8
    assert kilobytes < 100_000


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "said"), [(900, "0.9 kB"), (5_400, "5.4 kB"), (18_040_000, "18.0 MB")])
def test_sizes_of_small_models_are_not_zero(size: int, said: str) -> None:
    assert sized(size) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "bring models in from fairseq and out to transformers"),
        (["convert"], "Turn a checkpoint of another program into a folder"),
        (["convert", "fairseq"], "with exit code 2, and no folder is written"),
        (["export"], "the exit code is 2, and nothing is written"),
        (["inspect"], "the exit code is 2"),
    ],
)
def test_help(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    assert said in " ".join(capsys.readouterr().out.split())


# --- what is no model --------------------------------------------------------------------------------------------


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def write_header(content: bytes, length: int | None = None) -> Callable[[Path], None]:
    data = (len(content) if length is None else length).to_bytes(8, "little") + content
    return lambda folder: (folder / "model.safetensors").write_bytes(data) and None


def truncated_bin(folder: Path) -> None:
    to_bin(folder)
    truncate("pytorch_model.bin", 0.9)(folder)


def hostile_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(shutil.rmtree))


def other_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "pytorch_model.bin")


def fairseq_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", SMALL)


def index_of(table: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return change


def config_with(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **values)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (empty, r"model: there is no config\.json"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"model: there are no weights; expected one of",
    ),
    "wav2vec2": (
        config_with(model_type="wav2vec2"),
        r"config\.json: a model of the kind 'wav2vec2'; only 'wav2vec2-conf",
    ),
    "hubert": (config_with(model_type="hubert"), r"config\.json: a model of the kind 'hubert'"),
    "no kind": (config_with(model_type=None), r"config\.json: a model of the kind None"),
    "no class": (
        config_with(architectures=None),
        r"its config\.json must name the model's class under `architectures`",
    ),
    "another class": (config_with(architectures=["Wav2Vec2ForCTC"]), r"got \['Wav2Vec2ForCTC'\]"),
    "a truncated config": (truncate("config.json", 0.5), r"config\.json: not JSON, or damaged or truncated"),
    "a config of a list": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json: expected a JSON object, got list",
    ),
    "no width": (config_with(hidden_size="wide"), r"config\.json: .*hidden_size"),
    "wrong heads": (config_with(num_attention_heads=7), r"config\.json: `num_attention_heads` must divide"),
    "no vocabulary": (config_with(vocab_size=None), r"config\.json: no network can be built from it: a CTC head needs"),
    "too many labels": (config_with(num_labels=2**70), r"config\.json: `num_labels` must be 1048576 at most, got"),
    "classes of a number": (config_with(architectures=3), r"its config\.json must name the model's class"),
    "a type of a list": (config_with(dtype=[]), r"config\.json: "),
    "too deep": (config_with(num_hidden_layers=10**6), r"config\.json: it describes a network of 10000\d\d layers"),
    "too wide": (
        config_with(hidden_size=2**62, num_conv_pos_embedding_groups=1),
        r"config\.json: no network can be built from it",
    ),
    "truncated weights": (
        truncate("model.safetensors", 0.9),
        r"model\.safetensors: not a safetensors file, or a damaged",
    ),
    "a truncated header": (
        truncate("model.safetensors", 0.01),
        r"model\.safetensors: not a safetensors file, or a dam",
    ),
    "empty weights": (truncate("model.safetensors", 0), r"model\.safetensors: not a safetensors file, or a damaged"),
    "an enormous header": (write_header(b"{}", 2**60), rf"its header would have {2**60} bytes"),
    "a header of noise": (write_header(b"\xff" * 40), r"model\.safetensors: not a safetensors file, or a damaged"),
    "an endless header": (write_header(b"[" * 100_000), r"model\.safetensors: not a safetensors file, or a damaged"),
    "truncated .bin": (truncated_bin, r"pytorch_model\.bin: the file is damaged or truncated"),
    "hostile .bin": (hostile_bin, r"pytorch_model\.bin: it asks for 'shutil\.rmtree'.*nothing was executed"),
    "another .bin": (other_bin, r"pytorch_model\.bin: expected a dictionary of tensors"),
    "fairseq as .bin": (fairseq_bin, r"pytorch_model\.bin: a checkpoint of fairseq, which has to be converted first"),
    "an index of nothing": (index_of({}), r"index\.json: it names no shards; expected them under 'weight_map'"),
    "an index that leads out": (index_of({"a": "../x.safetensors"}), r"a shard must be the name of a file beside the"),
    "an index of numbers": (index_of({"a": 3}), r"a shard must be the name of a file beside the index, got 3"),
    "an index of a list": (index_of([1]), r"it names no shards"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model(folder: Path, name: str) -> None:
    change, problem = REFUSED[name]
    change(folder)
    with pytest.raises(ValueError, match=problem) as refused:
        inspect_model(folder)
    assert str(refused.value).startswith(str(folder))


def test_files_and_names_in_place_of_a_folder(tmp_path: Path, folder: Path) -> None:
    checkpoint = write(tmp_path / "checkpoint_best.pt", SMALL, "wav2vec_ctc")
    with pytest.raises(
        ValueError, match=r"best\.pt: a checkpoint of fairseq; convert it first, `wav2vec2-conformer con"
    ):
        inspect_model(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    for file in (checkpoint, folder / "model.safetensors"):
        with pytest.raises(ValueError, match=r"expected a model's folder, with config\.json and weights, got a file"):
            inspect_model(file)
    for name in ("", "no such folder", "a/b/c", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="no such folder, and no Hub id"):
            inspect_model(name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["model.safetensors", "config.json", "vocab.json", "processor_config.json"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_random_changes(tmp_path: Path, name: str, changes: list[tuple[float, int]]) -> None:
    """A changed file is inspected, or refused with the folder's name; nothing else may happen."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    if not whole.exists():
        save(whole)
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(whole, changed)
    data = bytearray((whole / name).read_bytes())
    size = 8 + int.from_bytes(data[:8], "little") if name == "model.safetensors" else len(data)
    for place, value in changes:
        data[int(place * (size - 1))] = value
    (changed / name).write_bytes(bytes(data))
    message = str(changed)
    try:
        inspect_model(changed)
    except ValueError as error:
        message = str(error)
    assert message.startswith(str(changed))


# --- speed -------------------------------------------------------------------------------------------------------


def test_speed_is_estimated_and_leaves_no_trace(folder: Path) -> None:
    """How near it is: `benchmarks/speed_estimate.py`."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    speed = inspect_model(folder).speed
    assert torch.equal(torch.get_rng_state(), before)
    assert speed is not None
    assert (speed.clip, speed.threads) == (15.0, torch.get_num_threads())
    assert speed.times_real_time == 15.0 / speed.seconds > 0


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)
def test_speed_of_every_head(model: Any) -> None:
    for blocks in (0, 3):
        config = Wav2Vec2ConformerConfig(**{**CTC, "num_hidden_layers": blocks})
        assert isinstance(estimate_speed(model, config), Speed)
        assert config.num_hidden_layers == blocks


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 2**14, "num_conv_pos_embedding_groups": 1, "num_attention_heads": 1},
        {"conv_stride": (1,) * 7},
        {"conv_dim": (2**13,) * 7},
    ],
    ids=["parameters", "frames", "channels"],
)
def test_speed_of_what_is_too_large_is_not_tried(values: dict[str, Any]) -> None:
    config = Wav2Vec2ConformerConfig(**{**CTC, **values})
    assert not is_bounded(Wav2Vec2ConformerForCTC, config)
    assert estimate_speed(Wav2Vec2ConformerForCTC, config) is None


def test_speed_of_what_cannot_be_run() -> None:
    config = Wav2Vec2ConformerConfig(**CTC)
    config.output_hidden_states = "all"
    assert estimate_speed(Wav2Vec2ConformerForCTC, config) is None


def test_speed_of_the_large_models_is_tried() -> None:
    for positions in ("relative", "rotary"):
        config = Wav2Vec2ConformerConfig(**{**LARGE, "num_hidden_layers": 1, "position_embeddings_type": positions})
        assert is_bounded(Wav2Vec2ConformerForCTC, config)
