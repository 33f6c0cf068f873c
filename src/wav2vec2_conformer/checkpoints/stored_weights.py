"""What weights lie in a model's folder, by the headers of its files: names, shapes and types, without the numbers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .inert import StoredTensor, product
from .torch_file import DTYPES, TorchFile

__all__ = ["StoredWeight", "StoredWeights", "is_fairseq", "read_json"]

MAX_BYTES = 16 * 2**20  # of a header, an index or a configuration; of a large model they take 0.1 MB
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class StoredWeight:
    """A weight whose numbers have not been read.

    Args:
        file: where it lies.
        shape: its sizes.
        dtype: the type of its numbers, such as `"float32"`.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return product(self.shape)

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return "float" not in self.dtype and not self.dtype.startswith("F")


class StoredWeights:
    """The weights that `from_pretrained` would load from a folder: one file, or the shards that an index names.

    Opening takes memory for the headers only, 16 MiB of each file at most. Of a `.bin` file the pickle is read as data;
    nothing in it is executed.

    Args:
        folder: with `model.safetensors` or `pytorch_model.bin`, or an index and its shards.

    Attributes:
        files: names of the files that were found.
        found: key -> what lies there.
        absent: shards that the index names and that are not there -> the keys that should lie in each.

    Raises:
        ValueError: no weights, or a damaged or truncated file, which is named.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        found = [path for name in NAMES if (path := Path(folder) / name).is_file()]
        if not found:
            raise ValueError(f"{folder}: there are no weights; expected one of {', '.join(NAMES)}")
        shards = read_index(found[0]) if found[0].suffix == ".json" else {found[0]: []}
        self.absent = {path.name: keys for path, keys in shards.items() if not path.is_file()}
        present = [path for path in shards if path.is_file()]
        self.files = [path.name for path in present]
        self.found: dict[str, StoredWeight] = {}
        for path in present:
            self.found |= read_torch(path) if path.suffix == ".bin" else read_safetensors(path)

    def read(self, key: str) -> Tensor:
        """The numbers of one small weight.

        Raises:
            ValueError: it cannot be had without reading more than 16 MiB, or is damaged.
        """
        path = self.found[key].file
        if path.suffix == ".bin":
            with TorchFile(path) as file:
                tensor: StoredTensor = file.content[key]
                check_small(path, key, tensor.storage.bytes)
                return file.read(tensor)
        check_small(path, key, self.found[key].count * 8)
        try:
            with safe_open(path, framework="pt") as file:
                numbers: Tensor = file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path}: {key[:120]} cannot be read ({error})") from None
        return numbers


def check_small(path: Path, key: str, size: int) -> None:
    """Refuse to read much."""
    if size > MAX_BYTES:
        raise ValueError(
            f"{path}: {key[:120]} was to be read, but it lies in {size} bytes; expected {MAX_BYTES} at most"
        )


def read_safetensors(path: Path) -> dict[str, StoredWeight]:
    """The header of a safetensors file, which the library checks against the file's size."""
    with path.open("rb") as start:
        length = int.from_bytes(start.read(8), "little")
    try:
        if length > MAX_BYTES:  # before anything of that size is allocated
            raise ValueError(f"its header would have {length} bytes")
        with safe_open(path, framework="pt") as file:
            views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
            return {key: described(path, view.get_shape(), view.get_dtype()) for key, view in views.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a safetensors file, or a damaged or truncated one ({error})") from None


def described(path: Path, shape: list[int], dtype: str) -> StoredWeight:
    """A weight by safetensors' terms."""
    return StoredWeight(path, tuple(shape), SAFETENSORS_TYPES.get(dtype, dtype))


def read_torch(path: Path) -> dict[str, StoredWeight]:
    """The same of a file that `torch.save` wrote."""
    with TorchFile(path) as file:
        content = file.content
    if is_fairseq(content):
        raise ValueError(f"{path}: a checkpoint of fairseq, which has to be converted first: `convert fairseq`")
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, StoredTensor) for key, value in content.items()
    ):
        raise ValueError(f"{path}: expected a dictionary of tensors, as `save_pretrained` writes it")
    return {
        key: StoredWeight(path, tensor.shape, str(DTYPES[tensor.storage.kind]).removeprefix("torch."))
        for key, tensor in content.items()
    }


def is_fairseq(content: Any) -> bool:
    """Whether what a file of `torch.save` holds is a checkpoint of fairseq."""
    return isinstance(content, dict) and isinstance(content.get("model"), dict) and bool({"cfg", "args"} & set(content))


def read_index(path: Path) -> dict[Path, list[str]]:
    """The shards that an index names, and the keys that it says lie in each."""
    table = read_json(path).get("weight_map")
    shards: dict[Path, list[str]] = {}
    for key, name in table.items() if isinstance(table, dict) else ():
        if not isinstance(name, str) or not name.endswith((".safetensors", ".bin")) or Path(name).name != name:
            raise ValueError(f"{path}: a shard must be the name of a file beside the index, got {name!r:.80}")
        shards.setdefault(path.with_name(name), []).append(key)
    if not shards:
        raise ValueError(f"{path}: it names no shards; expected them under 'weight_map'")
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        ValueError: with the file's name: it is something else, or larger than any such file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: expected a JSON file of at most {MAX_BYTES} bytes, got {path.stat().st_size}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or damaged or truncated ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
