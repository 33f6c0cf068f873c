"""`wav2vec2-conformer data`: from a corpus to manifests, numbers, a picture and advice; and bad input."""

from __future__ import annotations

import ast
import json
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import speech
from wav2vec2_conformer.cli import build_parser, main
from wav2vec2_conformer.data import build_processor, build_vocabulary, read_manifest


def record(path: Path, seconds: float, seed: int) -> Path:
    """Noise as loud as speech."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))
    soundfile.write(path, samples.astype(np.float32), 16000)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers, a chapter of four sentences each."""
    folder = tmp_path_factory.mktemp("corpus")
    for speaker in range(1, 7):
        lines = []
        for number in range(4):
            name = f"{speaker}-10-{number:04d}"
            record(folder / f"{speaker}/10/{name}.flac", 2.0, 10 * speaker + number)
            lines.append(f"{name} THE QUICK BROWN FOX")
        (folder / f"{speaker}/10/{speaker}-10.trans.txt").write_text("\n".join(lines))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def prepare(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    return run(capsys, "data", "prepare", *arguments)


def test_from_a_corpus_to_train_and_dev_that_the_doctor_has_nothing_against(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    arguments = ["librispeech", corpus, "--output", train, "--dev-share", 0.17, "--dev-output", dev]
    code, out, err = prepare(capsys, *arguments)
    assert (code, err) == (0, "")
    assert [line.split(": ")[1] for line in out.splitlines()] == ["20 recordings, 0.01 h", "4 recordings, 0.00 h"]
    sides = [{utterance.speaker for utterance in read_manifest(path)} for path in (train, dev)]
    assert [len(side) for side in sides] == [5, 1]
    assert not sides[0] & sides[1]

    written = train.read_bytes()
    code, _, err = prepare(capsys, *arguments)
    assert code == 2
    assert f"{train}: already there" in err
    assert prepare(capsys, *arguments, "--force")[0] == 0
    assert train.read_bytes() == written

    code, out, err = run(capsys, "data", "doctor", train, "--dev", dev)
    assert (code, err) == (0, "")
    assert out == "24 recordings: 0 errors, 0 warnings, 0 notes\n"
    code, out, _ = run(capsys, "data", "doctor", "--json", train, "--dev", train)
    found = json.loads(out)
    assert (code, found["errors"], found["warnings"]) == (1, 2, 0)
    assert {finding["kind"] for finding in found["findings"]} == {"leaked_speakers", "leaked_audio"}


def test_stats_as_a_table_as_json_and_as_a_picture(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "all.jsonl"
    prepare(capsys, "librispeech", corpus, "--output", manifest)
    code, out, err = run(capsys, "data", "stats", "--json", manifest, manifest)
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert first == second
    assert (first["recordings"], len(first["speakers"]), first["durations"]["median"]) == (24, 6, 2.0)
    assert first["speaking_rate"]["median"] == len("THE QUICK BROWN FOX") / 2
    assert first["formats"] == {"flac pcm_16": 24}

    picture = tmp_path / "data.png"
    code, out, _ = run(capsys, "data", "stats", manifest, "--picture", picture)
    assert code == 0
    rows = {line[:14].strip(): line[14:] for line in out.splitlines()}
    assert rows["recordings"] == "24"
    assert rows["speakers"].startswith("6: 1 (4), 2 (4)")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[0] > 300
    assert np.std(pixels) > 0.05  # something is drawn


def test_names_of_any_letters_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formulas of the drawing library, letters that its font lacks, line breaks."""
    names = ["$x^", r"$\frac$", "話す", "line\nbreak", "a_b"]
    lines = [json.dumps({"audio": record(tmp_path / f"{i}.wav", 0.5, i).name, "label": n}) for i, n in enumerate(names)]
    manifest = tmp_path / "$m$.jsonl"
    manifest.write_text("\n".join(lines))
    code, _, err = run(capsys, "data", "stats", manifest, "--picture", tmp_path / "x.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_folder_of_classes_with_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        record(tmp_path / f"commands/{'yes' if number % 2 else 'no'}/anna{number % 3}_{number}.wav", 1.0, number)
    (tmp_path / "commands/no/anna1_x.wav").write_bytes(b"")
    output = tmp_path / "lists" / "c.jsonl"
    output.parent.mkdir()
    arguments = ["folder", tmp_path / "commands", "--as", "label", "--output", output]
    code, out, err = prepare(capsys, *arguments, "--speaker-pattern", "^([^_]+)_")
    assert code == 1
    assert out == f"{output}: 12 recordings, 0.00 h\n"
    assert err.splitlines() == [
        "wav2vec2-conformer: no/anna1_x.wav: is empty (0 bytes)",
        "wav2vec2-conformer: 1 files or lines left out",
    ]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines[0] == {"audio": "../commands/no/anna0_0.wav", "label": "no", "speaker": "anna0", "duration": 1.0}
    dev = ["--dev-share", "0.3", "--dev-output", tmp_path / "d.jsonl", "--force"]
    code, _, err = prepare(capsys, *arguments, *dev)  # without a pattern
    assert code == 2
    assert "who speaks is not known" in err
    assert not (tmp_path / "d.jsonl").exists()


def test_rttm_files_become_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "wav/call.wav", 4.0, 0)
    (tmp_path / "call.rttm").write_text(
        "SPEAKER call 1 0.5 2.0 <NA> <NA> a <NA> <NA>\nSPEAKER call 1 1.5 2.0 <NA> <NA> b <NA> <NA>\n"
    )
    output = tmp_path / "calls.jsonl"
    code, _, err = prepare(capsys, "rttm", tmp_path / "call.rttm", "--audio", tmp_path / "wav", "--output", output)
    assert (code, err) == (0, "")
    found = json.loads(run(capsys, "data", "stats", "--json", output)[1])
    assert (found["segments"], found["speech_share"], found["overlap_share"]) == (2, 0.75, 0.25)
    assert found["speakers"] == {"a": 1, "b": 1}


def test_the_doctor_holds_transcripts_against_a_models_vocabulary(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "all.jsonl"
    prepare(capsys, "librispeech", corpus, "--output", manifest)
    model = tmp_path / "model"
    model.mkdir()
    speech.write_config(model / "config.json")
    build_processor(build_vocabulary(["THE QUICK BROWN FOX"])).save_pretrained(model)
    assert run(capsys, "data", "doctor", manifest, "--model", model)[0] == 0
    manifest.write_text(manifest.read_text().replace("FOX", "fox"))
    code, out, _ = run(capsys, "data", "doctor", manifest, "--model", model)
    assert code == 1
    assert "characters that are not in the vocabulary of" in out
    assert "turning the transcripts to upper case settles" in out


def promise(seconds: int) -> bytes:
    """A WAV header of a long recording, without a sample."""
    size = 32000 * seconds
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)


def test_hostile_recordings_are_named_and_the_rest_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "good.wav", 1.0, 0)
    record(tmp_path / "line\nbreak.wav", 1.0, 1)
    (tmp_path / "nothing.wav").write_bytes(b"")
    (tmp_path / "promise.wav").write_bytes(promise(36000))
    names = ["good.wav", "line\nbreak.wav", "nothing.wav", "promise.wav", "good.wav"]
    lines = [json.dumps({"audio": name, "duration": 1.0}) for name in names]
    manifest = tmp_path / "windows.jsonl"
    manifest.write_bytes("\r\n".join([*lines, ""]).encode())
    code, out, err = run(capsys, "data", "stats", manifest)
    assert code == 1
    assert "5, 2 of them cannot be read" in out
    assert [line.split(": ")[2:4] for line in err.splitlines()] == [
        ["nothing.wav", "is empty (0 bytes)"],
        ["promise.wav", "is truncated"],
    ]
    unread = [*lines[:2], '{"audio": "nothing.wav"}', '{"audio": "good.wav", "label": "yes "}']  # durations of headers
    manifest.write_text("\n".join(unread))
    code, out, err = run(capsys, "data", "stats", manifest)
    assert code == 1
    assert "4, 2 of them cannot be read" in out
    assert [line.split(": ")[2:4] for line in err.splitlines()] == [
        ["line 3", "nothing.wav"],
        ["line 4", '"label" must be a name without blanks at its ends, got "yes "; correct it'],
    ]
    code, out, _ = run(capsys, "data", "doctor", manifest)
    assert code == 1
    assert 'line 4: "label" must be a name without blanks' in out
    manifest.write_bytes("\r\n".join([*lines, '{"audio": "gone.wav"}', "{", "\xe9"]).encode("latin-1"))
    code, out, err = run(capsys, "data", "doctor", "--json", manifest)
    assert (code, err) == (1, "")
    found = {finding["kind"]: (finding["count"], finding["severity"]) for finding in json.loads(out)["findings"]}
    assert found == {
        "unusable_lines": (3, "error"),
        "unreadable": (2, "error"),
        "listed_twice": (1, "warning"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "missing.jsonl"], "no such manifest"),
        (["stats", "empty.jsonl"], "the manifest is empty"),
        (["stats", "folder"], "cannot read the manifest"),
        (["stats", "binary.jsonl"], "not UTF-8"),
        (["stats", "good.jsonl", "--picture", "x.pdf"], "expected the name of a PNG file"),
        (["doctor", "missing.jsonl"], "no such manifest"),
        (["doctor", "good.jsonl", "--model", "./nowhere/at/all"], "no such folder"),
        (["prepare", "librispeech", "folder", "--output", "o.jsonl"], "no *.trans.txt"),
        (["prepare", "librispeech", "good.jsonl", "--output", "o.jsonl"], "expected a folder, got a file"),
        (["prepare", "folder", "folder", "--as", "label", "--output", "o.jsonl"], "no audio file"),
        (["prepare", "folder", "nowhere", "--as", "label", "--output", "o.jsonl"], "no such folder"),
        (["prepare", "folder", ".", "--as", "label", "--output", "no/o.jsonl"], "there is no folder no"),
        (["prepare", "folder", ".", "--as", "label", "--output", "folder"], "is a folder; name a file"),
        (["prepare", "folder", ".", "--as", "label", "--output", "o.jsonl"], "nothing of it can be used"),
        (["prepare", "folder", ".", "--as", "label", "--output", "o.jsonl", "--dev-share", "0.1"], "go together"),
        (["prepare", "rttm", "missing.rttm", "--audio", "folder", "--output", "o.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "good.wav", 0.5, 0)
    (tmp_path / "good.jsonl").write_text('{"audio": "good.wav"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, "data", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("wav2vec2-conformer: ")
    assert sorted(tmp_path.rglob("*")) == before


ROOT = Path(__file__).parents[2]


def test_the_commands_of_the_documentation_can_be_parsed() -> None:
    commands = re.findall(r"^    wav2vec2-conformer (data .*)$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        assert callable(build_parser().parse_args(shlex.split(command)).run)


def test_the_documentation_lists_every_finding() -> None:
    """By the names that the source gives to `finding`, `Finding` and `coverage`."""
    kinds = set()
    for module in ("checks", "doctor"):
        tree = ast.parse((ROOT / f"src/wav2vec2_conformer/data/{module}.py").read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            place = {"finding": 1, "Finding": 1, "coverage": 0}.get(call.func.id)
            if place is not None and isinstance(call.args[place], ast.Constant):
                kinds.add(call.args[place].value)
    text = (ROOT / "docs" / "data.md").read_text()
    listed = text[text.index("**Errors**") : text.index("## Augmentation")]
    assert kinds == {name for name in re.findall(r"`(\w+)`", listed) if "_" in name or name in kinds} - {"A", "a"}


DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not (DATA / "digits-train.jsonl").is_file(), reason="the recordings are not here")
def test_real_recordings_have_plausible_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (DATA / "digits-train.jsonl").read_text().splitlines()[::50]
    manifest = tmp_path / "digits.jsonl"
    changed = [{**json.loads(line), "audio": str(DATA / json.loads(line)["audio"])} for line in lines]
    manifest.write_text("\n".join(map(json.dumps, changed)))
    found = json.loads(run(capsys, "data", "stats", "--json", manifest)[1])
    assert (found["recordings"], found["unreadable"], len(found["labels"])) == (50, 0, 10)
    assert found["sample_rates"] == {"8000": 50}
    assert 0.2 < found["durations"]["median"] < 0.8
    assert -40 < found["level_db"]["median"] < -10
