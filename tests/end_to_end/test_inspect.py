"""The command `inspect`: a table for people, JSON for programs, one line for what is no model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_fairseq import SMALL, write
from wav2vec2_conformer import inspect_model
from wav2vec2_conformer.checkpoints.fairseq import convert_fairseq
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.inspection import pitfalls
from wav2vec2_conformer.processing import DEFAULT_MODEL

Capture = pytest.CaptureFixture[str]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wav2vec2_conformer", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def rows(table: str) -> list[str]:
    """A table without what differs between machines: the folder and the measured numbers."""
    table = re.sub(r"^(model +).*$", r"\1...", table, flags=re.MULTILINE)
    return re.sub(r"about \S+ s|\S+ times|\d+ CPU threads?", "...", table).splitlines()


def test_the_documents_table_is_what_it_prints() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.search(r"^wav2vec2-conformer inspect\n```\n\n```\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert rows(done.stdout) == rows(shown[1])
    assert f"model         {DEFAULT_MODEL}" in done.stdout.splitlines()


def test_the_document_names_every_warning() -> None:
    source = Path(pitfalls.__file__).with_name("model.py").read_text() + Path(pitfalls.__file__).read_text()
    kinds = set(re.findall(r'Pitfall\(\s*"(\w+)"', source))
    assert len(kinds) > 10
    section = DOCUMENT[DOCUMENT.index("| `kind` in JSON |") :]
    assert kinds <= set(re.findall(r"`(\w+)`", section))


def test_json_is_what_the_function_returns(capsys: Capture) -> None:
    assert main(["inspect", "default", "--json"]) == 0
    said, found = json.loads(capsys.readouterr().out), inspect_model()
    assert said.keys() == vars(found).keys()
    assert said["path"] == str(DEFAULT_MODEL)
    assert said["vocabulary"]["characters"] == list(found.vocabulary.characters if found.vocabulary else ())
    assert (said["parameters"], said["memory"], said["pitfalls"]) == (found.parameters, found.memory, [])
    assert set(said["speed"]) == {"clip", "seconds", "threads"}


def test_warnings_and_a_converted_model(tmp_path: Path, capsys: Capture) -> None:
    """fairseq's frequencies are rounded, and a pre-trained model has no letters."""
    convert_fairseq(write(tmp_path / "m.pt", {**SMALL, "pos_enc_type": "rope"}, normalize=False), tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "head          Wav2Vec2ConformerForPreTraining" in lines
    assert "waveforms     as they are" in lines
    assert not [line for line in lines if line.startswith("vocabulary")]
    warned = lines[[line.startswith("warnings") for line in lines].index(True) :]
    assert [line[14:].split(":")[0] for line in warned] == [
        "inv_freq has been rounded to half precision, as in the released models",
        "do_normalize is false, but feat_extract_norm='layer' hears how loud a recording is",
    ]
    assert main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    kinds = [pitfall["kind"] for pitfall in json.loads(capsys.readouterr().out)["pitfalls"]]
    assert kinds == ["rounded_frequencies", "not_normalized"]


def test_what_is_no_model_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    empty, truncated, other = tmp_path / "empty", tmp_path / "truncated", tmp_path / "wav2vec2\n\x1b[31m"
    empty.mkdir()
    for folder in (truncated, other):
        shutil.copytree(DEFAULT_MODEL, folder)
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (other / "config.json").write_text('{"model_type": "wav2vec2"}')
    fairseq = write(tmp_path / "checkpoint_best.pt", SMALL)
    for path, problem in {
        empty: "there is no config.json",
        truncated: "not a safetensors file, or a damaged or truncated one",
        other: "a model of the kind 'wav2vec2'; only 'wav2vec2-conformer' can be used here",
        fairseq: "a checkpoint of fairseq; convert it first",
        tmp_path / "nowhere": "no such folder",
    }.items():
        assert main(["inspect", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("wav2vec2-conformer: ")
        assert problem in err
        assert len(err.splitlines()) == 1
        assert err.strip().isprintable()


def test_nothing_of_the_weights_is_needed_to_ask_for_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "inspect --json my-model" in done.stdout
