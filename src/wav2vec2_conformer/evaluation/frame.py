"""Evaluation of diarization: DER with its parts, recording by recording, and what was found as RTTM files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import ManifestError, rttm_lines
from ..diarization import Diarizer
from ..files import replacing, writable_folder
from ..recordings import BATCH_SECONDS
from .bootstrap import ratio_of_sums
from .diarization import DiarizationErrors
from .run import Evaluation, EvaluationSet, Progress, figures_of

__all__ = ["FrameDetails", "RecordingErrors", "evaluate_frame"]

PARTS = ("missed", "false_alarm", "confusion")


@dataclass(frozen=True)
class RecordingErrors:
    """One recording: how many speak and were found, and the seconds of each kind of error."""

    file: str
    speakers: int
    found: int
    errors: DiarizationErrors


@dataclass(frozen=True)
class FrameDetails:
    """What is only said of diarization: the collar in seconds, and each recording, the highest DER first."""

    collar: float
    recordings: list[RecordingErrors]

    def lines(self, count: int) -> Iterator[str]:
        """What people should see first: so many of the recordings with the highest DER."""
        yield "recordings with the highest DER:"
        for one in self.recordings[:count]:
            yield f"DER {100 * one.errors.der:.2f} %, {one.file}: speakers {one.speakers}, found {one.found}"

    def to_json(self) -> dict[str, Any]:
        """The part that a program may read."""
        rows = []
        for one in self.recordings:
            times = {name: round(value, 3) for name, value in asdict(one.errors).items() if name != "recordings"}
            rows.append(
                {"file": one.file, "der": one.errors.der, **times, "speakers": one.speakers, "found": one.found}
            )
        return {"collar": self.collar, "recordings": rows}


def evaluate_frame(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    collar: float = 0.0,
    rttm: str | Path | None = None,
    device: str | None = None,
    batch_seconds: float = BATCH_SECONDS,
    compute_type: str = "float32",
    speaker_model: str | Path | None = None,
    speakers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Diarize the recordings of manifests and compare with their segments; overlapping speech is scored.

    Args:
        model: a folder or Hub id.
        data: manifests whose lines have `segments` or `rttm`.
        collar: seconds around where speakers start and stop that are not scored.
        rttm: a folder in which to write what was found, one file a recording.
        device: None: a CUDA device if there is one, else the CPU.
        batch_seconds: audio computed at once.
        compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8".
        speaker_model: tells the speakers apart by their voices; needs `speakers`.
        speakers: how many people speak in each recording.
        progress: called with the seconds of audio done since the last call, and those of the whole set.

    Raises:
        ValueError: a manifest or model that cannot be used, a collar below 0, two recordings whose RTTM files would be
            one, or no recording that can be read.
        OSError: an RTTM file cannot be written.
    """
    if not 0 <= collar < np.inf:
        raise ValueError(f"the collar must be a number of seconds from 0 up, got {collar}; 0 and 0.25 are usual")
    found = EvaluationSet(data, "segments")
    folder = None if rttm is None else prepare_rttm(found, Path(rttm))
    diarizer = Diarizer.from_pretrained(
        model,
        device=device,
        batch_seconds=batch_seconds,
        compute_type=compute_type,
        speaker_model=speaker_model,
        speakers=speakers,
    )
    found.conversion = diarizer.conversion
    times = np.zeros((len(found), 1 + len(PARTS)))
    recordings: list[RecordingErrors] = []
    total = DiarizationErrors()
    for index, utterance, segments in found.results(diarizer.diarize_many, progress):
        reference = utterance.segments or ()
        errors = total.add(reference, segments, collar=collar)
        times[index] = errors.speech, *(getattr(errors, part) for part in PARTS)
        speakers, heard = (len({segment.speaker for segment in side}) for side in (reference, segments))
        recordings.append(RecordingErrors(utterance.name, speakers, heard, errors))
        if folder is not None:
            with replacing(folder / f"{utterance.audio.stem}.rttm") as temporary:
                lines = rttm_lines(utterance.audio.stem, segments)
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if total.speech == 0:
        raise ValueError("nobody speaks in the scored time of the recordings, so that there is no error rate")
    rows = np.flatnonzero(found.judged)
    wrong = np.concatenate([times[:, 1:].sum(1, keepdims=True), times[:, 1:]], axis=1)  # (U, 4)
    names = ("der", *PARTS)
    # of equal ones, such as those in which nobody speaks, the one with more wrong seconds first
    recordings.sort(key=lambda one: (-one.errors.der, -sum(getattr(one.errors, part) for part in PARTS)))

    def figures(own: NDArray[np.int64]) -> dict[str, float]:
        return dict(zip(names, (wrong[own].sum(0) / max(times[own, 0].sum(), 1e-9)).tolist(), strict=True))

    return found.evaluation(
        task="frame",
        model=str(model) if speaker_model is None else f"{model} with {speaker_model}",
        figures=figures_of(
            names,
            list(figures(rows).values()),
            ratio_of_sums(wrong[rows], np.repeat(times[rows, :1], len(names), axis=1)),
            len(rows),
        ),
        counts={
            "speech": round(total.speech, 3),
            **{part: round(float(seconds), 3) for part, seconds in zip(PARTS, times[:, 1:].sum(0), strict=True)},
        },
        unit="recordings",
        by_data=found.of_each(figures),
        details=FrameDetails(collar, recordings),
    )


def prepare_rttm(found: EvaluationSet, folder: Path) -> Path:
    """Make the folder, before anything is computed; every recording must have a name of its own."""
    seen: dict[str, str] = {}
    for utterance in found.utterances:
        other = seen.setdefault(utterance.audio.stem, utterance.name)
        if other != utterance.name:
            raise ManifestError(
                f"{other} and {utterance.name} would both be {folder / utterance.audio.stem}.rttm; evaluate them apart"
            )
    return writable_folder(folder)
