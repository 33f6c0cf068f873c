"""Norms and projection of a new feature encoder set by real speech, so that what changes with the sound is most of it.

    python recipes/pretraining/calibrate.py --model DIR --manifest FILE --output DIR

Of a network drawn at random, the greater part of what leaves the feature encoder is the same in every frame: each GELU
adds its mean. A codebook over such features begins with 20 of 64 entries in use, and a head learns from the constant.
Here every norm of the convolutions, the one before the projection, and the projection itself get the scales and biases
that make each of their channels have mean 0 and variance 1 over real speech, one after the other (as Mishkin and Matas
2016, "All you need is a good init", and Krähenbühl et al. 2016, "Data-dependent initializations", set theirs). All are
trained on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerModel
from wav2vec2_conformer.audio import load_audio
from wav2vec2_conformer.data import read_manifest

EVERY = 16  # of the manifest's recordings one is heard


@torch.no_grad()
def statistics(model: nn.Module, module: nn.Module, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(C,) mean and standard deviation of what a module gives, over all frames."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output.flatten(0, -2)))
    for waveform in waveforms:
        model(waveform)
    handle.remove()
    frames = torch.cat(found)
    return frames.mean(0), frames.std(0).clamp(min=1e-5)


def signal_share(model: nn.Module, waveform: Tensor) -> list[float]:
    """What part of each hidden state's power changes from frame to frame."""
    with torch.no_grad():
        states = model(waveform, output_hidden_states=True).hidden_states
    return [round(float((x - x.mean(1, keepdim=True)).square().mean() / x.square().mean()), 2) for x in states]


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "manifest", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    model = Wav2Vec2ConformerModel.from_pretrained(options.model).eval()
    waveforms = []
    for utterance in read_manifest(options.manifest)[::EVERY]:
        waveform = torch.from_numpy(load_audio(utterance.audio))
        waveforms.append(((waveform - waveform.mean()) / waveform.std())[None])
    print(f"share of the hidden states that changes from frame to frame: {signal_share(model, waveforms[0])}")
    projection = model.feature_projection
    for norm in [*(layer.layer_norm for layer in model.feature_extractor.conv_layers), projection.layer_norm]:
        mean, deviation = statistics(model, norm, waveforms)
        with torch.no_grad():
            norm.weight.div_(deviation)
            norm.bias.sub_(mean).div_(deviation)
    mean, deviation = statistics(model, projection.projection, waveforms)
    with torch.no_grad():
        projection.projection.weight.div_(deviation[:, None])
        projection.projection.bias.sub_(mean).div_(deviation)
    print(f"after {len(waveforms)} recordings: {signal_share(model, waveforms[0])}")
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
