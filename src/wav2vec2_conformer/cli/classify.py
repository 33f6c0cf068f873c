"""`wav2vec2-conformer classify FILE ...`."""

from __future__ import annotations

import argparse
from typing import Any

from .recordings import INPUTS, Recordings, add_compute, add_recordings, field, find, load

__all__ = ["add_parser"]

EXAMPLE = f"""\
examples:
  wav2vec2-conformer classify --model commands-model clip.wav
  wav2vec2-conformer classify --model commands-model --top 3 clips/
  wav2vec2-conformer classify --model commands-model --json clips/ > labels.jsonl

{INPUTS}
One line a recording goes to stdout: label and score (a probability), separated by tabs, with the file's name before
them where there are several; with --top 3, the three best labels, each followed by its score. A recording of more than
30 s gets the mean of its windows' probabilities. A file that cannot be read is named on stderr, the others are
classified all the same, and the exit code is 1.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "classify",
        help="recordings in, labels with scores out",
        description="Say which of a model's classes recordings belong to, such as keywords or emotions.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_recordings(parser)
    add("--model", required=True, metavar="MODEL", help="folder (see `train sequence`) or Hub id")
    add("--top", type=int, default=1, metavar="N", help="labels a recording (%(default)s)")
    add(
        "--json",
        action="store_true",
        help='one JSON object a line: {"file", "label", "scores", "duration"} with all labels in "scores", best first, '
        'or {"file", "error"}',
    )
    add_compute(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Classify, print, and say in the exit code whether every file could be read."""
    from ..classification import AudioClassifier  # imported late: `--help` need not wait for torch

    if options.top < 1:
        raise ValueError(f"--top must be 1 or more, got {options.top}")
    recordings = Recordings(find(options.files), as_json=options.json)
    classifier = load(AudioClassifier, options)
    for file, result in recordings.results(classifier.classify_many):
        record = {
            "file": file,
            "label": result.label,
            "scores": {label: round(score, 6) for label, score in result.top(len(result.labels))},
            "duration": round(result.duration, 3),
        }
        best = (f"{field(label)}\t{score:.4f}" for label, score in result.top(options.top))
        recordings.write(record, [recordings.named(file, "\t".join(best))])
    return recordings.exit_code
