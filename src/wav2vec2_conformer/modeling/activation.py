"""Activations that need no second tensor in inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

__all__ = ["Activation"]

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "relu": torch.relu_,
    "silu": torch.ops.aten.silu_,
    "swish": torch.ops.aten.silu_,
}


class Activation(nn.Module):
    """The activation of a name, computed in place where no gradient is wanted.

    Its input must be a fresh tensor that nobody else reads: at the sizes of a large model, fresh memory for the output
    takes more time than the activation.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.function = ACT2FN[name]

    def forward(self, x: Tensor) -> Tensor:
        if self.name in IN_PLACE and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return IN_PLACE[self.name](x)
        return cast(Tensor, self.function(x))
