"""What stands in the linear layers' places in inference, whose weights are kept in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from .linear import Linear
from .wide_buffers import WideBuffers

# I inputs, O outputs

__all__ = ["STATE", "InferenceLinear", "replace_linear_layers"]

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


def replace_linear_layers(blocks: nn.Module, kind: Callable[[Tensor, Tensor | None], InferenceLinear]) -> int:
    """Put another kind in the place of all linear layers of conformer blocks; how many there were.

    Convolutions of kernel 1 count as linear layers. Norms, other convolutions, attention's products, the feature
    encoder and the heads stay as they are: they are small, or sensitive.
    """
    found = 0
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            pointwise = type(child) is nn.Conv1d and child.kernel_size == (1,)
            if isinstance(child, Linear) or pointwise:
                weight = cast(Tensor, child.weight)
                setattr(module, name, kind(weight.flatten(1), cast(Tensor | None, child.bias)))
                found += 1
    return found
