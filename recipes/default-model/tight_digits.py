"""Single digits without the silence around them, as telephones and segmenters cut them.

    python recipes/default-model/tight_digits.py --output runs/default/data/tight-digits [--synthetic 1200] MANIFEST ...

Each clip of the manifests loses what lies before and after the sound that reaches a share of its loudest 10 ms (drawn
from 3 to 15 %), and half of them everything above 4 kHz, as recordings at 8 kHz have lost it: then an F is little more
than a gap. `--synthetic` adds digits spoken by espeak-ng in voices of Britain and the Caribbean, most of whom say FOUR
without an R. Writes WAV files into the folder and `<output>.jsonl` beside it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray
from prepare import DIGITS, speak

from wav2vec2_conformer.audio import SAMPLE_RATE, load_audio

STEP = SAMPLE_RATE // 100  # 10 ms
VOICES = ["en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"]
LEAST = 0.12  # seconds; what is left shorter holds no word


def tighten(waveform: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """From the first to the last 10 ms that are as loud as `share` of the loudest."""
    if waveform.size < STEP:
        return waveform
    steps = waveform[: waveform.size // STEP * STEP].reshape(-1, STEP)
    level = np.sqrt((steps**2).mean(1))
    loud = np.flatnonzero(level >= share * level.max())
    return waveform[loud[0] * STEP : (loud[-1] + 1) * STEP]


def narrow(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without what lies above 4 kHz."""
    low: NDArray[np.float32] = soxr.resample(waveform, SAMPLE_RATE, SAMPLE_RATE // 2)
    high: NDArray[np.float32] = soxr.resample(low, SAMPLE_RATE // 2, SAMPLE_RATE)
    return high


def synthesise(folder: Path, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Digits by espeak-ng, as manifest lines."""
    lines = []
    for index in range(count):
        path = folder / f"espeak-{index:05}.wav"
        text = rng.choice([*DIGITS, "FOUR"])
        voice = speak(text, path, rng, VOICES)
        lines.append({"audio": str(path.resolve()), "text": text, "speaker": f"espeak-{voice}"})
    return lines


def main() -> None:
    """Cut and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--synthetic", type=int, default=1200)
    parser.add_argument("manifests", nargs="+", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    sources = synthesise(options.output, options.synthetic, rng)
    for manifest in options.manifests:
        for text in manifest.read_text().splitlines():
            line = json.loads(text)
            sources.append({**line, "audio": str((manifest.parent / line["audio"]).resolve())})
    lines = []
    for line in sources:
        waveform = tighten(load_audio(line["audio"], sample_rate=SAMPLE_RATE), rng.uniform(0.03, 0.15))
        if waveform.size < LEAST * SAMPLE_RATE:
            continue
        if rng.random() < 0.5:
            waveform = narrow(waveform)
        path = options.output / f"{len(lines):05}.wav"
        sf.write(path, np.clip(waveform, -1, 1), SAMPLE_RATE)
        kept = {"audio": str(path.resolve()), "text": line["text"], "speaker": line["speaker"]}
        lines.append({**kept, "duration": waveform.size / SAMPLE_RATE})
    options.output.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hours = sum(line["duration"] for line in lines) / 3600
    print(f"{len(lines)} digits, {len(sources) - len(lines)} too short, {hours:.2f} h")


if __name__ == "__main__":
    main()
