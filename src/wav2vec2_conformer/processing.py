"""The model that comes with the package, and the processor (feature extractor, tokenizer) that belongs to a model."""

from __future__ import annotations

import os
import re
from pathlib import Path

from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor
from transformers.utils.hub import cached_file

__all__ = ["DEFAULT_MODEL", "load_processor", "model_name", "normalizes"]

DEFAULT_MODEL = Path(__file__).parent / "assets" / "default"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # models without an owner are older than these networks
FILE_SUFFIXES = frozenset(".bin .ckpt .gz .json .msgpack .onnx .pt .pth .safetensors .tar .toml .yaml .zip".split())


def model_name(model: str | os.PathLike[str] | None) -> str:
    """A folder or Hub id as text, for `from_pretrained`; of `None` and "default", the package's small English model.

    A path that is not there is an error here: the Hub, which would be asked for it, answers late or not at all.

    Raises:
        ValueError: it is neither a folder nor a Hub id, or it looks like a path: it has a file's suffix, or begins with
            a folder that is there.
    """
    name = "default" if model is None else str(model)
    if name == "default" and (model is None or not Path(name).exists()):
        return str(DEFAULT_MODEL)
    if name and Path(name).exists():
        return name
    if not HUB_ID.fullmatch(name) or Path(name).suffix.lower() in FILE_SUFFIXES:
        raise ValueError(f"{name!r}: no such folder, and no Hub id, which looks like `owner/model`; correct the name")
    folder = Path(name).parent
    if folder.is_dir():
        raise ValueError(
            f"{name!r}: no such folder: {str(folder)!r} is here, without {Path(name).name!r} in it; correct the name, "
            "or load a model of the Hub from a place where no folder is called as its owner"
        )
    return name


def normalizes(model: str) -> bool | None:
    """Whether a model's waveforms are normalised, as its feature extractor says; None where there is none beside it.

    Raises:
        ValueError: there is one, and it cannot be read.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    if not any(cached_file(str(model), name, _raise_exceptions_for_missing_entries=False) for name in names):
        return None
    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(model).do_normalize)
    except Exception as error:  # as below
        raise unreadable(model, error) from error


def unreadable(model: str | Path, error: Exception) -> ValueError:
    """What to raise where a processor's files are damaged, in one line."""
    return ValueError(f"{model}: its processor cannot be read ({' '.join(str(error).split())[:500]})")


def load_processor(model: str | Path) -> Wav2Vec2Processor | None:
    """The processor saved beside a model (a folder or a Hub id), or None where there is none.

    Raises:
        ValueError: there is one, and it cannot be read.
    """
    found = [
        cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
        for name in ("vocab.json", "tokenizer_config.json")
    ]
    if not any(found):
        return None
    try:
        processor = Wav2Vec2Processor.from_pretrained(str(model))
    except Exception as error:  # the library raises whatever the files make it stumble over
        raise unreadable(model, error) from error
    return processor if isinstance(processor, Wav2Vec2Processor) else None
