"""One harness for all figures of speed: ours against transformers and runtimes of its exports, interleaved.

    python benchmarks/run.py inference --seconds 1 5 15 30 60 --output benchmarks/results/inference.json
    python benchmarks/run.py ctc --size base --batch 5 --output ctc.json
    python benchmarks/run.py pretraining --size base --batch 5 --output pretraining.json
    python benchmarks/run.py pretraining --largest 16 --output largest.json
    python benchmarks/run.py pretraining --device cuda --dtype bfloat16 --size large --batch 24 --peak-tflops 989
        --output pretraining-gpu.json
    python benchmarks/run.py mixed --size base --output mixed.json
    python benchmarks/report.py benchmarks/results/*.json --plots docs/pictures

inference    a forward pass from samples to logits; outputs are compared with those of transformers in float32 first
ctc          a step of CTC fine-tuning: forward, backward, AdamW; each side alone in memory in its turn
pretraining  a step of pre-training, with the masks and negatives that it needs; likewise
mixed        recordings with lengths like LibriSpeech's to text, in batches and one at a time

All sides have the same random weights. The combinations of a network run in a process of their own, in the memory that
is free; what fails there is recorded with its reason, and the sweep goes on. The file is written after each
combination; of a file that is there already, the combinations that it holds are not measured again. Peers whose
packages are not installed are recorded as absent (`pip install -c constraints.txt -e .[benchmarks]` adds them).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import date
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from isolation import run_cases
from measuring import hardware, versions
from networks import SIZES, Case
from peers import PEERS
from tasks import TASKS
from tasks.common import Settings

from wav2vec2_conformer.files import replacing

Record = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    sweep = parser.add_argument_group("the sweep (defaults by task; all combinations)")
    sweep.add_argument("--size", choices=SIZES, help="default: large for inference, base for the others")
    sweep.add_argument("--positions", nargs="+", choices=("relative", "rotary", "none"))
    sweep.add_argument("--seconds", nargs="+", type=positive(float), metavar="S", help="of a clip")
    sweep.add_argument("--batch", nargs="+", type=positive(int), metavar="B", help="clips; of mixed: in padded batches")
    sweep.add_argument("--threads", nargs="+", type=positive(int), default=[2], metavar="N")
    sweep.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    sweep.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="in training, by autocast"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME", help=", ".join(PEERS)
    )
    parser.add_argument("--rounds", type=positive(int), help="in which the peers take turns")
    parser.add_argument("--peak-tflops", type=positive(float), metavar="T", help="of the hardware, for the utilisation")
    parser.add_argument(
        "--largest", type=positive(float), metavar="GB", help="of ctc, pretraining: how many clips a step can hold"
    )
    parser.add_argument("--clips", type=positive(int), default=64, help="of mixed lengths")
    parser.add_argument("--batch-seconds", type=positive(float), default=120.0, help="of audio in our mixed batches")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    return parser


def positive(kind: type) -> Any:
    """A type of numbers above 0."""

    def read(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    read.__name__ = kind.__name__
    return read


def cases_of(options: argparse.Namespace) -> list[Case]:
    """All combinations, network by network, small ones first."""
    given = {**TASKS[options.task].DEFAULTS, **{name: value for name, value in vars(options).items() if value}}
    if options.task == "mixed" and options.seconds:
        raise ValueError("`mixed` draws its own lengths; leave --seconds away")
    if options.largest and options.task not in ("ctc", "pretraining"):
        raise ValueError("--largest is for training steps: ctc or pretraining")
    if options.largest:
        given["batch"] = [1]
    found = [
        Case(options.task, given["size"], positions, batch, seconds, threads, options.device, options.dtype)
        for positions, seconds, batch, threads in product(
            given["positions"], given["seconds"], given["batch"], options.threads
        )
    ]
    order = given["positions"]
    return sorted(dict.fromkeys(found), key=lambda case: (order.index(case.positions), case.audio))


def begin(options: argparse.Namespace, settings: Settings) -> Record:
    """The record to add to: a new one, or that of the file, if it was begun in the same way on the same machine."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware(options.device),
        "versions": versions(),
        "settings": json.loads(json.dumps(asdict(settings))),
        "results": [],
    }
    if not options.output.exists():
        options.output.parent.mkdir(parents=True, exist_ok=True)
        return record
    try:
        old = json.loads(options.output.read_text())
        changed = [name for name in ("hardware", "versions", "settings") if old[name] != record[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{options.output}: there is a file, and it holds no results; name another") from error
    if changed:
        others = " and ".join(changed)
        raise ValueError(f"{options.output}: holds results with other {others}; name another file, or remove it")
    return {**old, "command": record["command"]}


def commit() -> str:
    """Of the working tree; "+" where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


class Progress:
    """What is running, on stderr: a line that is overwritten in a terminal, and one that stays for each combination."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begun = total, 0, time.monotonic()
        self.terminal = sys.stderr.isatty()

    def say(self, what: str) -> None:
        """What runs now."""
        if self.terminal:
            print(f"\r\x1b[2K[{self.done + 1}/{self.total}] {what}", end="", file=sys.stderr, flush=True)

    def end(self, title: str, outcome: str) -> None:
        """A combination is done."""
        self.done, taken, self.begun = self.done + 1, time.monotonic() - self.begun, time.monotonic()
        clear = "\r\x1b[2K" if self.terminal else ""
        print(f"{clear}[{self.done}/{self.total}] {title} ({taken:.0f} s): {outcome}", file=sys.stderr, flush=True)


def summary(result: Record) -> str:
    """The figure to look at while a sweep runs."""
    if "failed" in result:
        return str(result["failed"])
    told = []
    for name, one in result["peers"].items():
        if "seconds" in one:
            ratio = f" {one['ratio_of_seconds']:.2f}x" if "ratio_of_seconds" in one else ""
            told.append(f"{name} {one['seconds']:.3g} s{ratio}")
        elif "clips" in one:
            told.append(f"{name} {one['clips']} clips")
        else:
            told.append(f"{name} " + ("failed" if "failed" in one else "absent"))
    return "; ".join(told)


def main() -> None:
    """Measure all combinations."""
    parser = build_parser()
    options = parser.parse_args()
    settings = Settings(
        tuple(options.peers),
        options.rounds or TASKS[options.task].DEFAULTS["rounds"],
        options.peak_tflops,
        options.largest,
        options.clips,
        options.batch_seconds,
    )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no such device here; use cpu")
    try:
        cases = cases_of(options)
        record = begin(options, settings)
    except ValueError as error:
        parser.error(str(error))
    known = [result["case"] for result in record["results"]]
    wanted = [case for case in cases if asdict(case) not in known]
    when = {"commit": commit(), "date": date.today().isoformat()}
    progress = Progress(len(wanted))
    for _, group in groupby(wanted, key=lambda case: case.positions):
        alike = list(group)
        for case, result in zip(alike, run_cases(alike, settings, progress.say), strict=True):
            record["results"].append({"case": asdict(case), **when, **result})
            with replacing(options.output) as path:
                path.write_text(json.dumps(record, indent=1) + "\n")
            progress.end(str(case), summary(result))


if __name__ == "__main__":
    main()
