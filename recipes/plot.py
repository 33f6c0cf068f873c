"""Draw the curves of trainings by CTC, one after the other or one over the other, from their TensorBoard logs.

python recipes/plot.py --output curves.png [--over-one-another] RUN [RUN ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def series(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a tag, over all event files of a run."""
    points: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(tag)}
    return sorted(points), [points[step] for step in sorted(points)]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--over-one-another", action="store_true", help="each from step 0, to compare them")
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    titles = {
        "train/loss": "CTC loss an utterance",
        "eval/wer": "dev: WER, dashed CER",
        "train/learning_rate": "learning rate",
    }
    offset = 0
    for number, run in enumerate(options.runs):
        last = 0
        for axis, (tag, title) in zip(axes, titles.items(), strict=True):
            steps, values = series(run, tag)
            last = max([last, *steps])
            axis.plot([step + offset for step in steps], values, color=f"C{number}", label=run.name)
            if tag == "eval/wer":
                steps, values = series(run, "eval/cer")
                axis.plot([s + offset for s in steps], values, "--", color=f"C{number}")
                axis.set_ylim(bottom=0)
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.locator_params(axis="x", nbins=6)
            axis.grid(alpha=0.3)
        offset += 0 if options.over_one_another else last
    if axes[0].get_ylim()[0] > 0:  # where priors are divided out, a loss is below 0
        axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
