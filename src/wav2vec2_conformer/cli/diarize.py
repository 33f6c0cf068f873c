"""`wav2vec2-conformer diarize FILE ...`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from .recordings import INPUTS, Recordings, add_compute, add_recordings, find, load

__all__ = ["add_parser", "add_voices"]

EXAMPLE = f"""\
examples:
  wav2vec2-conformer diarize --model diarization-model talk.wav > talk.rttm
  wav2vec2-conformer diarize --model diarization-model --json meetings/ > meetings.jsonl
  wav2vec2-conformer diarize --model diarization-model --speaker-model speaker-model --speakers 4 meeting.wav
  wav2vec2-conformer diarize --model diarization-model --min-silence 0.3 --min-speech 0.2 talk.wav

{INPUTS}
Who speaks when goes to stdout, one RTTM line a segment: SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker>
<NA> <NA>, in seconds; the recording is the file's name without its suffix. A recording of more than 30 s is seen in
windows that share 15 s, over which speakers keep their names; one who is silent there may come back under another
name, and there are never more speakers than the model has outputs. With --speaker-model, --model only says how many
speak, and the speaker model who: the speakers keep their names over any length. A file that cannot be read is named on
stderr, the others are diarized all the same, and the exit code is 1.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "diarize",
        help="recordings in, who speaks when out",
        description="Say who speaks when, as RTTM or JSON.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_recordings(parser)
    add("--model", required=True, metavar="MODEL", help="folder (see `train frame`) or Hub id")
    add_voices(parser)
    add("--threshold", type=float, default=0.5, metavar="P", help="probability above which one speaks (%(default)s)")
    add(
        "--median",
        type=int,
        default=11,
        metavar="N",
        help="frames of the median filter, an odd number; 1 turns it off (%(default)s)",
    )
    add("--min-speech", type=float, default=0.0, metavar="S", help="drop shorter segments (%(default)s)")
    add("--min-silence", type=float, default=0.0, metavar="S", help="close shorter gaps of a speaker (%(default)s)")
    add(
        "--json",
        action="store_true",
        help='one JSON object a line: {"file", "segments": [{"start", "end", "speaker"}]} or {"file", "error"}',
    )
    add_compute(parser)
    parser.set_defaults(run=run)


def add_voices(parser: argparse.ArgumentParser) -> None:
    """Options for telling speakers apart by another model."""
    model = "tells the speakers apart by their voices, over the whole recording (see `train xvector`)"
    parser.add_argument("--speaker-model", metavar="MODEL", help=model)
    parser.add_argument("--speakers", type=int, metavar="N", help="how many people speak; with --speaker-model")


def run(options: argparse.Namespace) -> int:
    """Diarize, print, and say in the exit code whether every file could be read."""
    from ..data import rttm_lines  # imported late: `--help` need not wait for torch
    from ..diarization import Diarizer

    recordings = Recordings(find(options.files), as_json=options.json)
    diarizer = load(
        Diarizer,
        options,
        threshold=options.threshold,
        median=options.median,
        min_speech=options.min_speech,
        min_silence=options.min_silence,
        speaker_model=options.speaker_model,
        speakers=options.speakers,
    )
    names = recording_names(recordings.files)
    for file, segments in recordings.results(diarizer.diarize_many):
        spans = [{"start": round(s.start, 3), "end": round(s.end, 3), "speaker": s.speaker} for s in segments]
        recordings.write({"file": file, "segments": spans}, rttm_lines(names[file], segments))
    return recordings.exit_code


def recording_names(files: list[str]) -> dict[str, str]:
    """What each file is called in RTTM: its name without folder and suffix, or its path where several are called so."""
    stems = {file: "stdin" if file == "-" else Path(file).stem for file in files}
    taken = Counter(stems.values())
    return {file: stem if taken[stem] == 1 else file for file, stem in stems.items()}
