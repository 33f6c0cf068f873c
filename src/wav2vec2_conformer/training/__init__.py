"""Training: one trainer, one module a task."""

from .ctc import CTCSettings, train_ctc
from .frame import FrameSettings, train_frame
from .pretraining import PretrainingSettings, train_pretraining
from .sequence import SequenceSettings, train_sequence
from .settings import FineTuningSettings
from .xvector import XVectorSettings, train_xvector

__all__ = [
    "CTCSettings",
    "FineTuningSettings",
    "FrameSettings",
    "PretrainingSettings",
    "SequenceSettings",
    "XVectorSettings",
    "train_ctc",
    "train_frame",
    "train_pretraining",
    "train_sequence",
    "train_xvector",
]
