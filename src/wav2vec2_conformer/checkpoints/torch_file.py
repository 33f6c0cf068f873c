"""Files that `torch.save` wrote, in both formats: the pickle as data, tensors one by one when they are asked for."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .inert import Storage, StoredTensor, UnsafePickleError
from .safe_pickle import MAX_BYTES, read_pickle

__all__ = ["TorchFile"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in files of torch before 1.6
LEGACY_PROTOCOL = 1001
BLOCK = 2**20  # bytes read at once to compare a checksum
REMEDY = "Expected a checkpoint that `torch.save` wrote; fetch the file again from where it came from"
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class TorchFile:
    """A checkpoint file, open: `content` is its pickle as data, `read` gives a tensor of it.

    Nothing in the file is executed, and nothing larger than the file is allocated. Use it in a `with` statement.

    Args:
        path: a file of `torch.save`, of torch 1.6 or later (zip) or earlier.

    Raises:
        ValueError: with the file's name and the problem.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not os.fspath(path):
            raise ValueError("'': expected the name of a checkpoint file")
        if not self.path.is_file():
            known = "is a folder, not a checkpoint file" if self.path.is_dir() else "is a device or pipe, not a file"
            raise ValueError(f"{path}: {known if self.path.exists() else 'no such file'}")
        self.size = self.path.stat().st_size
        if not self.size:
            raise ValueError(f"{path}: the file is empty. {REMEDY}")
        self.storages: dict[str, Storage] = {}
        self.file = self.path.open("rb")
        self.archive: zipfile.ZipFile | None = None
        self.entries: dict[str, zipfile.ZipInfo] = {}  # of each storage, in the zip format
        self.starts: dict[str, int] = {}  # first byte of each storage, in the legacy format or once it was compared
        try:
            head = self.file.read(9)
            start = head[:4]
            self.file.seek(0)
            if start == b"PK\x03\x04":
                self.content = self._open_zip()
            elif start[:1] == b"\x80":
                self.content = self._open_legacy()
            elif head[8:] == b"{" and int.from_bytes(head[:8], "little") < self.size:
                raise UnsafePickleError(
                    "it is a safetensors file, and none that `torch.save` wrote. Its folder may load as it is, if "
                    "there is a config.json in it: try it as `--model`"
                )
            else:
                raise UnsafePickleError(f"no format of torch begins with {start!r}. {REMEDY}")
        except UnsafePickleError as error:
            self.file.close()
            raise ValueError(f"{path}: {error}") from None
        except DAMAGE as error:
            self.file.close()
            raise ValueError(f"{path}: the file is damaged or truncated ({str(error)[:200]}). {REMEDY}") from None

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; `content` stays, and no tensor can be read any more."""
        self.file.close()

    def read(self, tensor: StoredTensor) -> Tensor:
        """The numbers of a tensor, in memory of its own; of its storage only the part where they lie is held."""
        storage, dtype = tensor.storage, DTYPES[tensor.storage.kind]
        size = tensor.span * dtype.itemsize
        try:
            if self.archive is not None and size == storage.bytes:
                data = bytearray(self.archive.read(self.entries[storage.key]))  # compares the checksum
            else:
                self.file.seek(self._start(storage.key) + tensor.offset * dtype.itemsize)
                data = bytearray(self.file.read(size))
        except DAMAGE as error:
            raise ValueError(f"{self.path}: a tensor is damaged ({str(error)[:200]}). {REMEDY}") from None
        if len(data) != size:
            raise ValueError(f"{self.path}: a tensor of {size} bytes has only {len(data)}. {REMEDY}")
        if not data:
            return torch.empty(tensor.shape, dtype=dtype)
        if dtype == torch.bool:
            numbers = torch.frombuffer(data, dtype=torch.uint8) != 0  # any other byte is no bool
        else:
            numbers = torch.frombuffer(data, dtype=dtype)
        return numbers.as_strided(tensor.shape, tensor.strides).clone()

    def _start(self, key: str) -> int:
        """The first byte of a storage; in the zip format its checksum is compared the first time."""
        if self.archive is not None and key not in self.starts:
            with self.archive.open(self.entries[key]) as part:
                while part.read(BLOCK):
                    pass
            place = self.entries[key].header_offset
            self.file.seek(place + 26)  # the local header: lengths of the name and of what follows it, at 26 and 28
            lengths = self.file.read(4)
            name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
            self.starts[key] = place + 30 + name + extra
        return self.starts[key]

    def _open_zip(self) -> Any:
        """Find each storage, and read `<name>/data.pkl`."""
        archive = self.archive = zipfile.ZipFile(self.file)
        entries = {entry.filename: entry for entry in archive.infolist()}
        packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise UnsafePickleError(f"its part {packed[0][:80]!r} is compressed, which torch never does. {REMEDY}")
        if len(entries) != len(archive.infolist()) or sum(entry.file_size for entry in entries.values()) > self.size:
            raise UnsafePickleError(f"its parts overlap. {REMEDY}")
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UnsafePickleError(f"expected a zip file with one part <name>/data.pkl, got {len(pickles)}. {REMEDY}")
        root = pickles[0].removesuffix("data.pkl")
        order = entries.get(f"{root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise UnsafePickleError("its numbers are big-endian; save it again on a little-endian machine")
        if entries[pickles[0]].file_size > MAX_BYTES:
            raise UnsafePickleError(f"its pickle is larger than any checkpoint's: {MAX_BYTES} bytes at most")
        content = read_pickle(io.BytesIO(archive.read(pickles[0])), storages=self.storages)
        for key, storage in self.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None or entry.file_size != storage.bytes:
                got = "it is missing" if entry is None else f"it has {entry.file_size}"
                raise UnsafePickleError(f"storage {key[:80]!r} should have {storage.bytes} bytes, but {got}. {REMEDY}")
            self.entries[key] = entry
        return content

    def _open_legacy(self) -> Any:
        """The same of torch before 1.6: five pickles, then each storage's count and numbers."""
        source = Bounded(self.file, self.size)
        if read_pickle(source) != LEGACY_MAGIC or read_pickle(source) != LEGACY_PROTOCOL:
            raise UnsafePickleError(f"it is a pickle, but none of `torch.save`. {REMEDY}")
        system = read_pickle(source)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UnsafePickleError("its numbers are big-endian; save it again on a little-endian machine")
        content = read_pickle(source, storages=self.storages, legacy=True)
        keys = read_pickle(source)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UnsafePickleError(f"its list of storages is damaged. {REMEDY}")
        if len(set(keys)) != len(keys) or set(keys) != self.storages.keys():
            raise UnsafePickleError(f"its list of storages does not belong to its tensors. {REMEDY}")
        for key in keys:
            count = int.from_bytes(self.file.read(8), "little")
            end = self.file.tell() + self.storages[key].bytes
            if count != self.storages[key].count or end > self.size:
                raise UnsafePickleError(f"storage {key[:80]!r} is not as large as its tensors say: truncated? {REMEDY}")
            self.starts[key] = self.file.tell()
            self.file.seek(end)
        return content


# What zipfile raises for damaged files.
DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError, OverflowError, OSError)


class Bounded:
    """A file from which a request for more than there is allocates nothing."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        return self.file.read(max(0, min(size, self.size - self.file.tell(), MAX_BYTES)))

    def readline(self) -> bytes:
        """A line, cut off where it is longer than any in a checkpoint."""
        return self.file.readline(MAX_BYTES)

    def tell(self) -> int:
        """Bytes read so far."""
        return self.file.tell()
