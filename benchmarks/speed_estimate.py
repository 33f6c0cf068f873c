"""How far `inspect`'s estimate of the speed is from a real run: the default model, and new base and large ones.

    python benchmarks/speed_estimate.py [--models default base large] [--rounds 5] [--threads 2]

Estimate and run take turns. Prints the least of the estimates and the least of the runs (15 s of noise, float32), since
other work on the machine only adds to them, and the first divided by the second.
"""

from __future__ import annotations

import argparse
import json

import torch
from measuring import machine, measure

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.inspection.speed import CLIP, estimate_speed
from wav2vec2_conformer.processing import DEFAULT_MODEL
from wav2vec2_conformer.training import PretrainingSettings

MODELS = {
    "default": lambda: Wav2Vec2ConformerConfig.from_pretrained(DEFAULT_MODEL),
    "base": lambda: Wav2Vec2ConformerConfig(vocab_size=32),
    "large": lambda: Wav2Vec2ConformerConfig(
        vocab_size=32, **PretrainingSettings.from_preset("large", train=[], output="").model
    ),
}


@torch.inference_mode()
def compare(name: str, rounds: int) -> dict[str, object]:
    """The least of both and their ratio."""
    config = MODELS[name]()
    model, clip = Wav2Vec2ConformerForCTC(config).eval(), torch.randn(1, round(CLIP * 16_000))
    model(clip)
    estimates, runs = [], []
    for _ in range(rounds):
        speed = estimate_speed(Wav2Vec2ConformerForCTC, config)
        estimates.append(float("nan") if speed is None else speed.seconds)
        runs.append(measure(lambda: model(clip))["seconds"])
    estimate, run = min(estimates), min(runs)
    return {"model": name, "estimate": round(estimate, 3), "run": round(run, 3), "ratio": round(estimate / run, 2)}


def main() -> None:
    """Print one JSON object a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(machine(options.threads)))
    for name in options.models:
        print(json.dumps(compare(name, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
