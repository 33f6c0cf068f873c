"""Training: one trainer, one module a task."""

from .ctc import CTCSettings, train_ctc
from .pretraining import PretrainingSettings, train_pretraining

__all__ = ["CTCSettings", "PretrainingSettings", "train_ctc", "train_pretraining"]
