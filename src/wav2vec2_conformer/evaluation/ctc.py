"""Evaluation of speech recognisers: WER and CER with their parts, frequent substitutions, the worst utterances."""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.vocabulary import coverage_remedy, unknown_characters
from ..recordings import BATCH_SECONDS
from ..transcription import Transcriber
from .bootstrap import ratio_of_sums
from .error_rates import AlignedWord, ErrorRates
from .run import SHOWN, Evaluation, EvaluationSet, Progress, figures_of

__all__ = ["CTCDetails", "WorstUtterance", "evaluate_ctc"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class WorstUtterance:
    """An utterance with many errors; ordered by them."""

    errors: int
    words: int
    file: str
    aligned: list[AlignedWord]

    @property
    def reference(self) -> str:
        """What was said."""
        return " ".join(word.reference for word in self.aligned if word.reference is not None)

    @property
    def hypothesis(self) -> str:
        """What was written."""
        return " ".join(word.hypothesis for word in self.aligned if word.hypothesis is not None)


@dataclass(frozen=True)
class CTCDetails:
    """What is only said of speech recognisers.

    Args:
        substitutions: the most frequent ones: word said, word written, how often.
        worst: the utterances with most errors.
        utterance_wer: (U,) of each utterance with words.
    """

    substitutions: list[tuple[str, str, int]]
    worst: list[WorstUtterance]
    utterance_wer: NDArray[np.float64]

    def lines(self, count: int) -> Iterator[str]:
        """What people should see first: so many of the most frequent substitutions and of the worst utterances."""
        if self.substitutions:
            often = (f"{said} -> {written} ({count})" for said, written, count in self.substitutions[:count])
            yield f"most frequent substitutions: {', '.join(often)}"
        for one in self.worst[:count]:
            yield f"errors {one.errors}, words {one.words}, {one.file}: {one.reference!r} became {one.hypothesis!r}"

    def to_json(self) -> dict[str, Any]:
        """The part that a program may read."""
        return {
            "substitutions": [
                {"reference": said, "hypothesis": written, "count": count}
                for said, written, count in self.substitutions
            ],
            "worst": [
                {
                    "file": w.file,
                    "errors": w.errors,
                    "words": w.words,
                    "reference": w.reference,
                    "hypothesis": w.hypothesis,
                }
                for w in self.worst
            ],
        }


def evaluate_ctc(
    model: str | Path | None,
    data: Sequence[str | Path],
    *,
    device: str | None = None,
    batch_seconds: float = BATCH_SECONDS,
    compute_type: str = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Transcribe the utterances of manifests and compare with their texts, word by word as they stand.

    Args:
        model: a folder or Hub id; None: the small English model of the package.
        data: manifests whose lines have `text`.
        device: None: a CUDA device if there is one, else the CPU.
        batch_seconds: audio computed at once.
        compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8".
        progress: called with the seconds of audio done since the last call, and those of the whole set.

    Raises:
        ValueError: a manifest or model that cannot be used, or no recording that can be read.
    """
    found = EvaluationSet(data, "text")
    transcriber = Transcriber.from_pretrained(
        model, device=device, batch_seconds=batch_seconds, compute_type=compute_type
    )
    found.conversion = transcriber.conversion
    warn_of_unknown_characters(found, transcriber.tokenizer.get_vocab())
    total = np.zeros(len(ErrorRates().counts()), np.int64)
    errors, wholes = np.zeros((2, len(found), 2), np.int64)  # words and characters of each utterance
    substitutions: Counter[tuple[str, str]] = Counter()
    worst: list[WorstUtterance] = []  # a heap, the least bad one on top
    for index, utterance, transcript in found.results(transcriber.transcribe_many, progress):
        rates = ErrorRates()
        aligned = rates.add(utterance.text or "", transcript.text)
        total += rates.counts()
        errors[index] = rates.word_errors, rates.character_errors
        wholes[index] = rates.words, rates.characters
        substitutions.update((r, h) for r, h in aligned if r is not None and h is not None and r != h)
        if rates.word_errors:
            heapq.heappush(worst, WorstUtterance(rates.word_errors, rates.words, utterance.name, aligned))
            if len(worst) > SHOWN:
                heapq.heappop(worst)
    names = ("wer", "cer")
    if not wholes[:, 0].any():
        raise ValueError(
            f"{', '.join(found.data)}: no words in any reference of the recordings that could be read, so there is no "
            "error rate; give transcripts with words"
        )

    def figures(rows: NDArray[np.int64]) -> dict[str, float]:
        return dict(zip(names, (errors[rows].sum(0) / np.maximum(wholes[rows].sum(0), 1)).tolist(), strict=True))

    rates = ErrorRates.from_counts(total.tolist())
    rows = np.flatnonzero(found.judged)
    spoken = rows[wholes[rows, 0] > 0]
    return found.evaluation(
        task="ctc",
        model=str(model or "default"),
        figures=figures_of(names, (rates.wer, rates.cer), ratio_of_sums(errors[rows], wholes[rows]), len(rows)),
        counts={name: count for name, count in asdict(rates).items() if name != "utterances"},
        unit="utterances",
        by_data=found.of_each(figures),
        details=CTCDetails(
            substitutions=[(*words, count) for words, count in substitutions.most_common(SHOWN)],
            worst=sorted(worst, reverse=True),
            utterance_wer=errors[spoken, 0] / wholes[spoken, 0],
        ),
    )


def warn_of_unknown_characters(found: EvaluationSet, vocabulary: Mapping[str, int]) -> None:
    """Say which characters of the references the model cannot write, since each is an error whatever it hears."""
    unknown, total = unknown_characters((utterance.text or "" for utterance in found.utterances), vocabulary)
    if unknown:
        logger.warning(
            "%d of %d characters of the references are not in the model's vocabulary, and so are errors: %s. %s",
            unknown.total(),
            total,
            ", ".join(repr(character) for character, _ in unknown.most_common(10)),
            coverage_remedy(unknown, vocabulary),
        )
