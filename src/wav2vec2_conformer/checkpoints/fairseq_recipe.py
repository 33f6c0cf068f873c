"""What a fairseq checkpoint says of its training and no field of our configuration does."""

from __future__ import annotations

import math
from typing import Any

from .fairseq_settings import Layered, Settings, loss_weights, plain

__all__ = ["recipe"]

LATENT_TEMP = (2.0, 0.5, 0.999995)  # fairseq's default
# Settings of training that nothing here has, and fairseq's defaults: said in the recipe where they are others.
OTHER_TRAINING: dict[str, Any] = {
    "mask_selection": "static",
    "mask_other": 0.0,
    "no_mask_overlap": False,
    "mask_channel_selection": "static",
    "mask_channel_other": 0.0,
    "no_mask_channel_overlap": False,
    "cross_sample_negatives": 0,
    "negatives_from_everywhere": False,
}


def recipe(model: Settings, fine_tuning: Settings | None, criterion: Settings) -> dict[str, Any]:
    """What the training was like and no field of ours says: for who trains on."""
    layered = Layered(model, fine_tuning or Settings({}))
    said = {
        "feature_grad_mult": layered.get("feature_grad_mult", float, 1.0),
        "loss_weights": list(loss_weights(criterion)),
        "latent_temp": latent_temperatures(model),
        "require_same_masks": model.get("require_same_masks", bool, True),
    }
    others = {name: layered.get(name, type(usual), usual) for name, usual in OTHER_TRAINING.items()}
    return said | {name: value for name, value in others.items() if value != OTHER_TRAINING[name]}


def latent_temperatures(model: Settings) -> list[float]:
    """Temperature of the quantizer: first, last, decay an update; old files have them as text."""
    value = model.raw("latent_temp")
    if value is None:
        return list(LATENT_TEMP)
    parts = value[:200].strip("()[] ").split(",") if isinstance(value, str) else value
    try:
        numbers = [float(plain(part)) for part in parts] if isinstance(parts, list | tuple) else []
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(LATENT_TEMP) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{model.name}.latent_temp must be three numbers (first, last, decay), such as {list(LATENT_TEMP)}; got "
            f"{f'{value!r:.80}' if isinstance(value, str | int | float) else f'a {type(value).__name__}'}"
        )
    return numbers
