"""The mean of several checkpoints of one training's lineage.

    python recipes/default-model/average.py --output DIR A B [C ...]

Writes the weights of A, B, ... averaged; configuration and processor are those of the first.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Average and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("models", nargs="+", type=Path)
    options = parser.parse_args()
    states = [load_file(model / "model.safetensors") for model in options.models]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for path in options.models[0].glob("*.json"):
        shutil.copy(path, options.output / path.name)
    save_file(mean, options.output / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
