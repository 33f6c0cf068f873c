"""Manifests for keyword spotting: two of the training speakers choose the best model, the others teach.

    python recipes/commands/prepare.py --data ../shared/data --output runs/commands/data

writes `train` and `dev` (speakers sorted()[4::9] of commands-train) and `val` (commands-val, only judged at the end).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wav2vec2_conformer.data import read_manifest
from wav2vec2_conformer.data.preparation import write_manifest


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    known = read_manifest(options.data / "commands-train.jsonl", require="label")
    dev = set(sorted({str(line.speaker) for line in known})[4::9])
    manifests = {
        "train": [line for line in known if line.speaker not in dev],
        "dev": [line for line in known if line.speaker in dev],
        "val": read_manifest(options.data / "commands-val.jsonl", require="label"),
    }
    for name, lines in manifests.items():
        write_manifest(options.output / f"{name}.jsonl", lines)
        speakers, words = len({line.speaker for line in lines}), len({line.label for line in lines})
        print(f"{name}: {len(lines)} recordings, {speakers} speakers, {words} words")


if __name__ == "__main__":
    main()
