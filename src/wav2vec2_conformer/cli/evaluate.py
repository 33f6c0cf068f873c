"""`wav2vec2-conformer evaluate TASK`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .diarize import add_voices
from .messages import one_line
from .recordings import add_compute

if TYPE_CHECKING:
    from ..evaluation.run import Evaluation, Progress

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer evaluate ctc --data test.jsonl
  wav2vec2-conformer evaluate ctc --model my-model --data clean.jsonl other.jsonl --report report
  wav2vec2-conformer evaluate sequence --model keywords --data val.jsonl --json
  wav2vec2-conformer evaluate xvector --model speakers --data val.jsonl --calibrate
  wav2vec2-conformer evaluate frame --model diarizer --data calls.jsonl --collar 0.25 --rttm found

Every figure comes with its 95 % interval, of what other utterances of the same kind would have given (bootstrap). A
report is one HTML page with pictures, index.html. A recording that cannot be read is named on stderr, the figures are
of the others, and the exit code is 1.
"""
TASKS = {
    "ctc": ("speech recognition: WER, CER", '"text"'),
    "sequence": ("classes of recordings: accuracy, macro-F1", '"label"'),
    "frame": ("diarization: DER", '"segments" or "rttm"'),
    "xvector": ("speaker verification: EER, minDCF", '"speaker"'),
}
LINES = 5  # of lists in the summary


def add_parser(commands: Any) -> None:
    """Add the command."""
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "evaluate",
        help="figures of a model, with intervals and a report",
        description="Measure a model on manifests.",
        epilog=EXAMPLE,
        formatter_class=form,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task, (purpose, field) in TASKS.items():
        about = f"Measure {purpose}."
        one = tasks.add_parser(task, help=purpose, description=about, epilog=EXAMPLE, formatter_class=form)
        add = one.add_argument
        if task == "ctc":
            add("--model", metavar="M", help="folder or Hub id (default: the small English model of the package)")
        else:
            add("--model", required=True, metavar="M", help="folder or Hub id")
        add("--data", required=True, nargs="+", metavar="D", help=f'manifests: one {{"audio", {field}}} a line')
        if task == "xvector":
            pairs = "lines `1 a.wav b.wav` (one speaker) or `0 a.wav c.wav` (default: all pairs of each manifest)"
            add("--trials", metavar="FILE", help=pairs)
            add("--calibrate", action="store_true", help="write the threshold at the EER into the model's folder")
        if task == "frame":
            collar = "seconds before and after where speakers start and stop that do not count (%(default)s)"
            add("--collar", type=float, default=0.0, metavar="S", help=collar)
            add_voices(one)
            add("--rttm", metavar="DIR", help="write what was found, one RTTM file a recording")
        add("--json", action="store_true", help="one JSON object in place of the summary")
        add("--report", metavar="DIR", help="write index.html, its pictures and evaluation.json")
        add_compute(one)
        one.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, write, and say in the exit code whether every recording could be read."""
    from ..evaluation.report import write_report  # imported late: `--help` need not wait for torch
    from ..evaluation.xvector import calibrate, calibration_file
    from ..files import writable_folder

    report = Path(options.report) if options.report else None
    if report is not None:  # what cannot be written is said before anything is computed
        writable_folder(report)
    calibrates = options.task == "xvector" and options.calibrate
    if calibrates:
        calibration_file(options.model)
    shown = sys.stderr.isatty()
    with tqdm(unit="s", unit_scale=True, file=sys.stderr, disable=not shown, delay=0.1) as bar:

        def progress(seconds: float, total: float) -> None:
            bar.total = round(total, 1)
            bar.update(round(min(seconds, bar.total - bar.n), 2))  # manifests round durations

        evaluation = evaluate(options, progress)
    if options.compute_type != "float32":
        print(f"wav2vec2-conformer: {evaluation.environment['compute type']}", file=sys.stderr)
    for skipped in evaluation.skipped:
        print(f"wav2vec2-conformer: {one_line(skipped.file)}: {one_line(skipped.problem)}", file=sys.stderr)
    if options.json:
        print(json.dumps(evaluation.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        for line in summary(evaluation):
            print(line)
    if report is not None:
        print(f"report: {write_report(report, evaluation, command=command_of(options))}", file=sys.stderr)
    if calibrates:
        print(f"threshold: {calibrate(evaluation)}", file=sys.stderr)
    return 1 if evaluation.skipped else 0


def evaluate(options: argparse.Namespace, progress: Progress) -> Evaluation:
    """Call the task's evaluation."""
    common: dict[str, Any] = {
        "device": options.device,
        "batch_seconds": options.batch_seconds,
        "compute_type": options.compute_type,
        "progress": progress,
    }
    if options.task == "ctc":
        from ..evaluation.ctc import evaluate_ctc

        return evaluate_ctc(options.model, options.data, **common)
    if options.task == "sequence":
        from ..evaluation.sequence import evaluate_sequence

        return evaluate_sequence(options.model, options.data, **common)
    if options.task == "frame":
        from ..evaluation.frame import evaluate_frame

        voices = {"speaker_model": options.speaker_model, "speakers": options.speakers}
        return evaluate_frame(options.model, options.data, collar=options.collar, rttm=options.rttm, **voices, **common)
    from ..evaluation.xvector import evaluate_xvector

    return evaluate_xvector(options.model, options.data, trials=options.trials, **common)


def command_of(options: argparse.Namespace) -> str:
    """The command that gives these options, for a shell."""
    words = ["wav2vec2-conformer", "evaluate", options.task]
    for name, value in vars(options).items():
        if name not in ("command", "task", "run") and value not in (None, False):
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def summary(evaluation: Evaluation) -> Iterator[str]:
    """The figures for people."""
    from ..evaluation.run import FIGURES, Figure

    minutes = f"{evaluation.seconds / 60:.1f} minutes"
    yield f"{evaluation.model} on {evaluation.utterances:,} recordings ({minutes}) of {', '.join(evaluation.data)}"
    for name, figure in evaluation.figures.items():
        kind = FIGURES[name]
        yield f"{kind.title:12} {figure.text(kind):>9}  {figure.interval_text(kind)}".rstrip()
    yield f"in brackets: 95 % intervals over {evaluation.unit}"
    yield ", ".join(
        f"{name.replace('_', ' ')} {value:,}{'' if isinstance(value, int) else ' s'}"
        for name, value in evaluation.counts.items()
    )
    for path, own in evaluation.by_data.items():
        shown = (f"{FIGURES[name].title} {Figure(value).text(FIGURES[name])}" for name, value in own.figures.items())
        yield f"{path}: {own.utterances:,} recordings, {', '.join(shown)}"
    for line in evaluation.details.lines(LINES):
        yield one_line(line)
