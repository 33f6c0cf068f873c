"""Checkpoint files as an attacker would write them: nothing in them runs, and none takes more memory than it has."""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import os
import pickle
import struct
import sys
import tracemalloc
import typing
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from wav2vec2_conformer.checkpoints.inert import Inert, Name, StoredTensor, UnsafePickleError
from wav2vec2_conformer.checkpoints.safe_pickle import read_pickle
from wav2vec2_conformer.checkpoints.torch_file import TorchFile

EVENTS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "exec",
    "compile",
    "pickle.find_class",
    "import",
}
for name in ("cp437", "raw_unicode_escape", "utf-8"):  # zipfile and pickletools import them when first needed
    codecs.lookup(name)
ran: list[str] | None = None  # what happened while a file was read


def listen(event: str, details: Any) -> None:
    if ran is not None and event in EVENTS:
        ran.append(f"{event} {str(details)[:100]}")


sys.addaudithook(listen)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fail if anything is imported, compiled, executed or unpickled inside."""
    global ran
    ran = []
    try:
        yield
        assert ran == []
    finally:
        ran = None


def write_zip(
    path: Path, content: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    """A file in the format of torch 1.6 and later."""
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def refusal(content: bytes) -> str:
    """The message with which a pickle is refused."""
    with nothing_runs(), pytest.raises(UnsafePickleError) as refused:
        read_pickle(io.BytesIO(content))
    return str(refused.value)


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, name: str, arguments: bytes) -> bytes:
    return glob(module, name) + b"(" + arguments + b"tR"


class Reduced:
    """Pickles as whatever call is given."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


# --- what is read ------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(-5, 5), inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=30,
)


@given(plain, st.sampled_from([1, 2, 3, 4, 5]))
def test_plain_data_is_what_pickle_gives(value: Any, protocol: int) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_shared_and_cyclic_lists_stay_so() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    read = read_pickle(io.BytesIO(pickle.dumps([inner, inner])))
    assert read[0] is read[1]
    assert read[0][1] is read[0]


@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_torch(tmp_path: Path, new_format: bool) -> None:
    weights = {
        "float": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "part": torch.arange(20.0)[5:9],
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "int8": torch.tensor([-3], dtype=torch.int8),
        "uint8": torch.tensor([200], dtype=torch.uint8),
    }
    state = collections.OrderedDict(weights)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = {"model": state, "args": argparse.Namespace(arch="wav2vec2", rate=0.5)}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=new_format)
    with nothing_runs(), TorchFile(tmp_path / "model.pt") as file:
        assert file.content["model"].keys() == weights.keys()
        for name, expected in weights.items():
            found = file.read(file.content["model"][name])
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected), name
        arguments = file.content["args"]
        assert isinstance(arguments, Inert)
        assert (arguments.name, arguments.state) == ("argparse.Namespace", {"arch": "wav2vec2", "rate": 0.5})


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_records_are_inert(protocol: int) -> None:
    if protocol == 0:
        content = b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR(dVx\nI1\nsb."
    else:
        content = pickle.dumps(argparse.Namespace(x=1), protocol)
    record = read_pickle(io.BytesIO(content))
    assert (type(record), record.name, record.state) == (Inert, "argparse.Namespace", {"x": 1})


@pytest.mark.parametrize("protocol", [2, 4])
def test_numbers_of_numpy_and_types_are_inert(protocol: int) -> None:
    """What stands beside the weights: values of metrics, and types in omegaconf's metadata."""
    generic = vars(typing)["Optional"][vars(typing)["List"][int]]
    content = {"loss": np.float64(1.5), "array": np.zeros(2), "generic": generic, "types": [Any, list, str]}
    with nothing_runs():
        read = read_pickle(io.BytesIO(pickle.dumps(content, protocol)))
    assert type(read["loss"]) is type(read["array"]) is type(read["generic"]) is Inert
    assert read["loss"].name.endswith("multiarray.scalar")
    builtins = {2: ["__builtin__.list", "__builtin__.unicode"], 4: ["builtins.list", "builtins.str"]}
    assert read["types"] == [Name(name) for name in ["typing.Any", *builtins[protocol]]]


# --- what is refused ---------------------------------------------------------------------------------------------

HOSTILE_CALLS = [
    (os.system, ("touch {canary}",)),
    (eval, ("__import__('os').system('touch {canary}')",)),
    (exec, ("open('{canary}', 'w')",)),
    (getattr, (str, "upper")),
    (open, ("{canary}", "w")),
    (__import__, ("antigravity",)),
    (torch.load, ("{canary}",)),
    (pickle.loads, (b"",)),
    (dict, ()),
    (type, ("X", (), {})),
    (type, (1,)),
    (print, ("x",)),
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("function", "arguments"), HOSTILE_CALLS, ids=lambda value: getattr(value, "__name__", ""))
def test_calls_are_refused_by_name(tmp_path: Path, function: Any, arguments: tuple[Any, ...], protocol: int) -> None:
    canary = tmp_path / "canary"
    filled = tuple(a.format(canary=canary) if isinstance(a, str) else a for a in arguments)
    file = write_zip(tmp_path / "model.pt", pickle.dumps({"model": Reduced(function, filled)}, protocol))
    with nothing_runs(), pytest.raises(ValueError, match=rf"model\.pt: .*\b{function.__name__}\b"):
        TorchFile(file)
    assert not canary.exists()


HOSTILE_OPERATIONS = {
    "a class of protocol 0": (b"(S'true'\nios\nsystem\n.", "INST"),
    "the same by OBJ": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "OBJ of a known class": (b"(cargparse\nNamespace\nS'true'\no.", "OBJ"),
    "the registry of extensions": (b"\x82\x01.", "EXT1"),
    "keywords": (glob("argparse", "Namespace") + b")}\x92.", "NEWOBJ_EX"),
    "a path of names": (text("argparse") + text("Namespace.__init__.__globals__") + b"\x93.", "__globals__"),
    "a path through a package": (text("omegaconf") + text("os.system.__self__ x") + b"\x93.", "os.system.__self__ x"),
    "a private module": (text("fairseq data") + text("x") + b"\x93.", "fairseq data.x"),
    "getattr over typing": (call("_operator", "getitem", glob("argparse", "Namespace") + b"K\x00") + b".", "getitem"),
    "a type that may be named only": (call("builtins", "object", b"") + b".", "builtins.object"),
    "a state for a class": (glob("argparse", "Namespace") + b"(N}tb.", "state is set on argparse.Namespace"),
    "a state for a rebuild function": (glob("torch._utils", "_rebuild_tensor_v2") + b"}b.", "state is set"),
    "a state for a list": (b"]}b.", "state is set on a list"),
    "two states": (call("argparse", "Namespace", b"") + b"}b}b.", "set twice"),
    "a call of what is no name": (b"K\x01)R.", "expected a name, got 1"),
    "arguments that are no tuple": (glob("argparse", "Namespace") + b"]R.", "expected arguments, got a list"),
    "a filled OrderedDict": (call("collections", "OrderedDict", b"](K\x01K\x02e") + b".", "start empty"),
    "a reference out of it by text": (b"Pos.system\n.", "PERSID"),
    "a reference to no storage": (text("module") + b"\x85Q.", "must be a storage"),
    "a storage of no type": (b"(" + text("storage") + text("x") * 3 + b"K\x01tQ.", "unknown type"),
    "a nested tuple as key": (b"}" + b")" + b"\x85" * 99 + b"Ns.", "key must be a text or a number, got a tuple"),
    "a set": (b"\x8f.", "EMPTY_SET"),
    "buffers": (b"\x97.", "NEXT_BUFFER"),
    "too much on the stack": (b"NN.", "ends with 2 objects"),
    "nothing at all": (b".", "ends with 0 objects"),
    "a mark": (b"(.", "ends with 1 objects"),
    "no mark": (b"Nt.", "mark that is not there"),
    "an empty stack": (b"\x85.", "not there"),
    "an unknown memo": (b"h\x05.", "damaged"),
    "an enormous number": (b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000 + b".", "whole number of 7999 bits"),
    "an unknown operation": (b"\xff.", "damaged"),
    "no end": (b"N", "damaged|no end"),
    "no bytes": (b"", "damaged|no end"),
}


@pytest.mark.parametrize("name", HOSTILE_OPERATIONS)
def test_operations_are_refused(name: str) -> None:
    content, part = HOSTILE_OPERATIONS[name]
    message = refusal(b"\x80\x04" + content)
    assert any(word in message for word in part.split("|")), message
    assert "at byte" in message or "after byte" in message or "no end" in message


def test_setstate_of_stand_ins_is_not_called() -> None:
    """A state may name anything: it is kept, and nobody's `__setstate__`, `__class__` or `__dict__` sees it."""
    state = b"}(" + text("__setstate__") + text("x") + text("__class__") + glob("fairseq.data", "Evil") + b"ub"
    with nothing_runs():
        record = read_pickle(io.BytesIO(b"\x80\x02" + call("fairseq.data", "Dictionary", b"") + state + b"."))
    assert type(record) is Inert
    assert record.state == {"__setstate__": "x", "__class__": Name("fairseq.data.Evil")}
    assert "__setstate__" not in vars(record)


def stored(offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], count: int = 4, kind: str = "Float") -> bytes:
    """A pickle with one tensor of a storage "0" of `count` numbers."""

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = text("storage") + glob("torch", f"{kind}Storage") + text("0") + text("cpu") + number(count)
    parts = b"(" + storage + b"tQ" + number(offset) + numbers(sizes) + numbers(strides) + b"\x89" + b"}"
    return b"\x80\x02}" + text("x") + call("torch._utils", "_rebuild_tensor_v2", parts) + b"s."


@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (10**9,), (0,)),  # as large as one likes, over one number
        (0, (2**40, 2**40), (0, 0)),
        (0, (4,), (-1,)),
        (3, (4,), (-1,)),
        (-1, (1,), (1,)),
        (0, (-4,), (1,)),
        (0, (4,), ()),
        (0, (1,) * 17, (1,) * 17),
        (2**62, (1,), (1,)),
    ],
)
def test_tensors_outside_their_storage(tmp_path: Path, offset: int, sizes: Any, strides: Any) -> None:
    file = write_zip(tmp_path / "model.pt", stored(offset, sizes, strides), {"0": bytes(16)})
    with nothing_runs(), pytest.raises(ValueError, match=r"model\.pt: .*(storage|strides)"):
        TorchFile(file)


def test_a_tensor_inside_its_storage(tmp_path: Path) -> None:
    """The negative cases above differ from this one in what they name only."""
    file = write_zip(tmp_path / "model.pt", stored(0, (2, 2), (2, 1)), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    with TorchFile(file) as opened:
        tensor = opened.content["x"]
        assert isinstance(tensor, StoredTensor)
        assert (tensor.count, tensor.storage.bytes) == (4, 16)
        assert opened.read(tensor).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("storages", "count", "problem"),
    [
        ({"0": bytes(8)}, 4, "should have 16 bytes, but it has 8"),
        ({}, 4, "it is missing"),
        ({"0": bytes(16)}, 2**40, "should have 4398046511104 bytes"),
    ],
)
def test_storages_of_another_size(tmp_path: Path, storages: dict[str, bytes], count: int, problem: str) -> None:
    file = write_zip(tmp_path / "model.pt", stored(0, (4,), (1,), count), storages)
    with pytest.raises(ValueError, match=problem):
        TorchFile(file)


def test_one_storage_of_two_types(tmp_path: Path) -> None:
    one, two = stored(0, (4,), (1,))[2:-1], stored(0, (2,), (1,), 2, "Double")[2:-1]
    with pytest.raises(ValueError, match="used with two types or sizes"):
        TorchFile(write_zip(tmp_path / "model.pt", b"\x80\x02" + one + two + b"\x86.", {"0": bytes(16)}))


# --- memory ------------------------------------------------------------------------------------------------------


def peak(content: bytes) -> int:
    """Most memory taken while a pickle is read or refused."""
    tracemalloc.start()
    try:
        read_pickle(io.BytesIO(content))
    except UnsafePickleError:
        pass
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return used


BOMBS = {
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 2**40) + b".",
    "text that is not there": b"\x8d" + struct.pack("<Q", 2**40) + b".",
    "a frame that is not there": b"\x95" + struct.pack("<Q", 2**40) + b"N.",
    "a place in the memo": b"Nr\xff\xff\xff\xff.",
    "a number that is not there": b"\x8b\xff\xff\xff\x7f.",
    "lists of lists": b"]" * 30_000 + b".",
    "nesting": b"]" + b"\x85" * 30_000 + b".",
    "doubling": b"]q\x00" + b"h\x00h\x00\x86q\x00" * 10_000 + b"0.",
    "dictionaries": b"}" * 30_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    """An operation of a byte may take some 100 bytes of memory, and not more."""
    content = b"\x80\x04" + BOMBS[name]
    assert peak(content) < 1_000_000 + 200 * len(content)


def test_too_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wav2vec2_conformer.checkpoints.safe_pickle.MAX_OPERATIONS", 1000)
    assert read_pickle(io.BytesIO(b"\x80\x02N" + b"N0" * 490 + b".")) is None
    assert "larger than any checkpoint's" in refusal(b"\x80\x02N" + b"N0" * 1000 + b".")


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("safe_pickle", "torch_file"):
        monkeypatch.setattr(f"wav2vec2_conformer.checkpoints.{module}.MAX_BYTES", 1000)
    assert "larger than any checkpoint's" in refusal(b"\x80\x02" + text("x" * 2000) + b".")
    with pytest.raises(ValueError, match="larger than any checkpoint's"):
        TorchFile(write_zip(tmp_path / "model.pt", b"\x80\x02" + text("x" * 2000) + b"."))


def test_zip_bombs(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "packed.pt", stored(0, (4,), (1,)), {"0": bytes(16)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"packed\.pt: its part .* is compressed"):
        TorchFile(packed)
    honest = write_zip(tmp_path / "honest.pt", b"\x80\x02N.", {"0": bytes(4000), "1": bytes(4000)}).read_bytes()
    # The directory's entry of the second part points to the first, as in bombs of overlapping parts: many times over.
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        directory, first = archive.start_dir, archive.getinfo("archive/data/0").header_offset
    entries = honest[directory:].split(b"PK\x01\x02")[1:]
    entry = next(e for e in entries if b"data/0" in e)
    copies = [entry[:38] + struct.pack("<I", first) + entry[42:].replace(b"data/0", b"data/%d" % i) for i in range(9)]
    pickled = next(e for e in entries if b"data.pkl" in e)
    middle = b"".join(b"PK\x01\x02" + e for e in (pickled, *copies))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 10, 10, len(middle), directory, 0)
    (tmp_path / "overlap.pt").write_bytes(honest[:directory] + middle + end)
    with pytest.raises(ValueError, match=r"overlap\.pt: (its parts overlap|the file is damaged)"):
        TorchFile(tmp_path / "overlap.pt")


# --- files -------------------------------------------------------------------------------------------------------


def example(folder: Path, new_format: bool) -> bytes:
    path = folder / f"example{int(new_format)}.pt"
    if not path.exists():
        content = {"model": {"weight": torch.arange(50.0)}, "args": argparse.Namespace(a=[1, "two"])}
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
    return path.read_bytes()


def try_to_read(path: Path) -> None:
    """Read everything, or be refused with the file's name; nothing else may happen."""
    message = None
    with nothing_runs():
        try:
            with TorchFile(path) as file:
                model = file.content.get("model") if isinstance(file.content, dict) else None
                for value in model.values() if isinstance(model, dict) else ():
                    if isinstance(value, StoredTensor):
                        file.read(value)
        except ValueError as error:
            message = str(error)
    assert message is None or message.startswith(f"{path}: "), message


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_anywhere(tmp_path: Path, new_format: bool) -> None:
    whole, path = example(tmp_path, new_format), tmp_path / "cut.pt"
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with nothing_runs(), pytest.raises(ValueError, match=r"cut\.pt: "):
            TorchFile(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_bytes(tmp_path: Path, new_format: bool, changes: list[tuple[float, int]]) -> None:
    data = bytearray(example(tmp_path, new_format))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    (tmp_path / "changed.pt").write_bytes(data)
    try_to_read(tmp_path / "changed.pt")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_pickles(data: bytes) -> None:
    with nothing_runs(), suppress(UnsafePickleError):
        read_pickle(io.BytesIO(b"\x80\x04" + data))


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    data = bytearray(example(tmp_path, True))
    place = data.index(struct.pack("<3f", 20, 21, 22))
    data[place] ^= 1
    (tmp_path / "changed.pt").write_bytes(data)
    with TorchFile(tmp_path / "changed.pt") as file, pytest.raises(ValueError, match=r"changed\.pt: .*damaged.*CRC"):
        file.read(file.content["model"]["weight"])


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "other.pt").write_bytes(pickle.dumps([1, 2], 2))
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, problem in {
        "page.pt": "no format of torch begins with b'<htm'",
        "empty.pt": "the file is empty",
        "other.pt": "a pickle, but none of `torch.save`",
        "zip.pt": "one part <name>/data.pkl, got 0",
        "missing.pt": "no such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=problem) as refused:
            TorchFile(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name))
