"""Why training batches have one of a few lengths: a CPU's kernels are generated for each new shape.

    python benchmarks/batch_shapes.py [--threads 1]

Prints one JSON object: the median processor milliseconds of forward and backward of a network of the default model's
size at 25 frames a second in bfloat16, on 3 clips of about 7 s, for 24 lengths that come for the first time and for the
same ones afterwards.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

import torch
from measuring import machine

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.transcription import DEFAULT_MODEL

CLIPS, SAMPLES, LENGTHS = 3, 112_000, 24
# As in recipes/pretraining: 25 frames a second, and nothing random.
STEM = {"conv_dim": [256, 256, 256], "conv_kernel": [400, 4, 4], "conv_stride": [160, 2, 2]}
QUIET = dict.fromkeys(
    "hidden_dropout attention_dropout conformer_conv_dropout mask_time_prob mask_feature_prob".split(), 0.0
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig.from_pretrained(DEFAULT_MODEL, **STEM, **QUIET)
    model = Wav2Vec2ConformerForCTC(config).train()
    lengths = [SAMPLES + 640 * index for index in range(LENGTHS)]
    random.Random(0).shuffle(lengths)

    def step(samples: int) -> float:
        values, labels = torch.randn(CLIPS, samples), torch.randint(5, 30, (CLIPS, 60))
        begun = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(values, attention_mask=torch.ones(CLIPS, samples, dtype=torch.long), labels=labels).loss
        loss.backward()
        return 1000 * (time.process_time() - begun)

    for _ in range(4):
        step(SAMPLES - 640)
    first = statistics.median(map(step, lengths))
    again = statistics.median(map(step, lengths))
    told = {
        "new_length_ms": round(first, 1),
        "seen_length_ms": round(again, 1),
        "ratio": round(first / again, 2),
    }
    print(json.dumps(machine(options.threads) | told))


if __name__ == "__main__":
    main()
