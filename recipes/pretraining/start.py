"""A pre-trained model with the masks of another configuration, to fine-tune from.

    python recipes/pretraining/start.py --model DIR --config FILE --output DIR

Half of the frames are masked while pre-training; a model that learns letters needs to hear more of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path


def main() -> None:
    """Copy the model, with masks and dropouts of the other configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "config", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for file in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(options.model / file, options.output)
    chosen = json.loads(options.config.read_text())
    taken = {name: value for name, value in chosen.items() if name.startswith("mask_") or name.endswith("_dropout")}
    config = json.loads((options.model / "config.json").read_text()) | taken
    (options.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
