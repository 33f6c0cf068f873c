"""What a model is, told without loading its weights."""

from .model import Inspection, Vocabulary, inspect_model
from .pitfalls import Pitfall
from .speed import Speed

__all__ = ["Inspection", "Pitfall", "Speed", "Vocabulary", "inspect_model"]
