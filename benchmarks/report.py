"""Results of `run.py` as Markdown tables, with hardware and versions, and as pictures.

    python benchmarks/report.py benchmarks/results/*.json [--plots docs/pictures]

Prints one section a file. Sweeps of inference have a table a quantity, with a column for each peer; the other tasks one
table with a row for each peer. Ratios are to the fastest mode of transformers in the same rounds: above 1 is faster, or
less memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from plots import draw

Record = dict[str, Any]
Rows = list[list[str]]


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


QUANTITIES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "seconds": ("s", number),
    "ratio_of_seconds": ("ratio", "{:.2f}".format),
    "ratio_of_processor_seconds": ("by processor seconds", "{:.2f}".format),
    "ratio_of_seconds_to_one_at_a_time": ("to theirs one at a time", "{:.2f}".format),
    "times_real_time": ("x real time", number),
    "share_of_matrix_rate": ("share of matrix rate", percent),
    "model_flop_utilisation": ("model FLOP utilisation", percent),
    "megabytes": ("MB beyond what is resident", number),
    "ratio_of_megabytes": ("ratio of MB", "{:.2f}".format),
    "megabytes_in_all": ("MB in all", number),
    "ratio_of_megabytes_in_all": ("ratio of MB in all", "{:.2f}".format),
    "share_of_drawing": ("drawing masks and negatives", percent),
    "difference": ("largest difference, of scale", "{:.1e}".format),
    "same_texts_as_one_at_a_time": ("same texts as one at a time", str),
    "first_call_seconds": ("first call, s", number),
    "clips": ("clips that fit", str),
}
MATRICES = {
    "Seconds (ratio to the best mode of transformers)": ("seconds", "ratio_of_seconds"),
    "The same by processor seconds": ("processor_seconds", "ratio_of_processor_seconds"),
    "Memory beyond what is resident, MB (ratio)": ("megabytes", "ratio_of_megabytes"),
    "Share of the machine's matrix rate in the peer's type": ("share_of_matrix_rate", None),
    "Model FLOP utilisation": ("model_flop_utilisation", None),
    "Largest difference of the outputs from transformers' in float32, of scale": ("difference", None),
}
TITLES = {
    "inference": "Inference",
    "ctc": "A step of CTC fine-tuning",
    "pretraining": "A step of pre-training",
    "mixed": "Recordings of mixed lengths",
}
BESIDE = {  # what may be missing beside peers
    "no_reference": "largest difference",
    "losses_not_compared": "difference of the losses",
    "operations_not_counted": "operations of ours",
}
CASE_COLUMNS = {"positions": "positions", "seconds": "clip, s", "batch": "batch", "threads": "threads"}


def markdown(rows: Rows) -> str:
    """A table, its first row the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def section(record: Record, title: str) -> str:
    """All of a file."""
    parts = [f"### {title}", "    " + record["command"], machine(record)]
    measured = [result for result in record["results"] if "failed" not in result]
    if measured:
        one = measured[0]["case"]
        parts.append(
            f"{one['task'].capitalize()}, {one['size']} model, {one['dtype']}, {one['device']}. " + work(measured)
        )
        parts += matrices(measured) if one["task"] == "inference" else [long_table(measured)]
    parts += ["\n".join(f"* {line}" for line in missing(record["results"]))]
    return "\n\n".join(part for part in parts if part)


def machine(record: Record) -> str:
    """Hardware and versions in a paragraph."""
    hardware, versions = record["hardware"], record["versions"]
    commits = sorted({result["commit"] for result in record["results"]})
    dates = sorted({result["date"] for result in record["results"]})
    told = [
        f"{hardware['processor']}, {hardware['cores']} cores ({', '.join(hardware['instructions'])})",
        f"{hardware['gigabytes']:g} GB",
        *(f"{name} {version}" for name, version in versions.items()),
        f"commit {', '.join(commits)}",
        " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "nothing measured",
        f"medians over rounds: {record['settings']['rounds']}",
    ]
    return ", ".join(told) + "."


def work(results: Iterable[Record]) -> str:
    """What the network needs and the machine can do, over the combinations."""
    rates: dict[str, list[float]] = {}
    told: list[str] = []
    for result in results:
        for kind, rate in result.get("matrix_rates", {}).items():
            rates.setdefault(f"{kind}, {threads(result['case'])}", []).append(rate / 1e9)
    if rates:
        each = "; ".join(f"{median(values):.0f} ({name})" for name, values in rates.items())
        told.append(f"Matrix products, median over the combinations, GFLOP/s: {each}.")
    for result in results:
        facts = []
        if "relative_difference_of_the_loss" in result:
            facts.append(f"relative difference of the loss {result['relative_difference_of_the_loss']:.1e}")
        if "gflop_counted_of_ours" in result:
            floor = result["seconds_of_these_at_the_matrix_rate"]
            facts.append(f"ours computes {result['gflop_counted_of_ours'] / 1e3:.3g} TFLOP a step with what is twice")
            facts.append("at the matrix rate " + ", ".join(f"{number(s)} s ({kind})" for kind, s in floor.items()))
        if "seconds_of_audio" in result:
            facts.append(f"{result['clips']} clips of {result['seconds_of_audio']:.0f} s in all")
            facts.append(f"{percent(result['padding_in_file_order'])} of padding in file order")
        if facts:
            head = f"{result['case']['positions']}, {threads(result['case'])}: {result['gflop'] / 1e3:.3g} TFLOP needed"
            told.append(f"{head}; " + "; ".join(facts) + ".")
    return " ".join(told)


def threads(case: Record) -> str:
    """Of a case, in words."""
    return "1 thread" if case["threads"] == 1 else f"{case['threads']} threads"


def peers_of(results: Iterable[Record]) -> list[str]:
    """All peers with a figure, in their order."""
    found = (name for result in results for name, one in result["peers"].items() if not {"absent", "failed"} & set(one))
    return list(dict.fromkeys(found))


def case_cells(case: Record) -> list[str]:
    """The columns that say which combination a row is of."""
    return [
        "mixed" if case[name] is None else f"{case[name]:g}" if name == "seconds" else str(case[name])
        for name in CASE_COLUMNS
    ]


def matrices(results: list[Record]) -> list[str]:
    """A table a quantity: combinations down, peers across."""
    found = []
    peers = peers_of(results)
    for title, (quantity, beside) in MATRICES.items():
        form = QUANTITIES.get(quantity, ("", number))[1]
        rows = [[*CASE_COLUMNS.values(), *peers]]
        for result in results:
            cells = []
            for name in peers:
                one = result["peers"].get(name, {})
                text = form(one[quantity]) if quantity in one else "-"
                cells.append(f"{text} ({one[beside]:.2f})" if beside in one else text)
            rows.append(case_cells(result["case"]) + cells)
        if any(cell != "-" for row in rows[1:] for cell in row[len(CASE_COLUMNS) :]):
            found.append(f"{title}:\n\n{markdown(rows)}")
    return found


def long_table(results: list[Record]) -> str:
    """A row for each combination and peer, a column for each quantity that there is."""
    all_figures = [one for result in results for one in result["peers"].values()]
    quantities = [name for name in QUANTITIES if any(name in one for one in all_figures)]
    rows = [[*CASE_COLUMNS.values(), "peer", *(QUANTITIES[name][0] for name in quantities)]]
    for result in results:
        for peer, one in result["peers"].items():
            if not {"absent", "failed"} & set(one):
                cells = [QUANTITIES[name][1](one[name]) if name in one else "-" for name in quantities]
                rows.append([*case_cells(result["case"]), peer, *cells])
    return markdown(rows)


def missing(results: list[Record]) -> list[str]:
    """Why there is no figure, a line for each peer and reason, with the combinations unless it is all of them."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        where = " x ".join(cell for cell in case_cells(result["case"])[:3]) + f", {threads(result['case'])}"
        whole = [("all peers", result)] if "failed" in result else list(result["peers"].items())
        for key, what in BESIDE.items():
            if key in result:
                whole.append((what, {"absent": result[key]}))
        for name, one in whole:
            for kind in {"absent", "failed"} & set(one):
                reasons.setdefault((name, f"{kind}: {one[kind]}"), []).append(where)
    return [
        f"{name} {why}" + ("" if len(where) == len(results) else f" ({'; '.join(where)})")
        for (name, why), where in reasons.items()
    ]


def read(path: Path) -> Record:
    """A file of results."""
    try:
        record: Record = json.loads(path.read_text())
        record["results"], record["hardware"], record["versions"], record["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: no results of benchmarks/run.py ({error!r})") from error
    return record


def main() -> None:
    """Print the sections and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write PNG files there")
    options = parser.parse_args()
    for path in options.results:
        record = read(path)
        print(section(record, path.stem) + "\n")
        if options.plots:
            options.plots.mkdir(parents=True, exist_ok=True)
            for name, png in draw(record, path.stem):
                (options.plots / f"{name}.png").write_bytes(png)
                print(f"![{name}]({options.plots.name}/{name}.png)\n")  # for a page beside the folder


if __name__ == "__main__":
    main()
