"""Training: one trainer, one module a task."""

from .ctc import CTCSettings, train_ctc

__all__ = ["CTCSettings", "train_ctc"]
