"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["check_vacant", "current_umask", "new_folder", "replacing", "unwritable_as_one_line", "writable_folder"]


@contextmanager
def unwritable_as_one_line(folder: Path, remedy: str) -> Iterator[None]:
    """Turn what torch and safetensors raise where a model's files cannot be written into an `OSError` of one line.

    Args:
        folder: what the error names.
        remedy: the error's last sentence.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{folder}: the model could not be written ({problem}); {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and move what was written over `path` in one step; after an error, delete.

    The name holds the process's number, so that several processes may write the same file.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(folder: Path) -> Path:
    """Make a folder where there is none, before anything is computed for it.

    Raises:
        OSError: it cannot be made or written to.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{folder}: expected a folder to write to, but {place} is a file; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "no permission to write"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise OSError(f"{folder}: no files can be written there ({problem}); name another folder")
    return folder


def check_vacant(folder: Path) -> None:
    """Refuse a path at which there is something already, other than an empty folder, or can be none: `ValueError`."""
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{folder}: no folder can be made there, since {parent} is a file; name another")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: already there; name a folder that does not exist yet")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to fill with a model, and move it to its place in one step; on errors, delete it.

    Raises:
        ValueError: there is something already; `check_vacant` says so before any work is done.
        OSError: it cannot be written, in one line with its name.
    """
    check_vacant(folder)
    with unwritable_as_one_line(folder, "nothing of it is left. Make room, or name another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".incomplete", dir=folder.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~current_umask())
            if folder.exists():
                folder.rmdir()
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def current_umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
