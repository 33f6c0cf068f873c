"""Ours against transformers: the large model, float32, both sides interleaved in one process.

    python benchmarks/inference.py [--positions relative rotary] [--seconds 15] [--rounds 7] [--threads 2]

Both networks have the same random weights, whose outputs are compared first. Prints the medians, their ratio, the
machine's matrix-product rate (2048 x 2048, float32) and which share of it ours reaches on the model's matrix products.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.lengths import conv_length

LARGE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "codevector_dim": 768,
    "proj_codevector_dim": 768,
}


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def matrix_rate() -> float:
    """Multiply-adds a second, times two, of a float32 product that fits no cache trick."""
    matrix = torch.randn(2048, 2048)
    times = [seconds(lambda: matrix @ matrix) for _ in range(9)]
    return 2 * 2048**3 / statistics.median(times)


def matrix_flops(config: Wav2Vec2ConformerConfig, samples: int) -> int:
    """Floating-point operations of the matrix products of one clip, by formula."""
    total, frames, inputs = 0, samples, 1
    for outputs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = conv_length(frames, kernel, stride)
        total += frames * kernel * inputs * outputs
        inputs = outputs
    width, inner = config.hidden_size, config.intermediate_size
    total += frames * inputs * width
    block = 4 * width * inner + 4 * width**2 + 3 * width**2 + width * config.conv_depthwise_kernel_size
    attention = 2 * frames * width
    if config.position_embeddings_type == "relative":
        attention += 2 * frames * width + 2 * width**2  # scores by distance, and the projection of 2T distances
    total += config.num_hidden_layers * frames * (block + attention)
    return 2 * (total + frames * width * (config.vocab_size or 0))


@torch.inference_mode()
def compare(positions: str, clip_seconds: float, rounds: int) -> dict[str, Any]:
    """Medians and ratio for one position type."""
    config = Wav2Vec2ConformerConfig(position_embeddings_type=positions, **LARGE)
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ConformerForCTC(
        transformers.Wav2Vec2ConformerConfig(position_embeddings_type=positions, **LARGE)
    ).eval()
    ours = Wav2Vec2ConformerForCTC(config).eval()
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(1, round(clip_seconds * 16_000))
    expected, got = theirs(clip).logits, ours(clip).logits
    difference = float((got - expected).abs().max() / expected.abs().max())
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(rounds):
        times["theirs"].append(seconds(lambda: theirs(clip)))
        times["ours"].append(seconds(lambda: ours(clip)))
    medians = {side: statistics.median(values) for side, values in times.items()}
    rate = matrix_rate()
    return {
        "positions": positions,
        "attention of transformers": theirs.config._attn_implementation,
        "seconds transformers": round(medians["theirs"], 3),
        "seconds ours": round(medians["ours"], 3),
        "ratio": round(medians["theirs"] / medians["ours"], 3),
        "largest difference of logits": difference,
        "matrix GFLOP/s of the machine": round(rate / 1e9),
        "share of it reached": round(matrix_flops(config, clip.shape[1]) / medians["ours"] / rate, 3),
    }


def main() -> None:
    """Print one JSON object a position type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", nargs="+", default=["relative", "rotary"])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "processor": platform.processor() or platform.machine(),
                "threads": options.threads,
            }
        )
    )
    for positions in options.positions:
        print(json.dumps(compare(positions, options.seconds, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
