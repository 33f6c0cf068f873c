"""Language adapters: a small bottleneck after every block, and the files that hold one language's weights.

Source: Pratap et al. 2023, "Scaling speech technology to 1,000+ languages", section 5.4; key names as in wav2vec 2.0.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from ..configuration import Wav2Vec2ConformerConfig
from ..files import replacing
from .layer_norm import LayerNorm

# B batch, T frames, D hidden size

__all__ = ["LanguageAdapter", "ZeroLinear", "check_language", "read_adapter", "write_adapter"]

LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a language id becomes part of a file name


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: the residual branch that ends in it changes nothing until it is trained."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class LanguageAdapter(nn.Module):
    """x + Linear(ReLU(Linear(LayerNorm(x)))), `adapter_attn_dim` wide in the middle; a new one changes nothing."""

    def __init__(self, config: Wav2Vec2ConformerConfig, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)
        self.linear_1 = nn.Linear(config.hidden_size, width)
        self.linear_2 = ZeroLinear(width, config.hidden_size)

    def reset_parameters(self) -> None:
        """Start anew."""
        for layer in (self.norm, self.linear_1, self.linear_2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return x + cast(Tensor, self.linear_2(F.relu(self.linear_1(self.norm(x)))))


def check_language(language: str) -> None:
    """Refuse what is no language id."""
    if not LANGUAGE.fullmatch(language):
        raise ValueError(
            f"a language id has letters, digits, '-' and '_' such as 'eng' or 'azj-script_latin', got {language!r}"
        )


def read_adapter(source: str, language: str, **hub_options: Any) -> tuple[str, dict[str, Tensor]]:
    """Find `adapter.<language>.safetensors` (or `.bin`, read without executing anything) in a folder or on the Hub.

    Args:
        source: a folder or a Hub id.
        language: the language id.
        hub_options: as for `from_pretrained`: `cache_dir`, `revision`, `token`, `local_files_only`, ...

    Returns:
        the file's path and its tensors on the CPU.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    check_language(language)
    if not source:
        raise ValueError(
            "this model was not loaded from anywhere; set `config.name_or_path` to the folder or Hub id of its adapters"
        )
    problem: OSError | None = None
    for ending in ("safetensors", "bin"):
        try:
            path = str(cached_file(source, f"adapter.{language}.{ending}", **hub_options))
        except OSError as error:
            problem = problem or error
            continue
        try:
            tensors = load_file(path) if ending == "safetensors" else torch.load(path, "cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path}: not a language adapter, or a damaged one ({error})") from error
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise ValueError(f"{path}: expected a dictionary of tensors")
        return path, tensors
    folder = Path(source)
    found = sorted(path.name.split(".")[1] for path in folder.glob("adapter.*.*")) if folder.is_dir() else []
    there = f"; it has {', '.join(found)}" if found else ""
    raise ValueError(f"{source!r} has no adapter.{language}.safetensors (or .bin){there}") from problem


def write_adapter(folder: str | os.PathLike[str], language: str, tensors: dict[str, Tensor]) -> Path:
    """Write `adapter.<language>.safetensors` in one atomic step; its path."""
    check_language(language)
    path = Path(folder) / f"adapter.{language}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contents, temporary, {"format": "pt"})
    return path
