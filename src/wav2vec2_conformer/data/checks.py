"""What may be wrong with one manifest and its recordings: small checks, each a pure function that gives findings."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..audio import SAMPLE_RATE
from .collation import frames_needed
from .manifest import Utterance
from .measurement import AudioFacts
from .splitting import speakers_of_utterance
from .statistics import MeasuredManifest, duplicate_audio, duplicate_entries
from .vocabulary import WORD_DELIMITER, TextEncoder, coverage_remedy, unknown_characters

__all__ = [
    "Finding",
    "ModelNeeds",
    "beyond_end",
    "characters",
    "coverage",
    "finding",
    "foreign_labels",
    "label_lengths",
    "lengths",
    "listed",
    "sound",
    "speaking_rates",
    "twice",
    "unreadable",
    "unusable_lines",
    "wrong_durations",
]

Severity = Literal["error", "warning", "note"]
Readable = list[tuple[Utterance, AudioFacts]]

EXAMPLES = 5
DURATION_SLACK = (0.1, 0.02)  # seconds, share: manifests round, and lossy formats pad
LONG_SECONDS = 30.0  # memory grows with the square of a clip's length, and CTC learns worse from long ones
CLIPPED_SHARE = 0.001  # of the samples; rarer clicks are not heard
FAINT_DB = -60.0  # of full scale: 16-bit recordings this soft are half made of rounding
MOSTLY_SILENT = 0.8  # of the frames
RATE_FACTOR = 3.0  # times faster or slower than the median: somebody else's transcript
UNKNOWN_LIMIT = 0.01  # of the characters, where training refuses
SEGMENT_SLACK = 0.1  # seconds beyond the end; RTTM files round


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Args:
        severity: "error" if training would refuse or leave recordings out, learn what is wrong, or be judged by figures
            that mean nothing; "warning" if the result is likely worse; "note" for what may be as intended.
        kind: a name for programs, such as "unreadable".
        where: the manifest, or the manifests.
        message: what they are, in words.
        count: how many they are.
        examples: the first few, by name.
        remedy: what to do.
    """

    severity: Severity
    kind: str
    where: str
    message: str
    count: int
    examples: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class ModelNeeds:
    """What a model asks of its data.

    Args:
        frames_of: samples at 16 kHz -> frames.
        encoder: of its vocabulary, or None where it has none (or none is chosen yet).
        what: the model, for messages.
        labels: the classes that it tells apart, or None where it is no classifier.
    """

    frames_of: Callable[[int], int]
    encoder: TextEncoder | None
    what: str
    labels: frozenset[str] | None = None


def finding(
    severity: Severity, kind: str, where: str, message: str, items: Iterable[str], remedy: str
) -> Iterator[Finding]:
    """A finding about `items`, or none where there are none; the message says what they are."""
    names = list(items)
    if names:
        yield Finding(severity, kind, where, message, len(names), tuple(names[:EXAMPLES]), remedy)


def unusable_lines(where: str, problems: Sequence[str], usable: int) -> Iterator[Finding]:
    """Lines that are no entries, for which training would refuse the manifest; or nothing but blank lines."""
    if not problems and not usable:
        remedy = 'write one JSON object a line, e.g. {"audio": "a.wav"}'
        yield Finding("error", "empty_manifest", where, "lines", 0, (), remedy)
    yield from finding(
        "error", "unusable_lines", where, "lines that cannot be used", problems, "correct them, or take them out"
    )


def foreign_labels(where: str, utterances: Sequence[Utterance], needs: ModelNeeds) -> Iterator[Finding]:
    """Labels that a classifier does not have."""
    if needs.labels is None:
        return
    counts = Counter(u.label for u in utterances if u.label is not None and u.label not in needs.labels)
    items = [f"{label} ({count})" for label, count in counts.items()]
    message = f"labels that {needs.what} does not have; it has {', '.join(sorted(needs.labels)[:EXAMPLES])} ..."
    remedy = "spell them as the model does, or take them out to judge it; trained on them, its last layer starts anew"
    yield from finding("error", "foreign_labels", where, message, items, remedy)


def unreadable(manifest: MeasuredManifest) -> Iterator[Finding]:
    """Recordings that cannot be decoded, or not to their end."""
    items = [
        f"{utterance.name}: {facts.problem}"
        for utterance, facts in zip(manifest.utterances, manifest.facts, strict=True)
        if not isinstance(facts, AudioFacts)
    ]
    remedy = "copy them again, or take their lines out"
    yield from finding("error", "unreadable", manifest.name, "recordings that cannot be read", items, remedy)


def wrong_durations(where: str, readable: Readable) -> Iterator[Finding]:
    """Durations that are not those of the recordings; batches are planned by them."""
    slack, share = DURATION_SLACK
    items = [
        f"{utterance.name}: {utterance.duration:g} s in the manifest, {facts.duration:.3f} s of audio"
        for utterance, facts in readable
        if abs(utterance.duration - facts.duration) > slack + share * facts.duration
    ]
    yield from finding(
        "error",
        "wrong_durations",
        where,
        "durations by which batches are planned, and which are not those of the recordings",
        items,
        "correct the field, or take it out: it is then read from the file",
    )


def lengths(where: str, readable: Readable, needs: ModelNeeds) -> Iterator[Finding]:
    """Recordings without a single frame, and those that are too long to train on."""
    short = [f"{u.name}: {f.duration:.3f} s" for u, f in readable if needs.frames_of(samples_of(f)) < 1]
    yield from finding(
        "error",
        "too_short",
        where,
        f"recordings shorter than one frame of {needs.what}",
        short,
        "take them out",
    )
    long = [f"{u.name}: {f.duration:.1f} s" for u, f in readable if f.duration > LONG_SECONDS]
    message = f"recordings longer than {LONG_SECONDS:g} s, which take much memory in training"
    yield from finding("warning", "too_long", where, message, long, "cut them at pauses, with their transcripts")


def sound(where: str, readable: Readable) -> Iterator[Finding]:
    """Recordings that are silent, faint, clipped or mostly pauses, or that miss their upper half."""
    silent = [(u, f) for u, f in readable if f.level_db is None and f.duration > 0]
    claimed = [u.name for u, _ in silent if u.text or u.label or speakers_of_utterance(u)]
    remedy = "record them anew, or take them out"
    yield from finding(
        "error", "silent", where, "recordings of nothing but zeros, of which the manifest says more", claimed, remedy
    )
    rest = [u.name for u, _ in silent if u.name not in set(claimed)]
    yield from finding("note", "silent", where, "recordings of nothing but zeros", rest, remedy)
    faint = [f"{u.name}: {f.level_db:.0f} dB" for u, f in readable if f.level_db is not None and f.level_db < FAINT_DB]
    message = f"recordings with hardly any sound, below {FAINT_DB:g} dB of full scale"
    yield from finding(
        "warning", "faint", where, message, faint, "listen to them; a wrong channel or a dead microphone"
    )
    clipped = [f"{u.name}: {f.clipped:.2%} of the samples" for u, f in readable if f.clipped > CLIPPED_SHARE]
    message = f"recordings that are clipped in more than {CLIPPED_SHARE:.1%} of their samples"
    remedy = "record at a lower level; leave them out if many others are clean"
    yield from finding("warning", "clipped", where, message, clipped, remedy)
    pauses = [f"{u.name}: {f.silent:.0%}" for u, f in readable if f.level_db is not None and f.silent > MOSTLY_SILENT]
    message = f"recordings that are silent in more than {MOSTLY_SILENT:.0%} of their frames"
    yield from finding("warning", "mostly_silence", where, message, pauses, "cut the silence off")
    narrow = [f"{u.name}: {f.sample_rate} Hz" for u, f in readable if f.sample_rate < SAMPLE_RATE]
    message = f"recordings at a lower rate than the model's {SAMPLE_RATE} Hz, whose upper band is empty"
    remedy = "fine if they will be used so; do not mix them with others that differ in class or speaker, too"
    yield from finding("note", "low_rate", where, message, narrow, remedy)


def twice(where: str, readable: Readable) -> Iterator[Finding]:
    """The same file, or the same sound in other files, more than once."""
    utterances = [utterance for utterance, _ in readable]
    remedy = "keep one line of each"
    yield from finding(
        "warning", "listed_twice", where, "files that are listed more than once", duplicate_entries(utterances), remedy
    )
    known: dict[str, set[tuple[str | None, str | None, str | None]]] = defaultdict(set)
    for utterance in utterances:
        known[utterance.name].add((utterance.text, utterance.label, utterance.speaker))
    agreeing: list[str] = []
    contradicting: list[str] = []
    for group in duplicate_audio(readable):
        said = set().union(*(known[name] for name in group))
        (agreeing if len(said) == 1 else contradicting).append(" = ".join(group[:4]))
    yield from finding(
        "warning", "same_audio", where, "sounds that are there in several files", agreeing, "keep one of each"
    )
    yield from finding(
        "error",
        "contradicting_audio",
        where,
        "sounds that are there in several files, with different transcripts, classes or speakers",
        contradicting,
        "listen to them and keep the right one",
    )


def beyond_end(where: str, readable: Readable) -> Iterator[Finding]:
    """Segments that end after their recording does."""
    items = []
    for utterance, facts in readable:
        last = max((segment.end for segment in utterance.segments or ()), default=0.0)
        if last > facts.duration + SEGMENT_SLACK:
            items.append(f"{utterance.name}: a segment ends at {last:.2f} s, the recording at {facts.duration:.2f} s")
    remedy = "check that the segments belong to this recording, and that their times are seconds"
    yield from finding(
        "error", "segments_beyond_end", where, "recordings that end before their segments do", items, remedy
    )


def characters(where: str, utterances: Sequence[Utterance], needs: ModelNeeds) -> Iterator[Finding]:
    """Transcripts that are empty, and characters that a vocabulary cannot or does not hold."""
    texts = [utterance.text for utterance in utterances if utterance.text is not None]
    empty = [utterance.name for utterance in utterances if utterance.text == ""]
    remedy = "fine for recordings without speech; else add what is said"
    yield from finding("note", "empty_transcripts", where, "empty transcripts", empty, remedy)
    delimiter = [u.name for u in utterances if WORD_DELIMITER in (u.text or "")]
    message = f"transcripts with a {WORD_DELIMITER!r}, which stands for the space in vocabularies"
    yield from finding("error", "word_delimiter", where, message, delimiter, "remove it")
    if needs.encoder is not None:
        what = f"the vocabulary of {needs.what}"
        yield from coverage("unknown_characters", where, texts, needs.encoder.vocabulary, what)


def coverage(
    kind: str, where: str, texts: Iterable[str], vocabulary: Mapping[str, int], what: str
) -> Iterator[Finding]:
    """Characters of texts that a vocabulary lacks; an error where they are so many that training refuses."""
    unknown, total = unknown_characters(texts, vocabulary)
    severity: Severity = "error" if unknown.total() > UNKNOWN_LIMIT * total else "warning"
    message = f"characters that are not in {what}, {unknown.total():,} of {total:,} in the texts"
    yield from finding(severity, kind, where, message, listed(unknown), coverage_remedy(unknown, vocabulary))


def label_lengths(where: str, readable: Readable, needs: ModelNeeds) -> Iterator[Finding]:
    """Transcripts with more characters than their recordings have frames."""
    items = []
    for utterance, facts in readable:
        if not utterance.text:
            continue
        ids = needs.encoder.encode(utterance.text) if needs.encoder else [ord(letter) for letter in utterance.text]
        frames, needed = needs.frames_of(samples_of(facts)), frames_needed(ids)
        if 0 < frames < needed:
            items.append(f"{utterance.name}: {frames} frames, {needed} needed")
    message = f"transcripts with more letters than their recordings have frames in {needs.what}, which CTC cannot learn"
    remedy = "check that these transcripts belong to these recordings; training leaves them out"
    yield from finding("error", "labels_too_long", where, message, items, remedy)


def speaking_rates(where: str, readable: Readable) -> Iterator[Finding]:
    """Transcripts that are read much faster or slower than the others: often another recording's."""
    rates = [(u, len(u.text) / f.duration) for u, f in readable if u.text and len(u.text) > 10 and f.duration > 1]
    if len(rates) < 20:
        return
    usual = statistics.median(rate for _, rate in rates)
    odd = [f"{u.name}: {rate:.1f}" for u, rate in rates if not usual / RATE_FACTOR <= rate <= usual * RATE_FACTOR]
    message = f"recordings {RATE_FACTOR:g} times faster or slower than the median of {usual:.1f} characters a second"
    yield from finding("warning", "odd_speaking_rate", where, message, odd, "listen: is it what the transcript says?")


def samples_of(facts: AudioFacts) -> int:
    """Samples of a recording as the model hears it, at 16 kHz."""
    return round(facts.duration * SAMPLE_RATE)


def listed(counts: Counter[str]) -> list[str]:
    """Characters with their counts, the most frequent first."""
    return [f"{character!r} ({count:,})" for character, count in counts.most_common()]
