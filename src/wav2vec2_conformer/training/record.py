"""The settings of a training: checked when they are made, recorded beside the result, unchanged when it is resumed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing, writable_folder
from .checkpoints import last_checkpoint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_settings", "prepare_output", "record_settings"]

logger = logging.getLogger(__name__)

RECORD = "training.json"
KINDS: dict[str, tuple[str, Any]] = {
    "int": ("a whole number", Integral),
    "float": ("a number", Real),
    "float | None": ("a number", (Real, type(None))),
    "bool": ("true or false", bool),
    "bool | None": ("true or false", (bool, type(None))),
}
# What may differ between a run and its continuation.
FREE = ("workers", "output", "cache_gb", "keep_going")


def check_settings(
    settings: DataclassInstance,
    *,
    above_zero: Iterable[str] = (),
    at_least_zero: Iterable[str] = (),
    shares: Iterable[str] = (),
) -> None:
    """Refuse what is no number, and numbers out of their range, as a `ValueError` that names the field.

    `shares` are from 0 to below 1.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        what, kind = KINDS.get(str(field.type), ("", object))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (Integral, Real)):
            raise ValueError(f"`{field.name}` must be {what}, got {value!r}")
    for names, bound in ((above_zero, "above 0"), (at_least_zero, "at least 0")):
        for name in names:
            value = getattr(settings, name)
            if not (value > 0 or (value == 0 and bound == "at least 0")) or value == math.inf:
                raise ValueError(f"`{name}` must be {bound}, got {value}")
    for name in shares:
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"`{name}` is a share: it must be at least 0 and below 1, got {getattr(settings, name)}")


def prepare_output(output: Path, settings: DataclassInstance, resume: bool) -> Path | None:
    """Check the output folder; the checkpoint to go on from, if there is one."""
    record = output / RECORD
    checkpoint = last_checkpoint(output)
    if not resume:
        if checkpoint is not None:
            raise ValueError(
                f"{output} holds a training ({checkpoint.name}); pass --resume to go on with it, or another --output"
            )
    elif record.is_file():
        before: dict[str, Any] = json.loads(record.read_text())
        now = json.loads(json.dumps(asdict(settings)))  # a tuple becomes a list, as in the record
        changed = [name for name in now if name not in FREE and before.get(name, now[name]) != now[name]]
        if changed:
            details = ", ".join(f"`{name}`: {before[name]!r} before, {now[name]!r} now" for name in changed)
            raise ValueError(f"{output} was trained with other settings ({details}); resume with the same ones")
    if resume and checkpoint is None:
        logger.warning("%s holds no complete checkpoint: starting from the beginning", output)
    return checkpoint


def record_settings(output: Path, settings: DataclassInstance) -> None:
    """Create the output folder, and note what `resume` must find unchanged."""
    record = output / RECORD
    writable_folder(output)
    with replacing(record) as temporary:  # every process writes the same
        temporary.write_text(json.dumps(asdict(settings), indent=2) + "\n")
