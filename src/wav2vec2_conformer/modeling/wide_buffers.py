"""Buffers that keep their precision whatever the model is cast to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["WideBuffers"]

Self = TypeVar("Self", bound="WideBuffers")


class WideBuffers(nn.Module):
    """A module whose buffers follow the model to other devices and to float64, but to nothing narrower than float32.

    So they are not rounded by `half()`, `bfloat16()`, `to(dtype)`, `type(dtype)` and by loading half-precision files,
    and files of half-precision models have them in float32.
    """

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and is_narrow(new):
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.widen_buffers()  # `assign=True` has put the file's own tensors here

    def widen_buffers(self) -> None:
        """Turn buffers of half precision into float32."""
        for name, buffer in self._buffers.items():
            if buffer is not None and is_narrow(buffer):
                self._buffers[name] = buffer.float()


def is_narrow(tensor: Tensor) -> bool:
    """Whether a tensor is of a floating-point type of less than 4 bytes."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
