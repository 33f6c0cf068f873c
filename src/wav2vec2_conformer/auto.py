"""One call that makes transformers' Auto classes build the models of this package, and its inverse."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import transformers

from . import modeling
from .configuration import Wav2Vec2ConformerConfig

__all__ = ["AutoRegistration", "architecture_of", "register_auto_classes", "unregister_auto_classes"]

MODELS = {
    "AutoModel": modeling.Wav2Vec2ConformerModel,
    "AutoModelForPreTraining": modeling.Wav2Vec2ConformerForPreTraining,
    "AutoModelForCTC": modeling.Wav2Vec2ConformerForCTC,
    "AutoModelForAudioClassification": modeling.Wav2Vec2ConformerForSequenceClassification,
    "AutoModelForAudioFrameClassification": modeling.Wav2Vec2ConformerForAudioFrameClassification,
    "AutoModelForAudioXVector": modeling.Wav2Vec2ConformerForXVector,
}


def architecture_of(config: Wav2Vec2ConformerConfig, name: str) -> Any:
    """The class that a model was saved from.

    Args:
        config: the model's.
        name: what the error calls the model.
    """
    classes = {model.__name__: model for model in MODELS.values()}
    named = config.architectures if isinstance(config.architectures, list) else []
    for architecture in named:
        if architecture in classes:
            return classes[architecture]
    raise ValueError(
        f"{name}: its config.json must name the model's class under `architectures`, one of {', '.join(classes)}; got "
        f"{config.architectures!r:.80}"
    )


class Entry(NamedTuple):
    """A line of one of transformers' tables of registered classes: `table[key]` is to be `ours`."""

    table: dict[Any, type]
    key: Any
    ours: type


def entries() -> list[Entry]:
    """What this package registers; the tables hold what was registered on top of transformers' own classes.

    The public API fills these tables and has no way to empty them, hence the private name.
    """
    configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content
    lines = [Entry(configs, Wav2Vec2ConformerConfig.model_type, Wav2Vec2ConformerConfig)]
    for name, model in MODELS.items():
        table = getattr(transformers, name)._model_mapping._extra_content
        lines.append(Entry(table, Wav2Vec2ConformerConfig, model))
    return lines


class AutoRegistration:
    """What one call of `register_auto_classes` holds on to, until `undo` or the end of its `with` block."""

    def undo(self) -> None:
        """Let go. With the last one, the Auto classes build what they built before; a second call does nothing."""
        if self in holders:
            holders.discard(self)
            if not holders:
                restore()

    def __enter__(self) -> AutoRegistration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


holders: set[AutoRegistration] = set()
replaced: list[type | None] = []  # what stood in each of `entries()` before the first of the holders


def register_auto_classes() -> AutoRegistration:
    """Make transformers' Auto classes build this package's classes for `model_type: wav2vec2-conformer`.

    `AutoConfig`, `AutoModel` and `AutoModelFor{PreTraining, CTC, AudioClassification, AudioFrameClassification,
    AudioXVector}` change, and with them all that is built on them, such as `pipeline`. Processors, feature extractors
    and tokenizers are those of transformers before and after.

    Returns:
        A handle: `undo()`, or leaving a `with` block, takes this call back. Calls may be nested, repeated and taken
        back in any order: the classes stay registered as long as one call does.
    """
    if not holders:
        lines = entries()
        replaced[:] = [line.table.get(line.key) for line in lines]
        transformers.AutoConfig.register(Wav2Vec2ConformerConfig.model_type, Wav2Vec2ConformerConfig, exist_ok=True)
        for name, model in MODELS.items():
            getattr(transformers, name).register(Wav2Vec2ConformerConfig, model, exist_ok=True)
    handle = AutoRegistration()
    holders.add(handle)
    return handle


def unregister_auto_classes() -> None:
    """Take back every `register_auto_classes` at once; without one, nothing happens."""
    for handle in list(holders):
        handle.undo()


def restore() -> None:
    """Put back what was there before. What somebody else has registered since then is theirs and stays."""
    for (table, key, ours), before in zip(entries(), replaced, strict=True):
        if table.get(key) is ours:
            if before is None:
                del table[key]
            else:
                table[key] = before
