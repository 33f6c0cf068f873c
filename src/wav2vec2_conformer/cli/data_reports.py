"""What `wav2vec2-conformer data stats` and `data doctor` print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .messages import one_line

if TYPE_CHECKING:
    from ..data.doctor import ModelNeeds
    from ..data.statistics import MeasuredManifest, Quartiles, Statistics

__all__ = ["bar", "complain", "run_doctor", "run_stats"]

SEVERITIES = ("error", "warning", "note")


def run_stats(options: argparse.Namespace) -> int:
    """Measure, count, print and draw; 1 where a line cannot be used or a recording cannot be read."""
    from ..data.manifest import read_manifest, scan_manifest
    from ..data.statistics import summarize

    if options.picture is not None:
        picture = Path(options.picture)
        if picture.suffix.lower() != ".png" or not picture.parent.is_dir():
            raise ValueError(f"{picture}: expected the name of a PNG file in a folder that is there")
    manifests, unusable = [], []
    for name in options.manifests:
        utterances, problems = scan_manifest(name)
        if not utterances:
            read_manifest(name)  # says what is wrong
        for problem in problems:
            complain(f"{name}: {problem}")
        manifests.append((name, utterances))
        unusable.append(len(problems))
    measured = [replace(m, unusable=count) for m, count in zip(measure(manifests), unusable, strict=True)]
    for number, manifest in enumerate(measured):
        for utterance, fact in zip(manifest.utterances, manifest.facts, strict=True):
            if isinstance(fact, ValueError):
                complain(f"{manifest.name}: {utterance.name}: {fact.problem}")
        found = summarize(manifest)
        if options.json:
            print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
            continue
        if number:
            print()
        for name, value in table(found):
            print(f"{name:14}{one_line(value)}".rstrip())
    if options.picture is not None:
        from ..data.statistics_picture import draw_statistics

        draw_statistics(picture, measured)
    return 1 if any(m.unusable or len(m.readable) < len(m.facts) for m in measured) else 0


def measure(manifests: Sequence[tuple[str, Sequence[Any]]]) -> list[MeasuredManifest]:
    """Read every recording of every manifest once, with a bar of audio seconds."""
    from ..data.measurement import measure_recordings
    from ..data.statistics import MeasuredManifest

    measured = []
    with bar("s", total=sum(utterance.duration for _, utterances in manifests for utterance in utterances)) as progress:
        for name, utterances in manifests:
            facts = []
            for utterance, fact in zip(utterances, measure_recordings(utterances), strict=True):
                facts.append(fact)
                progress.update(round(utterance.duration, 2))
            measured.append(MeasuredManifest(name, utterances, facts))
    return measured


def table(found: Statistics) -> Iterator[tuple[str, str]]:
    """The rows of the table: a name and a value."""
    yield "manifest", found.name
    unreadable = f", {found.unreadable} of them cannot be read" if found.unreadable else ""
    yield "recordings", f"{found.recordings:,}{unreadable}"
    yield "hours", f"{found.hours:.2f}"
    yield "durations", spread(found.durations, "s")
    yield "speakers", several(found.speakers)
    yield "labels", several(found.labels)
    yield "rates", ", ".join(f"{rate} Hz ({number:,})" for rate, number in found.sample_rates.items()) or "none"
    yield "formats", ", ".join(f"{name} ({number:,})" for name, number in found.formats.items()) or "none"
    channels = ", ".join(f"{channels} ({number:,})" for channels, number in found.channels.items())
    yield "channels", channels or "none"
    if found.transcribed:
        letters = " ".join(f"{one_letter(letter)} {number:,}" for letter, number in found.characters.items())
        yield "transcripts", f"{found.transcribed:,}, of {len(found.characters)} characters: {letters}"
        yield "speaking rate", spread(found.speaking_rate, "characters a second")
    if found.segments is not None:
        yield "segments", f"{found.segments:,}; speech {found.speech_share:.1%}, overlap {found.overlap_share:.1%}"
    yield "level", spread(found.level_db, "dB of full scale")
    yield "clipped", f"{found.clipped:,} recordings, {found.clipped_share:.2%} of all samples"
    yield "silence", spread(found.silence, "of the 20 ms frames", percent=True)
    yield "at the start", spread(found.leading_silence, "s of silence")
    yield "at the end", spread(found.trailing_silence, "s of silence")
    yield "zeros", spread(found.zeros, "of the samples", percent=True)
    yield "without sound", f"{found.without_sound:,} recordings"
    groups = found.duplicate_audio
    yield (
        "same sound",
        f"{len(groups)} groups of files" + (f", the first: {' = '.join(groups[0][:4])}" if groups else ""),
    )
    twice = found.duplicate_entries
    yield "listed twice", f"{len(twice)} files" + (f", the first: {twice[0]}" if twice else "")


def spread(values: Quartiles | None, unit: str, *, percent: bool = False) -> str:
    """Five numbers in words."""
    if values is None:
        return "none"

    def written(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    return (
        f"{written(values.min)} to {written(values.max)} {unit}, half of them {written(values.lower)} to "
        f"{written(values.upper)}, median {written(values.median)}"
    )


def several(counts: dict[str, int], shown: int = 8) -> str:
    """How many names, and those with the most recordings."""
    if not counts:
        return "not said"
    names = ", ".join(f"{name} ({number:,})" for name, number in list(counts.items())[:shown])
    return f"{len(counts):,}: {names}{', ...' if len(counts) > shown else ''}"


def one_letter(letter: str) -> str:
    """A character that can be seen."""
    return "space" if letter == " " else letter


def run_doctor(options: argparse.Namespace) -> int:
    """Examine and print; 1 where there are errors."""
    from ..data.doctor import examine
    from ..data.manifest import scan_manifest

    needs = model_needs(options.model)
    names = [*options.manifests, *options.dev]
    scanned = {name: scan_manifest(name) for name in names}
    measured = measure([(name, scanned[name][0]) for name in names])
    train, dev = measured[: len(options.manifests)], measured[len(options.manifests) :]
    findings = examine(train, dev, needs, {name: problems for name, (_, problems) in scanned.items()})
    counts = Counter[str](finding.severity for finding in findings)
    if options.json:
        summary = {f"{severity}s": counts[severity] for severity in SEVERITIES}
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({**summary, "findings": rows}, indent=2, ensure_ascii=False))
        return 1 if counts["error"] else 0
    for finding in findings:
        print(one_line(f"{finding.severity}: {finding.where}: {finding.message}: {finding.count:,}"))
        for example in finding.examples:
            print(f"    {one_line(example)}")
        if finding.count > len(finding.examples) > 0:
            print(f"    ... and {finding.count - len(finding.examples):,} more")
        print(f"  what to do: {one_line(finding.remedy)}\n")
    recordings = sum(len(manifest.utterances) for manifest in measured)
    totals = ", ".join(plural(counts[severity], severity) for severity in SEVERITIES)
    print(f"{plural(recordings, 'recording')}: {totals}")
    return 1 if counts["error"] else 0


def model_needs(model: str | None) -> ModelNeeds:
    """A model's frames and vocabulary; without one, the frames of the released models."""
    from ..checkpoints.model_folder import find_config
    from ..configuration import Wav2Vec2ConformerConfig
    from ..data import TextEncoder
    from ..data.doctor import ModelNeeds
    from ..lengths import frames_of
    from ..loading import label_names
    from ..processing import load_processor, model_name

    if model is None:
        return ModelNeeds(partial(frames_of, config=Wav2Vec2ConformerConfig()), None, "the released models")
    name = model_name(model)
    config = find_config(name, "check")
    frames = partial(frames_of, config=config)
    processor = load_processor(name)
    if processor is None:
        classifies = "Wav2Vec2ConformerForSequenceClassification" in (config.architectures or ())
        return ModelNeeds(frames, None, model, frozenset(label_names(config)) if classifies else None)
    letters = processor.tokenizer
    encoder = TextEncoder(
        letters.get_vocab(), word_delimiter=letters.word_delimiter_token, unknown_token=letters.unk_token
    )
    return ModelNeeds(frames, encoder, model)


def bar(unit: str, total: float | None = None) -> Any:
    """A bar on stderr, where that is a terminal."""
    whole = round(total, 1) if total is not None else None
    return tqdm(total=whole, unit=unit, unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty())


def complain(problem: str) -> None:
    """One line on stderr."""
    print(f"wav2vec2-conformer: {one_line(problem)}", file=sys.stderr)


def plural(number: int, noun: str) -> str:
    """A number and a noun in its singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
