"""Linear layers in 8-bit integers, for inference on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .inference_linear import InferenceLinear, is_right
from .row_blocks import row_blocks

# N rows (frames of all clips), I inputs, O outputs

__all__ = ["IntegerRows", "QuantizedLinear", "linear_layers", "quantized_feed_forward"]

LARGEST = 127  # symmetric: -128 is left out


class IntegerRows(NamedTuple):
    """Rows as integers of the product's type, each with a scale of its own: (N, I), and (N, 1) float32."""

    integers: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, rows: int, inputs: int) -> IntegerRows:
        """Room for `rows` rows."""
        return cls(
            torch.empty(rows, inputs, dtype=integer_product().rows, device="cpu"),
            torch.empty(rows, 1, dtype=torch.float32, device="cpu"),
        )

    @classmethod
    def of(cls, x: Tensor) -> IntegerRows:
        """(..., I) -> its rows."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a quantized model cannot be trained: train first, and quantize what came out")
        if x.device.type != "cpu":
            raise RuntimeError(f"a model in int8 runs on a CPU, and its input is on {x.device}; move it to the CPU")
        rows = x.detach().flatten(0, -2)
        found = cls.empty(*rows.shape)
        for some in row_blocks(rows):
            found.put(some, rows[some].float())
        return found

    def put(self, some: slice, rows: Tensor) -> None:
        """Quantize float32 rows into their places."""
        scale = unit(rows)
        self.scale[some] = scale
        self.integers[some] = (rows / scale).round_().add_(integer_product().zero)

    def some(self, chosen: slice) -> IntegerRows:
        """Some of the rows."""
        return IntegerRows(self.integers[chosen], self.scale[chosen])


class QuantizedLinear(InferenceLinear):
    """A linear layer whose weights are integers with one scale an output, and whose inputs become so row by row.

    A row's scale is that row's own largest number, so that no frame's result depends on other frames or clips. Only the
    product is in integers, summed in 32 bits. What goes in and comes out is of the network's type around it.

    The layer can be copied and pickled, and not saved as a state: the integers are not in it. Hooks on it are not
    called where several layers are computed together (`linear_layers`, `quantized_feed_forward`).

    Args:
        weight: (O, I), float.
        bias: (O,), or None.
    """

    scale: Tensor  # (O,) float32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        wide = weight.detach().float()
        self.outputs = wide.shape[0]
        scale = unit(wide)
        self.register_buffer("scale", scale.squeeze(-1))
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        # No buffer: in the order that the product reads it is of a kind of tensor that cannot be cast, moved or saved.
        self.product = product_with(torch.round(wide / scale).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O); no gradients."""
        return self.outputs_of(IntegerRows.of(x), x)

    def outputs_of(self, rows: IntegerRows, like: Tensor) -> Tensor:
        """(..., O), of the type and leading sizes of `like`, whose rows, or what became of them, these are."""
        out = like.new_empty(*like.shape[:-1], self.outputs)
        flat = out.view(-1, self.outputs)
        for some in row_blocks(flat):
            flat[some] = self.wide_outputs_of(rows.some(some))
        return out

    def wide_outputs_of(self, rows: IntegerRows) -> Tensor:
        """(N, O) float32."""
        product = self.product(rows.integers, self.scale)
        bias = cast(Tensor | None, self.bias)
        return product.mul_(rows.scale) if bias is None else torch.addcmul(bias, product, rows.scale, out=product)


def linear_layers(layers: Iterable[tuple[nn.Module, Tensor]]) -> list[Tensor]:
    """The outputs of layers, each of its (..., I); what several quantized ones read is turned into integers once."""
    outputs = []
    read, rows = None, None
    for layer, x in layers:
        if not isinstance(layer, QuantizedLinear):
            outputs.append(layer(x))
            continue
        if rows is None or x is not read:
            read, rows = x, IntegerRows.of(x)
        outputs.append(layer.outputs_of(rows, x))
    return outputs


def quantized_feed_forward(
    first: QuantizedLinear, activation: Callable[[Tensor], Tensor], second: QuantizedLinear, x: Tensor
) -> Tensor:
    """(..., I) -> (..., O) through two layers; what lies between them is never written to memory but as integers."""
    rows = IntegerRows.of(x)
    between = IntegerRows.empty(rows.integers.shape[0], first.outputs)
    for some in row_blocks(between.integers):
        between.put(some, activation(first.wide_outputs_of(rows.some(some))))
    return second.outputs_of(between, x)


def unit(rows: Tensor) -> Tensor:
    """(N, 1): what a row's largest number is divided by to become the largest integer; above 0."""
    # Two passes that only read are faster than one that writes absolute values to fresh memory.
    largest = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))
    return (largest / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)


class PlainProduct:
    """Products of rows with an (O, I) int8 weight, which any build of torch has."""

    rows, zero = torch.int8, 0  # the type of the rows, and the integer in them that stands for 0

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, rows: Tensor, scale: Tensor) -> Tensor:
        """(N, I) integers x (O,) -> (N, O) float32, the products times the scale."""
        return torch._int_mm(rows, self.weight.t()).float().mul_(scale)

    def __reduce__(self) -> Any:
        return product_with, (self.weight,)


class PackedProduct(PlainProduct):
    """The same with a weight that lies in the order in which oneDNN reads it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(torch.ops.onednn.qlinear_prepack(weight.contiguous(), None))
        self.zeros = torch.zeros(weight.shape[0], dtype=torch.int32, device="cpu")

    def __call__(self, rows: Tensor, scale: Tensor) -> Tensor:
        """As `PlainProduct`."""
        return cast(
            Tensor,
            torch.ops.onednn.qlinear_pointwise(
                *(rows, 1.0, self.zero, self.weight, scale.float(), self.zeros),
                *(None, 1.0, 0, torch.float32, "none", [], ""),
            ),
        )

    def __reduce__(self) -> Any:
        return product_with, (self.weight.to_dense().t().contiguous(),)


class PackedShiftedProduct(PackedProduct):
    """The same with rows from 1 to 255 in place of -127 to 127, for what multiplies unsigned integers by signed ones.

    That is all that AVX512-VNNI does, and what torch lays the weights out for. With signed rows oneDNN is left with its
    reference kernel there, which takes a thousand times as long.
    """

    rows, zero = torch.uint8, 128


@cache
def integer_product() -> type[PlainProduct]:
    """A packed product where this processor has instructions for it, this build of torch has it, and it is right."""
    kind: type[PlainProduct] = PlainProduct
    if torch.cpu._is_amx_tile_supported():
        kind = PackedProduct
    elif torch.cpu._is_vnni_supported():
        kind = PackedShiftedProduct

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        scale = torch.ones(len(weight), dtype=torch.float32, device="cpu")
        return kind(weight)((rows.short() + kind.zero).to(kind.rows), scale)

    return kind if is_right(product, torch.int8, LARGEST) else PlainProduct


def product_with(weight: Tensor) -> PlainProduct:
    """Products with an (O, I) int8 weight, the way that this machine has."""
    return integer_product()(weight)
