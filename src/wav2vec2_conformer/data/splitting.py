"""Utterances -> train and dev, no speaker on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from .manifest import ManifestError, Utterance

__all__ = ["speakers_of_utterance", "split_by_speaker"]


def split_by_speaker(utterances: Sequence[Utterance], share: float) -> tuple[list[Utterance], list[Utterance]]:
    """Split into (train, dev) with about `share` of the time in dev, and no speaker on both sides.

    A function of the names and durations alone: speakers are taken in the order of a hash of their names wherever
    that brings dev closer to its share, so that a corpus that grows keeps most of its split. Speakers who share a
    recording stay together.

    Raises:
        ManifestError: a share that is not between 0 and 1, utterances without speakers, or speakers who cannot be
            split, since there is one alone or recordings connect all of them.
    """
    if not 0.0 < share < 1.0:
        raise ManifestError(f"the share of dev must be above 0 and below 1, got {share:g}; 0.1 is usual")
    groups = _groups(utterances)
    seconds: defaultdict[str, float] = defaultdict(float)
    for utterance, group in zip(utterances, groups, strict=True):
        seconds[group] += utterance.duration
    if len(seconds) < 2:
        raise ManifestError(
            "there is one speaker, or recordings connect all speakers: no split keeps each on one side; record others"
            " for dev, or split the recordings yourself"
        )
    wanted, taken = share * sum(seconds.values()), 0.0
    dev: set[str] = set()
    for group in sorted(seconds, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()):
        closer = abs(taken + seconds[group] - wanted) < abs(taken - wanted)
        if closer and len(dev) < len(seconds) - 1:
            dev.add(group)
            taken += seconds[group]
    if not dev:  # each is more than twice the share
        dev.add(min(seconds, key=lambda group: (seconds[group], group)))
    sides: tuple[list[Utterance], list[Utterance]] = ([], [])
    for utterance, group in zip(utterances, groups, strict=True):
        sides[group in dev].append(utterance)
    return sides


def speakers_of_utterance(utterance: Utterance) -> set[str]:
    """Everybody who speaks in a recording, by its speaker and its segments."""
    speakers = {segment.speaker for segment in utterance.segments or ()}
    return speakers if utterance.speaker is None else speakers | {utterance.speaker}


def _groups(utterances: Sequence[Utterance]) -> list[str]:
    """For each utterance one name for all speakers that recordings connect, by a forest of disjoint sets."""
    parent: dict[str, str] = {}

    def root(speaker: str) -> str:
        parent.setdefault(speaker, speaker)
        while parent[speaker] != speaker:
            parent[speaker] = speaker = parent[parent[speaker]]
        return speaker

    members: list[str] = []
    for utterance in utterances:
        speakers = sorted(speakers_of_utterance(utterance))
        if not speakers:
            raise ManifestError(
                f"{utterance.name}: who speaks is not known, so a split could put one speaker on both sides; name the"
                " speakers, or split the recordings yourself"
            )
        for speaker in speakers[1:]:
            # The smaller name stays, whatever the order of the recordings.
            one, other = sorted((root(speakers[0]), root(speaker)))
            parent[other] = one
        members.append(speakers[0])
    return [root(speaker) for speaker in members]
