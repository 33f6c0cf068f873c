"""Who speaks when: segments of a recording, and RTTM files of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .runs import runs_of

__all__ = ["Segment", "SegmentError", "find_segments", "read_rttm", "rttm_lines", "speakers_of"]

ROUNDING = 1e-9  # seconds; ten frames of 0.02 s are no less than 0.2 s
FIELDS = "SPEAKER <recording> <channel> <start> <duration> <NA> <NA> <speaker> <NA> <NA>"


class SegmentError(ValueError):
    """Segments that cannot be used; the message names the place, what is wrong and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One speaker from `start` to `end` (seconds); segments of several speakers may overlap.

    Raises:
        SegmentError: the end is not after the start, or a time is no number from 0 up.
    """

    start: float
    end: float
    speaker: str

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.end < math.inf):
            raise SegmentError(
                f"a segment must start at 0 s or later and end after its start, got {self.start} to {self.end}"
            )


def read_rttm(path: str | Path) -> dict[str, list[Segment]]:
    """Read an RTTM file (Rich Transcription Time Marked, NIST 2009): recording -> its segments, in order of time.

    Lines of other types than SPEAKER, blank lines and comments (`;;`) are passed over.

    Raises:
        SegmentError: the file does not exist, or a line of it cannot be used.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SegmentError(f"{path}: cannot be read ({problem}); give an RTTM file") from error
    found: dict[str, list[Segment]] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";;") or fields[0] != "SPEAKER":
            continue
        try:
            recording, start, duration, speaker = fields[1], float(fields[3]), float(fields[4]), fields[7]
            segment = Segment(start, start + duration, speaker)
        except (IndexError, ValueError) as error:
            reason = str(error) if isinstance(error, SegmentError) else f"expected `{FIELDS}`"
            raise SegmentError(f"{path}: line {number}: {reason}") from None
        found.setdefault(recording, []).append(segment)
    return {recording: sorted(segments) for recording, segments in found.items()}


def rttm_name(text: str) -> str:
    """A name as RTTM files have it: white space, which separates the fields there, becomes `_`."""
    return "_".join(text.split()) or "_"


def rttm_lines(recording: str, segments: Iterable[Segment]) -> list[str]:
    """Segments as lines of an RTTM file; see `rttm_name`."""
    name = rttm_name(recording)
    return [
        f"SPEAKER {name} 1 {s.start:.3f} {s.end - s.start:.3f} <NA> <NA> {rttm_name(s.speaker)} <NA> <NA>"
        for s in sorted(segments)
    ]


def speakers_of(segments: Sequence[Segment]) -> list[str]:
    """The speakers in the order in which they first speak."""
    return list(dict.fromkeys(segment.speaker for segment in sorted(segments)))


def find_segments(
    activity: npt.NDArray[np.bool_],
    edges: npt.NDArray[np.float64],
    *,
    min_speech: float = 0.0,
    min_silence: float = 0.0,
) -> list[tuple[float, float, int]]:
    """Stretches of activity as (start, end, speaker), in order of time.

    Args:
        activity: (T, S), who speaks in which frame.
        edges: (T + 1,) seconds between which the frames lie.
        min_speech: seconds; shorter stretches are dropped.
        min_silence: seconds; shorter gaps in a speaker's activity are closed, before that.
    """
    found = []
    for speaker in range(activity.shape[1]):
        starts, ends = (edges[frames] for frames in runs_of(activity[:, speaker]))
        apart = starts[1:] - ends[:-1] >= min_silence - ROUNDING  # a gap that stays
        starts, ends = starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]
        kept = ends - starts >= min_speech - ROUNDING
        found += [(start, end, speaker) for start, end in zip(starts[kept].tolist(), ends[kept].tolist(), strict=True)]
    return sorted(found)
