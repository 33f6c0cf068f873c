"""The network, in the order of the data: feature encoder, masking, positions, attention, conformer, adapter, heads."""

from .ctc import Wav2Vec2ConformerForCTC
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel

__all__ = ["Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerModel", "Wav2Vec2ConformerPreTrainedModel"]
