"""`wav2vec2-conformer data prepare|stats|doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_reports import bar, complain, run_doctor, run_stats

if TYPE_CHECKING:
    from ..data.preparation import Prepared

__all__ = ["add_parser"]


PREPARE_EXAMPLE = """\
examples:
  wav2vec2-conformer data prepare librispeech LibriSpeech/train-clean-100 --output train.jsonl
  wav2vec2-conformer data prepare folder commands/ --as label --output commands.jsonl
  wav2vec2-conformer data prepare folder people/ --as speaker --output t.jsonl --dev-share 0.1 --dev-output d.jsonl
  wav2vec2-conformer data prepare rttm meetings/rttm --audio meetings/wav --output meetings.jsonl

librispeech: chapters of recordings, each with a *.trans.txt that says what is read; speakers by the files' names.
folder: one folder a class or a speaker. A transcript is the .txt of the recording's name beside it, where there is one.
rttm: RTTM files or folders of them, and the recordings of the names in them.

A manifest holds one JSON object a line, with audio paths relative to its folder and durations from the files' headers.
What cannot be used is named on stderr and left out, and the exit code is 1. --dev-share splits by speakers: nobody is
in both manifests, and the same folder always gives the same split.
"""
STATS_EXAMPLE = """\
examples:
  wav2vec2-conformer data stats train.jsonl
  wav2vec2-conformer data stats train.jsonl dev.jsonl --picture data.png
  wav2vec2-conformer data stats --json train.jsonl > train.json

Reads every recording once and says how much there is, of whom, how long, how loud, how clean, and what is there twice.
A recording that cannot be read is named on stderr and counted, and the exit code is 1.
"""
DOCTOR_EXAMPLE = """\
examples:
  wav2vec2-conformer data doctor train.jsonl
  wav2vec2-conformer data doctor train.jsonl --dev dev.jsonl --model facebook/wav2vec2-conformer-rope-large-960h-ft
  wav2vec2-conformer data doctor --json train.jsonl more.jsonl --dev dev.jsonl

Reads every line and every recording and says what is wrong, how often, where first, and what to do:
  error    training would refuse or skip it, learn what is wrong, or be judged by figures that mean nothing
  warning  the result is likely worse
  note     it may be as intended
The exit code is 1 if there are errors, else 0. With --model, transcripts are held against its vocabulary and frames;
without, against each other and the frames of the released models (50 a second).
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("data", help="prepare, look at and check recordings and manifests")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_prepare(actions)
    stats = add_action(actions, "stats", "what is in manifests, in numbers and a picture", STATS_EXAMPLE)
    stats.add_argument("manifests", nargs="+", metavar="MANIFEST", help="JSON Lines files")
    stats.add_argument("--json", action="store_true", help="one JSON object a manifest and line")
    stats.add_argument("--picture", metavar="FILE.png", help="draw the distributions, all manifests in one picture")
    stats.set_defaults(run=run_stats)
    doctor = add_action(
        actions, "doctor", "what is wrong with manifests and recordings, and what to do", DOCTOR_EXAMPLE
    )
    doctor.add_argument("manifests", nargs="+", metavar="MANIFEST", help="to learn from")
    doctor.add_argument("--dev", nargs="+", default=[], metavar="MANIFEST", help="to be judged on: must share nothing")
    doctor.add_argument("--model", metavar="MODEL", help="folder or Hub id of the model to train on, or `default`")
    doctor.add_argument("--json", action="store_true", help="one JSON object with all findings")
    doctor.set_defaults(run=run_doctor)


def add_action(actions: Any, name: str, purpose: str, epilog: str) -> argparse.ArgumentParser:
    """Add `data NAME`."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_prepare(actions: Any) -> None:
    """Add `data prepare`."""
    prepare = add_action(actions, "prepare", "folders of recordings in, a manifest out", PREPARE_EXAMPLE)
    layouts = prepare.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    librispeech = layouts.add_parser("librispeech", help="chapters with *.trans.txt")
    librispeech.add_argument("source", metavar="DIR", help="folder of the corpus, or of any part of it")
    folder = layouts.add_parser("folder", help="one folder a class or a speaker")
    folder.add_argument("source", metavar="DIR", help="folder that holds these folders")
    folder.add_argument(
        "--as", required=True, choices=["label", "speaker"], dest="kind", help="what a folder stands for"
    )
    folder.add_argument(
        "--speaker-pattern",
        metavar="REGEX",
        help="with --as label: its first group finds the speaker in a file's name, such as '^([^_]+)_'",
    )
    rttm = layouts.add_parser("rttm", help="RTTM files: who speaks when")
    rttm.add_argument("source", nargs="+", metavar="RTTM", help="RTTM files or folders of them")
    rttm.add_argument("--audio", required=True, metavar="DIR", help="folder of the recordings")
    for parser in (librispeech, folder, rttm):
        parser.add_argument("--output", required=True, metavar="F.jsonl", help="manifest to write")
        parser.add_argument("--dev-share", type=float, metavar="SHARE", help="of the time, for a second manifest")
        parser.add_argument("--dev-output", metavar="D.jsonl", help="that second manifest, of other speakers")
        parser.add_argument("--force", action="store_true", help="write over manifests that are there already")
        parser.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace) -> int:
    """Write the manifests; 1 where something had to be left out."""
    from ..data.preparation import write_manifest  # imported late: `--help` need not wait for torch
    from ..data.splitting import split_by_speaker

    if (options.dev_share is None) != (options.dev_output is None):
        raise ValueError("--dev-share and --dev-output go together: how much, and where to")
    outputs = [Path(name) for name in (options.output, options.dev_output) if name is not None]
    check_outputs(outputs, options.force)
    with bar("file") as progress:
        prepared = collect(options, progress.update)
    for problem in prepared.problems:
        complain(problem)
    if not prepared.utterances:
        raise ValueError(f"nothing of it can be used ({len(prepared.problems)} problems, all named above)")
    parts = [prepared.utterances]
    if options.dev_share is not None:
        parts = list(split_by_speaker(prepared.utterances, options.dev_share))
        got = sum(u.duration for u in parts[1]) / sum(u.duration for u in prepared.utterances)
        if not 0.5 < got / options.dev_share < 2:
            complain(f"dev has {got:.0%} of the time and not {options.dev_share:.0%}: speakers stay whole, and are few")
    for path, utterances in zip(outputs, parts, strict=True):
        write_manifest(path, utterances)
        hours = sum(utterance.duration for utterance in utterances) / 3600
        print(f"{path}: {len(utterances)} recordings, {hours:.2f} h")
    if prepared.problems:
        complain(f"{len(prepared.problems)} files or lines left out")
    return 1 if prepared.problems else 0


def collect(options: argparse.Namespace, progress: Callable[[int], object]) -> Prepared:
    """The recordings of a folder, by its layout."""
    from ..data.preparation import prepare_folder, prepare_librispeech, prepare_rttm

    if options.layout == "librispeech":
        return prepare_librispeech(options.source, progress=progress)
    if options.layout == "rttm":
        return prepare_rttm(options.source, options.audio, progress=progress)
    if options.speaker_pattern is not None and options.kind == "speaker":
        raise ValueError("--speaker-pattern goes with --as label; with --as speaker the folders are the speakers")
    return prepare_folder(options.source, kind=options.kind, speaker_pattern=options.speaker_pattern, progress=progress)


def check_outputs(paths: Sequence[Path], force: bool) -> None:
    """Refuse what cannot be written, before any work is done."""
    if len({path.absolute() for path in paths}) < len(paths):
        raise ValueError(f"{paths[0]}: --output and --dev-output are the same file; name two")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; name a file to write, such as {path / 'train.jsonl'}")
        if path.exists() and not force:
            raise ValueError(f"{path}: already there; name another file, or write over it with --force")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
