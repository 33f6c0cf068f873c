"""`wav2vec2-conformer export MODEL OUT --to transformers`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser"]

EXAMPLE = """\
examples:
  wav2vec2-conformer export my-model for-transformers --to transformers
  wav2vec2-conformer export default for-transformers --to transformers

transformers: a folder that the classes of the transformers library, 4.34 and later, load and compute the same with,
for a clip without padding. What they cannot compute is refused: the exit code is 2, and nothing is written.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a model for another program",
        description="Write a model, with its processor, as a folder for another program.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or Hub id, or `default`: the small English model of the package")
    add("output", metavar="OUT", help="folder to write; it must not exist yet")
    add("--to", required=True, choices=["transformers"], help="the program that is to read it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, and say what was written."""
    from ..checkpoints.transformers_export import export_transformers  # imported late: `--help` need not wait for torch

    done = export_transformers(options.model, options.output)
    print(f"{done.output}: {done.architecture} with {done.weights} tensors")
    return 0
