"""A trained network by its name, ready to answer, on a device that can compute."""

from __future__ import annotations

import os
from typing import Any

import torch

from .checkpoints.model_folder import PREFIX, find_config, load_model
from .configuration import Wav2Vec2ConformerConfig
from .processing import model_name, normalizes

__all__ = ["default_device", "label_names", "load_head", "usable_device"]


def load_head(
    model: str | os.PathLike[str], model_class: Any, *, purpose: str, unused: tuple[str, ...] = ()
) -> tuple[Any, bool]:
    """A trained network with a head, and whether its waveforms are normalised.

    Args:
        model: a folder or a Hub id.
        model_class: of the network.
        purpose: what is to be done, for messages, such as `"classify with"`.
        unused: beginnings of the names of weights that it works without.

    Raises:
        ValueError: `model` is neither a folder nor a Hub id, its files are damaged or of another kind of model, its
            head was never trained, or nothing beside it says whether waveforms are normalised.
        OSError: there is no such model on the Hub, or it cannot be reached.
    """
    name = model_name(model)
    config = find_config(name, purpose)
    wanted = model_class.__name__
    saved = [kind for kind in config.architectures or () if kind.startswith("Wav2Vec2Conformer")]
    if saved and wanted not in saved:
        raise ValueError(f"{name}: a {saved[0]}; expected a {wanted} to {purpose}")
    network, info = load_model(name, config, model_class)
    untrained = sorted(key for key in info["missing_keys"] if not key.startswith((PREFIX, *unused)))
    if untrained:
        raise ValueError(
            f"{name}: {', '.join(untrained)} are missing, so its answers would be random; expected a model that was "
            f"trained as a {wanted}"
        )
    normalize = normalizes(name)
    if normalize is None:
        raise ValueError(
            f"{name}: there is no preprocessor_config.json beside the model; it says whether waveforms are normalised "
            '({"do_normalize": true} or false)'
        )
    return network, normalize


def label_names(config: Wav2Vec2ConformerConfig) -> tuple[str, ...]:
    """The names of a model's classes in the order of their ids.

    Raises:
        ValueError: `id2label` does not name the ids from 0 on.
    """
    names: dict[Any, str] = config.id2label or {}
    if sorted(names) != list(range(len(names))) or len(names) < 1:
        raise ValueError(f"config.json: `id2label` must name the classes 0, 1, ..., got {str(names)[:80]}; correct it")
    return tuple(str(names[number]) for number in range(len(names)))


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of a name, or the default one, if this machine and this torch can compute on it."""
    device = device or default_device()
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot compute on device {str(device)!r} ({reason}); use cpu, or cuda where there is one"
        ) from error
    return torch.device(device)


def default_device() -> str:
    """A CUDA device if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
