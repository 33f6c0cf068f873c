"""Weights that checkpoints carry and the network never uses.

Both references create a convolutional position embedding, save it and never call it: 8,389,760 numbers in the large
model. Here those tensors are no parameters (nothing trains or counts them) and no buffers (nothing moves or
synchronises them); they come in with a file and go out again with the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import Wav2Vec2ConformerConfig

__all__ = ["UnusedTensors", "rename_old_weight_norm", "seal_unused", "unused_conv_positions"]


class UnusedTensors(nn.Module):
    """Named tensors that appear in state dicts only.

    While a model is built on the meta device (as `from_pretrained` does) they are buffers, so that the loader finds
    them; `seal` then takes them out.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], spread: float) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape, device="meta"))
        self.shapes = shapes
        self.spread = spread
        if torch.empty(0).device.type != "meta":
            self.seal()

    def seal(self) -> None:
        """Move what was loaded out of the buffers; what was not stays undefined and is written as initial values."""
        for name in self.shapes:
            tensor = self._buffers.pop(name, None)
            if tensor is not None and tensor.device.type != "meta":
                self.kept[name] = tensor.detach().cpu()

    def __getattr__(self, name: str) -> Any:
        # torch.distributed.checkpoint looks every name of a state dict up as an attribute.
        if name in self.__dict__.get("shapes", ()) and name not in self._buffers:
            return self.value(name)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UnusedTensors:
        awaited = self._on_meta()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Only `to_empty` leads from the meta device to another, and what it allocates means nothing.
        for name in awaited - self._on_meta():
            del self._buffers[name]
        return self

    def _on_meta(self) -> set[str]:
        return {name for name, buffer in self.named_buffers(recurse=False) if buffer.device.type == "meta"}

    def initial(self, name: str) -> Tensor:
        """What a file says where no file ever said anything: the same draw each time, so that saving is repeatable."""
        if name == "bias":
            return torch.zeros(self.shapes[name])
        direction = torch.empty(self.shapes["original1"])
        direction.normal_(std=self.spread, generator=torch.Generator().manual_seed(0))
        return direction if name == "original1" else direction.norm(dim=(0, 1), keepdim=True)

    def value(self, name: str) -> Tensor:
        """What a state dict says: the loaded values, or else initial ones."""
        return self.kept[name] if name in self.kept else self.initial(name)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.shapes:
            if name not in self._buffers:
                destination[prefix + name] = self.value(name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, shape in self.shapes.items():
            tensor = state_dict.get(prefix + name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                error_msgs.append(f"size mismatch for {prefix + name}: expected {shape}, got {tuple(tensor.shape)}")
            else:
                self._buffers.pop(name, None)
                self.kept[name] = tensor.detach().cpu().clone()
        inside = {prefix + name for name in self.shapes}
        unexpected_keys.extend(
            key
            for key in state_dict
            if key.startswith(prefix) and key not in inside and "." not in key.removeprefix(prefix)
        )


def unused_conv_positions(config: Wav2Vec2ConformerConfig) -> nn.Module:
    """The keys of `encoder.pos_conv_embed`: a weight-normed convolution (norm over all but the kernel's axis)."""
    width, kernel = config.hidden_size, config.num_conv_pos_embeddings
    inputs = width // config.num_conv_pos_embedding_groups
    spread = 2 * math.sqrt(1 / (kernel * width))
    conv = UnusedTensors({"bias": (width,)}, spread)
    conv.parametrizations = nn.Module()
    conv.parametrizations.weight = UnusedTensors(
        {"original0": (1, 1, kernel), "original1": (width, inputs, kernel)}, spread
    )
    conv.register_load_state_dict_pre_hook(rename_old_weight_norm)  # type: ignore[no-untyped-call]
    positions = nn.Module()
    positions.conv = conv
    return positions


def rename_old_weight_norm(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Read weight norm's names of torch before 2.0; a hook for `load_state_dict`."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if prefix + old in state_dict:
            state_dict[f"{prefix}parametrizations.weight.{new}"] = state_dict.pop(prefix + old)


def seal_unused(model: nn.Module) -> None:
    """Seal every `UnusedTensors` of a model."""
    for module in model.modules():
        if isinstance(module, UnusedTensors):
            module.seal()
