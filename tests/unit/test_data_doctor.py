"""The doctor finds each fault in a manifest that has it alone, and none in a healthy one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from wav2vec2_conformer.data import Segment, TextEncoder, Utterance, build_vocabulary
from wav2vec2_conformer.data.doctor import Finding, ModelNeeds, examine
from wav2vec2_conformer.data.measurement import measure_recordings
from wav2vec2_conformer.data.statistics import MeasuredManifest

RATE = 16000
CLEAN_TEXT = "THE QUICK BROWN"
FREE = ModelNeeds(lambda samples: max(0, (samples - 80) // 320), None, "a model")


def voice(seconds: float, seed: int, level: float = 0.1) -> np.ndarray:
    """Noise as loud as speech."""
    samples = level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return np.clip(samples, -0.99, 0.99).astype(np.float32)


def healthy(folder: Path, count: int = 30, first: int = 0, **known: Any) -> list[Utterance]:
    """Recordings of 2 s that nothing is wrong with."""
    utterances = []
    for number in range(first, first + count):
        path = folder / f"{number}.wav"
        soundfile.write(path, voice(2.0, number), RATE)
        fields = {"text": CLEAN_TEXT, "speaker": f"s{number % 3 + first}", "label": None} | known
        utterances.append(Utterance(audio=path, duration=2.0, name=path.name, **fields))
    return utterances


def measured(name: str, utterances: list[Utterance]) -> MeasuredManifest:
    return MeasuredManifest(name, utterances, list(measure_recordings(utterances)))


def diagnose(
    train: list[Utterance], dev: list[Utterance] | None = None, needs: ModelNeeds = FREE, problems: tuple[str, ...] = ()
) -> dict[str, Finding]:
    """Findings by their kind; every kind comes once in these tests."""
    manifests = [measured("dev", dev)] if dev is not None else []
    findings = examine([measured("train", train)], manifests, needs, {"train": problems})
    ranks = [("error", "warning", "note").index(finding.severity) for finding in findings]
    assert ranks == sorted(ranks)
    assert all(finding.remedy and finding.message for finding in findings)
    found = {finding.kind: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def test_nothing_is_wrong_with_healthy_manifests(tmp_path: Path) -> None:
    assert diagnose(healthy(tmp_path), healthy(tmp_path, 10, first=100)) == {}


def replace_audio(samples: np.ndarray, rate: int = RATE) -> Callable[[Utterance], Utterance]:
    """A fault: another sound in the file."""

    def change(utterance: Utterance) -> Utterance:
        soundfile.write(utterance.audio, samples, rate)
        return dataclasses.replace(utterance, duration=len(samples) / rate)

    return change


def fields(**changes: Any) -> Callable[[Utterance], Utterance]:
    """A fault: other fields in the manifest."""
    return lambda utterance: dataclasses.replace(utterance, **changes)


def damage(utterance: Utterance) -> Utterance:
    """A fault: a file that ends early."""
    utterance.audio.write_bytes(utterance.audio.read_bytes()[:5000])
    return utterance


CLIPPED = np.clip(20 * voice(2.0, 5), -1, 1)
PAUSES = np.concatenate([voice(0.2, 5), np.zeros(30000, np.float32)])


@pytest.mark.parametrize(
    ("fault", "kind", "severity", "said"),
    [
        (damage, "unreadable", "error", "3.wav: is truncated"),
        (fields(duration=3.0), "wrong_durations", "error", "3.wav: 3 s in the manifest, 2.000 s of audio"),
        (replace_audio(voice(0.01, 0)), "too_short", "error", "3.wav: 0.010 s"),
        (replace_audio(voice(31.0, 0)), "too_long", "warning", "3.wav: 31.0 s"),
        (replace_audio(np.zeros(32000)), "silent", "error", "3.wav"),
        (replace_audio(voice(2.0, 0, level=1e-4)), "faint", "warning", "3.wav: -80 dB"),
        (replace_audio(CLIPPED), "clipped", "warning", "3.wav: "),
        (replace_audio(PAUSES), "mostly_silence", "warning", "3.wav: 90%"),
        (replace_audio(voice(1.0, 0), 8000), "low_rate", "note", "3.wav: 8000 Hz"),
        (replace_audio(voice(2.0, 4)), "contradicting_audio", "error", "3.wav = 4.wav"),
        (fields(segments=(Segment(1.0, 2.5, "s0"),)), "segments_beyond_end", "error", "3.wav: a segment ends at 2.50"),
        (fields(text=""), "empty_transcripts", "note", "3.wav"),
        (fields(text="THE | BROWN"), "word_delimiter", "error", "3.wav"),
        (fields(text="THE QÜICK"), "rare_characters", "warning", "'Ü' (1)"),
        (fields(text=CLEAN_TEXT * 10), "labels_too_long", "error", "3.wav: 99 frames, 150 needed"),
        (fields(text=CLEAN_TEXT * 4), "odd_speaking_rate", "warning", "3.wav: 30.0"),
    ],
)
def test_each_fault_is_found_and_named(
    fault: Callable[[Utterance], Utterance], kind: str, severity: str, said: str, tmp_path: Path
) -> None:
    utterances = healthy(tmp_path)
    utterances[3] = fault(utterances[3])
    found = diagnose(utterances)
    assert kind in found
    assert (found[kind].severity, found[kind].count, found[kind].where) == (severity, 1, "train")
    assert found[kind].examples[0].startswith(said)
    related = {"labels_too_long": {"odd_speaking_rate"}, "too_short": set(), "too_long": {"odd_speaking_rate"}}
    assert found.keys() - {kind} <= related.get(kind, set())


def test_the_same_again(tmp_path: Path) -> None:
    utterances = healthy(tmp_path)
    soundfile.write(utterances[6].audio, voice(2.0, 3), RATE)  # of the same speaker, with the same text
    found = diagnose([*utterances, utterances[0]])
    assert found["listed_twice"].examples == ("0.wav",)
    assert found["same_audio"].examples == ("3.wav = 6.wav",)
    assert found.keys() == {"listed_twice", "same_audio"}


def test_lines_that_are_none_and_manifests_without_any(tmp_path: Path) -> None:
    found = diagnose(healthy(tmp_path), problems=("line 1: invalid JSON", "line 2: invalid JSON"))
    assert (found["unusable_lines"].count, found["unusable_lines"].severity) == (2, "error")
    assert diagnose([]).keys() == {"empty_manifest"}


def test_letters_in_both_cases(tmp_path: Path) -> None:
    utterances = healthy(tmp_path) + healthy(tmp_path, 30, first=50, text="the end")
    found = diagnose(utterances)
    assert found.keys() == {"mixed_case"}
    assert found["mixed_case"].examples == ("E", "H", "N", "T")  # not D, which is there in one case alone


def test_a_models_vocabulary_and_the_case_trap(tmp_path: Path) -> None:
    upper = ModelNeeds(FREE.frames_of, TextEncoder(build_vocabulary([CLEAN_TEXT])), "my-model")
    assert diagnose(healthy(tmp_path), needs=upper) == {}
    found = diagnose(healthy(tmp_path, text=CLEAN_TEXT.lower()), needs=upper)
    assert found.keys() == {"unknown_characters"}
    assert found["unknown_characters"].severity == "error"
    assert "upper case" in found["unknown_characters"].remedy
    few = healthy(tmp_path)
    few[0] = dataclasses.replace(few[0], text="THE QUICK BRÜWN")
    assert diagnose(few, needs=upper)["unknown_characters"].severity == "warning"


def test_classes_that_are_rare_alone_or_never_learnt(tmp_path: Path) -> None:
    yes, no = healthy(tmp_path, 12, label="yes"), healthy(tmp_path, 4, first=50, label="no")
    assert diagnose(yes)["one_class"].severity == "error"
    found = diagnose(yes + no, healthy(tmp_path, 3, first=100, label="maybe"))
    assert found["few_examples"].examples == ("no (4)",)
    assert found["unseen_classes"].examples == ("maybe",)


def test_what_leaks_from_train_into_dev(tmp_path: Path) -> None:
    train = healthy(tmp_path)
    dev = healthy(tmp_path, 5, first=100)
    assert diagnose(train, dev) == {}
    dev[0] = dataclasses.replace(dev[0], speaker=None, segments=(Segment(0, 1, "new"), Segment(1, 2, "s1")))
    soundfile.write(dev[1].audio, voice(2.0, 7), RATE)  # a copy under another name
    found = diagnose(train, [*dev, train[9]])
    assert found["leaked_speakers"].examples == ("s0", "s1")
    assert found["leaked_audio"].examples == ("101.wav = 7.wav", "9.wav")
    assert {finding.severity for finding in found.values()} == {"error"}


def test_names_in_segments_may_count_the_speakers_of_a_recording(tmp_path: Path) -> None:
    said = (Segment(0, 1, "speaker0"), Segment(1, 2, "speaker1"))
    sides = [healthy(tmp_path, 3, first=first, speaker=None, segments=said, text=None) for first in (0, 50)]
    found = diagnose(*sides)
    assert "leaked_speakers" not in found
    assert (found["shared_names"].severity, found["shared_names"].count) == ("note", 2)


def test_characters_that_only_dev_has(tmp_path: Path) -> None:
    found = diagnose(healthy(tmp_path), healthy(tmp_path, 10, first=100, text="DOG"))
    assert found["unseen_characters"].examples == ("'D' (10)", "'G' (10)")


def test_labels_that_a_classifier_does_not_have(tmp_path: Path) -> None:
    utterances = [
        dataclasses.replace(u, text=None, label="yes" if i else "maybe") for i, u in enumerate(healthy(tmp_path))
    ]
    knows = dataclasses.replace(FREE, labels=frozenset({"yes", "no"}))
    found = diagnose(utterances, needs=knows)["foreign_labels"]
    assert (found.severity, found.count, found.examples) == ("error", 1, ("maybe (1)",))
    assert "it has no, yes" in found.message
    assert "foreign_labels" not in diagnose(utterances)
    assert "foreign_labels" not in diagnose(
        utterances, needs=dataclasses.replace(knows, labels=frozenset({"yes", "maybe"}))
    )
