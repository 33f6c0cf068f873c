"""One-dimensional convolution on (B, T, C) tensors without a transpose in memory."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .processor import WIDE_ONEDNN

# B batch, T positions, C channels, K kernel, O outputs

__all__ = ["Depthwise", "Strided", "call_channels_last", "conv1d_channels_last", "convolve", "is_replaced"]

FEWEST_GROUPS, FEWEST_CHANNELS = 16, 32  # see `is_wrong_in_half`
SMALLEST_WEIGHT = 1 << 19  # from here on, products of each clip are faster than a convolution, and so are gradients
SMALLEST_DEPTHWISE = 1 << 13  # from here on, gradients of the depthwise convolution by taps are faster than oneDNN's


def conv1d_channels_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    matrix: Tensor | None = None,
) -> Tensor:
    """Convolve (B, T, C) with `weight` (O, C / groups, K) into (B, T', O).

    `(B, T, C)` is what a channels-last image of height 1 looks like in memory, so a two-dimensional convolution takes
    and gives it as it is: views in, view out. oneDNN's channels-last kernels are then 1.4 to 2.5 times as fast as
    `conv1d` on the transposed tensor, and 20 times for the depthwise convolution; for wide layers, matrix products on
    strided views of each clip are faster still where BLAS is as fast as oneDNN (`benchmarks/convolutions.py`). They
    read the weight as `matrix_of` lays it out, which takes as long as a product of a short clip: who has it as a
    `matrix` already can give it. An input shorter than the kernel gives T' = 0.
    """
    batch, length, _ = x.shape
    if length == 0 or length + 2 * padding < weight.shape[2]:
        return x.new_zeros(batch, 0, weight.shape[0])
    on_cpu = x.device.type == "cpu"
    eager = on_cpu and not is_traced()
    wide = padding == 0 and groups == 1 and is_wide(weight)
    if on_cpu and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if eager and wide and not torch.is_grad_enabled() and not prefers_image(x):
        matrix = matrix_of(weight) if matrix is None else matrix.to(weight.dtype)
        return products(x, matrix, bias, weight.shape[2], stride)
    if eager and torch.is_grad_enabled():
        if is_depthwise(x, weight, stride, padding):
            return cast(Tensor, Depthwise.apply(x, weight, bias))  # type: ignore[no-untyped-call]
        if wide and x.dtype.itemsize >= 4:
            return cast(Tensor, Strided.apply(x, weight, bias, stride))  # type: ignore[no-untyped-call]
    return as_image(x, weight, bias, stride, padding, groups)


def prefers_image(x: Tensor) -> bool:
    """Whether oneDNN's convolution is faster than products here, however wide it is."""
    return WIDE_ONEDNN and x.dtype == torch.float32 and torch._C._get_mkldnn_enabled()


def is_traced() -> bool:
    """Whether torch records what is computed, for other inputs than these."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def is_wide(weight: Tensor) -> bool:
    """Whether products are faster than a convolution with this weight."""
    return weight.numel() >= SMALLEST_WEIGHT


def matrix_of(weight: Tensor) -> Tensor:
    """(O, C, K) -> (K * C, O), in memory as the products read it."""
    outputs, channels, kernel = weight.shape
    return weight.permute(2, 1, 0).reshape(kernel * channels, outputs)


def as_image(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """The convolution of (B, T, C) as one of an image of height 1: (B, T', O)."""
    if x.device.type == "cpu" and x.dtype.itemsize == 2 and is_wrong_in_half(weight, groups):
        wide = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return as_image(x.float(), weight.float(), wide, stride, padding, groups).to(x.dtype)
    image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
    image = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), 1, groups)  # (B, O, 1, T')
    return image.squeeze(2).transpose(1, 2)  # (B, T', O)


def is_wrong_in_half(weight: Tensor, groups: int) -> bool:
    """Whether oneDNN cannot be asked for a convolution in half precision.

    Its depthwise one never returns for up to 16 channels and a wide kernel. On processors with AMX, many of those that
    read 2 to 31 channels give numbers that have nothing to do with the input (torch 2.13; pinned by
    `test_few_channels_are_right_in_bfloat16`).
    """
    return 1 < groups <= FEWEST_GROUPS or 1 < weight.shape[1] < FEWEST_CHANNELS


def is_depthwise(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether a convolution is one that `Depthwise` computes, and large enough."""
    outputs, inputs, kernel = weight.shape
    same = inputs == 1 and outputs == x.shape[2] and stride == 1 and kernel == 2 * padding + 1
    return same and weight.numel() >= SMALLEST_DEPTHWISE


class Depthwise(torch.autograd.Function):
    """Convolve each channel of (B, T, C) with its own odd kernel (C, 1, K) into (B, T, C).

    The input's gradient is the same convolution with the kernel turned round, and the kernel's is a sum of products for
    each tap: faster than oneDNN's (`benchmarks/convolutions.py`).
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return as_image(x, weight, bias, padding=weight.shape[2] // 2, groups=weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the input, the weight and the bias, where they are wanted."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        channels, _, kernel = weight.shape
        padding, length = kernel // 2, x.shape[1]
        of_input, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_input = as_image(gradient, weight.flip(2), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            taps = []
            for offset in range(-padding, padding + 1):
                last = min(max(length - offset, 0), length)  # frames `first` to `last` read inside the clip here
                first = min(max(-offset, 0), last)
                # Clip by clip: what one product writes is still in the cache when it is summed.
                products = (
                    clip[first + offset : last + offset] * own[first:last]
                    for clip, own in zip(x.unbind(), gradient.unbind(), strict=True)
                )
                wide = torch.promote_types(x.dtype, torch.float32)
                taps.append(sum((p.sum(0, dtype=wide) for p in products), start=x.new_zeros(channels, dtype=wide)))
            of_weight = torch.stack(taps, dim=-1).unsqueeze(1).to(weight.dtype)
        return of_input, of_weight, gradient.sum((0, 1)) if ctx.needs_input_grad[2] else None


class Strided(torch.autograd.Function):
    """Convolve (B, T, C) with (O, C, K) every `stride` positions into (B, T', O).

    Its gradients are products with the same strided views that `products` reads, one for each stride's worth of the
    kernel: for the long, wide layers of a feature encoder faster than oneDNN's (`benchmarks/convolutions.py`).
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        return as_image(x, weight, bias, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.stride = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Of the input, the weight and the bias, where they are wanted; their types are float32 or wider."""
        x, weight = ctx.saved_tensors
        x, gradient = x.contiguous(), gradient.contiguous()
        outputs, channels, kernel = weight.shape
        frames = gradient.shape[1]
        matrix = matrix_of(weight)
        of_input = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(matrix) if ctx.needs_input_grad[1] else None
        for index, own in enumerate(gradient):  # (T', O)
            for first in range(0, kernel, ctx.stride):
                taps = min(ctx.stride, kernel - first)
                rows = slice(first * channels, (first + taps) * channels)
                if of_input is not None:
                    view = windows(of_input[index], frames, first, taps, ctx.stride)
                    view.addmm_(own, matrix[rows].t())
                if of_weight is not None:
                    of_weight[rows] += windows(x[index], frames, first, taps, ctx.stride).t() @ own
        if of_weight is not None:
            of_weight = of_weight.view(kernel, channels, outputs).permute(2, 1, 0)
        return of_input, of_weight, gradient.sum((0, 1)) if ctx.needs_input_grad[2] else None, None


def windows(x: Tensor, frames: int, first: int, taps: int, stride: int) -> Tensor:
    """The view (T', taps * C) of a contiguous (T, C) that taps `first` to `first + taps` read, `taps` <= `stride`."""
    channels = x.shape[1]
    offset = x.storage_offset() + first * channels
    return x.as_strided((frames, taps * channels), (stride * channels, 1), offset)


def is_replaced(conv: nn.Module) -> bool:
    """Whether something stands in a convolution's place, as LoRA's layers do: its weight is then not all of it."""
    return type(conv) is not nn.Conv1d


def call_channels_last(conv: nn.Module, x: Tensor) -> Tensor:
    """Call what stands in a convolution's place on (B, T, C) -> (B, T', O)."""
    return cast(Tensor, conv(x.transpose(1, 2))).transpose(1, 2)


def convolve(conv: nn.Module, x: Tensor, *, stride: int = 1, padding: int = 0, matrix: Tensor | None = None) -> Tensor:
    """Run an `nn.Conv1d` of this stride and padding, or what stands in its place, on (B, T, C) -> (B, T', O)."""
    weight = cast(Tensor, conv.weight)
    if is_replaced(conv) and x.shape[1] + 2 * padding >= weight.shape[2]:
        return call_channels_last(conv, x)
    bias = cast(Tensor | None, conv.bias)
    return conv1d_channels_last(x, weight, bias, stride=stride, padding=padding, matrix=matrix)


def products(x: Tensor, matrix: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """Convolve (B, T, C) as matrix products on strided views of each clip: (B, T', O).

    The windows of neighbouring frames overlap, and overlapping rows are no matrix that BLAS takes; the first `stride`
    taps of all windows are one, so are the next ones, and their products add up in place.

    Args:
        x: (B, T, C).
        matrix: (K * C, O), see `matrix_of`.
        bias: (O,), or None.
        kernel: taps K.
        stride: of the convolution.
    """
    batch, length, channels = x.shape
    frames = (length - kernel) // stride + 1
    x = x.contiguous()
    out = x.new_empty(batch, frames, matrix.shape[1])
    for clip, total in zip(x, out, strict=True):
        for first in range(0, kernel, stride):
            taps = min(stride, kernel - first)
            read = windows(clip, frames, first, taps, stride)
            rows = matrix[first * channels : (first + taps) * channels]
            if first > 0:
                total.addmm_(read, rows)
            elif bias is None:
                torch.mm(read, rows, out=total)
            else:
                torch.addmm(bias, read, rows, out=total)
    return out
