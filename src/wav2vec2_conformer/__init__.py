"""Wav2Vec2-Conformer: from a recording to text, and everything between."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio import AudioError
    from .auto import AutoRegistration, register_auto_classes, unregister_auto_classes
    from .classification import AudioClassifier, Classification
    from .configuration import Wav2Vec2ConformerConfig
    from .diarization import Diarizer
    from .inspection import Inspection, inspect_model
    from .modeling import (
        Wav2Vec2ConformerForAudioFrameClassification,
        Wav2Vec2ConformerForCTC,
        Wav2Vec2ConformerForPreTraining,
        Wav2Vec2ConformerForPreTrainingOutput,
        Wav2Vec2ConformerForSequenceClassification,
        Wav2Vec2ConformerForXVector,
        Wav2Vec2ConformerModel,
        Wav2Vec2ConformerPreTrainedModel,
    )
    from .transcription import Transcriber, Transcript
    from .verification import SpeakerEncoder

__all__ = [
    "AudioClassifier",
    "AudioError",
    "AutoRegistration",
    "Classification",
    "Diarizer",
    "Inspection",
    "SpeakerEncoder",
    "Transcriber",
    "Transcript",
    "Wav2Vec2ConformerConfig",
    "Wav2Vec2ConformerForAudioFrameClassification",
    "Wav2Vec2ConformerForCTC",
    "Wav2Vec2ConformerForPreTraining",
    "Wav2Vec2ConformerForPreTrainingOutput",
    "Wav2Vec2ConformerForSequenceClassification",
    "Wav2Vec2ConformerForXVector",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2ConformerPreTrainedModel",
    "inspect_model",
    "register_auto_classes",
    "unregister_auto_classes",
]

# Where each name lives. They are imported when first asked for, so that `wav2vec2-conformer --help` need not wait for
# torch.
HOMES = {
    "AudioClassifier": "classification",
    "AudioError": "audio",
    "AutoRegistration": "auto",
    "Classification": "classification",
    "Diarizer": "diarization",
    "Inspection": "inspection",
    "SpeakerEncoder": "verification",
    "Transcriber": "transcription",
    "Transcript": "transcription",
    "Wav2Vec2ConformerConfig": "configuration",
    "Wav2Vec2ConformerForAudioFrameClassification": "modeling",
    "Wav2Vec2ConformerForCTC": "modeling",
    "Wav2Vec2ConformerForPreTraining": "modeling",
    "Wav2Vec2ConformerForPreTrainingOutput": "modeling",
    "Wav2Vec2ConformerForSequenceClassification": "modeling",
    "Wav2Vec2ConformerForXVector": "modeling",
    "Wav2Vec2ConformerModel": "modeling",
    "Wav2Vec2ConformerPreTrainedModel": "modeling",
    "inspect_model": "inspection",
    "register_auto_classes": "auto",
    "unregister_auto_classes": "auto",
}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f".{HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
