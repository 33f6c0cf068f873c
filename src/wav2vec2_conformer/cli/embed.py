"""`wav2vec2-conformer embed FILE ...`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recordings import INPUTS, Recordings, add_compute, add_recordings, find, load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["add_parser"]

EXAMPLE = f"""\
examples:
  wav2vec2-conformer embed --model speaker-model --output speakers.npy recordings/
  wav2vec2-conformer embed --model speaker-model --output speakers.parquet recordings/
  wav2vec2-conformer embed --model speaker-model --json talk.wav

{INPUTS}
A recording's vector has length 1, so the product of two is their similarity. The suffix of --output decides
what is written: .npy, an array (recordings, width) of float32, with the recordings' names, in its order, as a list in
NAME.files.json beside it; .parquet, a table with the columns file and embedding (needs pyarrow). --json prints the
vectors. A file that cannot be read is named on stderr and left out, and the exit code is 1.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "embed",
        help="recordings in, vectors of their speakers out",
        description="Turn recordings into vectors that say who speaks.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_recordings(parser)
    add("--model", required=True, metavar="MODEL", help="folder (see `train xvector`) or Hub id")
    add("--output", metavar="FILE", help="where to write: a .npy or .parquet file; one that is there is replaced")
    add("--json", action="store_true", help='print one JSON object a line: {"file", "embedding"} or {"file", "error"}')
    add_compute(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Embed, write, and say in the exit code whether every file could be read."""
    from ..verification import SpeakerEncoder  # imported late: `--help` need not wait for torch

    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_output(output)
    elif not options.json:
        raise ValueError("expected --output with the .npy or .parquet file to write, or --json to print the vectors")
    recordings = Recordings(find(options.files), as_json=options.json)
    encoder = load(SpeakerEncoder, options)
    files: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for file, vector in recordings.results(encoder.embed_many):
        # as exact as float32 is, and no longer
        recordings.write({"file": file, "embedding": [float(str(value)) for value in vector]}, [])
        if output is not None:
            files.append(file)
            vectors.append(vector)
    if output is not None and vectors:
        write_vectors(output, files, vectors)
        print(f"{output}: {len(vectors)} vectors of {len(vectors[0])} numbers", file=sys.stderr)
    return recordings.exit_code


def check_output(output: Path) -> None:
    """Refuse an output that could not be written, before anything is computed."""
    if output.suffix not in (".npy", ".parquet"):
        raise ValueError(f"{output}: expected a name that ends in .npy or .parquet, got {output.suffix or 'no suffix'}")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise ValueError(f"{output}: is a folder; name a file")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output}: the folder {output.parent} cannot be written to; name another")
    if output.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"{output}: parquet needs pyarrow, which is not installed; `pip install wav2vec2-conformer[parquet]`, "
                "or write .npy"
            ) from error


def write_vectors(output: Path, files: list[str], vectors: list[NDArray[np.float32]]) -> None:
    """Write the vectors with their recordings' names, whole or not at all."""
    import numpy as np

    from ..files import replacing

    table = np.stack(vectors)  # (recordings, X)
    if output.suffix == ".npy":
        names = output.with_suffix(".files.json")
        with replacing(output) as path, replacing(names) as names_path:
            np.save(path, table)
            names_path.write_text(json.dumps(files, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        return
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.ravel()), table.shape[1])
    with replacing(output) as path:
        pyarrow.parquet.write_table(pyarrow.table({"file": files, "embedding": rows}), path)
