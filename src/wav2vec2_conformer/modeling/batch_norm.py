"""Batch normalisation over the valid frames of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .wide_buffers import WideBuffers

# B batch, T frames, D hidden size

__all__ = ["BatchStatistics", "FrameBatchNorm"]


class BatchStatistics(NamedTuple):
    """Mean and unbiased variance (D,) of a batch, and the number () of valid frames behind them."""

    mean: Tensor
    variance: Tensor
    frames: Tensor


class FrameBatchNorm(WideBuffers, nn.BatchNorm1d):
    """BatchNorm on (B, T, D) whose training statistics count valid frames only.

    `forward` (training) returns the batch's statistics instead of storing them, and `commit` stores them. The encoder
    commits once a step, also where gradient checkpointing runs `forward` twice. Running statistics stay at least
    float32 whatever the model is cast to, since they are sums over many batches.

    With `synchronised` set, the statistics of a training batch are those of all processes' frames together, and so are
    the gradients through them. With `frozen` set, it uses and keeps its running statistics in training, too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    synchronised = False
    frozen = False

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # `from_pretrained(dtype=...)` builds the model under that default type, and loads into the buffers' types.
        self.widen_buffers()

    def train(self, mode: bool = True) -> FrameBatchNorm:
        """Enter training or evaluation; a frozen one stays in evaluation."""
        return super().train(mode and not self.frozen)

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift (D,) that normalising with the running statistics amounts to."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale.to(dtype), (self.bias - self.running_mean * scale).to(dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, BatchStatistics]:  # type: ignore[override]
        """Normalise (B, T, D) with the statistics of its frames, or of those where `mask` (B, T) is True."""
        if self.synchronised and dist.is_available() and dist.is_initialized():
            return self._forward_together(x, mask)
        if mask is None:
            frames = max(x.shape[0] * x.shape[1], 1)
            count = torch.full((), float(frames), device=x.device, dtype=self.running_mean.dtype)
            # Statistics of none are 0; `batch_norm` itself refuses fewer than two frames. Wide weights make it return
            # wide statistics of half-precision frames.
            weight, bias = self.weight.to(count.dtype), self.bias.to(count.dtype)
            out, mean, inverse = torch.native_batch_norm(x.flatten(0, 1), weight, bias, None, None, True, 0.0, self.eps)
            variance = inverse.square().reciprocal() - self.eps
            out = out.view_as(x)
        else:
            valid = mask.unsqueeze(-1)
            wide = x.to(self.running_mean.dtype)
            count = valid.sum(dtype=wide.dtype).clamp(min=1)
            mean = torch.where(valid, wide, 0).sum((0, 1)) / count
            variance = torch.where(valid, wide - mean, 0).square().sum((0, 1)) / count
            scale = self.weight * torch.rsqrt(variance + self.eps)
            out = torch.addcmul(self.bias - mean * scale, wide, scale).to(x.dtype)
        unbiased = variance.detach() * (count / (count - 1).clamp(min=1))
        return out, BatchStatistics(mean.detach(), unbiased, count)

    def _forward_together(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, BatchStatistics]:
        wide = x.to(self.running_mean.dtype)
        valid = torch.ones_like(x[..., :1], dtype=torch.bool) if mask is None else mask.unsqueeze(-1)
        ones = valid.sum(dtype=wide.dtype).view(1)
        sums = over_processes(torch.cat((torch.where(valid, wide, 0).sum((0, 1)), ones)))
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        variance = over_processes(torch.where(valid, wide - mean, 0).square().sum((0, 1))) / count
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out = torch.addcmul(self.bias - mean * scale, wide, scale).to(x.dtype)
        unbiased = variance.detach() * (count / (count - 1).clamp(min=1))
        return out, BatchStatistics(mean.detach(), unbiased, count)

    @torch.no_grad()
    def commit(self, statistics: BatchStatistics) -> None:
        """Move the running statistics towards a batch's; one with fewer than two frames moves nothing."""
        # A batch with one frame has no variance and one with none has no mean, so neither counts.
        step = self.momentum * (statistics.frames > 1).to(self.running_mean.dtype)
        self.running_mean.add_((statistics.mean - self.running_mean) * step)
        self.running_var.add_((statistics.variance - self.running_var) * step)
        self.num_batches_tracked.add_(1)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        total = sums.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradient)


def over_processes(sums: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow."""
    return cast(Tensor, SumOverProcesses.apply(sums))  # type: ignore[no-untyped-call]
