"""Pictures of evaluations, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .run import Evaluation
from .trials import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .ctc import CTCDetails
    from .frame import FrameDetails
    from .sequence import SequenceDetails
    from .xvector import XVectorDetails

__all__ = ["Picture", "draw"]

BLUE, GREEN, ORANGE, RED, GREY = "#2563a8", "#3f8f5f", "#d97706", "#b91c1c", "#6b7280"
WRITTEN, NAMED = 15, 60  # most classes whose counts are written into the confusion matrix, and that are named
BARS = 30  # recordings
COLUMNS = 60  # of the histograms of scores
CORNER = 5e-4  # where the axes of the DET curve begin: 0 would be at minus infinity


class Picture(NamedTuple):
    """A PNG file: its name without suffix, what it shows, and its bytes."""

    name: str
    caption: str
    png: bytes


def draw(evaluation: Evaluation) -> list[Picture]:
    """The pictures of a task; none where there is nothing to show."""
    drawn: dict[str, Callable[[Any], list[Picture]]] = {
        "ctc": draw_ctc,
        "sequence": draw_sequence,
        "frame": draw_frame,
        "xvector": draw_xvector,
    }
    return drawn[evaluation.task](evaluation.details)


def draw_ctc(details: CTCDetails) -> list[Picture]:
    """How the utterances' error rates are spread."""
    if not details.utterance_wer.size:
        return []
    figure, axis = canvas(7.5, 3.4)
    rates = 100 * np.minimum(details.utterance_wer, 1)
    right = int((rates == 0).sum())
    axis.hist(rates[rates > 0], bins=[5 * edge for edge in range(21)], color=BLUE, edgecolor="white")
    axis.bar(-4, right, width=4, color=GREEN, label=f"without an error: {right:,} of {len(rates):,}")
    axis.set(xlabel="WER of an utterance in % (100: 100 and more)", ylabel="utterances", xlim=(-7, 101))
    axis.set_xticks(range(0, 101, 20))
    axis.legend(frameon=False)
    return [Picture("wer_histogram", "How the error rates of single utterances are spread.", png(figure))]


def draw_sequence(details: SequenceDetails) -> list[Picture]:
    """The confusion matrix, each row as shares of its class."""
    counts, labels = details.confusion.counts, details.confusion.labels
    size = len(labels)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.2 + 0.2 * size, 4, 13))
    figure, axis = canvas(side + 1.2, side)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the class", shrink=0.8)
    axis.set(xlabel="given class", ylabel="true class")
    axis.grid(visible=False)
    if size <= NAMED:
        small = 9 if size <= 20 else 7
        axis.set_xticks(range(size), [plain(label) for label in labels], rotation=90, fontsize=small)
        axis.set_yticks(range(size), [plain(label) for label in labels], fontsize=small)
    if size <= WRITTEN:
        for row, column in np.ndindex(size, size):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=color)
    return [Picture("confusion", "Confusion matrix: which class (row) was taken for which (column).", png(figure))]


def draw_frame(details: FrameDetails) -> list[Picture]:
    """The parts of the DER of the recordings where it is highest."""
    shown = [one for one in details.recordings if one.errors.speech > 0][:BARS]
    figure, axis = canvas(8, 1.4 + 0.26 * len(shown))
    begin = np.zeros(len(shown))
    names = [short(plain(one.file)) for one in shown]
    places = np.arange(len(shown))
    for part, color in (("missed", BLUE), ("false_alarm", ORANGE), ("confusion", RED)):
        shares = np.array([100 * getattr(one.errors, part) / one.errors.speech for one in shown])
        axis.barh(places, shares, left=begin, color=color, label=part.replace("_", " "), height=0.7)
        begin += shares
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("% of the speakers' time")
    axis.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return [
        Picture("der_parts", "Missed, false and confused time of the recordings with the highest DER.", png(figure))
    ]


def draw_xvector(details: XVectorDetails) -> list[Picture]:
    """The DET curve, and the scores of both kinds of trials."""
    curve = details.scored.curve
    figure, axis = canvas(5, 4.7)
    axis.plot(probit(curve.false_alarm), probit(curve.miss), color=BLUE, linewidth=1.6)
    eer = probit(np.array([curve.eer]))
    axis.plot(eer, eer, "o", color=ORANGE, label=f"EER {100 * curve.eer:.2f} %")
    ticks = np.array([0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    labels = [f"{100 * tick:g}" for tick in ticks]
    axis.set_xticks(probit(ticks), labels)
    axis.set_yticks(probit(ticks), labels)
    bounds = probit(np.array([CORNER, np.clip(2 * curve.eer, 0.5, 0.95)]))
    axis.set(xlim=bounds, ylim=bounds, xlabel="false alarms in %", ylabel="misses in %")
    axis.plot(bounds, bounds, color=GREY, linewidth=0.6, linestyle=":")
    axis.legend(frameon=False)
    pictures = [Picture("det", "DET curve: misses against false alarms at every threshold.", png(figure))]

    figure, axis = canvas(7, 3.4)
    kinds = np.stack([details.scored.nontarget_histogram, details.scored.target_histogram])  # (2, bins)
    shares = 100 * kinds / kinds.sum(1, keepdims=True)
    used = np.flatnonzero((shares > 0.01).any(0))
    wide = -(-(used[-1] + 1 - used[0]) // COLUMNS)  # so many bins are one column
    begins = np.arange(used[0], used[-1] + 1, wide)
    edges = BINS[0] + (BINS[1] - BINS[0]) * np.append(begins, begins[-1] + wide)
    for share, color, label in zip(shares, (RED, BLUE), ("different speakers", "one speaker"), strict=True):
        columns = np.add.reduceat(share, begins)
        axis.stairs(columns, edges, fill=True, color=color, alpha=0.55, label=label)
    axis.axvline(curve.eer_threshold, color="black", linewidth=1, linestyle="--", label="threshold at the EER")
    axis.set(xlabel="cosine of the two embeddings", ylabel="% of the trials")
    axis.legend(frameon=False)
    return [*pictures, Picture("scores", "Scores of trials of one speaker and of different speakers.", png(figure))]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of inches."""
    from matplotlib.figure import Figure  # imported late: only a report needs it

    figure = Figure(figsize=(width, height), layout="constrained")  # without pyplot, whose state is the caller's
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    return figure, axis


def png(figure: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def plain(text: str) -> str:
    """A text that matplotlib does not take for a formula, in one line."""
    return " ".join(text.split()).replace("$", r"\$")


def short(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= 40 else f"...{name[-37:]}"


def probit(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares on the axes of a DET curve: the quantiles of a normal distribution (Martin et al. 1997)."""
    quantiles: NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(np.clip(shares, 1e-6, 1 - 1e-6))).numpy()
    return quantiles
