"""Logits -> text."""

from .greedy import best_path, greedy_texts

__all__ = ["best_path", "greedy_texts"]
