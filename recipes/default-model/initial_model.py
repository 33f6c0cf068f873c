"""A model whose first convolution starts as a bank of band-pass filters, spaced like the ear's.

    python recipes/default-model/initial_model.py --config recipes/default-model/config.json \
        --manifest runs/default/data/an4-train.jsonl --output runs/default/initial

A feature encoder that starts from noise needs much more speech than there is here to find such filters by itself
(Zeghidour et al. 2018, "Learning filterbanks from raw speech", start theirs in the same way). Every centre frequency
gets four phases (0, 90, 180 and 270 degrees), so that their rectified sum is close to the envelope in its band. The
filters are scaled to equal power over real speech. All weights are trained on from there.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.audio import SAMPLE_RATE, load_audio
from wav2vec2_conformer.data import read_manifest

LOWEST, HIGHEST = 80.0, 7400.0  # Hz


def filterbank(channels: int, kernel: int) -> Tensor:
    """(channels, kernel) Gabor filters: channels / 4 mel-spaced centre frequencies, four phases each."""
    bands = channels // 4

    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    mels = torch.linspace(to_mel(LOWEST), to_mel(HIGHEST), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)  # (bands + 2,) Hz
    centre, width = edges[1:-1], (edges[2:] - edges[:-2]) / 2
    # A Gaussian of standard deviation s seconds has a half-power bandwidth of 0.265 / s Hz; it must fit the kernel.
    spread = (0.265 / width).clamp(min=1 / SAMPLE_RATE * kernel / 10, max=1 / SAMPLE_RATE * kernel / 5)
    time = (torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2) / SAMPLE_RATE
    envelope = torch.exp(-0.5 * (time / spread[:, None]) ** 2)  # (bands, kernel)
    phase = torch.arange(4, dtype=torch.float64) * (math.pi / 2)
    filters = envelope[:, None] * torch.cos(2 * math.pi * centre[:, None, None] * time + phase[:, None])
    filters -= filters.mean(-1, keepdim=True)  # deaf to a constant offset
    return filters.flatten(0, 1).float()


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True, help="speech over which the filters get equal power")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig.from_json_file(options.config)
    model = Wav2Vec2ConformerModel(config)
    conv = model.feature_extractor.conv_layers[0].conv
    filters = filterbank(conv.out_channels, conv.kernel_size[0])
    power, clips = torch.zeros(conv.out_channels), 0
    for utterance in read_manifest(options.manifest)[::8]:
        waveform = torch.from_numpy(load_audio(utterance.audio))
        waveform = (waveform - waveform.mean()) / waveform.std()
        response = torch.nn.functional.conv1d(waveform[None, None], filters[:, None], stride=conv.stride[0])
        power += response.square().mean((0, 2))
        clips += 1
    with torch.no_grad():
        conv.weight.copy_((filters / (power / clips).sqrt()[:, None])[:, None])
        # The LayerNorm that follows removes the level of a frame; a constant pattern under it keeps quiet frames quiet.
        conv.bias.normal_(std=0.3)
    model.save_pretrained(options.output)
    print(f"{options.output}: {sum(p.numel() for p in model.parameters()):,} parameters, filters from {clips} clips")


if __name__ == "__main__":
    main()
