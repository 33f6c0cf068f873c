"""The network, in the order of the data: feature encoder, masking, positions, attention, conformer, adapter, heads."""

from .ctc import Wav2Vec2ConformerForCTC
from .frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from .masking import sample_spans, thin_to_equal_counts
from .model import Wav2Vec2ConformerModel, Wav2Vec2ConformerPreTrainedModel
from .negatives import sample_negatives
from .numpy_sampling import compute_mask_indices, sample_negative_indices
from .outputs import Wav2Vec2ConformerForPreTrainingOutput
from .pretraining import Wav2Vec2ConformerForPreTraining
from .sequence_classification import Wav2Vec2ConformerForSequenceClassification
from .xvector import Wav2Vec2ConformerForXVector

__all__ = [
    "Wav2Vec2ConformerForAudioFrameClassification",
    "Wav2Vec2ConformerForCTC",
    "Wav2Vec2ConformerForPreTraining",
    "Wav2Vec2ConformerForPreTrainingOutput",
    "Wav2Vec2ConformerForSequenceClassification",
    "Wav2Vec2ConformerForXVector",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2ConformerPreTrainedModel",
    "_compute_mask_indices",
    "_sample_negative_indices",
    "compute_mask_indices",
    "sample_negative_indices",
    "sample_negatives",
    "sample_spans",
    "thin_to_equal_counts",
]

# The names under which transformers' documentation imports them.
_compute_mask_indices, _sample_negative_indices = compute_mask_indices, sample_negative_indices
