"""classify, verify, embed, diarize: what they print and write, and what they say of bad input."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import speech
import tiny_heads
from wav2vec2_conformer import AudioClassifier, Diarizer, SpeakerEncoder
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.data import read_rttm
from wav2vec2_conformer.verification import similarity

Capture = pytest.CaptureFixture[str]
Command = Callable[..., tuple[int, str, str]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "tasks.md"
TASKS = ["classify", "embed", "diarize"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and recordings under the names that docs/tasks.md uses."""
    folder = tmp_path_factory.mktemp("place")
    tiny_heads.classifier(folder / "commands-model")
    tiny_heads.speaker_encoder(folder / "speaker-model", threshold=0.5)
    tiny_heads.speaker_encoder(folder / "uncalibrated")
    tiny_heads.diarizer(folder / "diarization-model")
    (folder / "clips").mkdir()
    texts = {
        "clip.wav": "AB",
        "talk.wav": "FADE BED CAB A DEAF ABBA",
        "call-1.wav": "BADE CAF",
        "call-2.wav": "EE FF EE",
        "clips/a.wav": "DAD",
        "clips/b.flac": "FEED A BAD",
        "meeting.wav": "DEAF BED A CAB FADE",
    }
    for number, (name, text) in enumerate(texts.items()):
        soundfile.write(folder / name, speech.speak(text, np.random.default_rng(number), noise=0.02), speech.RATE)
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


MODELS = {"classify": "commands-model", "embed": "speaker-model", "diarize": "diarization-model"}


@pytest.fixture
def command(capsys: Capture) -> Command:
    def run(task: str, *arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        words = list(map(str, arguments))
        if "--model" not in words:
            words += ["--model", MODELS.get(task, "speaker-model")]
        code = main([task, "--device", "cpu", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- classify ------------------------------------------------------------------------------------------------------


def test_classify_prints_label_and_score(command: Command) -> None:
    classifier = AudioClassifier.from_pretrained("commands-model", device="cpu")
    result = classifier.classify("clip.wav")
    assert command("classify", "clip.wav") == (0, f"{result.label}\t{result.scores.max():.4f}\n", "")
    code, out, err = command("classify", "--top", "2", "clip.wav", "clips")
    assert (code, err) == (0, "")
    expected = []
    for file in ("clip.wav", "clips/a.wav", "clips/b.flac"):
        best = classifier.classify(file).top(2)
        expected.append("\t".join([file, *(f"{label}\t{score:.4f}" for label, score in best)]))
    assert out.splitlines() == expected


def test_classify_json_holds_all_scores(command: Command) -> None:
    code, out, _ = command("classify", "--json", "clip.wav")
    record = json.loads(out)
    result = AudioClassifier.from_pretrained("commands-model", device="cpu").classify("clip.wav")
    assert code == 0
    assert (record["file"], record["label"]) == ("clip.wav", result.label)
    assert record["duration"] == pytest.approx(result.duration, abs=1e-3)
    assert record["scores"] == pytest.approx(dict(zip(result.labels, result.scores, strict=True)), abs=1e-6)
    assert list(record["scores"].values()) == sorted(record["scores"].values(), reverse=True)


def test_classify_wants_a_label_at_least(command: Command) -> None:
    assert command("classify", "--top", "0", "clip.wav")[::2] == (
        2,
        "wav2vec2-conformer: --top must be 1 or more, got 0\n",
    )


# --- verify --------------------------------------------------------------------------------------------------------


def score_of(a: str, b: str) -> float:
    encoder = SpeakerEncoder.from_pretrained("speaker-model", device="cpu")
    return similarity(encoder.embed(a), encoder.embed(b))


def test_verify_decides_at_the_threshold(command: Command) -> None:
    score = score_of("call-1.wav", "call-2.wav")
    pair = ("call-1.wav", "call-2.wav")
    for threshold, decision in ((score - 0.001, "same speaker"), (score + 0.001, "different speakers")):
        assert command("verify", "--threshold", str(threshold), *pair) == (0, f"{score:.4f}\t{decision}\n", "")
    calibrated = "same speaker" if score >= 0.5 else "different speakers"
    assert command("verify", *pair) == (0, f"{score:.4f}\t{calibrated}\n", "")
    assert command("verify", "call-1.wav", "call-1.wav") == (0, "1.0000\tsame speaker\n", "")


def test_verify_without_a_threshold_prints_the_score_and_says_so(command: Command) -> None:
    code, out, err = command("verify", "--model", "uncalibrated", "call-1.wav", "call-2.wav")
    assert (code, out) == (0, f"{score_of('call-1.wav', 'call-2.wav'):.4f}\n")
    assert err.count("\n") == 1
    assert "uncalibrated: there is no calibrated threshold (verification.json)" in err


def test_verify_json(command: Command) -> None:
    pair = ["call-1.wav", "call-2.wav"]
    score = score_of(*pair)
    code, out, _ = command("verify", "--json", *pair)
    assert (code, json.loads(out)) == (
        0,
        {"files": pair, "score": pytest.approx(score, abs=1e-6), "threshold": 0.5, "same_speaker": score >= 0.5},
    )
    _, out, _ = command("verify", "--json", "--model", "uncalibrated", *pair)
    assert (json.loads(out)["threshold"], json.loads(out)["same_speaker"]) == (None, None)


@pytest.mark.parametrize("threshold", ["1.5", "nan"])
def test_verify_refuses_a_threshold_that_no_cosine_has(command: Command, threshold: str) -> None:
    code, out, err = command("verify", "--threshold", threshold, "call-1.wav", "call-2.wav")
    assert (code, out) == (2, "")
    assert "--threshold must be a cosine similarity from -1 to 1" in err


def test_verify_with_a_file_that_cannot_be_read(command: Command) -> None:
    expected = "wav2vec2-conformer: missing.wav: file does not exist\n"
    assert command("verify", "call-1.wav", "missing.wav") == (1, "", expected)
    code, out, err = command("verify", "--json", "missing.wav", "call-1.wav")
    assert (code, json.loads(out), err) == (1, {"file": "missing.wav", "error": "file does not exist"}, expected)
    assert command("verify", "clips", "call-1.wav")[2].startswith("wav2vec2-conformer: clips: is a directory")


# --- embed ---------------------------------------------------------------------------------------------------------


def vectors_of(*files: str) -> np.ndarray:
    encoder = SpeakerEncoder.from_pretrained("speaker-model", device="cpu")
    return np.stack([encoder.embed(file) for file in files])


def test_embed_writes_an_array_and_the_names(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "speakers.npy"
    code, out, err = command("embed", "--output", output, "clips", "call-1.wav")
    assert (code, out, err) == (0, "", f"{output}: 3 vectors of 12 numbers\n")
    files = ["clips/a.wav", "clips/b.flac", "call-1.wav"]
    written = np.load(output)
    assert (written.shape, written.dtype) == ((3, 12), np.float32)
    np.testing.assert_allclose(written, vectors_of(*files), atol=1e-5)
    assert json.loads((tmp_path / "speakers.files.json").read_text()) == files
    assert len(list(tmp_path.iterdir())) == 2


def test_embed_writes_parquet(command: Command, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert command("embed", "--output", tmp_path / "s.parquet", "clips")[0] == 0
    table = parquet.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["file", "embedding"]
    assert table["file"].to_pylist() == ["clips/a.wav", "clips/b.flac"]
    np.testing.assert_allclose(table["embedding"].to_pylist(), vectors_of("clips/a.wav", "clips/b.flac"), atol=1e-5)


def test_embed_says_what_parquet_needs(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = command("embed", "--output", tmp_path / "s.parquet", "clips")
    assert (code, out) == (2, "")
    assert "`pip install wav2vec2-conformer[parquet]`" in err


def test_embed_leaves_out_what_cannot_be_read(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "s.npy"
    code, _, err = command("embed", "--output", output, "missing.wav", "call-1.wav")
    assert code == 1
    assert err.splitlines() == [
        "wav2vec2-conformer: missing.wav: file does not exist",
        f"{output}: 1 vectors of 12 numbers",
    ]
    assert json.loads((tmp_path / "s.files.json").read_text()) == ["call-1.wav"]
    before = output.read_bytes()
    assert command("embed", "--output", output, "missing.wav")[0] == 1
    assert output.read_bytes() == before  # nothing to write in its place


def test_embed_json(command: Command) -> None:
    code, out, err = command("embed", "--json", "call-1.wav", "missing.wav")
    first, second = map(json.loads, out.splitlines())
    assert (code, err) == (1, "wav2vec2-conformer: missing.wav: file does not exist\n")
    assert first["file"] == "call-1.wav"
    np.testing.assert_allclose(first["embedding"], vectors_of("call-1.wav")[0], atol=1e-5)
    assert second == {"file": "missing.wav", "error": "file does not exist"}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("vectors.csv", "expected a name that ends in .npy or .parquet, got .csv"),
        ("vectors", "expected a name that ends in .npy or .parquet, got no suffix"),
        ("nowhere/vectors.npy", "there is no folder nowhere"),
        (None, "expected --output with the .npy or .parquet file to write, or --json"),
    ],
)
def test_embed_refuses_outputs_before_anything_is_computed(
    command: Command, output: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeakerEncoder, "from_pretrained", None)
    code, out, err = command("embed", *(["--output", output] if output else []), "clip.wav")
    assert (code, out) == (2, "")
    assert message in err


# --- diarize -------------------------------------------------------------------------------------------------------


def test_diarize_prints_rttm(command: Command, tmp_path: Path) -> None:
    code, out, err = command("diarize", "--median", "3", "talk.wav", "clips/a.wav")
    assert (code, err) == (0, "")
    (tmp_path / "found.rttm").write_text(out)
    found = read_rttm(tmp_path / "found.rttm")
    diarizer = Diarizer.from_pretrained("diarization-model", device="cpu", median=3)
    for name, file in (("talk", "talk.wav"), ("a", "clips/a.wav")):
        expected = [(round(s.start, 3), round(s.end, 3), s.speaker) for s in diarizer.diarize(file)]
        assert expected
        assert [(s.start, round(s.end, 3), s.speaker) for s in found[name]] == [
            (start, pytest.approx(end, abs=0.0011), speaker) for start, end, speaker in expected
        ]


def test_diarize_json(command: Command) -> None:
    code, out, _ = command("diarize", "--json", "--min-speech", "0.1", "talk.wav")
    diarizer = Diarizer.from_pretrained("diarization-model", device="cpu", min_speech=0.1)
    expected = [
        {"start": round(s.start, 3), "end": round(s.end, 3), "speaker": s.speaker} for s in diarizer.diarize("talk.wav")
    ]
    assert (code, json.loads(out)) == (0, {"file": "talk.wav", "segments": expected})


def test_diarize_names_files_of_one_name_by_their_paths(command: Command, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy("talk.wav", tmp_path / folder)
    _, out, _ = command("diarize", tmp_path)
    assert {line.split()[1] for line in out.splitlines()} == {str(tmp_path / x / "talk.wav") for x in ("one", "two")}


def test_diarize_refuses_settings(command: Command) -> None:
    code, out, err = command("diarize", "--median", "4", "talk.wav")
    assert (code, out) == (2, "")
    assert "`--median` must be an odd number of frames, got 4" in err


# --- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_bad_files_are_one_line_each_and_the_others_go_on(command: Command, task: str, tmp_path: Path) -> None:
    for name, content in {"empty.wav": b"", "text.wav": b"these are words\n" * 50}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path("talk.wav").read_bytes()[:9000])
    bad = [tmp_path / "empty.wav", tmp_path / "text.wav", tmp_path / "folder", cut, tmp_path / "missing.wav"]
    code, out, err = command(task, "--json", "clip.wav", *bad, "talk.wav")
    assert code == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["file"] for record in records] == ["clip.wav", *map(str, bad), "talk.wav"]
    assert ["error" in record for record in records] == [False, *(True for _ in bad), False]
    for file, line in zip(bad, err.splitlines(), strict=True):
        assert line.startswith(f"wav2vec2-conformer: {file}: ")


@pytest.mark.parametrize("task", TASKS)
def test_standard_input(command: Command, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, _ = command(task, "--json", "talk.wav")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path("talk.wav").read_bytes())))
    code, out, _ = command(task, "--json", "-")
    assert (code, json.loads(out)) == (0, json.loads(expected) | {"file": "-"})
    code, _, err = command(task, "--json", "-", "-")
    assert (code, err) == (2, "wav2vec2-conformer: - reads one recording from stdin, which must be open\n")


@pytest.mark.parametrize("task", [*TASKS, "verify"])
def test_a_wrong_model_is_one_line(command: Command, task: str, tmp_path: Path) -> None:
    files = ["clip.wav", "talk.wav"][: 2 if task == "verify" else 1]
    options = ["--json"] if task == "embed" else []
    other = "diarization-model" if task != "diarize" else "speaker-model"
    for model, message in (
        (tmp_path, "there is no config.json"),
        ("./no-folder", "no such folder"),
        (other, "expected"),
    ):
        code, out, err = command(task, *options, "--model", model, *files)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("task", "nothing"), [("transcribe", '"text": ""'), ("diarize", '"segments": []')])
def test_a_recording_without_a_frame_gives_nothing_and_a_warning(
    command: Command, task: str, nothing: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100), speech.RATE)
    arguments = ["--model", "default"] if task == "transcribe" else []
    code, out, err = command(task, "--json", *arguments, short, "clip.wav")
    assert code == 0
    assert nothing in out.splitlines()[0]
    assert len(out.splitlines()) == 2
    assert err.startswith(f"WARNING: {short}: is too short (0.006 s): it holds no frame of the network, which gives ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("task", ["classify", "verify", "embed"])
def test_a_recording_without_a_frame_is_an_error_where_nothing_is_no_answer(
    command: Command, task: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100), speech.RATE)
    code, out, err = command(task, "--json", short, "clip.wav")
    assert code == 1
    assert ["error" in json.loads(line) for line in out.splitlines()] == ([True] if task == "verify" else [True, False])
    assert err == f"wav2vec2-conformer: {short}: is too short (0.006 s): it holds no frame of the network\n"


@pytest.mark.parametrize("task", ["classify", "verify", "embed"])
def test_digital_silence_is_named(command: Command, task: str, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(speech.RATE), speech.RATE)
    code, out, err = command(task, "--json", silent, "clip.wav")
    assert code == 0
    assert "error" not in out
    assert err == f"WARNING: {silent}: is digital silence (all samples are equal): its result says nothing\n"


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_without_recordings_says_so(command: Command, task: str, tmp_path: Path) -> None:
    code, _, err = command(task, "--json", tmp_path)
    assert code == 1
    assert err.startswith(f"wav2vec2-conformer: {tmp_path}: no recording lies below this folder; expected files that")


def documented() -> list[str]:
    section = re.search(r"^## Use a model.*?(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    commands = re.findall(r"^ {4}wav2vec2-conformer (.+)$", section[0], re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"classify", "verify", "embed", "diarize"}
    return commands


@pytest.mark.parametrize("line", documented())
def test_documented_commands_work(line: str, capsys: Capture, tmp_path: Path) -> None:
    words = shlex.split(line.partition(" > ")[0])
    if "--output" in words:
        place = words.index("--output") + 1
        words[place] = str(tmp_path / words[place])
    assert main(words) == 0
    assert capsys.readouterr().out or "--output" in words


def test_the_documented_python_works(capsys: Capture) -> None:
    (code,) = re.findall(r"(?:^ {4}.*\n|^\n)+", DOCUMENT.read_text().partition("The same in Python:\n")[2], re.M)[:1]
    exec(compile("\n".join(line[4:] for line in code.splitlines()), str(DOCUMENT), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[0] in tiny_heads.WORDS.values()
    assert len(printed) > 2
