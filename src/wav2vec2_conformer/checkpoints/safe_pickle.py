"""Pickles as data: read into plain containers and inert records; nothing in them can run.

Python's own unpickler calls what a pickle names. This one calls nothing: it knows the pickle operations that
checkpoints need, turns names into `Name`, tensors into `StoredTensor`, every other object into `Inert`, and refuses a
name that is not on the list of `inert.py`. `pickletools` (standard library) splits the bytes into operations; it does
not run them either.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

from .inert import ITEM_SIZES, Inert, Name, Storage, UnsafePickleError, allowed_name, build, describe, expect, is_size

__all__ = ["MAX_BYTES", "read_pickle"]

# Of a large conformer with its optimizer's state: 1 MB of pickle, 100,000 operations. An operation of one byte may make
# an object of about 100 bytes, so these bound the memory that a hostile file can take (about 200 MB).
MAX_BYTES = 16 * 2**20
MAX_OPERATIONS = 2_000_000


class Source(Protocol):
    """Bytes that are read from front to back, as `io.BytesIO` and files are."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


def read_pickle(source: Source, *, storages: dict[str, Storage] | None = None, legacy: bool = False) -> Any:
    """Read one pickle, up to its end.

    Args:
        source: the bytes; what follows the pickle is left unread.
        storages: is filled with the storages that the tensors lie in, by their keys.
        legacy: whether references to storages have the sixth part of torch's format before 1.6.

    Returns:
        str, int, float, bool, bytes, None, list, tuple, dict (also for OrderedDict), `Name`, `Inert`, `StoredTensor`.
        Lists and records may contain themselves.

    Raises:
        UnsafePickleError: with the operation or the name that is refused, and the place.
    """
    machine = Machine({} if storages is None else storages, legacy)
    start = source.tell()
    position: int | None = start
    try:
        for count, (operation, argument, place) in enumerate(pickletools.genops(source)):  # type: ignore[arg-type]
            position = place
            if count >= MAX_OPERATIONS or source.tell() - start > MAX_BYTES:
                raise UnsafePickleError(
                    f"it is larger than any checkpoint's: {MAX_OPERATIONS} operations, {MAX_BYTES} bytes"
                )
            machine.run(operation.name, argument)
            if operation.name == "STOP":
                return machine.result
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{error} (at byte {position} of the pickle)") from None
    except (IndexError, KeyError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UnsafePickleError(f"the pickle is damaged or truncated after byte {position} ({reason})") from None
    raise UnsafePickleError("the pickle has no end")


MARK = object()
IGNORED = {"PROTO", "FRAME", "STOP"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
LITERALS = set(
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
KEYS = (str, int, float, bytes, type(None))  # a deeply nested tuple as a key would overflow the stack when hashed


class Machine:
    """The stack and the memo of a pickle, and one method for each group of operations."""

    def __init__(self, storages: dict[str, Storage], legacy: bool) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages, self.legacy = storages, legacy

    @property
    def result(self) -> Any:
        """What is left when the pickle ends."""
        if len(self.stack) != 1 or self.stack[0] is MARK:
            raise UnsafePickleError(f"it ends with {len(self.stack)} objects instead of one")
        return self.stack[0]

    def run(self, name: str, argument: Any) -> None:
        """Do one operation."""
        if name in LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 128:
                raise UnsafePickleError(f"a whole number of {argument.bit_length()} bits is refused")
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name not in IGNORED:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise UnsafePickleError(f"the pickle operation {name} is refused, no checkpoint needs it")
            self.stack.extend(method(argument))

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise UnsafePickleError("it uses an object that is not there")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:  # IndexError where there is none
            place -= 1
            if place < 0:
                raise UnsafePickleError("it uses a mark that is not there")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    # Each returns what it pushes.

    def do_mark(self, _: Any) -> list[Any]:
        return [MARK]

    def do_pop(self, _: Any) -> list[Any]:
        del self.stack[-1]
        return []

    def do_pop_mark(self, _: Any) -> list[Any]:
        self.pop_to_mark()
        return []

    def do_tuple(self, _: Any) -> list[Any]:
        return [tuple(self.pop_to_mark())]

    def do_tuple1(self, _: Any) -> list[Any]:
        return [(self.pop(),)]

    def do_tuple2(self, _: Any) -> list[Any]:
        second = self.pop()
        return [(self.pop(), second)]

    def do_tuple3(self, _: Any) -> list[Any]:
        third, second = self.pop(), self.pop()
        return [(self.pop(), second, third)]

    def do_list(self, _: Any) -> list[Any]:
        return [self.pop_to_mark()]

    def do_dict(self, _: Any) -> list[Any]:
        found: dict[Any, Any] = {}
        set_items(found, self.pop_to_mark())
        return [found]

    def do_append(self, _: Any) -> list[Any]:
        item = self.pop()
        expect(self.top(), list, "a list").append(item)
        return []

    def do_appends(self, _: Any) -> list[Any]:
        items = self.pop_to_mark()
        expect(self.top(), list, "a list").extend(items)
        return []

    def do_setitem(self, _: Any) -> list[Any]:
        value = self.pop()
        pair = [self.pop(), value]
        set_items(expect(self.top(), dict, "a dictionary"), pair)
        return []

    def do_setitems(self, _: Any) -> list[Any]:
        items = self.pop_to_mark()
        set_items(expect(self.top(), dict, "a dictionary"), items)
        return []

    def do_global(self, argument: str) -> list[Any]:
        module, _, name = argument.partition(" ")
        return [allowed_name(module, name)]

    def do_stack_global(self, _: Any) -> list[Any]:
        name = expect(self.pop(), str, "a name")
        return [allowed_name(expect(self.pop(), str, "a module's name"), name)]

    def do_reduce(self, _: Any) -> list[Any]:
        arguments = expect(self.pop(), tuple, "arguments")
        return [build(expect(self.pop(), Name, "a name"), arguments)]

    do_newobj = do_reduce

    def do_build(self, _: Any) -> list[Any]:
        state, target = self.pop(), self.top()
        if isinstance(target, Inert):
            if target.state is not None:
                raise UnsafePickleError(f"the state of a {target.name} is set twice")
            target.state = state
        elif not isinstance(target, dict):  # of an OrderedDict it is the versions of modules, which nothing here needs
            raise UnsafePickleError(f"a state is set on {describe(target)}")
        return []

    def do_binpersid(self, _: Any) -> list[Any]:
        return [self.storage(self.pop())]

    def storage(self, parts: Any) -> Storage:
        """A storage by its persistent id ("storage", type, key, device, count[, view])."""
        length = 6 if self.legacy else 5
        if not isinstance(parts, tuple) or len(parts) != length or parts[0] != "storage":
            raise UnsafePickleError(
                f"a reference out of the pickle must be a storage of {length} parts, got {describe(parts)}"
            )
        kind, key, count = parts[1], parts[2], parts[4]
        short = kind.full.removeprefix("torch.") if isinstance(kind, Name) else ""
        if short not in ITEM_SIZES:
            raise UnsafePickleError(f"a storage of unknown type: {describe(kind)}")
        if not isinstance(key, str) or not is_size(count):
            raise UnsafePickleError("a storage's key must be a text and its size a whole number of at least 0")
        if self.legacy and parts[5] is not None:
            raise UnsafePickleError(
                "a storage that is a view of another is refused; save the file again with torch >= 1.6"
            )
        storage = Storage(short, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise UnsafePickleError(f"storage {key[:80]!r} is used with two types or sizes")
        return storage


def set_items(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise UnsafePickleError("a dictionary's keys and values do not come in pairs")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, KEYS):
            raise UnsafePickleError(f"a dictionary's key must be a text or a number, got {describe(key)}")
        target[key] = value
