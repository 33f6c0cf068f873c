"""`wav2vec2-conformer verify A B`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .recordings import Recordings, add_compute, load

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer verify --model speaker-model call-1.wav call-2.wav
  wav2vec2-conformer verify --model speaker-model --threshold 0.6 --json call-1.wav call-2.wav

One line goes to stdout: the cosine similarity of the two speakers' vectors, from -1 to 1, and, after a tab, "same
speaker" from the threshold upwards, "different speakers" below. The threshold is that of the file verification.json
beside the model, which `train xvector` writes, unless --threshold gives another; where there is neither, only the score
is printed. The exit code is 0 for either decision, and 1 if a file cannot be read.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify",
        help="two recordings in: the same speaker or not",
        description="Say whether the same person speaks in two recordings.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs=2, metavar="FILE", help="a recording, of any format and length; - reads one from stdin")
    add("--model", required=True, metavar="MODEL", help="folder (see `train xvector`) or Hub id")
    add("--threshold", type=float, metavar="T", help="least similarity of one speaker (default: the model's)")
    add(
        "--json",
        action="store_true",
        help='one JSON object: {"files", "score", "threshold", "same_speaker"}, the last two null without a threshold; '
        'or {"file", "error"} for each file that cannot be read',
    )
    add_compute(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare and print; the exit code says whether both files could be read."""
    from ..verification import SpeakerEncoder, similarity  # imported late: `--help` need not wait for torch

    threshold = options.threshold
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold must be a cosine similarity from -1 to 1, got {threshold}")
    recordings = Recordings(options.files, as_json=options.json)
    encoder = load(SpeakerEncoder, options)
    vectors = [vector for _, vector in recordings.results(encoder.embed_many)]
    if len(vectors) < 2:
        return recordings.exit_code
    score = similarity(*vectors)
    threshold = encoder.threshold if threshold is None else threshold
    same = None if threshold is None else score >= threshold
    line = f"{score:.4f}" if same is None else f"{score:.4f}\t{'same speaker' if same else 'different speakers'}"
    record = {"files": options.files, "score": round(score, 6), "threshold": threshold, "same_speaker": same}
    recordings.write(record, [line])
    if same is None:
        print(
            f"wav2vec2-conformer: {options.model}: there is no calibrated threshold (verification.json) beside the "
            "model, so the score stands without a decision; give --threshold",
            file=sys.stderr,
        )
    return recordings.exit_code
