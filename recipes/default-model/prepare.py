"""Manifests and synthetic speech for the default model.

    python recipes/default-model/prepare.py --data ../shared/data --output runs/default/data

writes one manifest a corpus and role:

* `an4-train`, `an4-dev` (speakers sorted()[4::16], which choose the best model), `an4-held-out` (sorted()[::8]);
* `digits-train`, `digits-held-out` (speaker fsdd-theo);
* `speechocean762-short` (sentences of up to 3.5 s), `librispeech-dev`;
* `joined-train`: several clips of `digits-train` or of the other train manifests in one, with pauses between them;
  `joined-held-out`: the same of the held-out speakers;
* `synthetic-train`: digits, letters, numbers, dates and commands spoken by espeak-ng in many voices.

Speakers of dev and held-out manifests are in no train manifest.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from wav2vec2_conformer.audio import SAMPLE_RATE, load_audio

DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
TEENS = "TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN".split()
TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
MONTHS = "JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER".split()
ORDINALS = (
    "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH ELEVENTH TWELFTH THIRTEENTH FOURTEENTH "
    "FIFTEENTH SIXTEENTH SEVENTEENTH EIGHTEENTH NINETEENTH TWENTIETH"
).split()
COMMANDS = (
    "YES NO STOP GO START HELP ENTER ERASE REPEAT RUBOUT QUIT CANCEL UP DOWN LEFT RIGHT ON OFF OPEN CLOSE PLAY PAUSE "
    "NEXT BACK SAVE DELETE CALL COPY PRINT SEND"
).split()
PHRASES = [
    "TURN ON",
    "TURN OFF",
    "TURN LEFT",
    "TURN RIGHT",
    "GO BACK",
    "GO HOME",
    "STOP NOW",
    "VOLUME UP",
    "VOLUME DOWN",
]
LETTERS = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
VOICES = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
VARIANTS = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5"]
# The sample in examples/ says this; no training text may.
SAMPLE_TEXT = "ENTER SEVEN FOUR ONE NINE"


def number(rng: random.Random) -> str:
    """A number below a thousand, in words."""
    tens = rng.choice(TENS)
    small = rng.choice([rng.choice(DIGITS[1:]), rng.choice(TEENS), tens, f"{tens} {rng.choice(DIGITS[1:])}"])
    return f"{rng.choice(DIGITS[1:])} HUNDRED {small}" if rng.random() < 0.15 else small


def phrase(rng: random.Random) -> str:
    """Something a person might say to a machine."""
    digits = " ".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 6)))
    letters = " ".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 6)))
    date = f"{rng.choice(MONTHS)} {rng.choice(ORDINALS)} NINETEEN {rng.choice(TENS)} {rng.choice(DIGITS[1:])}"
    command = rng.choice(COMMANDS)
    return rng.choice(
        [
            digits,
            letters,
            letters,
            number(rng),
            f"{number(rng)} {number(rng)}",
            date,
            command,
            rng.choice(PHRASES),
            f"{command} {rng.choice([digits, number(rng), letters])}",
        ]
    )


def speak(text: str, path: Path, rng: random.Random, voices: Sequence[str] = VOICES) -> str:
    """Let espeak-ng say a text; the voice it used. A lone capital is said as the letter's name."""
    voice = f"{rng.choice(voices)}+{rng.choice(VARIANTS)}"
    spoken = " ".join(f"{word}," if len(word) == 1 else word.lower() for word in text.split())
    options = ["-s", str(rng.randint(110, 190)), "-p", str(rng.randint(25, 75))]
    subprocess.run(["espeak-ng", "-v", voice, *options, "-w", str(path), spoken], check=True)
    return voice


def synthesise(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` synthetic utterances as manifest lines."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    while len(lines) < count:
        text = phrase(rng)
        if text == SAMPLE_TEXT:
            continue
        path = folder / f"{len(lines):05}.wav"
        voice = speak(text, path, rng)
        lines.append({"audio": str(path.resolve()), "text": text, "speaker": f"espeak-{voice}"})
    return lines


def join(
    folder: Path, digits: list[dict[str, Any]], others: list[dict[str, Any]], count: int, seed: int
) -> list[dict[str, Any]]:
    """`count` recordings of 2 to 6 digits of one speaker, or of 2 to 3 other utterances, as manifest lines."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for line in digits:
        by_speaker.setdefault(line["speaker"], []).append(line)
    speakers = sorted(by_speaker)
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        single = rng.random() < 0.5
        source = by_speaker[speakers[rng.integers(len(speakers))]] if single else others
        parts = [source[i] for i in rng.integers(len(source), size=rng.integers(2, 7 if single else 4))]
        text = " ".join(part["text"] for part in parts)
        pieces = []
        for part in parts:
            waveform = load_audio(part["audio"], sample_rate=SAMPLE_RATE)
            level = 0.05 * 10 ** rng.uniform(-0.3, 0.3) / (waveform.std() + 1e-6)
            pause = rng.uniform(0.0, 0.5) if single else rng.uniform(0.2, 1.2)
            pieces += [waveform * level, np.zeros(int(pause * SAMPLE_RATE))]
        joined = np.concatenate(pieces[:-1])
        joined += rng.standard_normal(joined.size) * 0.05 * 10 ** rng.uniform(-3.0, -1.5)  # a room is never silent
        if text == SAMPLE_TEXT or joined.size > 12 * SAMPLE_RATE:
            continue
        path = folder / f"{len(lines):05}.wav"
        sf.write(path, np.clip(joined, -1, 1), SAMPLE_RATE)
        lines.append({"audio": str(path.resolve()), "text": text, "speaker": parts[0]["speaker"]})
    return lines


def read(data: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a manifest with absolute audio paths."""
    lines = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
    return [{**line, "audio": str((data / line["audio"]).resolve())} for line in lines]


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--synthetic", type=int, default=2400, help="synthetic utterances (%(default)s)")
    parser.add_argument("--joined", type=int, default=1500, help="recordings of several utterances (%(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    an4, digits = read(options.data, "an4-train"), read(options.data, "digits-train")
    speakers = sorted({line["speaker"] for line in an4})
    held_out, dev = set(speakers[::8]), set(speakers[4::16])
    manifests = {
        "an4-train": [line for line in an4 if line["speaker"] not in held_out | dev],
        "an4-dev": [line for line in an4 if line["speaker"] in dev],
        "an4-held-out": [line for line in an4 if line["speaker"] in held_out],
        "digits-train": [line for line in digits if line["speaker"] != "fsdd-theo"],
        "digits-held-out": [line for line in digits if line["speaker"] == "fsdd-theo"],
        "speechocean762-short": [
            line for line in read(options.data, "speechocean762-train") if line["duration"] <= 3.5
        ],
        "librispeech-dev": read(options.data, "librispeech-dev"),
        "synthetic-train": synthesise(options.output / "synthetic", options.synthetic, seed=1),
    }
    others = [line for name in ("an4-train", "synthetic-train") for line in manifests[name]]
    manifests["joined-train"] = join(
        options.output / "joined", manifests["digits-train"], others, options.joined, seed=2
    )
    held_out_parts = manifests["digits-held-out"], manifests["an4-held-out"]
    manifests["joined-held-out"] = join(options.output / "joined-held-out", *held_out_parts, 100, seed=3)
    for name, lines in manifests.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (options.output / f"{name}.jsonl").write_text(text)
        hours = sum(line.get("duration", 0.0) for line in lines) / 3600
        print(f"{name}: {len(lines)} utterances, {hours:.2f} h")


if __name__ == "__main__":
    main()
