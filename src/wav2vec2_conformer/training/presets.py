"""Presets: recipes as TOML files of a model's fields and a training's settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CTC_PRESETS", "PRESETS", "Preset", "load_preset"]

FOLDER = Path(__file__).parent.parent / "assets" / "presets"
PRESETS = ("tiny", "base", "large")  # of pre-training
CTC_PRESETS = tuple(f"ctc-{size}-{data}" for size in ("base", "large") for data in "10m 1h 10h 100h 960h".split())


@dataclass(frozen=True)
class Preset:
    """What a preset's tables `[model]` and `[training]` say."""

    model: dict[str, Any]
    training: dict[str, Any]


def load_preset(
    name: str, presets: tuple[str, ...], *, model_fields: Iterable[str], training_fields: Iterable[str]
) -> Preset:
    """Read a preset or a TOML file of the same form.

    Args:
        name: one of `presets`, or a path.
        presets: those of the task.
        model_fields: what `[model]` may say.
        training_fields: what `[training]` may say.

    Raises:
        ValueError: there is no such file, or it says something else.
    """
    path = FOLDER / f"{name}.toml" if name in presets else Path(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        use = f"use {', '.join(presets)} or the path of" if presets else "give"
        example = FOLDER / f"{(presets or CTC_PRESETS)[0]}.toml"
        raise ValueError(f"there is no preset {name!r}; {use} a TOML file like {example}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error
    known = {"model": set(model_fields), "training": set(training_fields)}
    unknown: list[str] = []
    for table, values in tables.items():
        if table in known and isinstance(values, dict):
            unknown += [f"{table}.{name}" for name in values if name not in known[table]]
        else:
            unknown.append(table)
    if unknown:
        raise ValueError(f"{path}: nothing here is called {', '.join(unknown)}; see {FOLDER} for what is")
    return Preset(tables.get("model", {}), tables.get("training", {}))
