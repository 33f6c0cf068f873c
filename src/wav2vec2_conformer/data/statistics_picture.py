"""Manifests in one picture: how recordings, speakers, classes and characters are spread."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from .manifest import Utterance
from .measurement import FRAME_SECONDS, AudioFacts
from .statistics import MeasuredManifest, summarize

__all__ = ["draw_statistics"]

COLORS = ("#2f6690", "#e07a1f", "#3a8f5c", "#8a4f9e", "#7a7a7a")
BARS = 42  # classes or characters that have room
MOST_BINS = 40

Axis = Any  # matplotlib.axes.Axes; the library is imported when something is drawn
Readable = list[tuple[Utterance, AudioFacts]]


@dataclass(frozen=True)
class Panel:
    """A title, the label of the x axis, and what to draw of each manifest (one list a manifest)."""

    title: str
    unit: str
    draw: Callable[[Axis, list[Any]], None]
    data: list[Any]


def draw_statistics(path: Path, measured: Sequence[MeasuredManifest]) -> None:
    """Draw manifests over one another as a PNG, in one atomic step; panels of which nothing is known are left out.

    Args:
        path: of the picture.
        measured: manifests, of whose recordings at least one can be read.

    Raises:
        ValueError: no recording of any manifest can be read.
    """
    from matplotlib.figure import Figure  # imported late: only a picture needs it
    from matplotlib.patches import Patch

    panels = [panel for panel in panels_of([m.readable for m in measured]) if any(map(len, panel.data))]
    if not panels:
        raise ValueError(f"{path}: no recording can be read, so there is nothing to draw")
    columns = 4 if len(panels) in (4, 7, 8) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    # Without pyplot, whose state is the caller's.
    figure = Figure(figsize=(max(8, 4.6 * columns), 3.6 * rows + 0.3 + 0.25 * len(measured)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        panel.draw(axis, panel.data)
        axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel(panel.unit, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.set_axisbelow(True)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(bottom=0)
    for axis in figure.axes[len(panels) :]:
        axis.set_visible(False)
    handles = [Patch(color=color(number), label=caption(manifest)) for number, manifest in enumerate(measured)]
    figure.legend(handles=handles, loc="outside upper left", fontsize=10, frameon=False, handlelength=1)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # letters that the font lacks: a box
        figure.savefig(temporary, dpi=110)


def caption(measured: MeasuredManifest) -> str:
    """A manifest in one line."""
    found = summarize(measured)
    parts = [f"{found.recordings:,} recordings", f"{found.hours:.2f} h"]
    parts += [f"{len(found.speakers):,} speakers"] if found.speakers else []
    parts += [f"{len(found.labels):,} classes"] if found.labels else []
    parts += [f"{found.clipped:,} clipped"] if found.clipped else []
    parts += [f"{found.unreadable:,} unreadable"] if found.unreadable else []
    twice = sum(len(group) - 1 for group in found.duplicate_audio) + len(found.duplicate_entries)
    parts += [f"{twice:,} there twice"] if twice else []
    return plain(f"{Path(found.name).name}: {', '.join(parts)}")


def plain(name: str) -> str:
    """A name as it is, in one line: between dollar signs, matplotlib would read formulas."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shown.replace("$", r"\$")


def panels_of(readable: list[Readable]) -> Iterator[Panel]:
    """All panels, also those without data."""

    def each(values: Callable[[Utterance, AudioFacts], Iterable[float]]) -> list[list[float]]:
        return [[value for utterance, facts in r for value in values(utterance, facts)] for r in readable]

    yield Panel("Duration", "seconds", histogram, each(lambda u, f: [f.duration]))
    yield Panel("Minutes of each speaker", "speakers, by minutes", ranks, [minutes(r) for r in readable])
    labels = [Counter(u.label for u, _ in r if u.label is not None) for r in readable]
    yield Panel("Recordings of each class", "", bars, labels)
    characters = [Counter("".join(u.text or "" for u, _ in r).replace(" ", "␣")) for r in readable]
    yield Panel("Characters, in %", "", bars, [shares(counts) for counts in characters])
    rate = each(lambda u, f: [len(u.text) / f.duration] if u.text and f.duration > 0 else [])
    yield Panel("Speaking rate", "characters a second", histogram, rate)
    segments = each(lambda u, _: [s.end - s.start for s in u.segments or ()])
    yield Panel("Length of segments", "seconds", histogram, segments)
    level = each(lambda _, f: [f.level_db] if f.level_db is not None else [])
    yield Panel("Level", "dB of full scale", histogram, level)
    yield Panel(
        "Silence", "% of a recording's frames", partial(histogram, step=2.0), each(lambda _, f: [100 * f.silent])
    )
    ends = each(lambda _, f: [f.leading + f.trailing] if f.silent < 1 else [])
    yield Panel("Silence before and after the sound", "seconds", partial(histogram, step=FRAME_SECONDS), ends)


def minutes(readable: Readable) -> list[float]:
    """Minutes of each speaker, by the segments where there are some."""
    seconds: Counter[str] = Counter()
    for utterance, facts in readable:
        if utterance.segments is not None:
            for segment in utterance.segments:
                seconds[segment.speaker] += segment.end - segment.start  # type: ignore[assignment]
        elif utterance.speaker is not None:
            seconds[utterance.speaker] += facts.duration  # type: ignore[assignment]
    return sorted((value / 60 for value in seconds.values()), reverse=True)


def shares(counts: Counter[str]) -> dict[str, float]:
    """Counts in per cent of their sum."""
    return {name: 100 * count / counts.total() for name, count in counts.items()}


# --- kinds of panels -------------------------------------------------------------------------------------------------


def edges_of(data: list[list[float]], step: float | None = None) -> Any:
    """Bins from the lowest to the highest value, without the outermost thousandth, which would squeeze the rest.

    Values that are multiples of `step` lie equally many to a bin: others would show gaps that are none.
    """
    values = np.concatenate([np.asarray(values, np.float64) for values in data])
    low, high = np.quantile(values, (0.001, 0.999))
    bins = int(np.clip(2 * np.sqrt(max(map(len, data))), 10, MOST_BINS))  # few recordings would make a comb
    if step is not None:
        width = step * max(1, np.ceil((high - low) / step / bins))
        first = np.floor(low / width) * width - step / 2
        return first + width * np.arange(np.floor((high - first) / width) + 2)
    return np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)


def histogram(axis: Axis, data: list[list[float]], step: float | None = None) -> None:
    """Distributions over one another, each in per cent of its own number."""
    edges = edges_of(data, step)
    for number, values in enumerate(data):
        if values:
            inside = np.clip(values, edges[0], edges[-1])
            weights = np.full(len(values), 100 / len(values))
            axis.hist(inside, edges, weights=weights, color=color(number), alpha=0.75 if number == 0 else 0.6)
    axis.set_ylabel("% of them", fontsize=9)


def ranks(axis: Axis, data: list[list[float]]) -> None:
    """Falling values as steps, which have room for any number of speakers."""
    axis.xaxis.get_major_locator().set_params(integer=True)
    for number, values in enumerate(data):
        axis.stairs(values, np.arange(len(values) + 1), fill=True, color=color(number), alpha=0.75)


def bars(axis: Axis, data: list[dict[str, float]]) -> None:
    """The most frequent names, side by side."""
    total = Counter[str]()
    for counts in data:
        total.update(counts)
    names = [name for name, _ in total.most_common(BARS)]
    width = 0.85 / len(data)
    for number, counts in enumerate(data):
        places = np.arange(len(names)) + (number - (len(data) - 1) / 2) * width
        axis.bar(places, [counts.get(name, 0) for name in names], width, color=color(number))
    long = max(map(len, names)) > 2
    axis.set_xticks(range(len(names)), [plain(name) for name in names], rotation=90 if long else 0)
    axis.set_xlim(-0.7, len(names) - 0.3)
    if len(total) > len(names):
        axis.set_xlabel(f"the most frequent {len(names)} of {len(total):,}", fontsize=9)


def color(number: int) -> str:
    """Of a manifest."""
    return COLORS[number % len(COLORS)]
