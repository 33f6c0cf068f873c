"""`wav2vec2-conformer evaluate`: figures known by hand or by other ways to them, reports, broken input."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import weakref
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import speech
import tiny_heads
from wav2vec2_conformer.classification import AudioClassifier
from wav2vec2_conformer.cli import build_parser, main
from wav2vec2_conformer.data import read_rttm, rttm_lines
from wav2vec2_conformer.diarization import Diarizer
from wav2vec2_conformer.evaluation import DETCurve
from wav2vec2_conformer.evaluation.run import EvaluationSet
from wav2vec2_conformer.verification import SpeakerEncoder

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "sample.wav"  # ENTER SEVEN FOUR ONE NINE, which the model hears
HOSTILE = "<script>alert(1)</script>&\"'$x$"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(folder: Path, count: int) -> list[str]:
    """Names of recordings of one to three words."""
    for number, text in enumerate(speech.sentences(count, 5, words=(1, 3))):
        soundfile.write(folder / f"{number}.wav", speech.speak(text, np.random.default_rng(number)), speech.RATE)
    return [f"{number}.wav" for number in range(count)]


@pytest.fixture
def evaluate(capsys: Capture) -> Callable[..., dict[str, Any]]:
    """Run the command with --json; its result, with the exit code and stderr in it."""

    def run(*arguments: object) -> dict[str, Any]:
        code = main(["evaluate", *map(str, arguments), "--json", "--device", "cpu"])
        out, err = capsys.readouterr()
        return {**(json.loads(out) if out else {}), "code": code, "stderr": err}

    return run


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in result["figures"].items()}


class Page(HTMLParser):
    """What a browser would see: tags, the text, and that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_report(folder: Path, pictures: set[str]) -> Page:
    """A whole report: its files, and a page that needs no other and runs nothing."""
    assert {path.name for path in folder.iterdir()} == {"index.html", "evaluation.json", *pictures}
    for name in pictures:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # not blank
    page = Page(folder / "index.html")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|\bon\w+=", (folder / "index.html").read_text().split("</style>")[0])
    return page


# --- speech recognition ----------------------------------------------------------------------------------------------


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Five times the same recording, with transcripts that make known errors."""
    texts = [
        "ENTER SEVEN FOUR ONE NINE",
        "ENTER SEVEN FIVE ONE NINE",  # a substitution
        "SEVEN FOUR ONE NINE",  # an insertion
        "ENTER SEVEN FOUR FOUR ONE NINE",  # a deletion
        "",  # five insertions
    ]
    for number in range(len(texts)):
        shutil.copy(SAMPLE, tmp_path / f"{number}.wav")
    return write(tmp_path / "set.jsonl", [{"audio": f"{n}.wav", "text": text} for n, text in enumerate(texts)])


def test_word_errors_are_those_of_the_transcripts(spoken: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    result = evaluate("ctc", "--data", spoken)
    assert result["code"] == 0
    assert (result["utterances"], result["seconds"]) == (
        5,
        pytest.approx(5 * soundfile.info(SAMPLE).duration, abs=0.01),
    )
    assert result["counts"]["words"] == 20
    assert {name: result["counts"][name] for name in ("substitutions", "deletions", "insertions")} == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 6,
    }
    assert values(result)["wer"] == 8 / 20
    low, high = result["figures"]["wer"]["interval"]
    assert 0 <= low < 8 / 20 < high
    assert result["substitutions"] == [{"reference": "FIVE", "hypothesis": "FOUR", "count": 1}]
    assert [(worst["file"], worst["errors"]) for worst in result["worst"]] == [
        ("4.wav", 5),
        ("3.wav", 1),
        ("1.wav", 1),
        ("2.wav", 1),
    ]


def test_several_manifests_are_judged_together_and_each(
    spoken: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    rows = [json.loads(line) for line in spoken.read_text().splitlines()]
    parts = [write(tmp_path / "a.jsonl", rows[:2]), write(tmp_path / "b.jsonl", rows[2:])]
    whole, both = evaluate("ctc", "--data", spoken), evaluate("ctc", "--data", *parts, "--batch-seconds", 1)
    assert values(both) == values(whole)
    for part in parts:
        alone = evaluate("ctc", "--data", part)
        assert both["by_data"][str(part)] == {"utterances": alone["utterances"], **values(alone)}


def test_the_summary_says_what_the_json_says(spoken: Path, capsys: Capture) -> None:
    assert main(["evaluate", "ctc", "--data", str(spoken), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^WER +40.00 %  \[\d+\.\d\d, \d+\.\d\d\]$", out, re.MULTILINE)
    assert "words 20, substitutions 1, deletions 1, insertions 6" in out
    assert "FIVE -> FOUR (1)" in out
    assert "errors 5, words 0, 4.wav: '' became 'ENTER SEVEN FOUR ONE NINE'" in out


def test_recordings_that_cannot_be_read_are_named_and_left_out(
    spoken: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    rows = [json.loads(line) for line in spoken.read_text().splitlines()]
    (spoken.parent / "broken.wav").write_bytes(b"RIFF")
    write(spoken, [{"audio": "broken.wav", "text": "A B C", "duration": 9.0}, *rows[:2]])
    result = evaluate("ctc", "--data", spoken)
    assert result["code"] == 1
    assert (result["utterances"], values(result)["wer"]) == (2, 1 / 10)
    assert [skipped["file"] for skipped in result["skipped"]] == ["broken.wav"]
    assert result["stderr"].startswith("wav2vec2-conformer: broken.wav: ")
    write(spoken, [{"audio": "broken.wav", "text": "A B C", "duration": 9.0}])
    result = evaluate("ctc", "--data", spoken)
    assert (result["code"], result["stderr"].count("\n")) == (2, 1)
    assert "none of the 1 recordings could be read; the first, broken.wav: " in result["stderr"]


def test_letters_that_the_model_cannot_write_are_named(spoken: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    write(spoken, [{"audio": "0.wav", "text": "enter seven"}])
    result = evaluate("ctc", "--data", spoken)
    assert (result["code"], values(result)["wer"]) == (0, 5 / 2)
    assert "WARNING: 10 of 10 characters of the references are not in the model's vocabulary" in result["stderr"]
    assert "upper case" in result["stderr"]


def test_report_of_speech_recognition(spoken: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in spoken.read_text().splitlines()]
    write(spoken, [*rows, {"audio": "0.wav", "text": HOSTILE}])
    result = evaluate("ctc", "--data", spoken, "--report", tmp_path / "new" / "report")
    page = check_report(tmp_path / "new" / "report", {"wer_histogram.png"})
    assert HOSTILE in page.text  # as text
    assert f"{100 * values(result)['wer']:.2f} %" in page.text
    assert f"wav2vec2-conformer evaluate ctc --data {spoken}" in page.text
    saved = json.loads((tmp_path / "new" / "report" / "evaluation.json").read_text())
    assert saved == {name: result[name] for name in saved}
    marked = [(tag, attributes) for tag, attributes in page.tags if tag in ("del", "ins")]
    assert len(marked) >= 10


def test_what_was_judged_is_not_kept(tmp_path: Path) -> None:
    """Memory is flat in the size of the set: of what a model says, nothing stays but what is counted."""

    class Result:
        pass

    shutil.copy(SAMPLE, tmp_path / "0.wav")
    found = EvaluationSet([write(tmp_path / "set.jsonl", [{"audio": "0.wav"}] * 20)], None)
    alive: list[weakref.ref[Result]] = []

    def many(sources: Iterator[Path], progress: object) -> Iterator[Result]:
        for _ in sources:
            result = Result()
            alive.append(weakref.ref(result))
            yield result
            del result
            assert sum(reference() is not None for reference in alive) <= 3

    assert len([index for index, _, _ in found.results(many, None)]) == len(alive) == 20


# --- classes ---------------------------------------------------------------------------------------------------------


def test_classes_and_their_report(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    hostile = {0: "yes", 1: HOSTILE, 2: "stop"}
    model = tiny_heads.classifier(tmp_path / "model", id2label=hostile)
    names = record(tmp_path, 12)
    given = [AudioClassifier.from_pretrained(model, device="cpu").classify(tmp_path / name).label for name in names]
    labels = [label if n % 4 else next(other for other in hostile.values() if other != label)
              for n, label in enumerate(given)]  # fmt: skip
    data = write(tmp_path / "set.jsonl", [{"audio": a, "label": b} for a, b in zip(names, labels, strict=True)])
    result = evaluate("sequence", "--model", model, "--data", data, "--report", tmp_path / "report")
    assert result["code"] == 0
    assert values(result)["accuracy"] == 9 / 12
    f1 = [
        2
        * sum(a == b == label for a, b in zip(labels, given, strict=True))
        / (labels.count(label) + given.count(label))
        for label in hostile.values()
        if label in labels + given
    ]
    assert values(result)["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    counts = np.array(result["confusion"]["counts"])
    assert (counts.sum(), np.trace(counts)) == (12, 9)
    assert {row["file"] for row in result["mistakes"]} == {name for n, name in enumerate(names) if n % 4 == 0}
    assert HOSTILE in check_report(tmp_path / "report", {"confusion.png"}).text


def test_labels_that_the_model_does_not_know_are_named(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    model = tiny_heads.classifier(tmp_path / "model")
    (name,) = record(tmp_path, 1)
    data = write(tmp_path / "set.jsonl", [{"audio": name, "label": "maybe"}])
    result = evaluate("sequence", "--model", model, "--data", data)
    assert result["code"] == 2
    assert f"{data}: 0.wav: unknown label 'maybe'; expected one of 3: 'yes', 'no', 'stop'" in result["stderr"]


# --- diarization -----------------------------------------------------------------------------------------------------


def test_diarization_its_rttm_and_report(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    model = tiny_heads.diarizer(tmp_path / "model")
    names = record(tmp_path, 4)
    diarizer = Diarizer.from_pretrained(model, device="cpu")
    found = [diarizer.diarize(tmp_path / name) for name in names]
    assert all(found)
    renamed = {"speaker_1": HOSTILE, "speaker_2": "B"}
    rows = [
        {"audio": name, "segments": [{"start": s.start, "end": s.end, "speaker": renamed[s.speaker]} for s in segments]}
        for name, segments in zip(names, found, strict=True)
    ]
    data = write(tmp_path / "set.jsonl", rows)
    result = evaluate("frame", "--model", model, "--data", data, "--rttm", tmp_path / "rttm")
    assert result["code"] == 0
    assert values(result) == {"der": 0, "missed": 0, "false_alarm": 0, "confusion": 0}
    for name, segments in zip(names, found, strict=True):
        stem = Path(name).stem
        assert (tmp_path / "rttm" / f"{stem}.rttm").read_text().splitlines() == rttm_lines(stem, segments)
        assert set(read_rttm(tmp_path / "rttm" / f"{stem}.rttm")) == {stem}

    spoken = result["counts"]["speech"]
    rows[0]["segments"] = []  # all of it is false alarm now
    false = sum(s.end - s.start for s in found[0])
    write(data, rows)
    result = evaluate("frame", "--model", model, "--data", data, "--report", tmp_path / "report")
    assert values(result)["false_alarm"] == values(result)["der"] == pytest.approx(false / (spoken - false), abs=1e-3)
    assert result["recordings"][0]["file"] == "0.wav"
    check_report(tmp_path / "report", {"der_parts.png"})

    # The highest share comes first, though another recording has more seconds of errors.
    rows[0]["segments"] = [{"start": 0, "end": 0.01, "speaker": "A"}]
    rows[1]["segments"] += [{"start": 0, "end": 1.0, "speaker": f"missed {n}"} for n in range(9)]
    write(data, rows)
    worst = evaluate("frame", "--model", model, "--data", data)["recordings"]
    assert worst[0]["file"] == "0.wav"
    assert [row["der"] for row in worst] == sorted((row["der"] for row in worst), reverse=True)
    seconds = {row["file"]: row["missed"] + row["false_alarm"] + row["confusion"] for row in worst}
    assert max(seconds, key=seconds.__getitem__) == "1.wav"


def test_a_collar_and_names_are_checked_before_anything_runs(
    tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    names = record(tmp_path, 1)
    (tmp_path / "sub").mkdir()
    shutil.copy(tmp_path / names[0], tmp_path / "sub" / names[0])
    segments = [{"start": 0, "end": 0.1, "speaker": "A"}]
    data = write(tmp_path / "set.jsonl", [{"audio": a, "segments": segments} for a in ("0.wav", "sub/0.wav")])
    result = evaluate("frame", "--model", "nobody/none", "--data", data, "--collar", "-1")
    assert (result["code"], "from 0 up, got -1" in result["stderr"]) == (2, True)
    result = evaluate("frame", "--model", "nobody/none", "--data", data, "--rttm", tmp_path / "rttm")
    assert result["code"] == 2
    assert "0.wav and sub/0.wav would both be" in result["stderr"].replace("sub/0.wav and 0.wav", "0.wav and sub/0.wav")


# --- speakers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def voices(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A model, a manifest of 4 speakers with 3 recordings each, and the recordings' names."""
    names = record(tmp_path, 12)
    data = write(tmp_path / "set.jsonl", [{"audio": name, "speaker": n % 4} for n, name in enumerate(names)])
    return tiny_heads.speaker_encoder(tmp_path / "model"), data, names


def test_verification_over_all_pairs_or_a_list_of_them(
    voices: tuple[Path, Path, list[str]], tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    model, data, names = voices
    encoder = SpeakerEncoder.from_pretrained(model, device="cpu")
    vectors = [encoder.embed(tmp_path / name).astype(np.float64) for name in names]
    pairs = list(combinations(range(12), 2))
    scores = np.array([vectors[a] @ vectors[b] for a, b in pairs])
    same = np.array([a % 4 == b % 4 for a, b in pairs])
    curve = DETCurve.of(scores[same], [scores[~same]])
    result = evaluate("xvector", "--model", model, "--data", data, "--report", tmp_path / "report")
    assert result["code"] == 0
    assert (result["counts"]["target_trials"], result["counts"]["nontarget_trials"]) == (12, 54)
    assert values(result)["eer"] == pytest.approx(curve.eer, abs=1e-6)
    assert values(result)["min_dcf_0.01"] == pytest.approx(curve.min_dcf(), abs=1e-6)
    assert (result["resampled"], result["counts"]["speakers"]) == ("speakers", 4)
    check_report(tmp_path / "report", {"det.png", "scores.png"})

    trials = tmp_path / "trials.txt"
    trials.write_text("".join(f"{int(s)} {names[a]} {names[b]}\n" for (a, b), s in zip(pairs, same, strict=True)))
    listed = evaluate("xvector", "--model", model, "--data", data, "--trials", trials)
    assert values(listed) == pytest.approx(values(result))
    write(data, [{"audio": name} for name in names])  # the list alone says who is who
    unknown = evaluate("xvector", "--model", model, "--data", data, "--trials", trials)
    assert values(unknown) == pytest.approx(values(result))
    assert unknown["resampled"] == "utterances"


def test_pairs_are_made_within_each_manifest(
    voices: tuple[Path, Path, list[str]], tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    model, data, _ = voices
    lines = data.read_text().splitlines()
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for part, own in zip(parts, (lines[:6], lines[6:]), strict=True):
        part.write_text("\n".join(own) + "\n")
    result = evaluate("xvector", "--model", model, "--data", *parts)
    assert (result["counts"]["target_trials"], result["counts"]["nontarget_trials"]) == (2 + 2, 13 + 13)
    assert result["counts"]["speakers"] == 8  # a speaker of one manifest is none of another


def test_calibration_is_what_verification_reads(
    voices: tuple[Path, Path, list[str]], evaluate: Callable[..., dict[str, Any]]
) -> None:
    model, data, _ = voices
    assert SpeakerEncoder.from_pretrained(model, device="cpu").threshold is None
    result = evaluate("xvector", "--model", model, "--data", data, "--calibrate")
    saved = json.loads((model / "verification.json").read_text())
    assert saved == {
        "threshold": pytest.approx(values(result)["threshold"]),
        "eer": values(result)["eer"],
        "trials": 66,
        "data": [str(data)],
    }
    assert SpeakerEncoder.from_pretrained(model, device="cpu").threshold == saved["threshold"]
    assert not list(model.glob("*.tmp*"))
    refused = evaluate("xvector", "--model", "nobody/none", "--data", data, "--calibrate")
    assert (refused["code"], "must be a folder" in refused["stderr"]) == (2, True)


def test_trials_that_cannot_be_used_are_named(
    voices: tuple[Path, Path, list[str]], tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    model, data, _ = voices
    trials = tmp_path / "trials.txt"
    for content, problem in (
        ("1 0.wav 4.wav\n0 0.wav gone.wav\n", "1 of 3 recordings are in none of the manifests, the first is gone.wav"),
        ("1 0.wav 4.wav\n", f"{trials} has no pair of utterances of different speakers"),
        ("0 0.wav 1.wav\n", f"{trials} has no pair of utterances of the same speaker"),
    ):
        trials.write_text(content)
        result = evaluate("xvector", "--model", model, "--data", data, "--trials", trials)
        assert (result["code"], result["stderr"].count("\n")) == (2, 1)
        assert problem in result["stderr"]
    write(data, [{"audio": "0.wav", "speaker": "A"}, {"audio": "1.wav", "speaker": "B"}])
    assert "the manifests have no pair" in evaluate("xvector", "--model", model, "--data", data)["stderr"]


# --- what is wrong with the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ctc", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["ctc", "--data", "set.jsonl"], 'no "text" field; add the transcript'),
        (["sequence", "--model", "m", "--data", "set.jsonl"], 'no "label" field; add the class'),
        (["frame", "--model", "m", "--data", "set.jsonl"], 'no "segments" field; add'),
        (["xvector", "--model", "m", "--data", "set.jsonl"], 'no "speaker" field; add who speaks'),
        (["ctc", "--data", "a.jsonl", "a.jsonl"], "a.jsonl: given twice"),
        (["ctc", "--data", "a.jsonl", "--report", "a.jsonl"], "expected a folder to write to, but a.jsonl is a file"),
        (["ctc", "--data", "a.jsonl", "--device", "abacus"], "cannot compute on device 'abacus'"),
        (["ctc", "--data", "a.jsonl", "--batch-seconds", "0"], "`--batch-seconds` must be above 0"),
    ],
)
def test_bad_commands_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLE, "0.wav")
    write(Path("set.jsonl"), [{"audio": "0.wav"}])
    write(Path("a.jsonl"), [{"audio": "0.wav", "text": "A"}])
    assert main(["evaluate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("source", ["docs/evaluation.md", "--help"])
def test_documented_commands_are_understood(source: str, capsys: Capture) -> None:
    if source == "--help":
        with pytest.raises(SystemExit):
            main(["evaluate", "--help"])
        text = capsys.readouterr().out
    else:
        text = (ROOT / source).read_text()
    commands = re.findall(r"^ +(wav2vec2-conformer evaluate .*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


def test_the_command_in_a_report_is_the_one_that_was_given(spoken: Path, tmp_path: Path) -> None:
    arguments = [
        "evaluate",
        "ctc",
        "--data",
        str(spoken),
        "--json",
        "--report",
        str(tmp_path / "it's"),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0
    (shown,) = re.findall(r"<code>(.*)</code>", (tmp_path / "it's" / "index.html").read_text())
    given, again = (vars(build_parser().parse_args(a)) for a in (arguments, shlex.split(html.unescape(shown))[1:]))
    assert again == given
