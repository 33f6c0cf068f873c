"""A model's folder, checked before its weights are loaded: what is wrong with it, in one line."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from ..configuration import Wav2Vec2ConformerConfig
from ..modeling.unused import rename_old_weight_norm
from .stored_weights import StoredWeights, is_fairseq, read_json
from .torch_file import TorchFile

__all__ = [
    "PREFIX",
    "Comparison",
    "find_config",
    "listed",
    "load_model",
    "read_config",
    "refusal",
    "without_memory",
    "without_report",
]

logger = logging.getLogger(__name__)

DEEPEST = 1000  # layers of a network that is looked at; the large models have 31
MOST_LABELS = 2**20
SHOWN = 4  # keys in a message
PREFIX = "wav2vec2_conformer."  # of the network's keys in models with a head


def find_config(name: str, command: str) -> Wav2Vec2ConformerConfig:
    """The configuration of a folder or of a model of the Hub, checked.

    Args:
        name: a folder or a Hub id.
        command: what is to be done with it, for messages, such as `"export"`.

    Raises:
        ValueError: with the file's name: no model, or one of another kind.
        OSError: there is no such model on the Hub, or it cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return read_config(path / "config.json")
    if path.exists():
        raise ValueError(refusal(path, command))
    try:
        file = cached_file(name, "config.json")
    except OSError as error:  # several lines of advice on git and tokens
        raise OSError(
            f"{name!r}: no such folder, and no model of the Hub that can be had ({first_line(error)})"
        ) from error
    return read_config(Path(str(file)))


def load_model(name: str, config: Wav2Vec2ConformerConfig, model_class: Any, **options: Any) -> tuple[Any, Any]:
    """A model in float32 and what `from_pretrained` says of its weights, after the headers of a folder were looked at.

    Args:
        name: a folder or a Hub id.
        config: as `find_config` gives it.
        model_class: of the model.
        options: for its `from_pretrained`.

    Raises:
        ValueError: with the file's name: no weights, damaged ones, or others than `config.json` describes.
    """
    path = Path(name)
    if path.is_dir():
        weights = StoredWeights(path)
        if weights.absent:
            raise ValueError(f"{name}: {listed(weights.absent)} are named by the index and not there")
        misshapen = Comparison(weights, without_memory(model_class, config, path)).misshapen
        if misshapen:
            raise ValueError(f"{name}: {listed(misshapen)} are not as config.json describes them")
    try:
        with without_report():
            model, info = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except (ValueError, OSError):
        raise
    except pickle.UnpicklingError as error:  # whose advice is to execute what the file asks for
        raise ValueError(
            f"{name}: its weights are a pickle that asks for more than tensors; nothing was executed. Expected "
            "model.safetensors"
        ) from error
    except Exception as error:  # the library raises whatever the files make it stumble over
        raise ValueError(f"{name}: the model cannot be loaded ({first_line(error)})") from error
    if info["unexpected_keys"]:
        logger.warning("%s: %s have no place in the model, and are left out", name, listed(info["unexpected_keys"]))
    return model, info


@contextmanager
def without_report() -> Iterator[None]:
    """Without the table of keys that transformers writes, in colours; what matters of it is an error or a line here."""
    library = logging.getLogger("transformers.modeling_utils")

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    library.addFilter(is_error)  # a level of its own would make it check, and tell, how the model can be sharded
    try:
        yield
    finally:
        library.removeFilter(is_error)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def refusal(path: Path, command: str) -> str:
    """What to do with a file that was named in place of a folder."""
    try:
        with TorchFile(path) as file:
            if is_fairseq(file.content):
                return (
                    f"{path}: a checkpoint of fairseq; convert it first, `wav2vec2-conformer convert fairseq {path} "
                    f"my-model`, and {command} the new folder"
                )
    except ValueError:
        pass  # then it is no file of torch, or a damaged one
    return f"{path}: expected a model's folder, with config.json and weights, got a file"


def read_config(path: Path) -> Wav2Vec2ConformerConfig:
    """A model's configuration, checked."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: there is no config.json; expected a folder as `save_pretrained` writes it")
    content = read_json(path)
    kind = content.get("model_type")
    if kind != Wav2Vec2ConformerConfig.model_type:
        raise ValueError(
            f"{path}: a model of the kind {kind!r:.80}; only {Wav2Vec2ConformerConfig.model_type!r} can be used here"
        )
    labels = content.get("num_labels")
    if isinstance(labels, int) and labels > MOST_LABELS:  # the library would make a dictionary of so many names
        raise ValueError(f"{path}: `num_labels` must be {MOST_LABELS} at most, got {labels}")
    try:
        config: Wav2Vec2ConformerConfig = Wav2Vec2ConformerConfig.from_dict(content)
        depth = config.num_hidden_layers + config.num_adapter_layers + len(config.conv_dim) + len(config.tdnn_dim)
    except Exception as error:  # the library raises whatever the values make it stumble over
        raise ValueError(f"{path}: {error}") from None
    if depth > DEEPEST:
        raise ValueError(f"{path}: it describes a network of {depth} layers; expected {DEEPEST} at most")
    return config


def without_memory(architecture: Any, config: Wav2Vec2ConformerConfig, folder: Path) -> Any:
    """The network on the meta device: names and shapes without numbers."""
    try:
        with torch.device("meta"):
            return architecture(config)
    except Exception as error:  # as above; torch has its own where sizes are beyond all measure
        raise ValueError(f"{folder / 'config.json'}: no network can be built from it: {error}") from None


class Comparison:
    """What lies in a folder's files beside what the network needs.

    Args:
        weights: of the files.
        network: the model on the meta device, before its unused tensors are sealed.

    Attributes:
        found: our key -> what lies in the files.
        refused: missing, and loading will be refused.
        drawn: missing, and drawn at random.
        unexpected: without a place in the model.
        wrong: of another shape or kind, with both in words.
        misshapen: those of them whose shape is another, which cannot be loaded.
    """

    def __init__(self, weights: StoredWeights, network: Any) -> None:
        needed = network.state_dict()
        found = self.found = by_our_names(weights.found, needed)
        elsewhere = by_our_names({key: None for keys in weights.absent.values() for key in keys}, needed)
        lost = [key for key in needed if key not in found and key not in elsewhere and not may_lack(network, key)]
        self.refused = [key for key in lost if belongs_to_network(key, needed) and not network._may_be_missing(key)]
        self.drawn = [key for key in lost if key not in self.refused]
        self.unexpected = [key for key in found if key not in needed]
        wanted = {key: (tuple(tensor.shape), not tensor.is_floating_point()) for key, tensor in needed.items()}
        self.wrong, self.misshapen = [], []
        for key, weight in found.items():
            if key in wanted and wanted[key] != (weight.shape, weight.whole):
                said = f"{key} (expected {kind(*wanted[key])}, got {kind(weight.shape, weight.whole)})"
                self.wrong.append(said)
                if wanted[key][0] != weight.shape:
                    self.misshapen.append(said)


def by_our_names(found: dict[str, Any], needed: dict[str, Any]) -> dict[str, Any]:
    """Keys of files under the names that the model has, as `from_pretrained` finds them."""
    renamed = dict(found)
    for prefix in ("", PREFIX):
        rename_old_weight_norm(torch.nn.Module(), renamed, f"{prefix}encoder.pos_conv_embed.conv.")
    if any(key.startswith(PREFIX) for key in needed) and not any(key.startswith(PREFIX) for key in renamed):
        return {PREFIX + key if PREFIX + key in needed else key: value for key, value in renamed.items()}
    if not any(key.startswith(PREFIX) for key in needed):
        return {key.removeprefix(PREFIX): value for key, value in renamed.items()}
    return renamed


def belongs_to_network(key: str, needed: dict[str, Any]) -> bool:
    """Whether this is a weight of the network below the head."""
    return key.startswith(PREFIX) or not any(other.startswith(PREFIX) for other in needed)


def may_lack(network: Any, key: str) -> bool:
    """Whether a missing weight makes no difference."""
    return any(part in key for part in network._keys_to_ignore_on_load_missing)


def kind(shape: tuple[int, ...], whole: bool) -> str:
    """A weight's shape and kind of numbers in words."""
    return f"{shape}{' of whole numbers' if whole else ''}"


def listed(keys: Iterable[str]) -> str:
    """How many, and the first few."""
    names = sorted(keys)
    shown = ", ".join(name[:160] for name in names[:SHOWN])
    return f"{len(names)} ({shown}{', ...' if len(names) > SHOWN else ''})"
