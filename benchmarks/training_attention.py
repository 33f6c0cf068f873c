"""Forward and backward of attention in bfloat16 on a CPU, way by way.

python benchmarks/training_attention.py [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wav2vec2_conformer.modeling.attention import eager_attention
from wav2vec2_conformer.modeling.dropout import dropout
from wav2vec2_conformer.modeling.recompute import recomputed

CASES = [(3, 4, 998, 40), (4, 4, 250, 40), (2, 16, 749, 64)]  # clips, heads, frames, width of a head
ROUNDS = 9
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def wide(query: Tensor, key: Tensor, value: Tensor, probability: float) -> Tensor:
    """A softmax that is asked for a float32 result, as it used to be here."""
    weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1, dtype=torch.float32).to(query.dtype)
    return dropout(weights, probability, training=probability > 0) @ value


def ours(query: Tensor, key: Tensor, value: Tensor, probability: float) -> Tensor:
    """As the network has it, everything kept."""
    return eager_attention(query, key, value, None, probability)[0]


def ways(probability: float) -> dict[str, Attend]:
    """Names and what they call."""

    def twice(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def again(*inputs: Tensor) -> Tensor:
            return ours(*inputs, probability)

        return recomputed(again, query, key, value, size=1 << 62, random=probability > 0)

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    chosen: dict[str, Attend] = {
        "float32 softmax": lambda *inputs: wide(*inputs, probability),
        "ours": lambda *inputs: ours(*inputs, probability),
        "ours, scores computed twice": twice,
    }
    return chosen if probability else chosen | {"torch's fused": fused}


def main() -> None:
    """Print one JSON object a case: medians of processor milliseconds, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for clips, heads, frames, width in CASES:
        shape = (clips, heads, frames, width)
        inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        upstream = torch.randn(shape, dtype=torch.bfloat16)
        for probability in (0.1, 0.0):
            calls = ways(probability)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    begun = time.process_time()
                    torch.autograd.grad(call(*inputs), inputs, upstream)
                    times[name].append(time.process_time() - begun)
            medians = {name: round(1e3 * statistics.median(own), 1) for name, own in times.items()}
            print(json.dumps({"case": shape, "dropout": probability, "ms": medians}), flush=True)


if __name__ == "__main__":
    main()
