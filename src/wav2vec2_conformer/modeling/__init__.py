"""The network, in the order of the data: feature encoder, masking, positions, attention, conformer, adapter, heads."""

from .ctc import Wav2Vec2ConformerForCTC
from .frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel
from .sequence_classification import Wav2Vec2ConformerForSequenceClassification
from .xvector import Wav2Vec2ConformerForXVector

__all__ = [
    "Wav2Vec2ConformerForAudioFrameClassification",
    "Wav2Vec2ConformerForCTC",
    "Wav2Vec2ConformerForSequenceClassification",
    "Wav2Vec2ConformerForXVector",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2ConformerPreTrainedModel",
]
