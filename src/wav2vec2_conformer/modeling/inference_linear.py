"""What stands in the linear layers' places in inference, whose weights are kept in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .linear import Linear
from .wide_buffers import WideBuffers

# I inputs, O outputs

__all__ = ["STATE", "InferenceLinear", "is_right", "replace_linear_layers"]

STATE = (
    "a model in int8, or packed for bfloat16, is not saved, and has no state to load: keep the float32 model, and "
    "convert it after loading, which takes less time than reading it"
)


class InferenceLinear(WideBuffers):
    """A linear layer of a kind whose weights cannot be saved."""

    def _save_to_state_dict(self, *args: Any) -> None:
        raise ValueError(STATE)

    def _load_from_state_dict(self, *args: Any) -> None:
        raise ValueError(STATE)


def replace_linear_layers(blocks: nn.Module, kind: Callable[[Tensor, Tensor | None], InferenceLinear]) -> None:
    """Put another kind in the place of all linear layers of conformer blocks.

    Convolutions of kernel 1 count as linear layers. Norms, other convolutions, attention's products, the feature
    encoder and the heads stay as they are: they are small, or sensitive.
    """
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            pointwise = type(child) is nn.Conv1d and child.kernel_size == (1,)
            if isinstance(child, Linear) or pointwise:
                weight = cast(Tensor, child.weight)
                setattr(module, name, kind(weight.flatten(1), cast(Tensor | None, child.bias)))


def is_right(product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, largest: int) -> bool:
    """Whether this build of torch has a product, and it is right on this processor.

    Args:
        product: (N, I) rows and an (O, I) weight to (N, O).
        dtype: of both.
        largest: of the whole numbers that it is tried with, whose sums are exact.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    rows, weight = (
        torch.randint(-largest, largest + 1, (16, 32), generator=generator, device="cpu").to(dtype) for _ in range(2)
    )
    try:
        got = product(rows, weight)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(got, (rows.long() @ weight.t().long()).to(got.dtype))
