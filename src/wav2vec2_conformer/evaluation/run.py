"""Running a model over manifests: what the evaluations of all tasks share."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio import AudioError
from ..compute_types import Conversion
from ..data import ManifestError, Utterance, read_manifest
from .bootstrap import CONFIDENCE, Statistic, bootstrap_intervals

__all__ = [
    "FIGURES",
    "SHOWN",
    "Evaluation",
    "EvaluationSet",
    "Figure",
    "FigureKind",
    "Progress",
    "Skipped",
    "environment",
    "figures_of",
]

# U utterances, F figures

SHOWN = 20  # of the worst and the most frequent, in details

Progress = Callable[[float, float], object]  # seconds of audio done since the last call, and of the whole set
Result = TypeVar("Result")
Many = Callable[..., Iterator[Result | AudioError]]


class FigureKind(NamedTuple):
    """How a figure is called and read."""

    title: str
    percent: bool
    meaning: str


FIGURES = {
    "wer": FigureKind("WER", True, "word error rate: words substituted, deleted and inserted, a word of the reference"),
    "cer": FigureKind("CER", True, "the same of characters, spaces between words included"),
    "accuracy": FigureKind("accuracy", True, "recordings that were given their class"),
    "macro_f1": FigureKind("macro-F1", True, "mean of the classes' F1; classes that do not occur are left out"),
    "eer": FigureKind("EER", True, "equal error rate: as many same-speaker trials refused as other trials accepted"),
    "min_dcf_0.01": FigureKind("minDCF 0.01", False, "least detection cost, where 1 trial of 100 is of one speaker"),
    "min_dcf_0.05": FigureKind("minDCF 0.05", False, "least detection cost, where 5 trials of 100 are of one speaker"),
    "threshold": FigureKind("threshold", False, "cosine at the EER: from it upwards, one speaker"),
    "der": FigureKind("DER", True, "diarization error rate: missed, false and confused time over the speakers' time"),
    "missed": FigureKind("missed", True, "the part of the DER where fewer speakers were found than speak"),
    "false_alarm": FigureKind("false alarm", True, "the part of the DER where more speakers were found than speak"),
    "confusion": FigureKind("confusion", True, "the part of the DER where another speaker was found"),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of merit and its confidence interval, None where it has none."""

    value: float
    interval: tuple[float, float] | None = None

    def text(self, kind: FigureKind) -> str:
        """The value, rounded for reading."""
        return f"{100 * self.value:.2f} %" if kind.percent else f"{self.value:.3f}"

    def interval_text(self, kind: FigureKind) -> str:
        """The interval, rounded for reading; empty where there is none."""
        if self.interval is None:
            return ""
        low, high = (100 * bound if kind.percent else bound for bound in self.interval)
        return f"[{low:.2f}, {high:.2f}]" if kind.percent else f"[{low:.3f}, {high:.3f}]"


class Skipped(NamedTuple):
    """A recording that could not be read, and why."""

    file: str
    problem: str


class Subset(NamedTuple):
    """The utterances of one of several manifests: how many were judged, and their figures."""

    utterances: int
    figures: dict[str, float]


@dataclass
class Evaluation:
    """What came out of a model on a set.

    Args:
        task: "ctc", "sequence", "frame" or "xvector".
        model: its name.
        data: the manifests.
        utterances: that were judged.
        seconds: of audio that they have.
        figures: of all of them together.
        counts: what the figures are made of.
        unit: what the bootstrap draws, such as "utterances".
        skipped: recordings that could not be read.
        details: what only its task has to say: `CTCDetails` and so on.
        runtime: seconds that it took, without loading the model.
        by_data: figures of each manifest, where there are several.
        environment: versions, hardware and compute type.
    """

    task: str
    model: str
    data: list[str]
    utterances: int
    seconds: float
    figures: dict[str, Figure]
    counts: dict[str, int | float]
    unit: str
    skipped: list[Skipped]
    details: Any
    runtime: float
    by_data: dict[str, Subset] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; intervals are [low, high]."""
        return {
            "task": self.task,
            "model": self.model,
            "data": self.data,
            "utterances": self.utterances,
            "seconds": round(self.seconds, 3),
            "figures": {
                name: {"value": figure.value, "interval": list(figure.interval) if figure.interval else None}
                for name, figure in self.figures.items()
            },
            "confidence": CONFIDENCE,
            "resampled": self.unit,
            "counts": self.counts,
            "by_data": {path: {"utterances": own.utterances, **own.figures} for path, own in self.by_data.items()},
            **self.details.to_json(),
            "skipped": [{"file": skipped.file, "error": skipped.problem} for skipped in self.skipped],
            "runtime": round(self.runtime, 3),
            "environment": self.environment,
        }


class EvaluationSet:
    """The utterances of manifests, the longest first, so that memory that does not suffice shows at once.

    Args:
        data: paths of manifests.
        require: the field that every line must have, as in `read_manifest`.

    Raises:
        ManifestError: a manifest cannot be used, or is given twice.

    Attributes:
        utterances: (U) of all manifests.
        source: (U,) the number of each one's manifest.
        judged: (U,) which can be read, as far as `results` has been gone through.
        skipped: those that cannot.
    """

    def __init__(self, data: Sequence[str | Path], require: str | None) -> None:
        self.data = [str(path) for path in data]
        if len(set(self.data)) < len(self.data):
            twice = next(path for path in self.data if self.data.count(path) > 1)
            raise ManifestError(f"{twice}: given twice, which would count its utterances twice; name it once")
        found = [(number, u) for number, path in enumerate(data) for u in read_manifest(path, require=require)]
        found.sort(key=lambda pair: -pair[1].duration)
        self.utterances = [utterance for _, utterance in found]
        self.source = np.array([number for number, _ in found], np.int64)
        self.skipped: list[Skipped] = []
        self.judged = np.ones(len(found), bool)
        self.conversion: Conversion | None = None  # of the model, where it does not compute in float32
        self.begun = time.monotonic()

    def __len__(self) -> int:
        return len(self.utterances)

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave all others out."""
        self.utterances = [self.utterances[number] for number in numbers]
        self.source, self.judged = self.source[numbers], self.judged[numbers]

    def results(self, many: Many[Result], progress: Progress | None) -> Iterator[tuple[int, Utterance, Result]]:
        """The number of each utterance, the utterance, and what a model says of it; unreadable ones are noted.

        Args:
            many: such as `Transcriber.transcribe_many`.
            progress: told how far it is.

        Raises:
            ValueError: none of the recordings could be read.
        """
        self.begun = time.monotonic()
        sources: Iterable[Path] = (utterance.audio for utterance in self.utterances)
        total = sum(utterance.duration for utterance in self.utterances)
        results = many(sources, progress=None if progress is None else lambda seconds: progress(seconds, total))
        for index, (utterance, result) in enumerate(zip(self.utterances, results, strict=True)):
            if isinstance(result, AudioError):
                self.skipped.append(Skipped(utterance.name, result.problem))
                self.judged[index] = False
            else:
                yield index, utterance, result
        if not self.judged.any():
            first = self.skipped[0]
            raise ValueError(
                f"none of the {len(self)} recordings could be read; the first, {first.file}: {first.problem}"
            )

    def of_each(self, figures: Callable[[NDArray[np.int64]], dict[str, float]]) -> dict[str, Subset]:
        """Figures of each manifest alone, where there are several.

        Args:
            figures: gives them for the numbers of utterances.
        """
        if len(self.data) == 1:
            return {}
        own = {path: np.flatnonzero(self.judged & (self.source == n)) for n, path in enumerate(self.data)}
        return {path: Subset(len(rows), figures(rows)) for path, rows in own.items() if len(rows)}

    def evaluation(self, **what: Any) -> Evaluation:
        """An `Evaluation` with what the set knows of it."""
        computed = {"compute type": str(self.conversion or "float32")}
        return Evaluation(
            environment=environment() | computed,
            data=self.data,
            utterances=int(self.judged.sum()),
            seconds=sum(u.duration for u, there in zip(self.utterances, self.judged, strict=True) if there),
            skipped=self.skipped,
            runtime=time.monotonic() - self.begun,
            **what,
        )


def figures_of(names: Sequence[str], values: Sequence[float], statistic: Statistic, units: int) -> dict[str, Figure]:
    """Figures with bootstrap intervals.

    Args:
        names: (F) of the figures.
        values: (F) of the set itself.
        statistic: as in `bootstrap_intervals`.
        units: as there.
    """
    intervals = bootstrap_intervals(statistic, units)
    return {
        name: Figure(float(value), None if np.isnan(bounds).any() else (float(bounds[0]), float(bounds[1])))
        for name, value, bounds in zip(names, values, intervals, strict=True)
    }


def environment() -> dict[str, str]:
    """Versions and hardware, which figures may depend on in their last digits, and speed in all."""
    packages = {name: version(name) for name in ("wav2vec2-conformer", "torch", "transformers")}
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **packages,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        **gpu,
    }
