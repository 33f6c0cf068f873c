"""What the commands that read recordings share: how they are named, found, counted, and reported when unreadable."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["INPUTS", "Recordings", "add_compute", "add_recordings", "field", "find", "load"]

INPUTS = """\
Reads wav, flac, mp3, ogg, opus, m4a, webm and more, at any rate, mono or stereo, of any length; folders are searched
for such files."""

NO_AUDIO = "no recording lies below this folder; expected files that end in .wav, .flac, .mp3 or the like"

Result = TypeVar("Result")


def add_recordings(parser: Any) -> None:
    """Add the argument FILE ..."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings or folders of them; - reads a recording from stdin"
    )


def add_compute(parser: Any) -> None:
    """Add the options that say how to compute."""
    parser.add_argument(
        "--batch-seconds", type=float, default=60.0, metavar="S", help="audio computed at once (%(default)s)"
    )
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)"
    )
    parser.add_argument(
        "--compute-type",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="fewer bits are faster where the device has instructions for them, and a little less exact; what that "
        "gains and costs here is measured and said on stderr (%(default)s)",
    )


def load(kind: Any, options: argparse.Namespace, **settings: Any) -> Any:
    """A model for recordings, such as a `Transcriber`, with the options of `add_compute`."""
    model = kind.from_pretrained(
        options.model,
        device=options.device,
        batch_seconds=options.batch_seconds,
        compute_type=options.compute_type,
        **settings,
    )
    if model.conversion is not None:
        print(f"wav2vec2-conformer: {model.conversion}", file=sys.stderr)
    return model


def find(names: Iterable[str]) -> Iterator[str]:
    """The files that the arguments name; a folder stands for the audio files below it."""
    from ..audio import audio_files

    for name in names:
        path = Path(name)
        inside = list(audio_files(path)) if name not in ("", "-") and path.is_dir() else []
        # a folder without such files stays in the list, to be named as one that cannot be read
        yield from map(str, inside) if inside else [name]


def field(text: str) -> str:
    """A text as one field of a line: tabs and line breaks in it are written as `\\t` and `\\n`."""
    return text.translate({ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})


class Recordings:
    """The recordings of a command: run through a model under a bar, with results on stdout and problems on stderr.

    Args:
        files: paths; `-` is stdin.
        as_json: whether a result is written as one JSON object, or as lines of text.

    Raises:
        ValueError: stdin is closed, or named twice.
    """

    def __init__(self, files: Iterable[str], *, as_json: bool) -> None:
        self.files = list(files)
        self.as_json = as_json
        self.exit_code = 0  # 1 once a recording could not be read
        if "-" in self.files and (sys.stdin is None or self.files.count("-") > 1):
            raise ValueError("- reads one recording from stdin, which must be open")

    def results(self, run_many: Callable[..., Iterator[Result | Exception]]) -> Iterator[tuple[str, Result]]:
        """File and result of each recording, in their order; one that cannot be read is named on stderr and left out.

        Args:
            run_many: a model's `transcribe_many`, `classify_many` and the like.
        """
        from ..audio import audio_files

        sources = (sys.stdin.buffer if file == "-" else file for file in self.files)
        with Progress(self.files) as self.progress:
            for file, result in zip(self.files, run_many(sources, progress=self.progress.add), strict=True):
                if isinstance(result, Exception):
                    nothing = file != "-" and Path(file).is_dir() and not any(audio_files(Path(file)))
                    self.refuse(file, NO_AUDIO if nothing else getattr(result, "problem", str(result)))
                else:
                    yield file, result

    def refuse(self, file: str, problem: str) -> None:
        """Say that a file cannot be used."""
        self.exit_code = 1
        self.progress.write(f"wav2vec2-conformer: {field(file)}: {problem}", sys.stderr)
        if self.as_json:
            self.progress.write(json.dumps({"file": file, "error": problem}, ensure_ascii=False), sys.stdout)

    def write(self, record: dict[str, Any], lines: Iterable[str]) -> None:
        """Print a result: `record` as JSON, else the lines of text."""
        for line in [json.dumps(record, ensure_ascii=False)] if self.as_json else lines:
            self.progress.write(line, sys.stdout)

    def named(self, file: str, text: str) -> str:
        """A line of text on a file, which it names where there are several."""
        return text if len(self.files) == 1 else f"{field(file)}\t{text}"


class Progress:
    """A bar of audio seconds on stderr, where that is a terminal."""

    def __init__(self, files: list[str]) -> None:
        from ..audio import audio_duration

        self.shown = sys.stderr.isatty()
        total = 0.0
        for file in files if self.shown else ():
            try:
                # not of a pipe, which asking would empty
                total += (audio_duration(file) or 0.0) if Path(file).is_file() else 0.0
            except (ValueError, OSError):
                continue  # reading it will say so
        self.bar = tqdm(
            total=round(total, 1) or None, unit="s", unit_scale=True, file=sys.stderr, disable=not self.shown
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.shown = False

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
