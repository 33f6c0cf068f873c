"""`wav2vec2-conformer convert fairseq CKPT OUT`."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer convert fairseq checkpoint_best.pt my-model --dict dict.ltr.txt --verify
  wav2vec2-conformer transcribe --model my-model recording.wav

Converts checkpoints of fairseq's Wav2Vec2-Conformer models, pre-trained or fine-tuned by CTC. Nothing in the file is
executed. The dictionary is needed where the checkpoint does not have it. --verify computes the original model step by
step on a second of noise and compares; the exit code is 1 if the two differ by more than 1e-4 of scale. What cannot
be converted is named on stderr, with exit code 2, and no folder is written.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "convert",
        help="turn a checkpoint of another program into a model",
        description="Turn a checkpoint of another program into a folder that --model takes.",
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    fairseq = sources.add_parser(
        "fairseq",
        help="a checkpoint of fairseq",
        description="Turn a checkpoint of fairseq into a folder that --model takes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = fairseq.add_argument
    add("checkpoint", metavar="CKPT", help="the .pt file")
    add("output", metavar="OUT", help="folder for the model; it must not exist yet")
    add("--dict", metavar="FILE", dest="dictionary", help="dict.ltr.txt of a CTC model")
    add("--verify", action="store_true", help="compare the outputs with those of the original arithmetic")
    fairseq.set_defaults(run=run_fairseq)


def run_fairseq(options: argparse.Namespace) -> int:
    """Convert, say what was written, and compare if asked to."""
    from ..checkpoints.fairseq import convert_fairseq  # imported late: `--help` need not wait for torch

    done = convert_fairseq(options.checkpoint, options.output, options.dictionary)
    for note in done.notes:
        print(f"wav2vec2-conformer: {note}", file=sys.stderr)
    for key, reason in done.dropped.items():
        print(f"wav2vec2-conformer: left out {key}: {reason}", file=sys.stderr)
    print(f"{done.output}: {done.architecture} with {done.weights} tensors")
    if not options.verify:
        return 0
    from ..checkpoints.verification import TOLERANCE, verify

    result = verify(options.checkpoint, options.output)
    for name, difference in result.compared.items():
        said = f"largest difference {difference:.1e} of scale" if math.isfinite(difference) else "is not a number"
        print(f"{name}: {said}")
    if not math.isfinite(result.largest):
        print(
            "wav2vec2-conformer: an output is not a number, of the checkpoint or of the model: a weight is NaN or "
            "infinite, or the outputs overflow. The folder should not be used",
            file=sys.stderr,
        )
    elif not result.passed:
        print(f"wav2vec2-conformer: the outputs differ by more than {TOLERANCE:.0e} of scale", file=sys.stderr)
    return 0 if result.passed else 1
