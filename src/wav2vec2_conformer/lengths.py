"""Samples, frames and frame masks: the only place with length arithmetic.

B batch, N samples, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .configuration import Wav2Vec2ConformerConfig

__all__ = [
    "Length",
    "adapter_layer_length",
    "adapter_lengths",
    "conv_layers",
    "conv_length",
    "feature_lengths",
    "frame_centres",
    "frame_edges",
    "frame_mask",
    "frames_of",
    "receptive_field",
    "reference_frame_mask",
    "reference_tdnn_mask",
    "samples_a_frame",
    "tdnn_context",
    "tdnn_lengths",
]

Length = TypeVar("Length", int, Tensor)


def conv_length(length: Length, kernel: int, stride: int, padding: int = 0) -> Length:
    """Outputs of an undilated convolution over `length` inputs: floor((length + 2 padding - kernel) / stride) + 1."""
    outputs = (length + 2 * padding - kernel) // stride + 1
    if isinstance(outputs, Tensor):
        return outputs.clamp(min=0)
    return max(outputs, 0)


def feature_lengths(lengths: Length, layers: Iterable[tuple[int, int]]) -> Length:
    """Frames of the feature encoder for clips of `lengths` samples; 0 where a clip is too short for one frame.

    Args:
        lengths: samples, an int or an integer tensor of any shape.
        layers: (kernel, stride) of each convolution, first to last.
    """
    for kernel, stride in layers:
        lengths = conv_length(lengths, kernel, stride)
    return lengths


def receptive_field(layers: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Samples that a frame sees, and samples from one frame to the next, of (kernel, stride) convolutions: 400, 320."""
    field, step = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field, step


def frame_centres(frames: NDArray[np.int64], config: Wav2Vec2ConformerConfig) -> NDArray[np.float64]:
    """The sample in the middle of what the feature encoder sees in each of (T,) frames: 199.5, 519.5, ..."""
    field, step = receptive_field(conv_layers(config))
    return np.asarray(frames, np.float64) * step + (field - 1) / 2


def frame_edges(frames: int, samples: int, config: Wav2Vec2ConformerConfig) -> NDArray[np.float64]:
    """The (T + 1,) samples between which the T frames of a clip lie: 0, halfway between the centres, and its end.

    A moment belongs to the frame whose centre is nearest, so frames -> seconds undoes seconds -> frames.
    """
    between = frame_centres(np.arange(1, frames), config) - receptive_field(conv_layers(config))[1] / 2
    return np.concatenate([[0.0], between, [float(samples)]])[: frames + 1]  # without a frame, nothing to end


def adapter_lengths(lengths: Length, config: Wav2Vec2ConformerConfig) -> Length:
    """Frames after the strided adapter for clips of `lengths` encoder frames; an empty clip stays empty.

    Under `padding="reference"` the lengths are those of transformers 4.34.0, which reckons with a kernel of 1
    whatever the kernel is.
    """
    for _ in range(config.num_adapter_layers):
        if config.padding == "reference":
            lengths = (lengths - 1) // config.adapter_stride + 1
            continue
        lengths = adapter_layer_length(lengths, config)
    return lengths


def adapter_layer_length(lengths: Length, config: Wav2Vec2ConformerConfig) -> Length:
    """Frames after one layer of the strided adapter; an empty clip stays empty."""
    outputs = conv_length(lengths, config.adapter_kernel_size, config.adapter_stride, padding=1)
    if isinstance(outputs, Tensor):
        return torch.where(lengths > 0, outputs, 0)
    return outputs if lengths > 0 else lengths


def samples_a_frame(config: Wav2Vec2ConformerConfig) -> int:
    """Samples from one frame that a head sees to the next, the strided adapter included."""
    adapter = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
    return config.inputs_to_logits_ratio * adapter


def conv_layers(config: Wav2Vec2ConformerConfig) -> list[tuple[int, int]]:
    """(kernel, stride) of each convolution of the feature encoder."""
    return list(zip(config.conv_kernel, config.conv_stride, strict=True))


def frames_of(samples: Length, config: Wav2Vec2ConformerConfig, *, add_adapter: bool | None = None) -> Length:
    """Frames that a head sees for clips of `samples` samples.

    Args:
        samples: an int or an integer tensor.
        config: the network's configuration.
        add_adapter: whether the adapter shortens them; `None` asks `config.add_adapter`.
    """
    frames = feature_lengths(samples, conv_layers(config))
    if config.add_adapter if add_adapter is None else add_adapter:
        frames = adapter_lengths(frames, config)
    return frames


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B,) valid frames of each clip -> (B, frames) mask, True = valid."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def reference_lengths(samples: Tensor, config: Wav2Vec2ConformerConfig, *, adapter: bool) -> Tensor:
    """Frames as transformers 4.34.0 counts them: below zero for clips that are too short for one."""
    lengths = samples
    for kernel, stride in conv_layers(config):
        lengths = (lengths - kernel) // stride + 1
    return adapter_lengths(lengths, config) if adapter else lengths


def reference_frame_mask(samples: Tensor, config: Wav2Vec2ConformerConfig, frames: int, *, adapter: bool) -> Tensor:
    """The (B, frames) mask that transformers 4.34.0 builds, for `padding="reference"` only.

    It marks the last valid frame by its index and fills leftwards. Lengths are not clamped there, so a clip too short
    for one frame indexes from the right end and counts as (nearly) all valid.
    """
    lengths = reference_lengths(samples, config, adapter=adapter)
    last = lengths - 1
    return torch.arange(frames, device=samples.device) <= torch.where(last < 0, last + frames, last)[:, None]


def tdnn_context(config: Wav2Vec2ConformerConfig) -> int:
    """Frames that one output of the x-vector's TDNN sees: 15 by default."""
    return 1 + sum(
        dilation * (kernel - 1) for kernel, dilation in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
    )


def tdnn_lengths(lengths: Length, config: Wav2Vec2ConformerConfig) -> Length:
    """Outputs of the x-vector's TDNN for clips of `lengths` frames.

    A clip shorter than the context is filled with zeros up to one context, so it has one output; an empty clip has
    none. Under `padding="reference"` the lengths are those of transformers 4.34.0, which forgets the dilations and
    goes below zero.
    """
    if config.padding == "reference":
        return lengths - sum(kernel - 1 for kernel in config.tdnn_kernel)
    outputs = lengths - (tdnn_context(config) - 1)
    if isinstance(outputs, Tensor):
        return torch.where(lengths > 0, outputs.clamp(min=1), 0)
    return max(outputs, 1) if lengths > 0 else 0


def reference_tdnn_mask(samples: Tensor, config: Wav2Vec2ConformerConfig, outputs: int) -> Tensor:
    """The (B, outputs) frames that x-vectors of transformers 4.34.0 pool, for `padding="reference"` only.

    They are `[:length]` of an unclamped length, which counts from the right end where it is negative.
    """
    lengths = tdnn_lengths(reference_lengths(samples, config, adapter=config.add_adapter), config)
    return frame_mask(torch.where(lengths < 0, lengths + outputs, lengths), outputs)
