"""What bounded tensors and activations in place gain: parts of the large model, 15 s, with each choice on and off.

    python benchmarks/memory_traffic.py [--rounds 9] [--threads 2]

Prints median milliseconds of one call, with and without, interleaved; the outputs are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.modeling import activation, attention, feature_encoder
from wav2vec2_conformer.modeling.positions import build_positions

CONFIG = Wav2Vec2ConformerConfig(
    hidden_size=1024,
    num_attention_heads=16,
    intermediate_size=4096,
    hidden_act="swish",
    feat_extract_norm="layer",
    conv_bias=True,
)
FRAMES = 749
UNBOUNDED = 1 << 30


@contextlib.contextmanager
def without(target: object, name: str, value: object) -> Iterator[None]:
    """The package as if a choice had not been made."""
    with mock.patch.object(target, name, value):
        yield


def cases() -> dict[str, tuple[Callable[[], torch.Tensor], tuple[object, str, object]]]:
    """What to call, and what to change in the package to do without."""
    torch.manual_seed(0)
    attend = attention.SelfAttention(CONFIG).eval()
    encode = feature_encoder.FeatureEncoder(CONFIG).eval()
    positions = build_positions(CONFIG)
    assert isinstance(positions, nn.Module)
    x = torch.randn(1, FRAMES, 1024)
    table = positions(x)
    inner = torch.randn(1, FRAMES, 4096)
    activate = activation.Activation("swish")
    waveform = torch.randn(1, 240_000)
    return {
        "relative attention, 128 queries at a time": (lambda: attend(x, table)[0], (attention, "BLOCK", UNBOUNDED)),
        # The copy stands for the layer before, whose output is fresh memory in either case.
        "SiLU of a feed-forward module in place": (lambda: activate(inner.clone()), (activation, "IN_PLACE", {})),
        "feature encoder, 128 frames at a time": (lambda: encode(waveform), (feature_encoder, "BLOCK", UNBOUNDED)),
    }


def milliseconds(call: Callable[[], torch.Tensor]) -> float:
    """One call's."""
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


@torch.inference_mode()
def main() -> None:
    """Print one JSON object a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (call, change) in cases().items():
        result = call().clone()
        with without(*change):
            difference = float((call() - result).abs().max() / result.abs().max())
        taken: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(options.rounds):
            taken["with"].append(milliseconds(call))
            with without(*change):
                taken["without"].append(milliseconds(call))
        median = {key: round(statistics.median(values), 2) for key, values in taken.items()}
        ratio = round(median["without"] / median["with"], 2)
        print(json.dumps({"what": name, **median, "ratio": ratio, "difference of scale": difference}), flush=True)


if __name__ == "__main__":
    main()
