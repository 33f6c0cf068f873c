"""The model that comes with the package, and the processor (feature extractor, tokenizer) that belongs to a model."""

from __future__ import annotations

import os
import re
from pathlib import Path

from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor
from transformers.utils.hub import cached_file

__all__ = ["DEFAULT_MODEL", "load_processor", "model_name", "normalizes"]

DEFAULT_MODEL = Path(__file__).parent / "assets" / "default"
HUB_ID = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")


def model_name(model: str | os.PathLike[str] | None) -> str:
    """A folder or Hub id as text, for `from_pretrained`; of `None` and "default", the package's small English model.

    Raises:
        ValueError: it is neither a folder nor a Hub id.
    """
    name = "default" if model is None else str(model)
    if name == "default" and (model is None or not Path(name).exists()):
        return str(DEFAULT_MODEL)
    if not (name and Path(name).exists()) and not HUB_ID.fullmatch(name):
        raise ValueError(f"{name!r}: no such folder, and no Hub id, which looks like `owner/model`")
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
