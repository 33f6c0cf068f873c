"""`wav2vec2-conformer transcribe FILE ...`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .recordings import INPUTS, Recordings, add_compute, add_recordings, find, load

if TYPE_CHECKING:
    from ..recordings import Times

__all__ = ["add_parser"]

EXAMPLE = f"""\
examples:
  wav2vec2-conformer transcribe talk.mp3
  wav2vec2-conformer transcribe --json recordings/ > transcripts.jsonl
  wav2vec2-conformer transcribe --model facebook/wav2vec2-conformer-rope-large-960h-ft talk.m4a

{INPUTS}
One line a recording goes to stdout: the text, with the file's name and a tab before it where there are
several. A file that cannot be read is named on stderr, the others are transcribed all the same, and the exit code is 1.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "transcribe",
        help="recordings in, text out",
        description="Transcribe recordings.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_recordings(parser)
    add("--model", metavar="MODEL", help="folder or Hub id (default: the small English model of the package)")
    add("--language", metavar="ID", help="of a model with language adapters, the one to write, such as eng")
    add("--json", action="store_true", help='one JSON object a line: {"file", "text", "duration"} or {"file", "error"}')
    add_compute(parser)
    add("--profile", action="store_true", help="say on stderr where the time went")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Transcribe, print, and say in the exit code whether every file could be read."""
    from ..transcription import Transcriber  # imported late: `--help` need not wait for torch

    recordings = Recordings(find(options.files), as_json=options.json)
    transcriber = load(Transcriber, options, target_lang=options.language)
    seconds = 0.0
    for file, result in recordings.results(transcriber.transcribe_many):
        record = {"file": file, "text": result.text, "duration": round(result.duration, 3)}
        seconds += result.duration
        recordings.write(record, [recordings.named(file, result.text)])
    if options.profile:
        print(profile(transcriber.times, seconds), file=sys.stderr)
    return recordings.exit_code


def profile(times: Times, seconds: float) -> str:
    """Where the time of a run over so many seconds of audio went, in a line."""
    total = max(times.total, 1e-9)
    rest = max(0.0, total - times.waiting - times.network)
    shares = {"network": times.network, "waiting for audio": times.waiting, "joining windows and writing": rest}
    told = ", ".join(f"{name} {part / total:.1%}" for name, part in shares.items())
    return f"{total:.2f} s, {seconds / total:.1f} times real time: {told}"
