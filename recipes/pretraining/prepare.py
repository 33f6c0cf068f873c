"""Manifests for pre-training without transcripts and for fine-tuning with few.

    python recipes/pretraining/prepare.py --data ../shared/data --output runs/pretraining/data

writes `unlabelled` (all train manifests of the folder, without their transcripts), `labelled-10min` and `labelled-1h`
(utterances of librispeech-train of at most 5.5 and 11 s, drawn speaker by speaker until there is enough),
`labelled-all` (sentences of three corpora), `dev` (librispeech-dev), and `config.json`: the default model's
configuration, wider, with 25 frames a second and a codebook for few hours.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).parents[1] / "default-model" / "config.json"
CODEBOOK = {"num_codevectors_per_group": 64, "codevector_dim": 128, "proj_codevector_dim": 128}  # as preset "tiny"
# Half as many frames of a wider network: more of an hour's recordings in an hour of two cores.
NETWORK = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 1024, "initializer_range": 0.04}
STEM = {"conv_dim": [256, 256, 256], "conv_kernel": [400, 4, 4], "conv_stride": [160, 2, 2]}
# What is random in training is for a preset to say.
QUIET = dict.fromkeys(
    "hidden_dropout attention_dropout conformer_conv_dropout mask_time_prob mask_feature_prob".split(), 0.0
)
SENTENCES = ("librispeech-train", "speechocean762-train", "an4-train")
CORPORA = ("librispeech-train", "speechocean762-train", "an4-train", "digits-train", "commands-train")


def read(data: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a manifest with absolute audio paths."""
    lines = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
    return [{**line, "audio": str((data / line["audio"]).resolve())} for line in lines]


def draw(lines: list[dict[str, Any]], seconds: float, seed: int) -> list[dict[str, Any]]:
    """Utterances of all speakers in turn, until `seconds` are reached."""
    rng = random.Random(seed)
    speakers: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        speakers.setdefault(line["speaker"], []).append(line)
    for own in speakers.values():
        rng.shuffle(own)
    drawn: list[dict[str, Any]] = []
    while sum(line["duration"] for line in drawn) < seconds:
        for speaker in sorted(speakers):
            if speakers[speaker] and sum(line["duration"] for line in drawn) < seconds:
                drawn.append(speakers[speaker].pop())
    return drawn


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    librispeech = read(options.data, "librispeech-train")
    manifests = {
        "unlabelled": [
            {key: line[key] for key in ("audio", "duration")} for name in CORPORA for line in read(options.data, name)
        ],
        # CTC finds its alignment in short utterances first; with those of 14 s, neither side left the plateau.
        "labelled-10min": draw([line for line in librispeech if line["duration"] <= 5.5], 600, seed=1),
        "labelled-1h": draw([line for line in librispeech if line["duration"] <= 11], 3600, seed=1),
        "labelled-all": [line for name in SENTENCES for line in read(options.data, name) if line.get("text")],
        "dev": read(options.data, "librispeech-dev"),
    }
    for name, lines in manifests.items():
        (options.output / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{name}: {len(lines)} recordings, {sum(line['duration'] for line in lines) / 3600:.2f} h")
    config = json.loads(DEFAULT.read_text()) | CODEBOOK | NETWORK | STEM | QUIET
    (options.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
