"""The threshold at which two recordings are taken for one speaker: a file beside the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from .files import replacing

__all__ = ["CALIBRATION", "read_threshold", "write_threshold"]

CALIBRATION = "verification.json"  # {"threshold": ...}


def write_threshold(folder: Path, threshold: float, **facts: Any) -> Path:
    """Write a threshold, and what it was found by, into a model's folder in one atomic step; the file's path."""
    path = folder / CALIBRATION
    content = {"threshold": min(1.0, max(-1.0, threshold)), **facts}  # cosines may pass 1 by rounding
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def read_threshold(model: str) -> float | None:
    """The threshold in `verification.json` beside a model (a folder or a Hub id), or None where there is no such file.

    Raises:
        ValueError: the file holds no threshold.
    """
    path = cached_file(model, CALIBRATION, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    expected = 'expected {"threshold": ...}, a number from -1 to 1'
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {expected}") from error
    threshold = content.get("threshold") if isinstance(content, dict) else None
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{path}: got {str(content)[:80]!r}; {expected}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"{path}: got a threshold of {threshold}; {expected}")
    return float(threshold)
