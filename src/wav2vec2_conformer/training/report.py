"""A picture of a training: what it logged, over its updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import replacing

__all__ = ["FINE_TUNING", "PRETRAINING", "Panel", "write_report"]

# Title, axis label, (key, label) of each curve
Panel = tuple[str, str, list[tuple[str, str]]]
COURSE: list[Panel] = [
    ("Learning rate", "", [("learning_rate", "learning rate")]),
    ("Gradient norm", "", [("grad_norm", "before clipping")]),
    ("Speed", "times real time", [("speed", "audio seconds a second")]),
]
PRETRAINING: list[Panel] = [
    ("Contrastive loss", "nats a masked frame", [("contrastive", "training"), ("eval_contrastive", "development")]),
    ("Accuracy", "share of masked frames", [("accuracy", "training"), ("eval_accuracy", "development")]),
    ("Entries in use", "perplexity", [("hard_perplexity", "chosen"), ("soft_perplexity", "softmax")]),
    *COURSE,
]
FIGURES = "wer cer blank accuracy macro_f1 eer der missed false_alarm confusion".split()
FINE_TUNING: list[Panel] = [
    ("Loss", "training", [("loss", "training")]),
    ("Development set", "share", [(f"eval_{name}", name.replace("_", " ")) for name in FIGURES]),
    ("Logits and network", "", [("logit_scale", "root mean square of the logits"), ("drift", "network: way / norm")]),
    *COURSE,
]


def write_report(path: Path, history: list[dict[str, Any]], panels: list[Panel], diagnosis: str | None = None) -> None:
    """Draw a training's logs as a PNG, in one atomic step; nothing where there are no logs.

    Args:
        path: of the picture.
        history: `trainer.state.log_history`.
        panels: six of them.
        diagnosis: why it was stopped, written above the curves.
    """
    shown = {key for _, _, curves in panels for key, _ in curves} - {"learning_rate", "grad_norm", "speed"}
    if not any(key in log for log in history for key in shown):
        return
    from matplotlib.figure import Figure  # imported late: only the end of a training needs it

    figure = Figure(figsize=(13, 6.5), layout="constrained")  # without pyplot, whose state is the caller's
    for axis, (title, unit, lines) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for key, label in lines:
            for name in sorted({name for log in history for name in log if name == key or is_group(name, key)}):
                points = [(log["step"], log[name]) for log in history if name in log]
                group = f", group {name.rsplit('_', 1)[1]}" if name != key else ""
                marker = "o" if key.startswith("eval") or len(points) < 3 else None
                axis.plot(*zip(*points, strict=True), label=label + group, linewidth=1.2, marker=marker, markersize=3)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("update", fontsize=9)
        axis.set_ylabel(unit, fontsize=9)
        if all((line.get_ydata() >= 0).all() for line in axis.lines):
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    if diagnosis:
        figure.suptitle(diagnosis, fontsize=9, color="firebrick", wrap=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def is_group(name: str, key: str) -> bool:
    """Whether a name is that of a codebook group's figure."""
    return name.startswith(f"{key}_") and name.removeprefix(f"{key}_").isdigit()
