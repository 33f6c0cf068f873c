"""Why the convolutions are two-dimensional, channels-last ones, and the depthwise one has gradients of our own.

    python benchmarks/convolutions.py [--threads 2]

Prints the median milliseconds of `conv1d` on the transposed tensor, of matrix products on strided views (one for each
stride's worth of the kernel, since overlapping rows are no BLAS matrix; they have no gradients), of a channels-last
`conv2d` of height 1, and of the same with gradients of our own (`Depthwise`, `Strided`); forward without gradients, and
forward with backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wav2vec2_conformer.modeling.convolution import Depthwise, Strided, matrix_of
from wav2vec2_conformer.modeling.convolution import products as strided_products

# (batch, positions, channels, kernel, stride, groups): two layers of the large feature encoder, one of a training
# batch of a small model, and the depthwise convolutions of the large model and of a training batch of the base one
CASES = [
    (1, 48000, 512, 3, 2, 1),
    (1, 6000, 512, 2, 2, 1),
    (8, 16000, 192, 3, 2, 1),
    (1, 749, 1024, 31, 1, 1024),
    (5, 749, 768, 31, 1, 768),
]


def transposed(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """`conv1d`, with the transposes it needs around it."""
    padding = weight.shape[2] // 2 if groups > 1 else 0
    return F.conv1d(x.transpose(1, 2), weight, stride=stride, padding=padding, groups=groups).transpose(1, 2)


def products(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """Matrix products on strided views, clip by clip."""
    return strided_products(x, matrix_of(weight), None, weight.shape[2], stride)


def channels_last(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """A two-dimensional convolution of height 1 on the tensor as it is."""
    padding = weight.shape[2] // 2 if groups > 1 else 0
    image = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2), None, (1, stride), (0, padding), 1, groups)
    return image.squeeze(2).transpose(1, 2)


def own_gradients(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """The same as `channels_last`, with gradients of our own."""
    return Depthwise.apply(x, weight, None) if groups > 1 else Strided.apply(x, weight, None, stride)


def measure(call: Callable[[], object], rounds: int = 7) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return round(statistics.median(times) * 1e3, 2)


def forward_and_backward(call: Callable[[], Tensor]) -> None:
    """Compute and differentiate the sum."""
    call().sum().backward()


def main() -> None:
    """Print one JSON object a case: forward, and forward with backward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    for batch, length, channels, kernel, stride, groups in CASES:
        x = torch.randn(batch, length, channels, requires_grad=True)
        weight = (torch.randn(channels, channels // groups, kernel) * 0.02).requires_grad_()
        row: dict[str, Any] = {"case": [batch, length, channels, kernel, stride, groups]}
        expected = transposed(x, weight, stride, groups)
        for way in (transposed, products, channels_last, own_gradients):
            if groups > 1 and way is products:
                continue
            call = partial(way, x, weight, stride, groups)
            with torch.no_grad():
                torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-4)
                row[way.__name__] = {"forward ms": measure(call)}
            if way is not products:
                row[way.__name__]["with backward ms"] = measure(partial(forward_and_backward, call), 3)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
