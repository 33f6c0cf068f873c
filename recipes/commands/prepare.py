"""Manifests for keyword spotting: two of the training speakers choose the best model, the others teach.

    python recipes/commands/prepare.py --data ../shared/data --output runs/commands/data

writes `train` and `dev` (speakers sorted()[4::9] of commands-train) and `val` (commands-val, only judged at the end).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    def read(name: str) -> list[dict[str, str]]:
        lines = [json.loads(line) for line in (options.data / f"{name}.jsonl").read_text().splitlines()]
        return [{**line, "audio": str((options.data / line["audio"]).resolve())} for line in lines]

    known = read("commands-train")
    dev = set(sorted({line["speaker"] for line in known})[4::9])
    manifests = {
        "train": [line for line in known if line["speaker"] not in dev],
        "dev": [line for line in known if line["speaker"] in dev],
        "val": read("commands-val"),
    }
    for name, lines in manifests.items():
        (options.output / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        speakers = {line["speaker"] for line in lines}
        print(f"{name}: {len(lines)} recordings, {len(speakers)} speakers, {len({x['label'] for x in lines})} words")


if __name__ == "__main__":
    main()
