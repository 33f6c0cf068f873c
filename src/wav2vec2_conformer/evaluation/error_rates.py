"""Word and character error rates, counted utterance by utterance, so that memory does not grow with the set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import jiwer

__all__ = ["ErrorRates"]


@dataclass
class ErrorRates:
    """Counts over all references and hypotheses added so far; counts of several processes add up."""

    utterances: int = 0
    words: int = 0
    word_errors: int = 0
    characters: int = 0
    character_errors: int = 0

    def add(self, reference: str, hypothesis: str) -> None:
        """Count one utterance. Words are separated by white space; characters include single spaces between words."""
        reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
        self.utterances += 1
        self.words += len(reference.split())
        self.characters += len(reference)
        if not reference:  # every word is an insertion, which jiwer does not define
            self.word_errors += len(hypothesis.split())
            self.character_errors += len(hypothesis)
            return
        for level, output in (
            ("word", jiwer.process_words(reference, hypothesis)),
            ("character", jiwer.process_characters(reference, hypothesis)),
        ):
            errors = output.substitutions + output.deletions + output.insertions
            setattr(self, f"{level}_errors", getattr(self, f"{level}_errors") + errors)

    @property
    def wer(self) -> float:
        """Word errors a reference word; above 1 where insertions outnumber the words."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character errors a reference character."""
        return self.character_errors / max(self.characters, 1)

    def counts(self) -> list[int]:
        """The counts in the order of the fields, to be summed over processes."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_counts(cls, counts: list[int]) -> Self:
        """The inverse of `counts`."""
        return cls(*counts)
