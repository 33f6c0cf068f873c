"""Manifests for speaker verification: nobody who is judged is named in training (pre-training has heard them).

    python recipes/verification/prepare.py --data ../shared/data --output runs/verification/data

writes `train` and `dev` (whose EER chooses the best model), and `speechocean762-held-out` and `librispeech-held-out`,
which are only judged at the end, each corpus in itself. All are utterances of 2 s or more. Held out: speakers
sorted()[::5] of speechocean762-train, sorted()[::4] of librispeech-train and all of librispeech-dev; dev:
speechocean762's sorted()[2::10].
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wav2vec2_conformer.data import Utterance, read_manifest
from wav2vec2_conformer.data.preparation import write_manifest

LEAST = 2.0  # seconds


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    def read(name: str) -> list[Utterance]:
        lines = read_manifest(options.data / f"{name}.jsonl", require="speaker")
        return [line for line in lines if line.duration >= LEAST]

    def speakers(lines: list[Utterance]) -> list[str]:
        return sorted({str(line.speaker) for line in lines})

    ocean, libri, an4 = read("speechocean762-train"), read("librispeech-train"), read("an4-train")
    ocean_held, ocean_dev = set(speakers(ocean)[::5]), set(speakers(ocean)[2::10])
    libri_held = set(speakers(libri)[::4])
    manifests = {
        "train": [line for line in ocean if line.speaker not in ocean_held | ocean_dev]
        + [line for line in libri if line.speaker not in libri_held]
        + an4,
        "dev": [line for line in ocean if line.speaker in ocean_dev],
        "speechocean762-held-out": [line for line in ocean if line.speaker in ocean_held],
        "librispeech-held-out": [line for line in libri if line.speaker in libri_held] + read("librispeech-dev"),
    }
    for name, lines in manifests.items():
        write_manifest(options.output / f"{name}.jsonl", lines)
        hours = sum(line.duration for line in lines) / 3600
        print(f"{name}: {len(lines)} utterances, {hours:.2f} h, {len(speakers(lines))} speakers")


if __name__ == "__main__":
    main()
