"""LayerNorm whose weights learn in half precision on a CPU, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .row_blocks import row_blocks

# N rows (frames of all clips), D their width

__all__ = ["LayerNorm"]


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension.

    On a CPU, torch sums the gradients of weight and bias over the rows in the type of the input. In bfloat16, what is
    added to a sum soon vanishes: of 3000 rows, a bias loses half of its gradient, of 20000 rows most of it. Here both
    are summed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        needed = torch.is_grad_enabled() and x.device.type == "cpu" and x.itemsize == 2
        if not needed or torch.compiler.is_compiling() or not self.elementwise_affine:
            return super().forward(x)
        normed: Tensor = _LayerNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return normed


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        out, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input, the weight and the bias, where they are wanted."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            only_x = [True, False, False]
            of_x = torch.ops.aten.native_layer_norm_backward(
                grad.contiguous(), x, weight.shape, mean, rstd, weight, bias, only_x
            )[0]
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return of_x, None, None, None
        width = weight.shape[0]
        rows, grads = x.reshape(-1, width), grad.reshape(-1, width)
        means, scales = mean.reshape(-1, 1).float(), rstd.reshape(-1, 1).float()
        of_weight, of_bias = (torch.zeros(width) for _ in range(2))
        for some in row_blocks(rows):
            block = grads[some].float()
            of_bias += block.sum(0)
            of_weight += rows[some].float().sub_(means[some]).mul_(scales[some]).mul_(block).sum(0)
        return of_x, of_weight.to(weight.dtype), None if bias is None else of_bias.to(bias.dtype), None
