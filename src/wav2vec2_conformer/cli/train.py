"""`wav2vec2-conformer train TASK`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

__all__ = ["add_parser"]

MANIFEST = """\
A manifest has one JSON object a line, such as
  {"audio": "clips/a.flac", %s, "duration": 1.9}
`audio` is relative to the manifest, `duration` (seconds) may be left out. Any audio format and rate will do.
The best model so far always lies in the output folder itself; TensorBoard reads output/runs.
"""
CTC_EXAMPLE = f"""\
examples:
  wav2vec2-conformer train ctc --train train.jsonl --dev dev.jsonl --output my-model
  wav2vec2-conformer train ctc --init pretrained --preset ctc-base-10h --train t.jsonl --dev d.jsonl --output my-model
  wav2vec2-conformer train ctc --overfit 10 --train train.jsonl --output check    (can it learn ten utterances?)
  wav2vec2-conformer transcribe --model my-model recording.wav

{MANIFEST % '"text": "HELLO WORLD"'}"""
SEQUENCE_EXAMPLE = f"""\
examples:
  wav2vec2-conformer train sequence --train train.jsonl --dev dev.jsonl --output my-model
  wav2vec2-conformer classify --model my-model recording.wav

{MANIFEST % '"label": "yes"'}"""
FRAME_EXAMPLE = f"""\
examples:
  wav2vec2-conformer train frame --train train.jsonl --dev dev.jsonl --output my-model
  wav2vec2-conformer diarize --model my-model meeting.wav > meeting.rttm

{MANIFEST % '"segments": [{"start": 0.0, "end": 1.2, "speaker": "anna"}]'}
In place of "segments", "rttm" may name an RTTM file.
"""
XVECTOR_EXAMPLE = f"""\
examples:
  wav2vec2-conformer train xvector --train train.jsonl --dev dev.jsonl --output my-model
  wav2vec2-conformer verify --model my-model one.wav other.wav

{MANIFEST % '"speaker": "anna"'}
The speakers of --dev should be others than those of --train: all pairs of its recordings are compared.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("train", help="train a model on your recordings")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    add = add_task(tasks, "ctc", "speech recognition by CTC", CTC_EXAMPLE)
    add("--preset", metavar="NAME", help="ctc-base-10h, ctc-large-960h and so on, or a TOML file")
    add("--unknown-limit", type=float, metavar="SHARE", help="largest share of unknown characters (0.01)")
    add(
        "--prior-share",
        type=float,
        metavar="SHARE",
        help="share of the steps in which the letters' probabilities are divided by how common they are, which helps a "
        "new head off the plateau of the commonest letters; 0.5 is good (0.0)",
    )
    add = add_task(tasks, "sequence", "classification of whole recordings", SEQUENCE_EXAMPLE)
    add("--preset", metavar="FILE", help="a TOML file with tables [model] and [training]")
    add(
        "--balance",
        action=argparse.BooleanOptionalAction,
        help="let all classes weigh the same, however many recordings they have",
    )
    add = add_task(tasks, "frame", "speaker diarization: who speaks in each frame", FRAME_EXAMPLE)
    add("--preset", metavar="FILE", help="a TOML file with tables [model] and [training]")
    add("--speakers", type=int, metavar="N", help="how many the model tells apart (most in one training recording)")
    add("--crop-seconds", type=float, metavar="S", help="what of a recording is used at once (15.0)")
    add = add_task(tasks, "xvector", "speaker embeddings, for verification", XVECTOR_EXAMPLE)
    add("--preset", metavar="FILE", help="a TOML file with tables [model] and [training]")
    add("--crop-seconds", type=float, metavar="S", help="what of a recording is used at once (4.0)")
    add_pretraining(tasks)


def add_task(tasks: Any, name: str, what: str, examples: str) -> Callable[..., Any]:
    """Add a task of fine-tuning with the options that all have; what adds more options to it."""
    parser = tasks.add_parser(
        name,
        help=what,
        description=f"Train a model for {what}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the preset, and to the settings' defaults
    )
    add: Callable[..., Any] = parser.add_argument
    add("--train", nargs="+", required=True, metavar="A.jsonl", help="manifests; one given twice counts twice")
    add("--dev", metavar="D.jsonl", help="manifest whose figure chooses the best model")
    add("--output", required=True, metavar="DIR", help="folder for the model, checkpoints and TensorBoard logs")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--config", metavar="FILE", help="config.json of a new model (the small default one)")
    start.add_argument(
        "--init",
        metavar="MODEL",
        help="folder or Hub id of a model to start from, or `default`, which the package carries",
    )
    add("--resume", action="store_true", default=False, help="go on from the last complete checkpoint in --output")
    add("--epochs", type=float, metavar="N", help="passes over the training data (30.0)")
    add("--updates", type=positive, metavar="N", help="optimizer steps, in place of --epochs")
    add("--batch-seconds", type=float, metavar="S", help="seconds of audio a batch, with padding (60.0)")
    add("--max-batch", type=int, metavar="N", help="most utterances a batch (64)")
    add("--accumulate", type=int, metavar="N", help="batches an optimizer step (1)")
    add("--learning-rate", type=float, metavar="RATE", help="peak of the schedule (0.001)")
    add("--head-learning-rate", type=float, metavar="RATE", help="of what is above the network (the same)")
    add("--schedule", metavar="NAME", help="cosine, linear or tri-stage (cosine)")
    add("--warmup", type=float, metavar="SHARE", help="share of the steps in which the rate rises (0.1)")
    add("--weight-decay", type=float, metavar="W", help="of AdamW (0.01)")
    add("--clip", type=float, metavar="NORM", help="largest gradient norm; 0: as it is (1.0)")
    yes_or_no = argparse.BooleanOptionalAction  # what a preset switches on, the command line can switch off
    add("--augment", action=yes_or_no, help="change speed and band, add noise (yes)")
    add("--freeze-feature-encoder", action=yes_or_no, help="leave the convolutions as they are")
    add("--freeze-updates", type=int, metavar="N", help="steps in which only the head learns (0)")
    add(
        "--lora", type=positive, metavar="RANK", help="learn low-rank adapters of the attention in place of the network"
    )
    add("--bf16", action=yes_or_no, help="compute in bfloat16 where it is safe")
    add("--gradient-checkpointing", action=yes_or_no, help="compute activations twice instead of keeping them")
    add("--evaluate-every", type=int, metavar="STEPS", help="0: once an epoch (0)")
    add("--log-every", type=int, metavar="STEPS", help="steps between logs (20)")
    add("--patience", type=int, metavar="N", help="stop after so many evaluations without a better figure (never)")
    add("--overfit", type=positive, metavar="N", help="learn only N utterances by heart, to check data and settings")
    add("--cache-gb", type=float, metavar="GB", help="decoded audio to keep in memory; an hour takes 0.12 (0.0)")
    add("--workers", type=int, metavar="N", help="processes that decode audio (1)")
    add("--seed", type=int, metavar="N", help="of everything random (0)")
    parser.set_defaults(run=run_task)
    return add


def positive(text: str) -> int:
    """A whole number from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}; leave the option away for none")
    return number


def run_task(options: argparse.Namespace) -> int:
    """Fine-tune, and print the result as JSON; 1 where a self-check failed."""
    from .. import training  # imported late: `--help` need not wait for torch

    kinds: dict[str, tuple[Any, Callable[..., dict[str, Any]]]] = {
        "ctc": (training.CTCSettings, training.train_ctc),
        "sequence": (training.SequenceSettings, training.train_sequence),
        "frame": (training.FrameSettings, training.train_frame),
        "xvector": (training.XVectorSettings, training.train_xvector),
    }
    settings_class, train = kinds[options.task]
    given = {name: value for name, value in vars(options).items() if name in settings_class.__dataclass_fields__}
    result = train(settings_class.from_preset(getattr(options, "preset", None), **given), resume=options.resume)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        print(json.dumps(result))
    return 0 if result.get("learnt", True) else 1


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
