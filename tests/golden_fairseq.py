"""Small checkpoints of fairseq whose weights are a formula's, and what they compute: `golden/fairseq.safetensors`.

    python tests/golden_fairseq.py

writes the outputs anew, in float64, by the arithmetic of the checkpoint (`checkpoints/arithmetic.py`).
`parity/test_golden_fairseq.py` compares converted models, and transformers' own modules, with the stored numbers: these
cannot change unnoticed, as they could where both sides of a comparison are computed.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints_fairseq import SMALL, weights, write
from wav2vec2_conformer.checkpoints.arithmetic import Arithmetic
from wav2vec2_conformer.checkpoints.fairseq import FairseqCheckpoint

GOLDEN = Path(__file__).parent / "golden" / "fairseq.safetensors"
KINDS = ("wav2vec2", "wav2vec_ctc")  # pre-training, CTC
# What differs between fairseq's published architectures, in our small sizes.
NETWORKS: dict[str, dict[str, Any]] = {
    "base": {"pos_enc_type": "abs", "layer_norm_first": False, "extractor_mode": "default", "conv_bias": False},
    "large-rel_pos": {"pos_enc_type": "rel_pos"},
    "large-rope": {"pos_enc_type": "rope"},
}
SAMPLES = 2000  # 30 frames


class Formula:
    """Numbers of mean 0 and variance 1, equally spread, that no version of a library can change.

    The n-th one is a hash of n in whole numbers (after splitmix64, Steele et al. 2014). Sines of n would do for a
    vector, but a matrix of them has rank 2.
    """

    def __init__(self) -> None:
        self.place = 1

    def __call__(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        bits = np.arange(self.place, self.place + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.place += count
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        share = (bits >> np.uint64(40)).astype(np.float32) / 2**24  # 24 bits: exact in float32
        return torch.from_numpy((share - 0.5) * np.float32(math.sqrt(12))).reshape(shape)


def settings_of(network: str) -> dict[str, Any]:
    """fairseq's settings."""
    return {**SMALL, **NETWORKS[network]}


def write_checkpoint(path: Path, network: str, kind: str, **options: Any) -> Path:
    """A checkpoint file; `options` as for `checkpoints_fairseq.write`."""
    settings = settings_of(network)
    return write(path, settings, kind, state=weights(settings, kind, draw=Formula()), **options)


def waveform() -> Tensor:
    """(N,) samples in float64."""
    return Formula()(SAMPLES).double()


def compute(path: Path) -> dict[str, Tensor]:
    """What the checkpoint's arithmetic makes of the waveform."""
    with FairseqCheckpoint(path) as checkpoint:
        return Arithmetic(checkpoint).run(waveform())


def main() -> None:
    """Compute and write all."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            for kind in KINDS:
                outputs = compute(write_checkpoint(Path(folder) / "checkpoint.pt", network, kind))
                found |= {f"{network}.{kind}.{name}": tensor.contiguous() for name, tensor in outputs.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file(found, GOLDEN)
    print(f"{GOLDEN}: {len(found)} tensors, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
