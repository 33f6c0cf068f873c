"""Where oneDNN beats the BLAS product, as a product or as a convolution of kernel 1: large sizes, and small ones.

python benchmarks/linear.py [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

# (clips, frames, inputs, outputs)
CASES = [
    (1, 749, 1024, 4096),
    (1, 749, 4096, 1024),
    (1, 749, 1024, 1024),
    (1, 749, 1024, 2048),
    (8, 749, 1024, 1024),
    (1, 100, 1024, 4096),
    (1, 249, 768, 3072),
    (1, 49, 768, 768),
    (1, 25, 160, 640),
    (8, 150, 160, 640),
]


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as a channels-last convolution."""
    return F.conv2d(x.transpose(1, 2).unsqueeze(2), weight[:, :, None, None], bias).squeeze(2).transpose(1, 2)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as oneDNN's product."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def measure(calls: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: round(statistics.median(values) * 1e3, 3) for name, values in times.items()}


def main() -> None:
    """Print one JSON object a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    with torch.inference_mode():
        for clips, frames, inputs, outputs in CASES:
            x, weight = torch.randn(clips, frames, inputs), torch.randn(outputs, inputs) / inputs**0.5
            bias = torch.randn(outputs)
            ways = {way.__name__: partial(way, x, weight, bias) for way in (F.linear, convolution, product)}
            for way in ways.values():
                torch.testing.assert_close(way(), ways["linear"](), rtol=1e-4, atol=1e-4)
            times = measure(ways)
            gain = {name: round(times["linear"] / ms, 2) for name, ms in times.items() if name != "linear"}
            print(json.dumps({"case": [clips, frames, inputs, outputs], "ms": times, "gain": gain}), flush=True)


if __name__ == "__main__":
    main()
