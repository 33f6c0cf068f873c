"""Word and character error rates, counted utterance by utterance, so that memory does not grow with the set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import jiwer

__all__ = ["AlignedWord", "ErrorRates", "align_words"]


class AlignedWord(NamedTuple):
    """A word of the reference beside the one in its place; None on one side: inserted, or deleted."""

    reference: str | None
    hypothesis: str | None


@dataclass
class ErrorRates:
    """Counts over all references and hypotheses added so far; counts of several processes add up."""

    utterances: int = 0
    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    characters: int = 0
    character_errors: int = 0

    def add(self, reference: str, hypothesis: str) -> list[AlignedWord]:
        """Count one utterance, and return how its words were aligned.

        Words are separated by white space; characters include single spaces between words.
        """
        reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
        aligned = align_words(reference, hypothesis)
        self.utterances += 1
        self.words += len(reference.split())
        self.characters += len(reference)
        self.deletions += sum(word.hypothesis is None for word in aligned)
        self.insertions += sum(word.reference is None for word in aligned)
        self.substitutions += sum(None not in word and word.reference != word.hypothesis for word in aligned)
        if reference:
            output = jiwer.process_characters(reference, hypothesis)
            self.character_errors += output.substitutions + output.deletions + output.insertions
        else:  # every character is an insertion
            self.character_errors += len(hypothesis)
        return aligned

    @property
    def word_errors(self) -> int:
        """Substitutions, deletions and insertions of words."""
        return self.substitutions + self.deletions + self.insertions

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


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """Align the words of two texts with the fewest substitutions, deletions and insertions (Levenshtein 1966)."""
    expected, got = reference.split(), hypothesis.split()
    if not expected:  # every word is an insertion, which jiwer does not define
        return [AlignedWord(None, word) for word in got]
    aligned: list[AlignedWord] = []
    for chunk in jiwer.process_words(" ".join(expected), " ".join(got)).alignments[0]:
        left = expected[chunk.ref_start_idx : chunk.ref_end_idx]
        right = got[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for place in range(max(len(left), len(right))):  # of one length, or one of them is empty
            aligned.append(AlignedWord(left[place] if left else None, right[place] if right else None))
    return aligned
