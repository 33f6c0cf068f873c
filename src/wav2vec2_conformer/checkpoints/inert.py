"""What a pickle may name, and the inert records that stand for what those names would have built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Inert",
    "Name",
    "Storage",
    "StoredTensor",
    "UnsafePickleError",
    "allowed_name",
    "build",
    "describe",
    "expect",
]

MAX_DIMENSIONS = 16
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
}
NONE_TYPES = {"builtins.type", "__builtin__.type"}  # of None only: how `typing.Optional` is written
REBUILDERS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
EMPTY_DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict"}
# What may be built as an inert record: what fairseq's checkpoints hold.
RECORDS = {
    "argparse.Namespace",
    "_codecs.encode",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "operator.getitem",  # how Python 3.8 and later write `typing.List[int]`
    "_operator.getitem",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "torch.Size",
    "torch.device",
}
RECORD_PACKAGES = re.compile(r"(omegaconf|fairseq)(\.[A-Za-z_]\w*)+")
# What may be named, as a type in omegaconf's metadata, but not built.
ONLY_NAMED = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in "dict list tuple str int float".split()),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bool", "bytes", "object", "type")),
    *(f"__builtin__.{name}" for name in ("long", "unicode")),
    *(f"typing.{name}" for name in "Any Dict List Tuple Optional Union".split()),
    *(f"torch.{name}" for name in "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()),
    *(f"torch.{name}" for name in ITEM_SIZES),
}


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or asks for something that no checkpoint needs."""


@dataclass(frozen=True)
class Name:
    """A name of something importable, which is not imported."""

    full: str


@dataclass(eq=False)
class Inert:
    """What an object would have been built from: the name of its class or function, the arguments, the state."""

    name: str
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file, `count` of them under `key`."""

    kind: str  # "FloatStorage"
    key: str
    count: int

    @property
    def bytes(self) -> int:
        """Their size."""
        return self.count * ITEM_SIZES[self.kind]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers have not been read: a view of a storage, checked to lie within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return product(self.shape)

    @property
    def bytes(self) -> int:
        """What they take in memory of their own."""
        return self.count * ITEM_SIZES[self.storage.kind]

    @property
    def span(self) -> int:
        """Numbers of the storage from its first to its last."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps) if self.count else 0


def product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"expected {what}, got {describe(value)}")
    return value


def describe(value: Any) -> str:
    """A value in few words; never its `repr`, which may be endless."""
    if isinstance(value, Name | Inert):
        return f"{value.full if isinstance(value, Name) else value.name}"[:200]
    return f"{value!r}"[:80] if isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"


def allowed_name(module: str, name: str) -> Name:
    """The name, if it is one that checkpoints need."""
    full = f"{module}.{name}"
    known = full in RECORDS or full in ONLY_NAMED or full in REBUILDERS or full in EMPTY_DICTIONARIES
    if not known and not RECORD_PACKAGES.fullmatch(full):
        raise UnsafePickleError(
            f"it asks for {full[:200]!r}, which no checkpoint needs; nothing was executed. If you trust where the file "
            "comes from, save its weights and settings again, without other objects"
        )
    return Name(full)


def build(name: Name, arguments: tuple[Any, ...]) -> Any:
    """What a call of `name` would make, without calling it."""
    if name.full in EMPTY_DICTIONARIES:
        if len(arguments) > (name.full == "collections.defaultdict"):
            raise UnsafePickleError(f"a {name.full} must start empty")
        return {}
    if name.full in REBUILDERS:
        return rebuild(name, arguments)
    if name.full in NONE_TYPES and arguments == (None,):
        return Inert(name.full, arguments)
    if name.full in ONLY_NAMED:
        raise UnsafePickleError(f"it calls {name.full}, which may only be named")
    if name.full in ("copyreg._reconstructor", "copy_reg._reconstructor"):
        if not arguments or not isinstance(arguments[0], Name):
            raise UnsafePickleError(f"{name.full} without a class")
        return build(arguments[0], ())
    if name.full in ("operator.getitem", "_operator.getitem") and not (
        len(arguments) == 2 and isinstance(arguments[0], Name) and arguments[0].full.startswith("typing.")
    ):
        raise UnsafePickleError(f"{name.full} of something else than a type of `typing`")
    return Inert(name.full, arguments)


def rebuild(name: Name, arguments: tuple[Any, ...]) -> StoredTensor:
    """A tensor from (storage, offset, sizes, strides, ...), or a parameter from (tensor, ...)."""
    if name.full.endswith("parameter"):
        return expect(arguments[0], StoredTensor, "a tensor")  # type: ignore[no-any-return]
    storage = expect(arguments[0], Storage, "a storage")
    offset, shape, strides = arguments[1:4]
    shape, strides = (value.arguments[0] if is_torch_size(value) else value for value in (shape, strides))
    if (
        not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or not len(shape) == len(strides) <= MAX_DIMENSIONS
    ):
        raise UnsafePickleError(f"a tensor must have as many strides as sizes, {MAX_DIMENSIONS} at most")
    if not all(map(is_size, (offset, *shape, *strides))):
        raise UnsafePickleError("a tensor's offset, sizes and strides must be whole numbers of at least 0")
    tensor = StoredTensor(storage, offset, shape, strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if tensor.count > storage.count or (tensor.count and last >= storage.count):
        raise UnsafePickleError(
            f"a tensor of sizes {shape} with strides {strides} from {offset} on does not lie in its storage of "
            f"{storage.count} numbers"
        )
    return tensor


def is_torch_size(value: Any) -> bool:
    return isinstance(value, Inert) and value.name == "torch.Size" and len(value.arguments) == 1


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
