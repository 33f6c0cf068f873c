"""Figures of merit, and how far chance may have moved them. Running a model on a set is `evaluation.run`."""

from .bootstrap import bootstrap_intervals, ratio_of_sums
from .classification import ConfusionMatrix, macro_f1
from .diarization import DiarizationErrors
from .error_rates import AlignedWord, ErrorRates, align_words
from .verification import DETCurve

__all__ = [
    "AlignedWord",
    "ConfusionMatrix",
    "DETCurve",
    "DiarizationErrors",
    "ErrorRates",
    "align_words",
    "bootstrap_intervals",
    "macro_f1",
    "ratio_of_sums",
]
