"""Reading ahead: what a thread makes while the network computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["ReadAhead"]

Item = TypeVar("Item")
PATIENCE = 0.1  # seconds after which a full queue is asked again whether anybody still wants it


class ReadAhead(Iterator[Item]):
    """The items of an iterator, in their order, made by a thread up to `size` of them ahead.

    What the iterator raises is raised here, after the items before it. Use it in a `with` block, at whose end the
    thread stops with the item that it is making.

    Attributes:
        waited: seconds in which the caller waited for an item.
    """

    def __init__(self, items: Iterator[Item], size: int) -> None:
        self.waited = 0.0
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(size)
        self._stopped = threading.Event()
        # A daemon: a source that never answers must not keep the program from ending.
        self._thread = threading.Thread(target=self._make, name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead[Item]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def __next__(self) -> Item:
        begun = time.monotonic()
        kind, content = self._queue.get()
        self.waited += time.monotonic() - begun
        if kind == "item":
            item: Item = content
            return item
        self._queue.put((kind, content))  # asked again, it says so again
        if kind == "error":
            raise content
        raise StopIteration

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(entry, timeout=PATIENCE)
                return True
        return False
