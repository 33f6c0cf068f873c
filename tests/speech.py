"""A toy language for tests: every letter is a tone, so a tiny network learns to read it in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
# Far enough apart for speed perturbation (10 %), low enough for telephone rates (8 kHz).
TONES = {"A": 300.0, "B": 470.0, "C": 730.0, "D": 1150.0, "E": 1800.0, "F": 2800.0}
LETTER, GAP, PAUSE = 0.10, 0.04, 0.24  # seconds of a letter, between letters, between words

Waveform = NDArray[np.float32]

TINY: dict[str, Any] = {
    "model_type": "wav2vec2-conformer",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "conv_dim": [32, 32],
    "conv_kernel": [160, 4],
    "conv_stride": [80, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "position_embeddings_type": "rotary",
    "conv_depthwise_kernel_size": 7,
    "initializer_range": 0.05,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "conformer_conv_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}


def silence(seconds: float) -> Waveform:
    """Nothing at all."""
    return np.zeros(round(seconds * RATE), np.float32)


def tone(letter: str, seconds: float = LETTER) -> Waveform:
    """One letter, with soft ends."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    return (0.3 * envelope * np.sin(2 * np.pi * TONES[letter] * time)).astype(np.float32)


def speak(text: str, generator: np.random.Generator | None = None, noise: float = 0.002) -> Waveform:
    """Say words of the letters A to F; with a generator, at a varying pace and over noise."""

    def vary(seconds: float) -> float:
        return seconds if generator is None else seconds * float(generator.uniform(0.85, 1.15))

    pieces = [silence(vary(PAUSE / 2))]
    for number, word in enumerate(text.split()):
        if number:
            pieces.append(silence(vary(PAUSE)))
        for letter in word:
            pieces += [tone(letter, vary(LETTER)), silence(vary(GAP))]
    pieces.append(silence(vary(PAUSE / 2)))
    waveform = np.concatenate(pieces)
    if generator is not None:
        waveform += (noise * generator.standard_normal(len(waveform))).astype(np.float32)
    return waveform


def sentences(count: int, seed: int, words: tuple[int, int] = (1, 3), letters: tuple[int, int] = (1, 4)) -> list[str]:
    """Random texts, doubled letters among them."""
    generator = np.random.default_rng(seed)

    def word() -> str:
        return "".join(generator.choice(list(TONES), generator.integers(*letters, endpoint=True)))

    return [" ".join(word() for _ in range(generator.integers(*words, endpoint=True))) for _ in range(count)]


def write_manifest(path: Path, texts: Sequence[str], seed: int = 0) -> Path:
    """Record the texts beside the manifest `path`, and list them in it."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        name = f"{path.stem}-{number}.wav"
        waveform = speak(text, generator)
        soundfile.write(path.parent / name, waveform, RATE)
        lines.append(json.dumps({"audio": name, "text": text, "duration": len(waveform) / RATE}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_config(path: Path, **changes: Any) -> Path:
    """Write the tiny network's configuration."""
    path.write_text(json.dumps(TINY | changes))
    return path
