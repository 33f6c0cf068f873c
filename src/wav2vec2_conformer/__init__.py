"""Wav2Vec2-Conformer: from a recording to text, and everything between."""

from .configuration import Wav2Vec2ConformerConfig
from .modeling import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel

__all__ = [
    "Wav2Vec2ConformerConfig",
    "Wav2Vec2ConformerForCTC",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2ConformerPreTrainedModel",
]
