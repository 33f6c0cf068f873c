"""Single digits cut out of sentences, so that more speakers say a digit alone.

    python recipes/default-model/cut_digits.py --model DIR --output runs/default/data/cut-digits MANIFEST ...

The model aligns each sentence with its transcript (the most likely CTC path of exactly this text); a digit reaches from
the middle between its first letter and the letter before to the middle between its last letter and the next, at most
0.25 s beyond its own letters. Words that the model finds unlikely where they should be are left out. Writes WAV files
into the folder and `<output>.jsonl` beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from transformers import Wav2Vec2Processor

from wav2vec2_conformer import Wav2Vec2ConformerForCTC
from wav2vec2_conformer.audio import SAMPLE_RATE, load_audio

DIGITS = frozenset("ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split())
FRAME = 0.02  # seconds
REACH = 0.25  # seconds beyond a word's own letters
LEAST_PROBABILITY = 0.5  # of a word's letters, the geometric mean


def align(log_probs: np.ndarray, labels: list[int], blank: int) -> list[int]:
    """The frame at which each label begins on the most likely path through (T, V) log probabilities."""
    states = [blank]
    for label in labels:
        states += [label, blank]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    skips = np.array([i >= 2 and s != blank and s != states[i - 2] for i, s in enumerate(states)])
    steps = np.zeros((len(log_probs), len(states)), dtype=np.int8)
    for frame in range(1, len(log_probs)):
        one = np.concatenate(([-np.inf], score[:-1]))
        two = np.where(skips, np.concatenate(([-np.inf, -np.inf], score[:-2])), -np.inf)
        choices = np.stack((score, one, two))
        steps[frame] = choices.argmax(0)
        score = choices.max(0) + log_probs[frame, states]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    begins = [0] * len(labels)
    for frame in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            begins[state // 2] = frame
        state -= int(steps[frame, state])
    return begins


def digits_of(
    line: dict[str, Any], model: Wav2Vec2ConformerForCTC, processor: Wav2Vec2Processor
) -> list[tuple[str, np.ndarray]]:
    """The digits of an utterance with their waveforms."""
    waveform = load_audio(line["audio"], sample_rate=SAMPLE_RATE)
    inputs = processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    with torch.no_grad():
        log_probs = model(inputs["input_values"]).logits[0].log_softmax(-1).numpy()
    vocabulary = processor.tokenizer.get_vocab()
    text = "|".join(line["text"].split())
    if any(letter not in vocabulary for letter in text):
        return []
    labels = [vocabulary[letter] for letter in text]
    if 2 * len(labels) + 1 > len(log_probs):
        return []
    begins = align(log_probs, labels, model.config.pad_token_id)
    likely = [log_probs[begin, label] for begin, label in zip(begins, labels, strict=True)]
    found, first = [], 0
    for word in text.split("|"):
        last = first + len(word) - 1
        if word in DIGITS and np.mean(likely[first : last + 1]) > np.log(LEAST_PROBABILITY):
            before = begins[first - 2] if first else -1000  # the letter before the space
            after = begins[last + 2] if last + 2 < len(begins) else 10**6
            start = max((before + begins[first]) / 2, begins[first] - REACH / FRAME, 0)
            end = min((begins[last] + after) / 2, begins[last] + REACH / FRAME)
            piece = waveform[round(start * FRAME * SAMPLE_RATE) : round((end + 1) * FRAME * SAMPLE_RATE)].copy()
            ramp = np.linspace(0, 1, SAMPLE_RATE // 100, dtype=piece.dtype)
            if piece.size > 4 * ramp.size:
                piece[: ramp.size] *= ramp
                piece[-ramp.size :] *= ramp[::-1]
                found.append((word, piece))
        first = last + 2
    return found


def main() -> None:
    """Cut and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("manifests", nargs="+", type=Path)
    options = parser.parse_args()
    model = Wav2Vec2ConformerForCTC.from_pretrained(options.model).eval()
    processor = Wav2Vec2Processor.from_pretrained(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    lines = []
    for manifest in options.manifests:
        for text in manifest.read_text().splitlines():
            line = json.loads(text)
            if DIGITS.isdisjoint(line["text"].split()):
                continue
            source = {**line, "audio": str((manifest.parent / line["audio"]).resolve())}
            for word, piece in digits_of(source, model, processor):
                path = options.output / f"{len(lines):05}.wav"
                sf.write(path, piece, SAMPLE_RATE)
                seconds = piece.size / SAMPLE_RATE
                lines.append(
                    {"audio": str(path.resolve()), "text": word, "speaker": line["speaker"], "duration": seconds}
                )
    options.output.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = {digit: sum(line["text"] == digit for line in lines) for digit in sorted(DIGITS)}
    speakers, hours = len({line["speaker"] for line in lines}), sum(line["duration"] for line in lines) / 3600
    print(f"{len(lines)} digits of {speakers} speakers, {hours:.2f} h: {counts}")


if __name__ == "__main__":
    main()
