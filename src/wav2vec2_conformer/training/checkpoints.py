"""Checkpoints that are complete or not there."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from ..files import current_umask

__all__ = ["INCOMPLETE", "keep_newest", "last_checkpoint", "remove", "replace_files"]

logger = logging.getLogger(__name__)

INCOMPLETE = ".incomplete"
NAME = re.compile(r"checkpoint-(\d+)")
NEEDED = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints of a training's directory, oldest first; incomplete ones are named in a warning."""
    found: list[tuple[int, Path]] = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name.endswith(INCOMPLETE):
            logger.warning("%s: skipped, it was not written to its end", path)
        elif (match := NAME.fullmatch(path.name)) and path.is_dir():
            lacking = [name for name in NEEDED if not (path / name).is_file()]
            if not any(path.glob("model*.safetensors")):
                lacking.append("model.safetensors")
            if lacking:
                logger.warning("%s: skipped, it lacks %s", path, ", ".join(lacking))
            else:
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = checkpoints(directory)
    return found[-1] if found else None


def remove(path: Path) -> None:
    """Delete a folder so that it is never seen half deleted under its own name."""
    doomed = path if path.name.endswith(INCOMPLETE) else path.with_name(path.name + INCOMPLETE)
    if doomed != path and doomed.exists():  # what is to take its place is there already
        doomed = path.with_name(f"{path.name}.old{INCOMPLETE}")
    if doomed != path:
        path.rename(doomed)
    shutil.rmtree(doomed)


def keep_newest(directory: Path, count: int) -> None:
    """Delete all but the `count` newest complete checkpoints."""
    for path in checkpoints(directory)[:-count]:
        remove(path)


def replace_files(source: Path, target: Path) -> None:
    """Move the files of `source` over those of `target`, each in one atomic step, and delete `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        path.chmod(0o666 & ~current_umask())  # safetensors makes files that only their owner may read
        os.replace(path, target / path.name)
    source.rmdir()
