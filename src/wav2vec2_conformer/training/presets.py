"""Presets: recipes as TOML files of a model's fields and a training's settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PRESETS", "Preset", "load_preset"]

FOLDER = Path(__file__).parent.parent / "assets" / "presets"
PRESETS = ("tiny", "base", "large")


@dataclass(frozen=True)
class Preset:
    """What a preset's tables `[model]` and `[training]` say."""

    model: dict[str, Any]
    training: dict[str, Any]


def load_preset(name: str, *, model_fields: Iterable[str], training_fields: Iterable[str]) -> Preset:
    """Read one of `PRESETS` or a TOML file of the same form.

    Args:
        name: "tiny", "base", "large", or a path.
        model_fields: what `[model]` may say.
        training_fields: what `[training]` may say.

    Raises:
        ValueError: there is no such file, or it says something else.
    """
    path = FOLDER / f"{name}.toml" if name in PRESETS else Path(name)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"there is no preset {name!r}; use {', '.join(PRESETS)} or the path of a TOML file like {FOLDER}/tiny.toml"
        ) from None
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
        raise ValueError(f"{path}: nothing here is called {', '.join(unknown)}; see {FOLDER}/base.toml for what is")
    return Preset(tables.get("model", {}), tables.get("training", {}))
