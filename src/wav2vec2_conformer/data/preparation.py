"""Folders of recordings as corpora leave them -> utterances -> a manifest."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..audio import AudioError, audio_duration, audio_files
from ..files import replacing
from .manifest import ManifestError, Utterance, normalize_text
from .segments import Segment, SegmentError, read_rttm, rttm_name

__all__ = ["Prepared", "prepare_folder", "prepare_librispeech", "prepare_rttm", "write_manifest"]

Progress = Callable[[int], object]


@dataclass
class Prepared:
    """What a folder gave: the utterances, and "file: problem" of everything that could not be used."""

    utterances: list[Utterance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, audio: Path, folder: Path, **known: Any) -> None:
        """Take a recording in with its length, or note why it cannot be; `known` are fields of `Utterance`."""
        name = shown(audio, folder)
        try:
            duration = audio_duration(audio)
        except AudioError as error:
            self.problems.append(f"{name}: {error.problem}")
            return
        if duration is None:
            self.problems.append(f"{name}: its header does not say how long it is; convert it, to flac for instance")
        elif duration <= 0:
            self.problems.append(f"{name}: holds no samples")
        else:
            fields: dict[str, Any] = {"text": None, "speaker": None, "label": None} | known
            self.utterances.append(Utterance(audio=audio, duration=duration, name=name, **fields))


def prepare_librispeech(folder: str | Path, *, progress: Progress = lambda files: None) -> Prepared:
    """Read a tree like LibriSpeech's (Panayotov et al. 2015): chapters of recordings with one `*.trans.txt` each.

    A line of a transcript file is `<speaker>-<chapter>-<number> <text>`; the recording of that name lies beside it, as
    flac or in any other format. The speaker is what comes before the first hyphen.

    Args:
        folder: whose chapters are looked for at any depth.
        progress: called with the number of recordings that are done.

    Raises:
        ManifestError: no such folder, or no `*.trans.txt` below it.
    """
    folder = existing_folder(folder)
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise ManifestError(
            f"{folder}: no *.trans.txt below this folder; expected chapters as in LibriSpeech, such as"
            " 84/121123/84-121123.trans.txt with 84-121123-0000.flac beside it"
        )
    prepared = Prepared()
    for transcript in transcripts:
        beside = {audio.stem: audio for audio in audio_files(transcript.parent, deep=False) if audio.exists()}
        for number, line in enumerate(read_text(transcript, folder, prepared).split("\n"), start=1):
            name, _, text = normalize_text(line).partition(" ")
            if not name:
                continue
            audio = beside.pop(name, None)
            if audio is None:
                prepared.problems.append(f"{shown(transcript, folder)}: line {number}: no recording {name} beside it")
            else:
                prepared.add(audio, folder, text=text, speaker=name.split("-")[0])
            progress(1)
        prepared.problems += [f"{shown(audio, folder)}: no line in {transcript.name}" for audio in beside.values()]
    return prepared


def prepare_folder(
    folder: str | Path,
    *,
    kind: Literal["label", "speaker"],
    speaker_pattern: str | None = None,
    progress: Progress = lambda files: None,
) -> Prepared:
    """Read a folder of folders, one a class or one a speaker; recordings may lie at any depth in them.

    A recording's transcript is the text file of its name beside it (`a.flac`, `a.txt`), where there is one.

    Args:
        folder: that holds them.
        kind: what the folders' names are.
        speaker_pattern: a regular expression whose first group, searched in a file's name without its suffix, is who
            speaks: `^([^_]+)_` of Speech Commands' `0a7c2a8d_nohash_0.wav`. For classes only.
        progress: called with the number of recordings that are done.

    Raises:
        ManifestError: no such folder, no recording below it, or a pattern that is none or has no group.
    """
    folder = existing_folder(folder)
    speaker_of = speaker_finder(speaker_pattern)
    recordings = list(audio_files(folder))
    if not recordings:
        raise ManifestError(f"{folder}: no audio file lies below this folder")
    prepared = Prepared()
    for audio in recordings:
        progress(1)
        inside = audio.relative_to(folder).parts
        if len(inside) == 1:
            prepared.problems.append(f"{shown(audio, folder)}: lies in no folder of a {kind_name(kind)}")
            continue
        if inside[0] != inside[0].strip():
            problem = f"the folder {inside[0]!r} has a blank at its end, which no name of a {kind_name(kind)} may have"
            prepared.problems.append(f"{shown(audio, folder)}: {problem}; rename it")
            continue
        known: dict[str, Any] = {kind: inside[0]}
        if kind == "label" and speaker_pattern is not None:
            known["speaker"] = speaker_of(audio.stem)
            if known["speaker"] is None:
                prepared.problems.append(f"{shown(audio, folder)}: {speaker_pattern!r} finds no speaker in its name")
                continue
        transcript = audio.with_suffix(".txt")
        if transcript.is_file():
            failed = len(prepared.problems)
            known["text"] = normalize_text(read_text(transcript, folder, prepared))
            if len(prepared.problems) > failed:
                continue
        prepared.add(audio, folder, **known)
    return prepared


def prepare_rttm(
    sources: Sequence[str | Path], audio: str | Path, *, progress: Progress = lambda files: None
) -> Prepared:
    """Read RTTM files and find the recordings that they speak of, by name, below the folder `audio`.

    Args:
        sources: RTTM files, or folders of `*.rttm`.
        audio: folder of the recordings, at any depth; each is called as in the RTTM file, with any suffix.
        progress: called with the number of recordings that are done.

    Raises:
        ManifestError: no such folder, no RTTM file, or one that cannot be used.
    """
    audio = existing_folder(audio)
    files = [
        file
        for source in map(Path, sources)
        for file in (sorted(source.rglob("*.rttm")) if source.is_dir() else [source])
    ]
    if not files:
        raise ManifestError(f"{', '.join(map(str, sources))}: no *.rttm below this folder")
    spoken: dict[str, list[Segment]] = {}
    for file in files:
        try:
            for recording, segments in read_rttm(file).items():
                spoken.setdefault(recording, []).extend(segments)
        except SegmentError as error:
            raise ManifestError(str(error)) from error
    by_name: dict[str, list[Path]] = {}
    for path in filter(Path.exists, audio_files(audio)):
        by_name.setdefault(rttm_name(path.stem), []).append(path)
    prepared = Prepared()
    for recording, segments in spoken.items():
        progress(1)
        found = by_name.pop(recording, [])
        if len(found) == 1:
            prepared.add(found[0], audio, segments=tuple(sorted(segments)))
        else:
            several = " and ".join(shown(path, audio) for path in found[:2])
            prepared.problems.append(
                f"{recording}: {f'{several} have this name' if found else f'no recording of this name below {audio}'}"
            )
    prepared.problems += [
        f"{shown(path, audio)}: no RTTM file speaks of it" for paths in by_name.values() for path in paths
    ]
    return prepared


def write_manifest(path: Path, utterances: Sequence[Utterance]) -> None:
    """Write a manifest in one atomic step; audio paths are relative to its folder wherever the system can say so."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for utterance in utterances:
            file.write(manifest_line(utterance, path.parent) + "\n")


def manifest_line(utterance: Utterance, folder: Path) -> str:
    """An utterance as a line of a manifest in `folder`, fields of which nothing is known left out."""
    fields: dict[str, Any] = {"audio": relative_path(utterance.audio, folder)}
    fields |= {"text": utterance.text, "label": utterance.label, "speaker": utterance.speaker}
    fields["duration"] = round(utterance.duration, 4)
    if utterance.segments is not None:
        fields["segments"] = [
            {"start": round(s.start, 6), "end": round(s.end, 6), "speaker": s.speaker} for s in utterance.segments
        ]
    fields = {name: value for name, value in fields.items() if value is not None}
    line = json.dumps(fields, ensure_ascii=False)
    # A file's name that is no UTF-8 holds lone surrogates, which only escapes can carry.
    return line if line.isascii() or not re.search("[\ud800-\udfff]", line) else json.dumps(fields)


def relative_path(audio: Path, folder: Path) -> str:
    """A path with forward slashes as seen from `folder`; an absolute one where they lie on different drives."""
    audio, folder = Path(os.path.abspath(audio)), Path(os.path.abspath(folder))
    if audio.is_relative_to(folder):
        return audio.relative_to(folder).as_posix()
    try:
        # Links are followed first: the system takes `..` of where a linked folder really lies.
        return Path(os.path.relpath(audio.parent.resolve() / audio.name, folder.resolve())).as_posix()
    except ValueError:
        return audio.as_posix()


# --- files -----------------------------------------------------------------------------------------------------------


def existing_folder(folder: str | Path) -> Path:
    """A folder, or `ManifestError`."""
    path = Path(folder)
    if not path.is_dir():
        raise ManifestError(f"{path}: {'expected a folder, got a file' if path.exists() else 'no such folder'}")
    return path


def read_text(path: Path, folder: Path, prepared: Prepared) -> str:
    """A text file's content; an empty text and a problem where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 (byte {error.start})"
        prepared.problems.append(f"{shown(path, folder)}: cannot be read ({reason})")
        return ""


def speaker_finder(pattern: str | None) -> Callable[[str], str | None]:
    """A function that finds the speaker in a file's name."""
    try:
        compiled = re.compile(pattern or "()")
    except re.error as error:
        raise ManifestError(f"{pattern!r} is no regular expression ({error}); try '^([^_]+)_'") from None
    if not compiled.groups:
        raise ManifestError(f"{pattern!r} has no group to take the speaker from; try '^([^_]+)_'")

    def find(name: str) -> str | None:
        match = compiled.search(name)
        return ((match.group(1) or "").strip() or None) if match else None

    return find


def kind_name(kind: str) -> str:
    """What a folder stands for, in words."""
    return "class" if kind == "label" else "speaker"


def shown(path: Path, folder: Path) -> str:
    """A path as messages name it: as seen from the folder that was given."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
