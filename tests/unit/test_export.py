"""What an exported folder holds, what is refused, and the command; what it computes: `parity/test_export.py`."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import wav2vec2_conformer
from checkpoints_fairseq import SMALL, write
from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.auto import MODELS
from wav2vec2_conformer.checkpoints.fairseq import convert_fairseq
from wav2vec2_conformer.checkpoints.transformers_export import ACTIVATIONS, export_transformers
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.data.vocabulary import build_processor
from wav2vec2_conformer.files import new_folder
from wav2vec2_conformer.processing import DEFAULT_MODEL

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
TINY: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 6,
    "conv_dim": (6, 8),
    "conv_kernel": (8, 3),
    "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 3,
    "tdnn_dim": (6, 5),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (2, 1),
    "xvector_output_dim": 4,
}


def save(folder: Path, head: str = "ForCTC", **changes: Any) -> Path:
    """A small model of ours in a folder."""
    config = Wav2Vec2ConformerConfig(**{**TINY, **changes})
    getattr(wav2vec2_conformer, f"Wav2Vec2Conformer{head}")(config).save_pretrained(folder)
    return folder


def read(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def export(tmp_path: Path, head: str = "ForCTC", **changes: Any) -> Path:
    return export_transformers(save(tmp_path / "ours", head, **changes), tmp_path / "theirs").output


# --- the files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [model.__name__ for model in MODELS.values()])
def test_the_configuration_holds_what_transformers_knows(architecture: str, tmp_path: Path) -> None:
    found = read(export(tmp_path, architecture.removeprefix("Wav2Vec2Conformer"), padding="reference"))
    known = transformers.Wav2Vec2ConformerConfig().to_dict().keys()
    assert found.keys() - known == {"torch_dtype", "tie_last_hidden_states"}  # 4.x's name of a field, and one of 5.x
    assert found["architectures"] == [architecture]
    assert found["model_type"] == "wav2vec2-conformer"
    assert found["torch_dtype"] == "float32"
    assert "id2label" not in found
    network = known - transformers.PreTrainedConfig().to_dict().keys() - {"num_feat_extract_layers"}
    assert network <= found.keys()
    for name, value in TINY.items():
        assert found[name] == (list(value) if isinstance(value, tuple) else value)


def test_labels_are_kept(tmp_path: Path) -> None:
    labels = {0: "yes", 1: "no", 2: "silence"}
    folder = export(
        tmp_path, "ForSequenceClassification", id2label=labels, label2id={}, problem_type="single_label_classification"
    )
    theirs = transformers.Wav2Vec2ConformerConfig.from_pretrained(folder)
    assert theirs.id2label == labels
    assert theirs.problem_type == "single_label_classification"


def test_whole_numbers_where_transformers_wants_others(tmp_path: Path) -> None:
    """transformers 5 refuses `"layer_norm_eps": 1`."""
    whole = dict.fromkeys(("layer_norm_eps", "initializer_range", "diversity_loss_weight", "hidden_dropout"), 1)
    folder = export(tmp_path, **whole)
    assert all(isinstance(read(folder)[name], float) for name in whole)
    assert transformers.Wav2Vec2ConformerConfig.from_pretrained(folder).layer_norm_eps == 1.0


def test_the_file_of_weights(tmp_path: Path) -> None:
    folder = export(tmp_path, position_embeddings_type="rotary")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        keys = set(file.keys())
    inside = "wav2vec2_conformer."
    conv = f"{inside}encoder.pos_conv_embed.conv."
    weight_norm = {f"{conv}parametrizations.weight.original{i}" for i in (0, 1)}
    assert {key for key in keys if key.startswith(conv)} == {*weight_norm, f"{conv}bias"}
    assert {f"{inside}encoder.embed_positions.inv_freq", f"{inside}masked_spec_embed"} <= keys
    batch_norm = f"{inside}encoder.layers.0.conv_module.batch_norm."
    assert {batch_norm + name for name in ("running_mean", "running_var", "num_batches_tracked")} <= keys


def test_half_precision_is_written_as_float32(tmp_path: Path) -> None:
    """Transformers 5 would otherwise compute in half precision, and 4.34 in float32."""
    model = wav2vec2_conformer.Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**TINY))
    model.bfloat16().save_pretrained(tmp_path / "ours")
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.bfloat16 in {tensor.dtype for tensor in stored.values()}
    written = load_file(export_transformers(tmp_path / "ours", tmp_path / "theirs").output / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32, torch.int64}
    assert [key for key in stored if not torch.equal(written[key], stored[key].to(written[key].dtype))] == []


# --- processors --------------------------------------------------------------------------------------------------

VOCABULARY = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"AB's", "sch"])}


@pytest.mark.parametrize("do_normalize", [True, False])
def test_the_processor_is_the_same(do_normalize: bool, tmp_path: Path) -> None:
    ours = build_processor(VOCABULARY, do_normalize=do_normalize)
    save(tmp_path / "ours", vocab_size=10)
    ours.save_pretrained(tmp_path / "ours")
    folder = export_transformers(tmp_path / "ours", tmp_path / "theirs").output
    theirs = transformers.AutoProcessor.from_pretrained(folder)
    assert isinstance(theirs, transformers.Wav2Vec2Processor)
    assert theirs.feature_extractor.to_dict().items() >= ours.feature_extractor.to_dict().items()
    text = "AschB 's A"
    ids = ours.tokenizer(text).input_ids
    assert theirs.tokenizer.get_vocab() == VOCABULARY
    assert theirs.tokenizer(text).input_ids == ids
    assert theirs.decode(ids) == ours.decode(ids) == text  # not cleaned up to "AschB's A", as 4.34 does by default
    assert read(folder, "tokenizer_config.json")["clean_up_tokenization_spaces"] is False
    assert "processor_config.json" not in {path.name for path in folder.iterdir()}  # 4.34 reads another name


def test_tokens_that_were_added_are_in_the_vocabulary(tmp_path: Path) -> None:
    ours = build_processor(VOCABULARY)
    ours.tokenizer.add_tokens(["tz"])
    save(tmp_path / "ours", vocab_size=11)
    ours.save_pretrained(tmp_path / "ours")
    folder = export_transformers(tmp_path / "ours", tmp_path / "theirs").output
    assert read(folder, "vocab.json") == {**VOCABULARY, "tz": 10}
    theirs = transformers.Wav2Vec2Processor.from_pretrained(folder)
    assert theirs.tokenizer("AtzB").input_ids == ours.tokenizer("AtzB").input_ids


def test_a_pre_trained_model_has_no_letters(tmp_path: Path) -> None:
    convert_fairseq(write(tmp_path / "checkpoint.pt", SMALL, normalize=False), tmp_path / "ours")
    folder = export_transformers(tmp_path / "ours", tmp_path / "theirs").output
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert transformers.AutoFeatureExtractor.from_pretrained(folder).do_normalize is False


def test_a_model_without_a_processor(tmp_path: Path) -> None:
    assert {path.name for path in export(tmp_path).iterdir()} == {"config.json", "model.safetensors"}


def test_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = build_processor(VOCABULARY)
    save(tmp_path / "ours", vocab_size=10)
    processor.save_pretrained(tmp_path / "ours")
    processor.tokenizer = object()
    monkeypatch.setattr("wav2vec2_conformer.checkpoints.transformers_export.load_processor", lambda _: processor)
    with pytest.raises(ValueError, match="its tokenizer is a object; only a Wav2Vec2CTCTokenizer"):
        export_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


# --- refusals ----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder_layer_norm='before'": ("ForCTC", {"encoder_layer_norm": "before"}),
    "position_embeddings_type='convolutional'": ("Model", {"position_embeddings_type": "convolutional"}),
    "adapter_attn_dim=4": ("ForCTC", {"adapter_attn_dim": 4}),
    "hidden_act='xielu'": ("ForPreTraining", {"hidden_act": "xielu"}),
    "feat_extract_activation='leaky_relu'": ("Model", {"feat_extract_activation": "leaky_relu"}),
    "use_weighted_layer_sum=True": ("ForXVector", {"add_adapter": True, "use_weighted_layer_sum": True}),
    "output_hidden_size=11": ("ForXVector", {"add_adapter": True, "output_hidden_size": 11}),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_transformers_cannot_compute(field: str, tmp_path: Path) -> None:
    """It is refused by its field, from the configuration alone: there are no weights here."""
    head, changes = REFUSED[field]
    config = Wav2Vec2ConformerConfig(**{**TINY, **changes}, architectures=[f"Wav2Vec2Conformer{head}"])
    config.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=rf"ours: .*`{re.escape(field)}` cannot be exported: .* This package runs it"):
        export_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_adapter_of_another_width_under_another_head(tmp_path: Path) -> None:
    assert read(export(tmp_path, add_adapter=True, output_hidden_size=11))["output_hidden_size"] == 11


def test_activations_that_both_versions_know() -> None:
    assert transformers.activations.ACT2FN.keys() >= ACTIVATIONS
    assert Wav2Vec2ConformerConfig().hidden_act in ACTIVATIONS


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder, and no Hub id"):
        export_transformers(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("architectures", [None, ["Wav2Vec2ForCTC"]])
def test_a_class_must_be_named(architectures: Any, tmp_path: Path) -> None:
    save(tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    path.write_text(json.dumps({**read(tmp_path / "ours"), "architectures": architectures}))
    with pytest.raises(ValueError, match=r"under `architectures`, one of .*Wav2Vec2ConformerForCTC.*got "):
        export_transformers(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize(
    ("head", "part", "key"),
    [("ForCTC", "lm_head", "lm_head.weight"), ("Model", "adapter.layers", "adapter.layers.0.conv.weight")],
)
def test_what_would_be_drawn_at_random_is_refused(head: str, part: str, key: str, tmp_path: Path) -> None:
    """`from_pretrained` draws it, since fine-tuning begins so."""
    save(tmp_path / "ours", head, add_adapter=True)
    path = tmp_path / "ours" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{re.escape(key)}.* are missing and would be written at random"):
        export_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


# --- whole or not at all -----------------------------------------------------------------------------------------


def test_a_folder_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "ours")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("wav2vec2_conformer.checkpoints.transformers_export.save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            export_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    (tmp_path / "theirs").mkdir()  # an empty folder may be there
    export_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_there_stays(there: str, tmp_path: Path) -> None:
    target = tmp_path / "theirs"
    if there == "folder":
        target.mkdir()
        (target / "note").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(ValueError, match="theirs: already there; name a folder that does not exist yet"):
        export_transformers(tmp_path / "no-model", target)  # said before the model is looked for
    with pytest.raises(ValueError, match="already there"), new_folder(target):
        pass
    assert (target / "note" if there == "folder" else target).read_text() == "mine"


def test_a_new_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with new_folder(tmp_path / "deep" / "new") as folder:
        assert folder.parent == tmp_path / "deep"
    usual, new = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "deep/new"))
    assert new == usual


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "theirs"
    assert main(["export", "default", str(out), "--to", "transformers"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(str(out))}: Wav2Vec2ConformerForCTC with \d+ tensors\n", captured.out)
    assert captured.err == ""
    assert read(out, "vocab.json") == read(DEFAULT_MODEL, "vocab.json")
    names = "config.json model.safetensors preprocessor_config.json tokenizer_config.json vocab.json".split()
    assert sorted(path.name for path in out.iterdir()) == names


def test_a_refusal_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(tmp_path / "ours", encoder_layer_norm="before")
    assert main(["export", str(model), str(tmp_path / "theirs"), "--to", "transformers"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"wav2vec2-conformer: {model}: `encoder_layer_norm='before'` cannot be exported")
    assert not (tmp_path / "theirs").exists()


def mis_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["lm_head.bias"] = torch.zeros(4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def as_bin(content: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


def fairseq_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", SMALL)


def config_of(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_text(text)


def clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "misshapen": (mis_shape, r"ours: 1 \(lm_head\.bias \(expected \(9,\), got \(4,\)\)\) are not as config\.json desc"),
    "hostile": (as_bin(shutil.rmtree), r"pytorch_model\.bin: it asks for 'shutil\.rmtree'.*nothing was executed"),
    "fairseq": (fairseq_bin, r"pytorch_model\.bin: a checkpoint of fairseq, which has to be converted first"),
    "a list": (config_of("[]"), r"config\.json: expected a JSON object, got list"),
    "empty": (clear, r"ours: there is no config\.json"),
    "wav2vec2": (config_of('{"model_type": "wav2vec2"}'), r"config\.json: a model of the kind 'wav2vec2'; only"),
    "even": (
        config_of('{"model_type": "wav2vec2-conformer", "conv_depthwise_kernel_size": 4}'),
        r"config\.json: `conv_depthwise_kernel_size` must be odd",
    ),
    "preprocessor": (
        lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
        r"ours: its processor cannot be read|ours: there is no processor",
    ),
}


@pytest.mark.parametrize("command", ["export", "transcribe"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_folder_that_cannot_be_used(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, whatever the folder holds; nothing is executed."""
    change, problem = UNUSABLE[name]
    change(save(tmp_path / "ours"))
    model, audio = str(tmp_path / "ours"), str(tmp_path / "a.wav")
    arguments = [model, str(tmp_path / "theirs"), "--to", "transformers"]
    assert main([command, *(arguments if command == "export" else ["--model", model, "--device", "cpu", audio])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.search(problem, line)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_checkpoint_of_fairseq_in_place_of_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "m.pt", SMALL)
    with pytest.raises(
        ValueError, match=r"m\.pt: a checkpoint of fairseq; convert it first, .*, and export the new folder"
    ):
        export_transformers(file, tmp_path / "theirs")


def test_a_name_that_the_hub_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("We could not connect.\nTry this.\nTry that.")

    monkeypatch.setattr("wav2vec2_conformer.checkpoints.model_folder.cached_file", fail)
    with pytest.raises(
        OSError, match=r"'owner/none': no such folder, and no model of the Hub .*\(We could not conn"
    ) as no:
        export_transformers("owner/none", tmp_path / "theirs")
    assert len(str(no.value).splitlines()) == 1


def test_weights_without_a_place_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "ours") / "model.safetensors"
    save_file({**load_file(path), "other.weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "transformers"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"WARNING: {tmp_path / 'ours'}: 1 (other.weight) have no place in the model, and are left out"


@pytest.mark.parametrize("error", [SafetensorError("I/O error\nat 3"), RuntimeError("write failed")])
def test_a_full_disk_on_the_command_line(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("wav2vec2_conformer.checkpoints.transformers_export.save_file", fail)
    save(tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "transformers"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'theirs'}: the model could not be written (" in line
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_the_program_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--to", "fairseq"]):
        with pytest.raises(SystemExit) as stopped:
            main(["export", "default", str(tmp_path / "theirs"), *arguments])
        assert stopped.value.code == 2
        assert "--to" in capsys.readouterr().err


def test_the_document_names_what_is_refused() -> None:
    section = DOCUMENT.read_text().split("\n## Out again: transformers\n")[1].split("\n## ")[0]
    for field in REFUSED:
        assert f"`{field.partition('=')[0]}" in section, field
