"""`wav2vec2-conformer train TASK`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

__all__ = ["add_parser"]

EXAMPLE = """\
example:
  wav2vec2-conformer train ctc --train train.jsonl --dev dev.jsonl --output my-model
  wav2vec2-conformer transcribe --model my-model recording.wav

A manifest has one JSON object a line: {"audio": "clips/a.flac", "text": "HELLO WORLD", "duration": 1.9}; `audio` is
relative to the manifest, `duration` (seconds) may be left out. Any audio format and rate will do.
The best model so far always lies in the output folder itself; TensorBoard reads output/runs.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("train", help="train a model on your recordings")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    ctc = tasks.add_parser(
        "ctc",
        help="speech recognition by CTC",
        description="Train a speech recogniser on transcribed recordings.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = ctc.add_argument
    add("--train", nargs="+", required=True, metavar="A.jsonl", help="manifests; one given twice counts twice")
    add("--dev", required=True, metavar="D.jsonl", help="manifest whose WER chooses the best model")
    add("--output", required=True, metavar="DIR", help="folder for the model, checkpoints and TensorBoard logs")
    start = ctc.add_mutually_exclusive_group()
    start.add_argument("--config", metavar="FILE", help="config.json of a new model (default: the small default one)")
    start.add_argument("--init", metavar="MODEL", help="folder or Hub id of a model to start from")
    add("--resume", action="store_true", help="go on from the last complete checkpoint in --output")
    add("--epochs", type=float, default=30.0, metavar="N", help="passes over the training data (%(default)s)")
    add(
        "--batch-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds of audio a batch, with padding (%(default)s)",
    )
    add("--max-batch", type=int, default=64, metavar="N", help="most utterances a batch (%(default)s)")
    add("--accumulate", type=int, default=1, metavar="N", help="batches an optimizer step (%(default)s)")
    add("--learning-rate", type=float, default=1e-3, metavar="RATE", help="peak of the schedule (%(default)s)")
    add(
        "--warmup",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the steps in which the rate rises (%(default)s)",
    )
    add("--weight-decay", type=float, default=0.01, metavar="W", help="of AdamW (%(default)s)")
    add("--clip", type=float, default=1.0, metavar="NORM", help="largest gradient norm (%(default)s)")
    add("--no-augment", action="store_true", help="neither change speed nor add noise")
    add("--freeze-feature-encoder", action="store_true", help="leave the convolutions as they are")
    add("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    add("--evaluate-every", type=int, default=0, metavar="STEPS", help="0 (default): once an epoch")
    add(
        "--unknown-limit",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="largest share of unknown characters (%(default)s)",
    )
    add(
        "--cache-gb",
        type=float,
        default=0.0,
        metavar="GB",
        help="decoded audio to keep in memory; an hour takes 0.12 (%(default)s)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes that decode audio (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")
    ctc.set_defaults(run=run_ctc)


def run_ctc(options: argparse.Namespace) -> int:
    """Train, and print the result as JSON."""
    from ..training import CTCSettings, train_ctc  # imported late: `--help` need not wait for torch

    given = {name: value for name, value in vars(options).items() if name in CTCSettings.__dataclass_fields__}
    result = train_ctc(CTCSettings(**given, augment=not options.no_augment), resume=options.resume)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        print(json.dumps(result))
    return 0
