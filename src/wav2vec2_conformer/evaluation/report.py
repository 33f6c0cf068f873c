"""The report of an evaluation: one HTML page that needs nothing else, its pictures as PNG, its figures as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..files import replacing
from .pictures import draw
from .run import FIGURES, SHOWN, Evaluation, Figure

if TYPE_CHECKING:
    from .ctc import CTCDetails
    from .frame import FrameDetails
    from .sequence import SequenceDetails

__all__ = ["write_report"]

TITLES = {
    "ctc": "Speech recognition",
    "sequence": "Classification of recordings",
    "frame": "Speaker diarization",
    "xvector": "Speaker verification",
}
RECORDINGS = 100  # rows of a table


class Table(NamedTuple):
    """A table of the page, of which some columns, the first ones, are texts; numbers stand to the right."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[object, ...]]
    texts: int = 1


def write_report(folder: Path, evaluation: Evaluation, *, command: str) -> Path:
    """Write `index.html`, the pictures and `evaluation.json`, each in one atomic step; the path of the page.

    Args:
        folder: is made where it is not there.
        evaluation: what to show.
        command: that made it, to be shown.

    Raises:
        OSError: a file cannot be written.
    """
    import jinja2  # imported late: only a report needs it

    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(evaluation)
    # Names, labels and transcripts are anybody's text: all of it is escaped, and the page runs no scripts.
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html.jinja").render(
        title=TITLES[evaluation.task],
        evaluation=evaluation,
        cards=[(FIGURES[name], figure) for name, figure in evaluation.figures.items()],
        pictures=[(picture, base64.b64encode(picture.png).decode()) for picture in pictures],
        worst=evaluation.details.worst if evaluation.task == "ctc" else [],
        tables=[table for table in tables(evaluation) if table.rows],
        facts=list(facts(evaluation)),
        command=command,
    )
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["evaluation.json"] = (json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False) + "\n").encode()
    files["index.html"] = page.encode("utf-8", errors="xmlcharrefreplace")  # last, since it is what people open
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "index.html"


def facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """What was evaluated, and on what."""
    yield "model", evaluation.model
    for path in evaluation.data:
        yield "data", path
    yield "recordings", f"{evaluation.utterances:,}, {evaluation.seconds / 60:.1f} minutes"
    speed = evaluation.seconds / max(evaluation.runtime, 1e-9)
    yield "time", f"{evaluation.runtime:.1f} s, {speed:.1f} times real time"
    yield from evaluation.environment.items()
    yield "date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """Counts, the figures of each manifest, and what belongs to the task."""
    counts = [(name.replace("_", " "), counted(value)) for name, value in evaluation.counts.items()]
    yield Table("Counts", ("what", "how much"), [*counts])
    yield Table(
        "Manifests",
        ("manifest", "recordings", *(FIGURES[name].title for name in evaluation.figures)),
        [
            (path, own.utterances, *(Figure(value).text(FIGURES[name]) for name, value in own.figures.items()))
            for path, own in evaluation.by_data.items()
        ],
    )
    if evaluation.task == "ctc":
        yield from ctc_tables(evaluation.details)
    elif evaluation.task == "sequence":
        yield from sequence_tables(evaluation.details)
    elif evaluation.task == "frame":
        yield from frame_tables(evaluation.details)


def ctc_tables(details: CTCDetails) -> Iterator[Table]:
    """Which words were taken for which."""
    yield Table("Most frequent substitutions", ("said", "written", "times"), [*details.substitutions], texts=2)


def sequence_tables(details: SequenceDetails) -> Iterator[Table]:
    """Which classes were taken for which, where the model was surest and wrong, and each class."""
    yield Table(
        "Most frequent confusions", ("true class", "given class", "times"), [*details.confused()[:SHOWN]], texts=2
    )
    yield Table(
        "Surest mistakes",
        ("recording", "true class", "given class", "score"),
        [(one.file, one.reference, one.hypothesis, f"{one.score:.3f}") for one in details.mistakes],
        texts=3,
    )
    yield Table(
        "Classes",
        ("class", "recordings", "precision", "recall", "F1"),
        [
            (row.label, row.references, percent(row.precision), percent(row.recall), percent(row.f1))
            for row in details.confusion.per_class()
        ],
    )


def frame_tables(details: FrameDetails) -> Iterator[Table]:
    """Each recording, the highest DER first."""
    yield Table(
        f"Recordings, collar {details.collar:g} s"
        + (f" (the {RECORDINGS} with the highest DER)" * (len(details.recordings) > RECORDINGS)),
        ("recording", "DER", "speech", "missed", "false alarm", "confusion", "speakers", "found"),
        [
            (
                one.file,
                percent(one.errors.der),
                *(counted(getattr(one.errors, part)) for part in ("speech", "missed", "false_alarm", "confusion")),
                one.speakers,
                one.found,
            )
            for one in details.recordings[:RECORDINGS]
        ],
    )


def percent(share: float | None) -> str:
    """A share for reading; a dash of nothing."""
    return "-" if share is None else f"{100 * share:.1f} %"


def counted(value: float) -> str:
    """A number, or seconds."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f} s"
