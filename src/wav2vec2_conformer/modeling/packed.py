"""Linear layers whose weights lie in the order in which a processor reads them, for inference in bfloat16 on a CPU."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from .activation import Activation
from .inference_linear import InferenceLinear, is_right
from .processor import multiplies_bfloat16
from .row_blocks import row_blocks

# I inputs, O outputs

__all__ = ["PackedLinear", "can_pack", "packed_feed_forward"]

BLOCK = 1 << 20  # numbers between the layers of a feed-forward module: 2 MB, which stay in the cache


class PackedLinear(InferenceLinear):
    """A linear layer in bfloat16, laid out once for oneDNN, which as a plain one is laid out anew in each call.

    The product, the bias and a SiLU after them are one pass over the outputs, in float32 until they are written. Hooks
    on it are not called in a feed-forward module (`packed_feed_forward`).

    Args:
        weight: (O, I), float.
        bias: (O,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs = weight.shape[0]
        self.packed = PackedWeight(weight.detach().to(torch.bfloat16))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) bfloat16; no gradients."""
        return self.followed_by("none", x)

    def followed_by(self, activation: str, x: Tensor) -> Tensor:
        """`forward`, and one of oneDNN's activations: "none" or "swish"."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a packed model cannot be trained: train first, and convert what came out")
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            raise RuntimeError(
                f"a packed model computes in bfloat16 on a CPU, and its input is {x.dtype} on {x.device}: convert the "
                "float32 model anew for another type or device"
            )
        bias = cast(Tensor | None, self.bias)
        out = torch.ops.mkldnn._linear_pointwise(x.detach(), self.packed.weight, bias, activation, [], "")
        return cast(Tensor, out)


class PackedWeight:
    """An (O, I) weight in an order of oneDNN's choice, which can be copied and pickled."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def __reduce__(self) -> Any:
        return PackedWeight, (self.weight.to_dense(),)


def packed_feed_forward(first: PackedLinear, activation: Activation, second: PackedLinear, x: Tensor) -> Tensor:
    """(..., I) -> (..., O) through two layers; what lies between them never leaves the cache."""
    out = x.new_empty(*x.shape[:-1], second.outputs)
    rows, flat = x.flatten(0, -2), out.view(-1, second.outputs)
    silu = activation.name in ("silu", "swish")
    for some in row_blocks(rows, width=first.outputs, numbers=BLOCK):
        between = first.followed_by("swish", rows[some]) if silu else activation(first(rows[some]))
        flat[some] = second(between)
    return out


@cache
def can_pack() -> bool:
    """Whether this processor has instructions for bfloat16, and this build of torch packs weights and is right."""
    return multiplies_bfloat16() and is_right(lambda rows, weight: PackedLinear(weight, None)(rows), torch.bfloat16, 8)
