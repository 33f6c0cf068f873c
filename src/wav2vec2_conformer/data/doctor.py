"""What is wrong with manifests and their recordings, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from . import checks
from .checks import Finding, ModelNeeds, coverage, finding, listed
from .measurement import AudioFacts
from .statistics import MeasuredManifest, resolved
from .vocabulary import WORD_DELIMITER, unknown_characters

__all__ = ["Finding", "ModelNeeds", "examine"]

RARE = 5  # occurrences below which a character can hardly be learnt
FEW_EXAMPLES = 10  # recordings of a class


def examine(
    train: Sequence[MeasuredManifest],
    dev: Sequence[MeasuredManifest],
    needs: ModelNeeds,
    unusable: Mapping[str, Sequence[str]],
) -> list[Finding]:
    """Run all checks; errors come first, then warnings, then notes, each in the order of the manifests.

    Args:
        train: manifests to learn from.
        dev: manifests to be judged on; empty if there are none.
        needs: of the model.
        unusable: manifest -> "line N: problem" of the lines that could not be read.
    """
    found: list[Finding] = []
    for manifest in [*train, *dev]:
        name, readable = manifest.name, manifest.readable
        found += checks.unusable_lines(name, unusable.get(name, ()), len(manifest.utterances))
        found += checks.unreadable(manifest)
        found += checks.wrong_durations(name, readable)
        found += checks.lengths(name, readable, needs)
        found += checks.sound(name, readable)
        found += checks.twice(name, readable)
        found += checks.beyond_end(name, readable)
        found += checks.characters(name, manifest.utterances, needs)
        found += checks.label_lengths(name, readable, needs)
        found += checks.foreign_labels(name, manifest.utterances, needs)
        found += checks.speaking_rates(name, readable)
    found += few_examples(train)
    if needs.encoder is None:
        found += new_vocabulary(train)
    if dev:
        found += leaked_speakers(train, dev)
        found += leaked_audio(train, dev)
        found += unseen_classes(train, dev)
        if needs.encoder is None:
            found += unseen_characters(train, dev)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def few_examples(train: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """Classes with few recordings, over all training manifests."""
    counts = Counter(u.label for manifest in train for u in manifest.utterances if u.label is not None)
    few = [f"{label} ({count})" for label, count in counts.items() if count < FEW_EXAMPLES]
    message = f"classes with fewer than {FEW_EXAMPLES} recordings, of {len(counts):,} classes"
    yield from finding("warning", "few_examples", names(train), message, few, "record more of them, or join classes")
    if len(counts) == 1:
        remedy = "give recordings of what it is to be told from"
        yield from finding("error", "one_class", names(train), "classes in all", counts, remedy)


def new_vocabulary(train: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """Characters that a vocabulary built from all training transcripts would hold, and a model could not learn."""
    texts = [u.text for manifest in train for u in manifest.utterances if u.text is not None]
    counts, _ = unknown_characters(texts, {})
    del counts[WORD_DELIMITER]  # an error of its own
    rare = Counter({character: count for character, count in counts.items() if count < RARE})
    message = f"characters that come fewer than {RARE} times, too rarely for a new model to learn"
    remedy = "respell them (é as e, 3 as THREE), or take those transcripts out"
    yield from finding("warning", "rare_characters", names(train), message, listed(rare), remedy)
    both = sorted({c.upper() for c in counts if c.islower() and c.upper() != c and c.upper() in counts})
    message = "letters in upper and in lower case, which a vocabulary keeps apart"
    yield from finding("warning", "mixed_case", names(train), message, both, "turn all transcripts to one case")


def leaked_speakers(train: Sequence[MeasuredManifest], dev: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """Speakers on both sides."""
    named = [{u.speaker for m in side for u in m.utterances if u.speaker is not None} for side in (train, dev)]
    spoken = [{s.speaker for m in side for u in m.utterances for s in u.segments or ()} for side in (train, dev)]
    both = (named[0] | spoken[0]) & (named[1] | spoken[1])
    where, judged = f"{names(train)} and {names(dev)}", len(named[1] | spoken[1])
    message = f"speakers of dev who are in train, so figures will be better than with new voices, of {judged:,}"
    remedy = "split by speakers (`data prepare --dev-share` does); fine only if these very people will use the model"
    yield from finding("error", "leaked_speakers", where, message, sorted(both & (named[0] | named[1])), remedy)
    message = "names in the segments of both train and dev"
    remedy = "nothing, if they count the speakers of a recording; if they are people, split by them"
    yield from finding("note", "shared_names", where, message, sorted(both - named[0] - named[1]), remedy)


def leaked_audio(train: Sequence[MeasuredManifest], dev: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """The same file or the same sound on both sides."""
    by_digest = {f.digest: u.name for manifest in train for u, f in manifest.readable if f.level_db is not None}
    by_path = {resolved(u): u.name for manifest in train for u in manifest.utterances}
    items = []
    for manifest in dev:
        for utterance, facts in zip(manifest.utterances, manifest.facts, strict=True):
            same = by_digest.get(facts.digest) if isinstance(facts, AudioFacts) else None
            same = same or by_path.get(resolved(utterance))
            if same is not None:
                items.append(utterance.name if same == utterance.name else f"{utterance.name} = {same}")
    where = f"{names(train)} and {names(dev)}"
    message = "recordings of dev that are in train, so figures mean nothing"
    yield from finding("error", "leaked_audio", where, message, items, "take them out of one of the two")


def unseen_classes(train: Sequence[MeasuredManifest], dev: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """Classes that are judged and never learnt."""
    learnt, judged = ({u.label for m in side for u in m.utterances if u.label is not None} for side in (train, dev))
    if learnt:
        remedy = "add recordings of them to train, or take them out of dev; are they spelled alike?"
        message = "classes of dev that are not in train"
        yield from finding("error", "unseen_classes", names(dev), message, sorted(judged - learnt), remedy)


def unseen_characters(train: Sequence[MeasuredManifest], dev: Sequence[MeasuredManifest]) -> Iterator[Finding]:
    """Characters that a vocabulary built from train would lack."""
    learnt = {letter: 0 for m in train for u in m.utterances for letter in u.text or ""}
    if learnt:
        texts = [u.text for m in dev for u in m.utterances if u.text is not None]
        yield from coverage("unseen_characters", names(dev), texts, learnt, "the transcripts of train")


def names(manifests: Sequence[MeasuredManifest]) -> str:
    """Manifests in a message."""
    return ", ".join(manifest.name for manifest in manifests)
