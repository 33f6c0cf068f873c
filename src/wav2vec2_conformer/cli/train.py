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
    add_pretraining(tasks)


PRETRAINING_EXAMPLE = """\
examples:
  wav2vec2-conformer train pretraining --train recordings/ --preset tiny --output pretrained
  wav2vec2-conformer train ctc --init pretrained --train train.jsonl --dev dev.jsonl --output my-model

Recordings need no transcripts: folders of audio files, or manifests with one {"audio": "clips/a.flac"} a line.
A preset is a recipe; a TOML file of your own may take its place (`--preset my.toml`; begin with a copy of one of
src/wav2vec2_conformer/assets/presets). What is given on the command line goes before what the preset says.
`--dry-run` says what would happen. report.png in the output folder shows how it went.
"""


def add_pretraining(tasks: Any) -> None:
    """Add `train pretraining`."""
    parser = tasks.add_parser(
        "pretraining",
        help="self-supervised, from recordings without transcripts",
        description="Pre-train a model on recordings without transcripts (the contrastive task of wav2vec 2.0).",
        epilog=PRETRAINING_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the preset
    )
    add = parser.add_argument
    add("--train", nargs="+", required=True, metavar="SOURCE", help="manifests or folders of recordings")
    add("--dev", metavar="SOURCE", help="manifest or folder whose accuracy chooses the best model")
    add("--output", required=True, metavar="DIR", help="folder for the model, checkpoints, logs and report.png")
    add("--preset", default="base", metavar="NAME", help="tiny, base, large or a TOML file (%(default)s)")
    add("--init", metavar="MODEL", help="folder or Hub id of a model to start from")
    add("--resume", action="store_true", default=False, help="go on from the last complete checkpoint in --output")
    add("--dry-run", action="store_true", default=False, help="say what would happen, and stop")
    add("--updates", type=int, metavar="N", help="optimizer steps")
    add("--batch-seconds", type=float, metavar="S", help="seconds of audio a micro-batch")
    add("--max-batch", type=int, metavar="N", help="most recordings a micro-batch")
    add("--accumulate", type=int, metavar="N", help="micro-batches an update and process")
    add("--crop-seconds", type=float, metavar="S", help="what of a recording is used at once")
    add("--least-seconds", type=float, metavar="S", help="shorter recordings are left out")
    add("--learning-rate", type=float, metavar="RATE", help="peak of the schedule")
    add("--warmup", type=float, metavar="SHARE", help="share of the updates in which the rate rises")
    add("--schedule", metavar="NAME", help="linear, cosine or tri-stage")
    add("--feature-penalty", type=float, metavar="W", help="weight of the features' mean square")
    add("--clip", type=float, metavar="NORM", help="largest gradient norm; 0: as it is")
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="compute in bfloat16 where it is safe (if the device has instructions for it)",
    )
    add("--gradient-checkpointing", action="store_true", help="compute activations twice instead of keeping them")
    add("--sync-batch-norm", action="store_true", help="batch statistics over all processes")
    add("--keep-going", action="store_true", help="do not stop where the collapse rule would")
    add("--evaluate-every", type=int, metavar="UPDATES", help="between evaluations and checkpoints")
    add("--log-every", type=int, metavar="UPDATES", help="between logs")
    add("--cache-gb", type=float, metavar="GB", help="decoded audio to keep in memory; an hour takes 0.12")
    add("--workers", type=int, metavar="N", help="processes that decode audio and draw masks")
    add("--seed", type=int, metavar="N", help="of everything random")
    parser.set_defaults(run=run_pretraining)


def run_pretraining(options: argparse.Namespace) -> int:
    """Pre-train, and print the result as JSON; 1 where the collapse rule stopped it."""
    from ..training import PretrainingSettings, train_pretraining

    given = {name: value for name, value in vars(options).items() if name in PretrainingSettings.__dataclass_fields__}
    settings = PretrainingSettings.from_preset(options.preset, **given)
    speaks = os.environ.get("RANK", "0") == "0"
    if options.dry_run:
        train_pretraining(settings, dry_run=print if speaks else lambda line: None)
        return 0
    result = train_pretraining(settings, resume=options.resume)
    if speaks:
        print(json.dumps(result))
    return 1 if result["stopped"] else 0


def run_ctc(options: argparse.Namespace) -> int:
    """Train, and print the result as JSON."""
    from ..training import CTCSettings, train_ctc  # imported late: `--help` need not wait for torch

    given = {name: value for name, value in vars(options).items() if name in CTCSettings.__dataclass_fields__}
    result = train_ctc(CTCSettings(**given, augment=not options.no_augment), resume=options.resume)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        print(json.dumps(result))
    return 0
