"""`wav2vec2-conformer inspect MODEL`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .messages import one_line

if TYPE_CHECKING:
    from ..inspection import Inspection

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer inspect
  wav2vec2-conformer inspect --json my-model

Says what a model is without loading its weights: size, head, letters, languages, licence, memory, speed, and what is
wrong or easily overlooked. The speed is an estimate for this machine's CPU. Nothing is downloaded, and nothing in the
files is executed. Where there is no model, or a damaged one, the exit code is 2.
"""
SHOWN = 60  # characters of a vocabulary


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a model is, without loading its weights",
        description="Say what a model is, without loading its weights.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        default="default",
        metavar="MODEL",
        help="folder, Hub id of a downloaded model, or `default` (or nothing): the small English model of the package",
    )
    add("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inspect and print."""
    from ..inspection import inspect_model  # imported late: `--help` need not wait for torch

    found = inspect_model(options.model)
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "path": str(found.path)}, indent=2, ensure_ascii=False))
        return 0
    for name, value in table(found):
        print(f"{name:14}{one_line(value)}".rstrip())
    return 0


def table(found: Inspection) -> Iterator[tuple[str, str]]:
    """The rows of the table: a name and a value."""
    yield "model", str(found.path)
    yield "head", head(found)
    yield "parameters", f"{found.parameters:,} in {counted(found.blocks, 'block')} of width {found.width}"
    yield "", f"besides {found.buffers:,} in buffers, and {found.unused:,} that are stored and never used"
    yield "positions", found.position_embeddings or "none"
    yield "norms", f"{found.feature_extractor_norm} (feature encoder), {found.encoder_layer_norm} the blocks (encoder)"
    said = {None: "unknown whether they are normalised", True: "normalised", False: "as they are"}
    yield "waveforms", said[found.do_normalize]
    yield (
        "frames",
        f"{found.frames_per_second:.5g} a second, one every {1000 / found.frames_per_second:.5g} ms from "
        f"{found.receptive_field_ms:.5g} ms of audio",
    )
    if letters := found.vocabulary:
        more = f" ... {len(letters.characters) - SHOWN} more" if len(letters.characters) > SHOWN else ""
        yield (
            "vocabulary",
            f"{counted(len(letters.characters), 'character')}: {' '.join(letters.characters[:SHOWN])}{more}",
        )
        delimiter = f", between words {letters.word_delimiter}" if letters.word_delimiter else ""
        yield "", f"special {' '.join(letters.special_tokens)}, blank {letters.blank}{delimiter}"
    yield "languages", " ".join(found.languages) or "no language adapters"
    yield "licence", found.licence or "not said"
    yield "weights", ", ".join(found.files) or "none"
    yield "stored", ", ".join(f"{numbers:,} numbers in {dtype}" for dtype, numbers in found.stored.items())
    yield "memory", ", ".join(f"{sized(size)} in {dtype}" for dtype, size in found.memory.items())
    yield "speed", speed(found)
    for number, pitfall in enumerate(found.pitfalls):
        yield "warnings" if number == 0 else "", pitfall.message
    if not found.pitfalls:
        yield "warnings", "none"


def head(found: Inspection) -> str:
    """The class and the width of its output."""
    if found.vocab_size is not None:
        return f"{found.architecture}, {counted(found.vocab_size, 'token')}"
    return found.architecture + (f", {counted(found.num_labels, 'label')}" if found.num_labels is not None else "")


def speed(found: Inspection) -> str:
    """The estimate in words."""
    if found.speed is None:
        return "not estimated: it would take too long, or no clip can be run"
    seconds, threads = found.speed.seconds, counted(found.speed.threads, "CPU thread")
    return (
        f"about {seconds:.2g} s for {found.speed.clip:g} s of audio, {found.speed.times_real_time:.2g} times real time "
        f"(estimated, float32, {threads})"
    )


def sized(size: int) -> str:
    """Bytes in words; of small models in kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def counted(number: int, noun: str) -> str:
    """A number and a noun in its singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
