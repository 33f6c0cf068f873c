"""Simulated conversations of two speakers, with who speaks when.

    python recipes/diarization/simulate.py --data ../shared/data --output runs/diarization/data [--train 600] [--val 60]

writes `train`, `dev` and `val`: recordings of 30 to 60 s, each of two speakers of one corpus who take turns, with
pauses and with interruptions, so that 10 to 20 % of the speech is overlapped. The speakers of `val` (speechocean762's
sorted()[::5], librispeech's sorted()[::4] and librispeech-dev's) and of `dev` (sorted()[2::10]) are in no training
conversation. A turn is one utterance without the silence at its ends; within it, pauses of more than 0.2 s are silence.

`train-counts` and `dev-counts` are the same recordings for a network that only has to say how many speak: its two
"speakers" are speech and overlap.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from wav2vec2_conformer.audio import SAMPLE_RATE, load_audio
from wav2vec2_conformer.data import read_manifest

FRAME = SAMPLE_RATE // 100  # 10 ms
CLICK = 0.1  # seconds; what is shorter is no speech
PAUSE = 0.2  # seconds of silence within an utterance that are marked as such
BELOW = 30.0  # dB below an utterance's loud frames that count as silence
OVERLAP = (0.10, 0.20)  # share of the speech time
Utterances = dict[str, list[str]]  # speaker -> paths


def speech_of(waveform: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Stretches of speech in seconds: frames that are loud, gaps below `PAUSE` closed."""
    frames = waveform[: waveform.size // FRAME * FRAME].reshape(-1, FRAME)
    level = 10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + 1e-12)
    loud = np.flatnonzero(level > np.percentile(level, 95) - BELOW)
    found: list[tuple[float, float]] = []
    for frame in loud:
        start, end = frame / 100, (frame + 1) / 100
        if found and start - found[-1][1] < PAUSE:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return [(start, end) for start, end in found if end - start >= CLICK]


def overlapped(segments: list[dict[str, Any]]) -> float:
    """The share of the time with speech in which both speak."""
    length = max(segment["end"] for segment in segments)
    time = np.zeros((2, round(length * 100) + 1), bool)
    for segment in segments:
        time[int(segment["speaker"][-1]), round(segment["start"] * 100) : round(segment["end"] * 100)] = True
    return float(time.all(0).sum() / max(1, time.any(0).sum()))


def counted(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Segments of two speakers -> those in which anyone speaks, and those in which both do."""
    edges = sorted({time for segment in segments for time in (segment["start"], segment["end"])})
    found: list[dict[str, Any]] = []
    for name, least in (("speech", 1), ("overlap", 2)):
        for start, end in pairwise(edges):
            if sum(segment["start"] <= start and end <= segment["end"] for segment in segments) < least:
                continue
            if found and found[-1]["speaker"] == name and found[-1]["end"] == start:
                found[-1]["end"] = end
            else:
                found.append({"start": start, "end": end, "speaker": name})
    return found


def converse(
    utterances: Utterances, speakers: list[str], seconds: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """One conversation: turns of two speakers until `seconds` are full."""
    mixed = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    segments: list[dict[str, Any]] = []
    gains = 10 ** (rng.uniform(-3, 3, 2) / 20)
    end, turn = rng.uniform(0, 1), int(rng.integers(2))
    spoken = [0.0, 0.0]  # where each speaker's last turn ends
    while True:
        waveform = load_audio(str(rng.choice(utterances[speakers[turn]])), sample_rate=SAMPLE_RATE)
        speech = speech_of(waveform)
        if not speech:
            continue
        first, last = speech[0][0], speech[-1][1]
        waveform = waveform[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
        length = len(waveform) / SAMPLE_RATE
        # An interruption of the other speaker, or a pause.
        if segments and segments[-1]["speaker"] != f"speaker{turn}" and rng.random() < 0.6:
            start = max(spoken[turn], end - rng.uniform(0.3, 0.6 * min(length, 4.0)))
        else:
            start = end + rng.uniform(0.1, 1.2)
        if start + length > seconds:
            break
        begin = round(start * SAMPLE_RATE)
        level = 0.05 * gains[turn] / (waveform.std() + 1e-6)
        mixed[begin : begin + len(waveform)] += level * waveform
        segments += [
            {"start": round(start + a - first, 2), "end": round(start + b - first, 2), "speaker": f"speaker{turn}"}
            for a, b in speech
        ]
        end, spoken[turn] = max(end, start + length), start + length
        turn = 1 - turn if rng.random() < 0.85 else turn
    mixed = mixed[: round((end + rng.uniform(0, 0.5)) * SAMPLE_RATE)]
    mixed += (rng.standard_normal(mixed.size) * 0.05 * 10 ** rng.uniform(-2.5, -1.5)).astype(np.float32)
    return mixed, segments


def simulate(folder: Path, corpora: list[Utterances], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` conversations as manifest lines."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        utterances = corpora[int(rng.integers(len(corpora)))]
        pair = [str(name) for name in rng.choice(sorted(utterances), 2, replace=False)]
        mixed, segments = converse(utterances, pair, rng.uniform(30, 60), rng)
        if len({s["speaker"] for s in segments}) < 2 or not OVERLAP[0] <= overlapped(segments) <= OVERLAP[1]:
            continue
        if mixed.size < 28 * SAMPLE_RATE:
            continue
        path = folder / f"{len(lines):04}.flac"
        sf.write(path, np.clip(mixed, -1, 1), SAMPLE_RATE)
        duration = mixed.size / SAMPLE_RATE
        lines.append({"audio": str(path.resolve()), "duration": duration, "segments": segments})
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """A manifest."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Write recordings and manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=600, help="conversations to learn from (%(default)s)")
    parser.add_argument(
        "--val", type=int, default=60, help="conversations to judge on, and as many of dev (%(default)s)"
    )
    options = parser.parse_args()

    def read(name: str) -> Utterances:
        found: Utterances = {}
        for line in read_manifest(options.data / f"{name}.jsonl", require="speaker"):
            if line.duration >= 2:
                found.setdefault(str(line.speaker), []).append(str(line.audio.resolve()))
        return found

    def of(utterances: Utterances, speakers: list[str]) -> Utterances:
        return {speaker: utterances[speaker] for speaker in speakers}

    ocean, libri = read("speechocean762-train"), read("librispeech-train")
    held = sorted(ocean)[::5], sorted(libri)[::4]
    dev = sorted(ocean)[2::10], [name for name in sorted(libri)[2::10] if name not in held[1]]
    rest = [sorted(set(corpus) - set(held[i]) - set(dev[i])) for i, corpus in enumerate((ocean, libri))]
    splits = {
        "train": ([of(ocean, rest[0]), of(libri, rest[1])], options.train),
        "dev": ([of(ocean, dev[0]), of(libri, dev[1])], options.val),
        "val": ([of(ocean, held[0]), {**of(libri, held[1]), **read("librispeech-dev")}], options.val),
    }
    for seed, (name, (corpora, count)) in enumerate(splits.items()):
        lines = simulate(options.output / name, corpora, count, seed)
        write(options.output / f"{name}.jsonl", lines)
        if name != "val":
            counts = [{**line, "segments": counted(line["segments"])} for line in lines]
            write(options.output / f"{name}-counts.jsonl", counts)
        hours = sum(line["duration"] for line in lines) / 3600
        overlap = np.mean([overlapped(line["segments"]) for line in lines])
        print(f"{name}: {len(lines)} conversations, {hours:.2f} h, {overlap:.1%} of the speech overlapped")


if __name__ == "__main__":
    main()
