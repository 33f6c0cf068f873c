"""`wav2vec2-conformer transcribe FILE ...`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer transcribe talk.mp3
  wav2vec2-conformer transcribe --json recordings/ > transcripts.jsonl
  wav2vec2-conformer transcribe --model facebook/wav2vec2-conformer-rope-large-960h-ft talk.m4a

Reads wav, flac, mp3, ogg, opus, m4a, webm and more, at any rate, mono or stereo, of any length; folders are searched
for such files. One line a recording goes to stdout: the text, with the file's name and a tab before it where there are
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
    add("files", nargs="+", metavar="FILE", help="recordings or folders of them; - reads a recording from stdin")
    add("--model", metavar="MODEL", help="folder or Hub id (default: the small English model of the package)")
    add("--language", metavar="ID", help="of a model with language adapters, the one to write, such as eng")
    add("--json", action="store_true", help='one JSON object a line: {"file", "text", "duration"} or {"file", "error"}')
    add(
        "--batch-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="audio computed at once (%(default)s)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Transcribe, print, and say in the exit code whether every file could be read."""
    from ..audio import AudioError, audio_duration  # imported late: `--help` need not wait for torch
    from ..transcription import Transcriber, Transcript

    files = list(find(options.files))
    if "-" in files and (sys.stdin is None or files.count("-") > 1):
        raise ValueError("- reads one recording from stdin, which must be open")
    transcriber = Transcriber.from_pretrained(
        options.model, device=options.device, batch_seconds=options.batch_seconds, target_lang=options.language
    )
    failed = False
    with Progress(files, audio_duration) as progress:
        sources = (sys.stdin.buffer if file == "-" else file for file in files)
        for file, result in zip(files, transcriber.transcribe_many(sources, progress=progress.add), strict=True):
            if isinstance(result, Transcript):
                record = {"file": file, "text": result.text, "duration": round(result.duration, 3)}
                line = result.text if len(files) == 1 else f"{one_line(file)}\t{result.text}"
            else:
                failed = True
                problem = result.problem if isinstance(result, AudioError) else str(result)
                record, line = {"file": file, "error": problem}, None
                progress.write(f"wav2vec2-conformer: {one_line(file)}: {problem}", sys.stderr)
            if options.json:
                progress.write(json.dumps(record, ensure_ascii=False), sys.stdout)
            elif line is not None:
                progress.write(line, sys.stdout)
    return 1 if failed else 0


def one_line(name: str) -> str:
    """A file's name as one field of a line: tabs and line breaks in it are written as `\\t` and `\\n`."""
    return name.translate({ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})


def find(names: list[str]) -> Iterator[str]:
    """The files that the arguments name; a folder stands for the audio files below it."""
    from ..audio import AUDIO_SUFFIXES

    for name in names:
        path = Path(name)
        inside: list[Path] = []
        if name not in ("", "-") and path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        # a folder without such files stays in the list, to be named as one that cannot be transcribed
        yield from map(str, inside) if inside else [name]


class Progress:
    """A bar of audio seconds on stderr, where that is a terminal."""

    def __init__(self, files: list[str], duration: Any) -> None:
        self.shown = sys.stderr.isatty()
        total = 0.0
        for file in files if self.shown else ():
            try:
                # not of a pipe, which asking would empty
                total += (duration(file) or 0.0) if Path(file).is_file() else 0.0
            except (ValueError, OSError):
                continue  # the transcriber will say it
        self.bar = tqdm(
            total=round(total, 1) or None, unit="s", unit_scale=True, file=sys.stderr, disable=not self.shown
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, seconds: float) -> None:
        """Count seconds of audio as done."""
        self.bar.update(round(seconds, 2))

    def write(self, text: str, stream: Any) -> None:
        """Print a line without tearing the bar."""
        if self.shown:
            self.bar.clear()
        print(text, file=stream, flush=True)
        if self.shown:
            self.bar.refresh()
