"""Pictures of results: a line for each peer over lengths or batches, or bars where there is one combination."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
Picture = tuple[str, bytes]  # name, PNG

COLORS = {
    "transformers-eager": "#9ca3af",
    "transformers-sdpa": "#6b7280",
    "transformers-compiled": "#111827",
    "onnxruntime": "#d97706",
    "openvino": "#b91c1c",
    "openvino-bfloat16": "#f472b6",
    "ours": "#2563a8",
    "ours-compiled": "#0e7490",
    "ours-bfloat16": "#3f8f5f",
    "ours-int8": "#7c3aed",
}
QUANTITIES = {
    "times_real_time": ("speed", "seconds of audio a second"),
    "ratio_of_seconds": ("ratio", "times as fast as the best mode of transformers"),
    "megabytes": ("memory", "MB beyond what is resident"),
}
AXES = {"seconds": ("length", "seconds of a clip"), "batch": ("batch", "clips of a batch")}


def draw(record: Record, title: str) -> Iterator[Picture]:
    """The pictures of a file."""
    results = [result for result in record["results"] if "failed" not in result]
    swept = [axis for axis in AXES if len({result["case"][axis] for result in results}) > 1]
    for axis in swept:
        for quantity, (short, label) in QUANTITIES.items():
            if figures(results, quantity):
                yield f"{title}-{short}-by-{AXES[axis][0]}", lines(along(results, axis), axis, quantity, label)
    if not swept:
        for quantity, (short, label) in QUANTITIES.items():
            if figures(results, quantity):
                yield f"{title}-{short}", bars(results, quantity, label)


def figures(results: list[Record], quantity: str) -> list[float]:
    """All there are of a quantity."""
    return [one[quantity] for result in results for one in result["peers"].values() if quantity in one]


def along(results: list[Record], axis: str) -> list[Record]:
    """The results with the least of what else is swept: the other axis."""
    (other,) = set(AXES) - {axis}
    least = min(result["case"][other] for result in results)
    return [result for result in results if result["case"][other] == least]


def panels(results: list[Record]) -> dict[str, list[Record]]:
    """Results by what a panel of the picture shows."""
    found: dict[str, list[Record]] = {}
    for result in results:
        case = result["case"]
        plural = "" if case["threads"] == 1 else "s"
        found.setdefault(f"{case['positions']}, {case['threads']} thread{plural}", []).append(result)
    return found


def lines(results: list[Record], axis: str, quantity: str, label: str) -> bytes:
    """A panel for each type of positions and number of threads, a line for each peer."""
    shown = panels(results)
    figure, axes = canvas(len(shown), 3.6, 3.6, shared=True)
    for place, (title, own) in zip(axes, shown.items(), strict=True):
        own = sorted(own, key=lambda result: result["case"][axis])
        for name in peers_of(own):
            points = [
                (r["case"][axis], r["peers"][name][quantity]) for r in own if quantity in r["peers"].get(name, {})
            ]
            place.plot(*zip(*points, strict=True), "o-", color=color(name), label=name, linewidth=1.5, markersize=3.5)
        place.set_xscale("log")
        ticks = sorted({result["case"][axis] for result in own})
        place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        place.minorticks_off()
        if quantity == "megabytes":
            place.set_yscale("log")
            place.yaxis.set_major_formatter("{x:g}")
            place.yaxis.set_minor_formatter("{x:g}")
            place.tick_params(axis="y", which="minor", labelsize=7)
        place.set_title(title, fontsize=10)
        place.set_xlabel(AXES[axis][1])
    if quantity != "megabytes":
        axes[0].set_ylim(bottom=0)  # at the end: from then on the shared axis does not grow
    axes[0].set_ylabel(label)
    legend(figure, axes)
    return png(figure)


def bars(results: list[Record], quantity: str, label: str) -> bytes:
    """A panel for each type of positions and number of threads, a bar for each peer."""
    shown = panels(results)
    most = max(len(peers_of(own)) for own in shown.values())
    figure, axes = canvas(len(shown), 4.4, 1.0 + 0.3 * most)
    for place, (title, own) in zip(axes, shown.items(), strict=True):
        peers = own[0]["peers"]
        measured = {name: one[quantity] for name, one in peers.items() if quantity in one}
        drawn = place.barh(range(len(measured)), list(measured.values()), color=[color(name) for name in measured])
        place.bar_label(drawn, [f"{value:.3g}" for value in measured.values()], padding=3, fontsize=8)
        place.set_yticks(range(len(measured)), list(measured), fontsize=8)
        place.invert_yaxis()
        place.margins(x=0.15)
        place.set_title(title, fontsize=10)
        place.set_xlabel(label)
    return png(figure)


def peers_of(results: list[Record]) -> list[str]:
    """All that ran in one of these."""
    names = (name for result in results for name, one in result["peers"].items() if not {"absent", "failed"} & set(one))
    return list(dict.fromkeys(names))


def color(name: str) -> str:
    """Of a peer, in whichever way it runs."""
    return COLORS.get(name.partition(",")[0], "#000000")


def canvas(count: int, width: float, height: float, *, shared: bool = False) -> tuple[Any, list[Any]]:
    """A picture of panels side by side, with one scale of heights if `shared`."""
    from matplotlib.figure import Figure  # imported late: the tables go without

    figure = Figure(figsize=(width * count + 0.5, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, sharey=shared)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes


def legend(figure: Any, axes: list[Any]) -> None:
    """One for all panels, below them."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(2, 3 * len(axes) - 2)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def png(figure: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()
