"""Evaluation of speaker verification: EER and minDCF over a list of trials or over all pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import CALIBRATION, write_threshold
from ..data import ManifestError
from ..files import writable_folder
from ..processing import model_name
from ..recordings import BATCH_SECONDS
from ..verification import SpeakerEncoder
from .run import Evaluation, EvaluationSet, Figure, Progress, figures_of
from .trials import ScoredTrials, Trial, Trials, all_pairs, listed_trials, read_trials, score_trials

__all__ = ["XVectorDetails", "calibrate", "calibration_file", "evaluate_xvector"]

P_TARGETS = (0.01, 0.05)


logger = logging.getLogger(__name__)

FEW_TRIALS = 100  # of either kind


@dataclass(frozen=True)
class XVectorDetails:
    """What is only said of speaker verification: the trials' list, None where they are all pairs, and their scores."""

    trials: str | None
    scored: ScoredTrials

    def lines(self, count: int) -> Iterator[str]:
        """Nothing that the figures do not say."""
        yield from ()

    def to_json(self) -> dict[str, Any]:
        """The part that a program may read."""
        return {"trials": self.trials}


def evaluate_xvector(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    trials: str | Path | None = None,
    device: str | None = None,
    batch_seconds: float = BATCH_SECONDS,
    compute_type: str = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Embed the utterances of manifests and compare them pair by pair.

    Args:
        model: a folder or Hub id.
        data: manifests; their lines must have `speaker` unless `trials` are given.
        trials: a list of trials (see `read_trials`) between utterances by their `audio` in the manifests; None: all
            pairs of utterances of each manifest (none of two manifests, whose recordings may differ by more than the
            speakers).
        device: None: a CUDA device if there is one, else the CPU.
        batch_seconds: audio computed at once.
        compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8".
        progress: called with the seconds of audio done since the last call, and those of the whole set.

    Raises:
        ValueError: a manifest, list or model that cannot be used, too few speakers, or no recording that can be read.
    """
    found = EvaluationSet(data, "speaker" if trials is None else None)
    listed = None if trials is None else read_trials(trials)
    if listed is not None:
        found.keep(places_of(listed, found, str(trials)))
    speakers, known = speaker_ids(found, apart=listed is None)
    check_kinds(pairs_of(found, speakers, listed), "the manifests have" if trials is None else f"{trials} has")
    encoder = SpeakerEncoder.from_pretrained(
        model, device=device, batch_seconds=batch_seconds, compute_type=compute_type
    )
    found.conversion = encoder.conversion
    embeddings = np.zeros((len(found), encoder.model.config.xvector_output_dim), np.float32)
    for index, _, embedding in found.results(encoder.embed_many, progress):
        embeddings[index] = embedding
    trials_of_judged = pairs_of(found, speakers, listed)
    check_kinds(trials_of_judged, "the recordings that could be read have")
    scored = score_trials(embeddings, trials_of_judged)
    curve = scored.curve
    figures = figures_of(
        ("eer", *(f"min_dcf_{p_target}" for p_target in P_TARGETS)),
        (curve.eer, *(curve.min_dcf(p_target) for p_target in P_TARGETS)),
        scored.statistic(P_TARGETS),
        scored.sample.drawable,
    )
    return found.evaluation(
        task="xvector",
        model=str(model),
        figures={**figures, "threshold": Figure(curve.eer_threshold)},
        counts={
            "target_trials": scored.targets,
            "nontarget_trials": scored.nontargets,
            **({"speakers": len(np.unique(speakers[found.judged]))} if known else {}),
            **({} if listed is None else {"trials_left_out": len(listed) - scored.targets - scored.nontargets}),
        },
        unit="speakers" if known else "utterances",
        details=XVectorDetails(None if trials is None else str(trials), scored),
    )


def places_of(listed: Sequence[Trial], found: EvaluationSet, path: str) -> list[int]:
    """Which utterances the trials of a list are between."""
    numbers: dict[str, list[int]] = {}
    for number, utterance in enumerate(found.utterances):
        numbers.setdefault(utterance.name, []).append(number)
    named = dict.fromkeys(name for trial in listed for name in (trial.first, trial.second))
    missing = [name for name in named if name not in numbers]
    if missing:
        raise ManifestError(
            f"{path}: {len(missing)} of {len(named)} recordings are in none of the manifests, the first is "
            f'{missing[0]}; a trial names them by their "audio" there, such as {found.utterances[0].name}'
        )
    twice = next((name for name in named if len(numbers[name]) > 1), None)
    if twice is not None:
        raise ManifestError(f"{path}: {twice} stands several times in the manifests; keep one of these lines")
    return sorted(numbers[name][0] for name in named)


def speaker_ids(found: EvaluationSet, *, apart: bool) -> tuple[NDArray[np.int64], bool]:
    """Ids (U,) of the speakers and whether they are known; if not, every utterance has its own.

    Args:
        found: the utterances.
        apart: whether equal names in two manifests are two speakers.
    """
    if any(utterance.speaker is None for utterance in found.utterances):
        return np.arange(len(found)), False
    ids: dict[tuple[int, str], int] = {}
    keys = ((int(n) * apart, str(u.speaker)) for n, u in zip(found.source, found.utterances, strict=True))
    return np.array([ids.setdefault(key, len(ids)) for key in keys], np.int64), True


def pairs_of(found: EvaluationSet, speakers: NDArray[np.int64], listed: Sequence[Trial] | None) -> Trials:
    """The trials between the utterances that have not been skipped."""
    if listed is None:
        return all_pairs(speakers, found.source, found.judged)
    names = [utterance.name if there else None for utterance, there in zip(found.utterances, found.judged, strict=True)]
    return listed_trials(listed, names, speakers)


def check_kinds(trials: Trials, what: str) -> None:
    """Refuse trials of which there are none of one of the kinds."""
    if not len(trials.targets) or not trials.nontarget_count:
        kind = "different speakers" if len(trials.targets) else "the same speaker"
        raise ValueError(f"{what} no pair of utterances of {kind}; an equal error rate needs pairs of both kinds")


def calibration_file(model: str | Path) -> Path:
    """Where the threshold of a model is kept: beside it, in a folder.

    Raises:
        ValueError: the model is no folder.
        OSError: it cannot be written to.
    """
    folder = Path(model_name(model))
    if not folder.is_dir():
        raise ValueError(
            f"{model}: the threshold is written beside the model, which must be a folder; copy it into one"
        )
    return writable_folder(folder) / CALIBRATION


def calibrate(evaluation: Evaluation) -> Path:
    """Write the threshold at the EER beside the model, where `verify` finds it; the file's path.

    Raises:
        ValueError: the model is no folder.
        OSError: the file cannot be written.
    """
    counts = {name: evaluation.counts[f"{name}_trials"] for name in ("target", "nontarget")}
    if min(counts.values()) < FEW_TRIALS:
        logger.warning(
            "a threshold from %d target and %d nontarget trials is little more than chance; give %d of each or more",
            *(*counts.values(), FEW_TRIALS),
        )
    return write_threshold(
        calibration_file(evaluation.model).parent,
        evaluation.figures["threshold"].value,
        eer=evaluation.figures["eer"].value,
        trials=sum(counts.values()),
        data=evaluation.data,
    )
