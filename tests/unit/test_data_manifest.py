"""Manifests: what is read, and that what is wrong is named with its file, its line and a remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wav2vec2_conformer.data import ManifestError, Segment, read_manifest, read_rttm, rttm_lines, speakers_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, dtype=np.float32), 16000)
    return tmp_path


def write(folder: Path, *lines: str | bytes | dict[str, object]) -> Path:
    path = folder / "train.jsonl"
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in encoded))
    return path


def test_reads_every_field(folder: Path) -> None:
    path = write(
        folder, {"audio": "a.wav", "text": "HI", "duration": 2, "speaker": "s", "label": "yes", "age": 6, "text2": []}
    )
    (utterance,) = read_manifest(path, require="text")
    assert utterance.audio == folder / "a.wav"
    assert (utterance.text, utterance.duration, utterance.speaker, utterance.label, utterance.name) == (
        "HI",
        2.0,
        "s",
        "yes",
        "a.wav",
    )


def test_duration_comes_from_the_header_where_missing(folder: Path) -> None:
    (utterance,) = read_manifest(write(folder, {"audio": "a.wav"}))
    assert utterance.duration == pytest.approx(0.5)
    assert utterance.text is None
    assert utterance.speaker is None


def test_absolute_paths_and_numbered_speakers(folder: Path) -> None:
    path = write(folder, {"audio": str(folder / "a.wav"), "duration": 1.0, "speaker": 1088})
    (utterance,) = read_manifest(str(path))
    assert utterance.audio == folder / "a.wav"
    assert utterance.speaker == "1088"


def test_text_is_nfc_with_single_spaces(folder: Path) -> None:
    (utterance,) = read_manifest(write(folder, {"audio": "a.wav", "duration": 1, "text": " CAFE\u0301 \t\n NOIR "}))
    assert utterance.text == "CAF\u00c9 NOIR"


def test_blank_lines_byte_order_mark_crlf_and_unicode_separators(folder: Path) -> None:
    line = '{"audio": "a.wav", "duration": 1, "text": "A\u2028B"}'
    path = write(folder, b"\xef\xbb\xbf" + line.encode() + b"\r", "", "  \r", line)
    assert [utterance.text for utterance in read_manifest(path)] == ["A B", "A B"]


def test_empty_text_is_a_transcript(folder: Path) -> None:
    (utterance,) = read_manifest(write(folder, {"audio": "a.wav", "duration": 1, "text": ""}), require="text")
    assert utterance.text == ""


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"audio": "a.wav"', "invalid JSON"),
        ('["a.wav"]', "expected a JSON object, got an array"),
        (b'{"audio": "a.wav", "text": "\xe9"}', "not UTF-8"),
        ({"text": "A"}, 'no "audio" field'),
        ({"audio": 3, "text": "A"}, '"audio" must be a non-empty string, got 3'),
        ({"audio": "a.wav", "duration": 1}, 'no "text" field'),
        ({"audio": "a.wav", "duration": 1, "text": None}, 'no "text" field'),
        ({"audio": "a.wav", "duration": 1, "text": ["A"]}, '"text" must be a string, got an array'),
        ('{"audio": "a.wav", "duration": 1, "text": "\\ud800"}', "surrogate"),
        ({"audio": "a.wav", "text": "A", "duration": "1"}, '"duration" must be a number of seconds, got "1"'),
        ({"audio": "a.wav", "text": "A", "duration": True}, '"duration" must be a number of seconds, got true'),
        ({"audio": "a.wav", "text": "A", "duration": 0}, '"duration" must be above 0 seconds'),
        ('{"audio": "a.wav", "text": "A", "duration": NaN}', '"duration" must be above 0 seconds'),
        ('{"audio": "a.wav", "text": "A", "duration": 1' + "0" * 400 + "}", '"duration" must be above 0 seconds'),
        ({"audio": "a.wav", "text": "A", "duration": 1, "speaker": 1.5}, '"speaker" must be a string'),
        *(
            ({"audio": "a.wav", "text": "A", "duration": 1, key: name}, f'"{key}" must be a name without blanks at')
            for key in ("label", "speaker")
            for name in ("", " ", " yes", "yes\n")
        ),
        ({"audio": "missing.wav", "text": "A", "duration": 1}, "missing.wav does not exist in"),
        ({"audio": ".", "text": "A", "duration": 1}, ". is a folder; write the path of a recording in it"),
    ],
)
def test_names_file_line_and_problem(folder: Path, line: str | bytes | dict[str, object], what: str) -> None:
    path = write(folder, {"audio": "a.wav", "text": "A", "duration": 1}, line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, require="text")
    message = str(caught.value)
    assert str(path) in message
    assert "1 of 2 lines" in message
    assert f"line 2: {what}" in message or ("line 2:" in message and what in message)


def test_unreadable_header_is_named(folder: Path) -> None:
    (folder / "broken.wav").write_bytes(b"no audio")
    with pytest.raises(ManifestError, match=r"line 1: broken\.wav"):
        read_manifest(write(folder, {"audio": "broken.wav"}))


def test_all_problems_are_counted_and_the_first_shown(folder: Path) -> None:
    path = write(folder, *({"audio": f"{i}.wav", "duration": 1} for i in range(9)))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "9 of 9 lines" in message
    assert "4.wav" in message
    assert "5.wav" not in message
    assert "... and 4 more" in message


def test_missing_and_empty_manifests(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(folder / "none.jsonl")
    with pytest.raises(ManifestError, match="is empty"):
        read_manifest(write(folder, "", ""))
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        read_manifest(folder)


def test_segments_of_a_line_and_of_an_rttm_file(folder: Path) -> None:
    rttm = folder / "talk.rttm"
    rttm.write_text(
        ";; a comment\nSPKR-INFO a 1 <NA> <NA> <NA> unknown A <NA> <NA>\n\n"
        "SPEAKER a 1 2.5 1.25 <NA> <NA> B <NA> <NA>\nSPEAKER a 1 0.0 3.0 <NA> <NA> A <NA> <NA>\n"
        "SPEAKER other 1 0.0 1.0 <NA> <NA> C <NA> <NA>\n"
    )
    written = [{"start": 2.5, "end": 3.75, "speaker": "B"}, {"start": 0, "end": 3, "speaker": "A"}]
    lines = [
        {"audio": "a.wav", "duration": 4, "rttm": "talk.rttm"},
        {"audio": "a.wav", "duration": 4, "segments": written},
    ]
    of_file, of_line = read_manifest(write(folder, *lines), require="segments")
    assert of_file.segments == of_line.segments == (Segment(0, 3, "A"), Segment(2.5, 3.75, "B"))
    assert speakers_of(of_line.segments) == ["A", "B"]
    # out and in again
    rttm.write_text("\n".join(rttm_lines("a", of_line.segments)))
    assert read_rttm(rttm) == {"a": list(of_line.segments)}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"segments": [{"start": 1, "end": 1, "speaker": "A"}]}, "end after its start, got 1.0 to 1.0"),
        ({"segments": [{"start": True, "end": 2, "speaker": "A"}]}, '"start" of a segment must be a number'),
        ({"segments": [{"start": 0, "end": 2}]}, '{"start", "end", "speaker"}, got one without "speaker"'),
        (
            {"segments": [{"end": 2, "speaker": None}]},
            '{"start", "end", "speaker"}, got one without "start", "speaker"',
        ),
        ({"segments": [[0, 2, "A"]]}, 'must be {"start", "end", "speaker"}, got an array'),
        ({"segments": "A"}, '"segments" must be a list'),
        ({"segments": [{"start": 0, "end": 2, "speaker": "A "}]}, "blanks at its ends, got"),
        (
            {"segments": [{"start": 5, "end": 6, "speaker": "A"}]},
            "a.wav ends at 4 s, before a segment starts (5 to 6 s)",
        ),
        ({"rttm": "none.rttm"}, "cannot be read"),
        ({"rttm": "bad.rttm"}, "line 1: expected `SPEAKER"),
        ({"rttm": "others.rttm"}, "has no recording 'a', but 2 others"),
        ({"rttm": "others.rttm", "segments": []}, 'both "segments" and "rttm"'),
        ({}, 'no "segments" field'),
    ],
)
def test_unusable_segments(folder: Path, fields: dict[str, object], problem: str) -> None:
    (folder / "bad.rttm").write_text("SPEAKER a 1 zero 1.0 <NA> <NA> A <NA> <NA>\n")
    (folder / "others.rttm").write_text(
        "SPEAKER b 1 0 1.0 <NA> <NA> A <NA> <NA>\nSPEAKER c 1 0 1.0 <NA> <NA> A <NA> <NA>\n"
    )
    with pytest.raises(ManifestError, match=re.escape(problem)):
        read_manifest(write(folder, {"audio": "a.wav", "duration": 4, **fields}), require="segments")


def test_segments_that_end_long_after_their_recordings_are_counted_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = [4.0, 4.4, 4.6, 9.0]  # of recordings of 4 s
    lines = [{"audio": "a.wav", "duration": 4, "segments": [{"start": 1, "end": end, "speaker": "A"}]} for end in ends]
    path = write(folder, *lines)
    assert len(read_manifest(path)) == 4
    assert not caplog.records  # they are not used
    read_manifest(path, require="segments")
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"{path}: 2 of 4 recordings end more than 0.5 s before their segments do")
    assert "the first is a.wav (4.00 s, segments to 4.60 s)" in message
