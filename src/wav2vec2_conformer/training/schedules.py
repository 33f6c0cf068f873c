"""Learning-rate schedules, as factors of the peak."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["check_schedule", "learning_rate_schedule"]

SCHEDULES = ("linear", "cosine", "tri-stage")

# Tri-stage, as in fairseq's recipes for fine-tuning: shares of the updates, and factors of the peak at the ends.
HOLD = 0.4
FIRST, LAST = 0.01, 0.05


def check_schedule(name: str, warmup: float) -> None:
    """Refuse a schedule that there is not, and one that does not leave room for its fall."""
    if name not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {name!r}")
    if name == "tri-stage" and warmup + HOLD >= 1:
        raise ValueError(
            f"tri-stage holds the rate for {HOLD:.0%} of the updates and then lowers it: `warmup` must be below "
            f"{1 - HOLD:g}, got {warmup}"
        )


def learning_rate_schedule(name: str, updates: int, warmup: float) -> Callable[[int], float]:
    """The factor of each update (from 0 up).

    Args:
        name: "linear": up, then down to 0; "cosine": up, then half a cosine down to 0; "tri-stage": up from 1 %, a hold
            for 40 % of the updates, then exponentially down to 5 %.
        updates: all of them.
        warmup: share of the updates in which the rate rises.
    """
    rise = max(1, round(warmup * updates))

    def linear(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (updates - step) / max(1, updates - rise))

    def cosine(step: int) -> float:
        return linear(step) if step < rise else 0.5 * (1 + math.cos(math.pi * (1 - linear(step))))

    def tri_stage(step: int) -> float:
        hold = rise + round(HOLD * updates)
        if step < rise:
            return FIRST + (1 - FIRST) * step / rise
        if step < hold:
            return 1.0
        return float(LAST ** min(1.0, (step - hold) / max(1, updates - hold)))

    return {"linear": linear, "cosine": cosine, "tri-stage": tri_stage}[name]
