"""A toy language for tests: every letter is a tone, so a tiny network learns to read it in seconds."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from wav2vec2_conformer.cli import main

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
    "conv_depthwise_kernel_size": 15,
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


def sentences(count: int, seed: int, words: tuple[int, int] = (2, 4), letters: tuple[int, int] = (1, 3)) -> list[str]:
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


@dataclass(frozen=True)
class Trained:
    """What `wav2vec2-conformer train ctc` left: its exit code, what it printed, and its folder."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def result(self) -> dict[str, float]:
        """The figures that the command printed."""
        return dict(json.loads(self.stdout))


_TRAINED: list[Trained] = []


def trained_model(factory: pytest.TempPathFactory) -> Trained:
    """Train the tiny network on the toy language, once a session (10 s on a core)."""
    if not _TRAINED:
        folder = factory.mktemp("trained")
        arguments = {
            "--train": write_manifest(folder / "train.jsonl", sentences(60, 0)),
            "--dev": write_manifest(folder / "dev.jsonl", sentences(10, 1), seed=1),
            "--config": write_config(folder / "config.json"),
            "--output": folder / "model",
            "--epochs": 36,
            "--batch-seconds": 10,
            "--learning-rate": 1e-2,
            "--evaluate-every": 50,
            "--workers": 0,
            "--cache-gb": 0.01,
        }
        command = ["train", "ctc", "--no-augment", *(str(part) for pair in arguments.items() for part in pair)]
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(command)
        _TRAINED.append(Trained(code, stdout.getvalue(), stderr.getvalue(), folder / "model"))
    return _TRAINED[0]
