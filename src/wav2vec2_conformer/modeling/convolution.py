"""One-dimensional convolution on (B, T, C) tensors without a transpose in memory."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, T positions, C channels, K kernel, O outputs

__all__ = ["call_channels_last", "conv1d_channels_last", "convolve", "is_replaced"]

SMALLEST_WEIGHT = 1 << 19  # from here on, products of one clip are faster than its convolution


def conv1d_channels_last(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Convolve (B, T, C) with `weight` (O, C / groups, K) into (B, T', O).

    `(B, T, C)` is what a channels-last image of height 1 looks like in memory, so a two-dimensional convolution takes
    and gives it as it is: views in, view out. oneDNN's channels-last kernels are then 1.4 to 2.5 times as fast as
    `conv1d` on the transposed tensor, and 20 times for the depthwise convolution; for one clip and wide layers, matrix
    products on strided views are faster still (`benchmarks/convolutions.py`). An input shorter than the kernel gives
    T' = 0.
    """
    batch, length, _ = x.shape
    if length == 0 or length + 2 * padding < weight.shape[2]:
        return x.new_zeros(batch, 0, weight.shape[0])
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"
    if not plain and batch == 1 and padding == 0 and groups == 1 and weight.numel() >= SMALLEST_WEIGHT:
        return products(x[0], weight, bias, stride).unsqueeze(0)
    image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
    image = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), 1, groups)  # (B, O, 1, T')
    return image.squeeze(2).transpose(1, 2)  # (B, T', O)


def is_replaced(conv: nn.Module) -> bool:
    """Whether something stands in a convolution's place, as LoRA's layers do: its weight is then not all of it."""
    return type(conv) is not nn.Conv1d


def call_channels_last(conv: nn.Module, x: Tensor) -> Tensor:
    """Call what stands in a convolution's place on (B, T, C) -> (B, T', O)."""
    return cast(Tensor, conv(x.transpose(1, 2))).transpose(1, 2)


def convolve(conv: nn.Module, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Run an `nn.Conv1d` of this stride and padding, or what stands in its place, on (B, T, C) -> (B, T', O)."""
    weight = cast(Tensor, conv.weight)
    if is_replaced(conv) and x.shape[1] + 2 * padding >= weight.shape[2]:
        return call_channels_last(conv, x)
    return conv1d_channels_last(x, weight, cast(Tensor | None, conv.bias), stride=stride, padding=padding)


def products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve (T, C) as matrix products on strided views of it: (T', O).

    The windows of neighbouring frames overlap, and overlapping rows are no matrix that BLAS takes; the first `stride`
    taps of all windows are one, so are the next ones, and their products add up in place.
    """
    length, channels = x.shape
    outputs, _, kernel = weight.shape
    frames = (length - kernel) // stride + 1
    x = x.contiguous()
    total = x.new_zeros(frames, outputs) if bias is None else bias.expand(frames, outputs)
    for first in range(0, kernel, stride):
        taps = min(stride, kernel - first)
        shape, strides = (frames, taps * channels), (stride * channels, 1)
        windows = x.as_strided(shape, strides, x.storage_offset() + first * channels)
        matrix = weight[:, :, first : first + taps].permute(2, 1, 0).reshape(taps * channels, outputs)
        total = torch.addmm(total, windows, matrix) if first == 0 else total.addmm_(windows, matrix)
    return total
