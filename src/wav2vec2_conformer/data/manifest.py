"""Manifests: one JSON object a line, naming a recording and what is known about it."""

from __future__ import annotations

import json
import logging
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..audio import AUDIO_SUFFIXES, AudioError, audio_duration
from .segments import Segment, SegmentError, read_rttm, rttm_name

logger = logging.getLogger(__name__)

# Enough to see a pattern in what is wrong; a thousand more lines of the same would hide it.
_PROBLEMS_SHOWN = 5
_SEGMENT_SLACK = 0.5  # seconds beyond a recording's end; durations and RTTM files round, and annotators overshoot


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file, the lines, what is wrong and the remedy."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of a manifest.

    `duration` is in seconds. `name` is the audio path as it stands in the manifest, for messages. `segments` say who
    speaks when; an empty tuple is a recording without speech, None one of which nothing is known.
    """

    audio: Path
    text: str | None
    duration: float
    speaker: str | None
    label: str | None
    name: str
    segments: tuple[Segment, ...] | None = None


class _LineError(Exception):
    """What is wrong with one line; collected, so that one run shows the problems of the whole file."""


# What a manifest's line may have to hold, and what to do where it does not.
REMEDIES = {
    "text": "add the transcript or take the line out",
    "label": "add the class or take the line out",
    "speaker": "add who speaks or take the line out",
    "segments": 'add {"start", "end", "speaker"} objects, or "rttm" with the path of an RTTM file',
}


def normalize_text(text: str) -> str:
    """Return `text` in Unicode NFC, with whitespace runs collapsed to one space and stripped at both ends.

    NFC, so that a letter and its accent are one character of a CTC vocabulary, however the transcriber typed them.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_manifest(path: str | Path, *, require: str | None = None) -> list[Utterance]:
    """Read a JSON Lines manifest (UTF-8) and check all of it, so that a long job does not stop at a late line.

    Fields: `audio` (a path, relative to the manifest's folder or absolute), `duration` in seconds (read from the
    recording's header where missing), `text`, `speaker`, `label`, `segments` (a list of `{"start", "end", "speaker"}`
    in seconds) or in its place `rttm` (the path of an RTTM file, whose recording is the one that is called as the
    audio file, without its suffix, or the only one). Other fields are ignored, and so are blank lines. Where segments
    are required, they must begin within their recordings; those that end long after them are counted in a warning.
    An empty `text` is a transcript too (a recording without speech); a missing or null one is not.

    Args:
        path: of the manifest.
        require: "text", "label", "speaker" or "segments", if every line must have it.

    Raises:
        ManifestError: the manifest does not exist or is empty, or lines of it are unusable (the first few are shown
            with their numbers, and all are counted).
    """
    utterances, problems = scan_manifest(path, require=require)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        rest = f"\n  ... and {more} more" if more > 0 else ""
        total = len(problems) + len(utterances)
        raise ManifestError(f"{path}: {len(problems)} of {total} lines cannot be used:\n{shown}{rest}")
    if not utterances:
        raise ManifestError(f'{path}: the manifest is empty; write one JSON object a line, e.g. {{"audio": "a.wav"}}')
    if require == "segments":
        _warn_of_ends(path, utterances)
    return utterances


def _warn_of_ends(path: str | Path, utterances: Sequence[Utterance]) -> None:
    beyond = [
        u for u in utterances if max((s.end for s in u.segments or ()), default=0.0) > u.duration + _SEGMENT_SLACK
    ]
    if beyond:
        first = beyond[0]
        logger.warning(
            "%s: %d of %d recordings end more than %g s before their segments do, the first is %s (%.2f s, segments to "
            "%.2f s); check that the segments belong to it and that their times are seconds",
            *(path, len(beyond), len(utterances), _SEGMENT_SLACK, first.name, first.duration),
            max(segment.end for segment in first.segments or ()),
        )


def scan_manifest(path: str | Path, *, require: str | None = None) -> tuple[list[Utterance], list[str]]:
    """Read a manifest as `read_manifest` does; the lines that can be used, and "line N: problem" of the others.

    Raises:
        ManifestError: the manifest does not exist or cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest; give the path of a JSON Lines file") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the manifest ({error.strerror}); give a readable file") from error

    utterances: list[Utterance] = []
    problems: list[str] = []
    # Split at b"\n" only: str.splitlines would also cut at U+2028 and the like, which JSON strings may contain.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            utterances.append(_parse_line(line, path.parent, require))
        except _LineError as error:
            problems.append(f"line {number}: {error}")
    return utterances, problems


def read_recordings(path: str | Path) -> list[Utterance]:
    """Read a manifest, or take the audio files below a folder, in the order of their paths.

    Files of a folder that cannot be read are named in a warning (the first few) and left out: folders, unlike
    manifests, hold what happens to lie there. Durations come from the files' headers; a file that does not say how
    long it is is left out, too.

    Raises:
        ManifestError: as `read_manifest`, or the folder holds no audio file that can be read.
    """
    path = Path(path)
    if not path.is_dir():
        return read_manifest(path)
    found: list[Utterance] = []
    problems: list[str] = []
    for audio in sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and not p.is_dir()):
        name = str(audio.relative_to(path))
        try:
            duration = audio_duration(audio)
        except AudioError as error:
            problems.append(f"{name}: {error.problem}")
            continue
        if duration is None:
            problems.append(f"{name}: does not say how long it is; list it in a manifest with its duration")
        elif duration <= 0:
            problems.append(f"{name}: holds no samples")
        else:
            found.append(Utterance(audio, None, duration, None, None, name))
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        shown = "; ".join(problems[:_PROBLEMS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        logger.warning("%s: %d of %d files left out: %s", path, len(problems), len(problems) + len(found), shown)
    if not found:
        raise ManifestError(f"{path}: no audio file that can be read lies below this folder")
    return found


def _parse_line(line: bytes, folder: Path, require: str | None) -> Utterance:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _LineError(f"not UTF-8 (byte {error.start}); convert the manifest to UTF-8") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"invalid JSON ({error.msg} at column {error.colno}); write one object a line") from None
    except RecursionError:
        raise _LineError("invalid JSON (nested too deeply); write one flat object a line") from None
    if not isinstance(fields, dict):
        raise _LineError(f'expected a JSON object, got {_kind(fields)}; write {{"audio": "..."}}')

    name = fields.get("audio")
    if name is None:
        raise _LineError('no "audio" field; add the path of the recording')
    if not isinstance(name, str) or not name:
        raise _LineError(f'"audio" must be a non-empty string, got {_kind(name)}; write the path of the recording')
    text = _text(fields)
    audio = folder / name
    if audio.is_dir():
        raise _LineError(f"{name} is a folder; write the path of a recording in it, a line for each")
    if not audio.is_file():
        raise _LineError(f"{name} does not exist in {folder}; paths are relative to the manifest's folder")
    utterance = Utterance(
        audio=audio,
        text=text,
        duration=_duration(fields, audio, name),
        speaker=_identifier(fields, "speaker"),
        label=_identifier(fields, "label"),
        name=name,
        segments=_segments(fields, folder, audio),
    )
    if require is not None and getattr(utterance, require) is None:
        raise _LineError(f'no "{require}" field; {REMEDIES[require]}')
    for segment in (utterance.segments or ()) if require == "segments" else ():
        if segment.start >= utterance.duration and segment.end > utterance.duration + _SEGMENT_SLACK:
            raise _LineError(
                f"{name} ends at {utterance.duration:g} s, before a segment starts ({segment.start:g} to "
                f"{segment.end:g} s); check that the segments belong to it and that their times are seconds"
            )
    return utterance


def _segments(fields: dict[str, Any], folder: Path, audio: Path) -> tuple[Segment, ...] | None:
    segments, rttm = fields.get("segments"), fields.get("rttm")
    if segments is not None and rttm is not None:
        raise _LineError('both "segments" and "rttm"; keep one of them')
    try:
        if rttm is not None:
            if not isinstance(rttm, str) or not rttm:
                raise _LineError(f'"rttm" must be the path of an RTTM file, got {_kind(rttm)}')
            return _segments_of_file(folder / rttm, rttm_name(audio.stem))
        if segments is None:
            return None
        if not isinstance(segments, list):
            raise _LineError(f'"segments" must be a list of {{"start", "end", "speaker"}}, got {_kind(segments)}')
        return tuple(sorted(_segment(segment) for segment in segments))
    except SegmentError as error:
        raise _LineError(f"{error}; correct the segments") from None


def _segment(fields: object) -> Segment:
    if not isinstance(fields, dict):
        raise SegmentError(f'a segment must be {{"start", "end", "speaker"}}, got {_kind(fields)}')
    lacking = [f'"{name}"' for name in ("start", "end", "speaker") if fields.get(name) is None]
    if lacking:
        raise SegmentError(f'a segment must be {{"start", "end", "speaker"}}, got one without {", ".join(lacking)}')
    for name in ("start", "end"):
        if isinstance(fields[name], bool) or not isinstance(fields[name], int | float):
            raise SegmentError(f'"{name}" of a segment must be a number of seconds, got {_kind(fields[name])}')
    try:
        return Segment(float(fields["start"]), float(fields["end"]), str(_identifier(fields, "speaker")))
    except OverflowError:
        raise SegmentError("a segment's times must be below 1e308 seconds") from None


def _segments_of_file(path: Path, recording: str) -> tuple[Segment, ...]:
    found = _rttm(path, path.stat().st_mtime_ns if path.is_file() else 0)
    if recording in found:
        return tuple(found[recording])
    if len(found) == 1:
        return tuple(next(iter(found.values())))
    if not found:
        return ()
    raise SegmentError(f"{path} has no recording {recording!r}, but {len(found)} others")


@lru_cache(maxsize=1)
def _rttm(path: Path, changed: int) -> dict[str, list[Segment]]:
    """A file that all lines of a manifest name is read once."""
    return read_rttm(path)


def _text(fields: dict[str, Any]) -> str | None:
    text = fields.get("text")
    if text is None:
        return None
    if not isinstance(text, str):
        raise _LineError(f'"text" must be a string, got {_kind(text)}; put the transcript in quotes')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _LineError('"text" contains half of a surrogate pair, which is no character; correct the transcript')
    return normalize_text(text)


def _duration(fields: dict[str, Any], audio: Path, name: str) -> float:
    duration = fields.get("duration")
    if duration is None:
        try:
            duration = audio_duration(audio)
        except AudioError as error:
            raise _LineError(f"{name}: {error.problem}; repair it or take the line out") from None
        if duration is None:
            raise _LineError(f'{name} does not say how long it is; add "duration" in seconds')
    # bool is an int to Python, but `true` is no length of time.
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise _LineError(f'"duration" must be a number of seconds, got {_kind(duration)}; write e.g. 2.5')
    try:
        seconds = float(duration)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise _LineError(f'"duration" must be above 0 seconds, got {seconds}; correct it or take the field out')
    return seconds


def _identifier(fields: dict[str, Any], key: str) -> str | None:
    """Speakers and classes are often numbered: an integer is taken as its digits, which loses nothing."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _LineError(f'"{key}" must be a string, got {_kind(value)}; put it in quotes')
    name = str(value)
    if not name or name != name.strip():  # two names that look the same would be two classes
        raise _LineError(f'"{key}" must be a name without blanks at its ends, got {_kind(name)}; correct it')
    return name


def _kind(value: object) -> str:
    """Name a JSON value in the words of JSON, short enough for one line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else shown[:40] + "..."
