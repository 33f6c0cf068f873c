"""A manifest in numbers."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..audio import AudioError
from .manifest import Utterance
from .measurement import AudioFacts
from .segments import Segment
from .splitting import speakers_of_utterance

__all__ = [
    "MeasuredManifest",
    "Quartiles",
    "Statistics",
    "duplicate_audio",
    "duplicate_entries",
    "resolved",
    "summarize",
]


@dataclass(frozen=True)
class MeasuredManifest:
    """A manifest's utterances, for each what its recording holds or why it cannot be read, and how many other lines."""

    name: str
    utterances: Sequence[Utterance]
    facts: Sequence[AudioFacts | AudioError]
    unusable: int = 0

    @property
    def readable(self) -> list[tuple[Utterance, AudioFacts]]:
        """The utterances whose recordings could be read."""
        pairs = zip(self.utterances, self.facts, strict=True)
        return [(utterance, facts) for utterance, facts in pairs if isinstance(facts, AudioFacts)]


@dataclass(frozen=True)
class Quartiles:
    """Smallest, lower quartile, median, upper quartile and largest of some numbers, by linear interpolation."""

    min: float
    lower: float
    median: float
    upper: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quartiles | None:
        """Of numbers in any order; None of none."""
        numbers = list(values)
        if not numbers:
            return None
        return cls(*(round(float(value), 4) for value in np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1))))


@dataclass(frozen=True)
class Statistics:
    """A manifest in numbers; `None` where nothing is known, dictionaries by falling count.

    `recordings` are all lines, `unreadable` those that cannot be used or whose audio cannot be read.
    `hours` and `durations` (seconds) are of the audio as decoded. `speaking_rate` is in characters a second, spaces
    included. `clipped` counts recordings with any clipped samples, `clipped_share` is the share of all samples.
    `speech_share` and `overlap_share` are of the time, by the segments. `duplicate_audio` groups entries of different
    files with equal sound, `duplicate_entries` are files named more than once. What the rest means: `AudioFacts`.
    """

    name: str
    recordings: int
    unreadable: int
    hours: float
    durations: Quartiles | None
    speakers: dict[str, int]
    labels: dict[str, int]
    sample_rates: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    transcribed: int
    characters: dict[str, int]
    speaking_rate: Quartiles | None
    segments: int | None
    speech_share: float | None
    overlap_share: float | None
    level_db: Quartiles | None
    clipped: int
    clipped_share: float
    silence: Quartiles | None
    leading_silence: Quartiles | None
    trailing_silence: Quartiles | None
    zeros: Quartiles | None
    without_sound: int
    duplicate_audio: list[list[str]]
    duplicate_entries: list[str]


def summarize(measured: MeasuredManifest) -> Statistics:
    """Count what was measured; see `Statistics`."""
    readable = measured.readable
    facts = [fact for _, fact in readable]
    texts = [(u.text, fact.duration) for u, fact in readable if u.text is not None]
    seconds = sum(fact.duration for fact in facts)
    samples = sum(fact.duration * fact.sample_rate for fact in facts)
    segmented = [(u, fact.duration) for u, fact in readable if u.segments is not None]
    covered = [speech_and_overlap(u.segments or (), duration) for u, duration in segmented]
    segmented_seconds = sum(duration for _, duration in segmented)
    return Statistics(
        name=measured.name,
        recordings=len(measured.utterances) + measured.unusable,
        unreadable=len(measured.utterances) + measured.unusable - len(facts),
        hours=round(seconds / 3600, 4),
        durations=Quartiles.of(fact.duration for fact in facts),
        speakers=counted(name for u in measured.utterances for name in speakers_of_utterance(u)),
        labels=counted(u.label for u in measured.utterances if u.label is not None),
        sample_rates=counted(str(fact.sample_rate) for fact in facts),
        channels=counted(str(fact.channels) for fact in facts),
        formats=counted(fact.format for fact in facts),
        transcribed=sum(u.text is not None for u in measured.utterances),
        characters=counted(character for u in measured.utterances for character in u.text or ""),
        speaking_rate=Quartiles.of(len(text) / duration for text, duration in texts if text and duration > 0),
        segments=sum(len(u.segments or ()) for u, _ in segmented) if segmented else None,
        speech_share=share(sum(speech for speech, _ in covered), segmented_seconds) if segmented else None,
        overlap_share=share(sum(overlap for _, overlap in covered), segmented_seconds) if segmented else None,
        level_db=Quartiles.of(fact.level_db for fact in facts if fact.level_db is not None),
        clipped=sum(fact.clipped > 0 for fact in facts),
        clipped_share=share(sum(fact.clipped * fact.duration * fact.sample_rate for fact in facts), samples),
        silence=Quartiles.of(fact.silent for fact in facts),
        leading_silence=Quartiles.of(fact.leading for fact in facts),
        trailing_silence=Quartiles.of(fact.trailing for fact in facts),
        zeros=Quartiles.of(fact.zeros for fact in facts),
        without_sound=sum(fact.level_db is None and fact.duration > 0 for fact in facts),
        duplicate_audio=duplicate_audio(readable),
        duplicate_entries=duplicate_entries(measured.utterances),
    )


def duplicate_audio(readable: Iterable[tuple[Utterance, AudioFacts]]) -> list[list[str]]:
    """Names of different files with equal sound, in groups."""
    groups: defaultdict[str, dict[Path, str]] = defaultdict(dict)
    for utterance, facts in readable:
        if facts.level_db is not None:  # silences of one length are all equal
            groups[facts.digest].setdefault(resolved(utterance), utterance.name)
    return [list(names.values()) for names in groups.values() if len(names) > 1]


def duplicate_entries(utterances: Iterable[Utterance]) -> list[str]:
    """Names of files that a manifest lists more than once, each once."""
    seen = Counter(resolved(utterance) for utterance in utterances)
    names = {resolved(utterance): utterance.name for utterance in utterances}
    return [names[path] for path, times in seen.items() if times > 1]


def resolved(utterance: Utterance) -> Path:
    """One path for a file, however it is named (links, which would take a look at the disk, aside)."""
    return Path(os.path.abspath(utterance.audio))


def speech_and_overlap(segments: Sequence[Segment], duration: float) -> tuple[float, float]:
    """Seconds of a recording in which somebody speaks, and in which two or more speak at once."""
    changes = Counter[float]()
    for segment in segments:
        changes[min(segment.start, duration)] += 1
        changes[min(segment.end, duration)] -= 1
    speech = overlap = 0.0
    speaking = 0
    for now, following in pairwise(sorted(changes)):
        speaking += changes[now]
        speech += (following - now) * (speaking >= 1)
        overlap += (following - now) * (speaking >= 2)
    return speech, overlap


def counted(values: Iterable[str]) -> dict[str, int]:
    """Values with their counts, the most frequent first, ties in their order."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def share(part: float, whole: float) -> float:
    """A part of a whole, 0 of nothing."""
    return round(part / whole, 6) if whole > 0 else 0.0
