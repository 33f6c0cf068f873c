"""Recordings of mixed lengths: ours against transformers' padded batches, both sides interleaved in one process.

    python benchmarks/mixed_lengths.py [--preset base] [--positions rotary] [--clips 64] [--rounds 3] [--threads 2]

The clips' lengths are drawn like LibriSpeech's test utterances (a gamma distribution of mean 7.4 s, from 1.3 to 35 s).
Both networks have the same random weights. Sides: transformers' model and feature extractor on padded batches of 8 in
the clips' order, with attention masks and SDPA; ours, `Transcriber.transcribe_many`, as `transcribe` runs it; and ours
one clip at a time. Printed are medians over the rounds, ratios, the share of padding in each side's batches, and how
many of our texts are the same as one clip at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers
from measuring import machine
from numpy.typing import NDArray

from wav2vec2_conformer import Transcriber, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.data import build_processor
from wav2vec2_conformer.training import PretrainingSettings

RATE = 16_000
BATCH = 8  # clips a batch of the other side
Clips = list[NDArray[np.float32]]


def draw_clips(count: int) -> Clips:
    """Noise of LibriSpeech-like lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2.2, 7.4 / 2.2, count), 1.3, 35.0)
    return [rng.standard_normal(round(seconds * RATE)).astype(np.float32) for seconds in lengths]


def build(preset: str, positions: str) -> tuple[Any, Any, Any]:
    """Both networks with the same weights, and a processor."""
    letters = {
        token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])
    }
    fields = PretrainingSettings.from_preset(preset, train=[], output="").model
    fields = fields | {"position_embeddings_type": positions, "vocab_size": len(letters)}
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ConformerForCTC(transformers.Wav2Vec2ConformerConfig(**fields)).eval()
    ours = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**fields)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, build_processor(letters)


@torch.inference_mode()
def their_run(model: Any, processor: Any, clips: Clips) -> list[str]:
    """Padded batches in the clips' order."""
    texts: list[str] = []
    for start in range(0, len(clips), BATCH):
        inputs = processor(clips[start : start + BATCH], sampling_rate=RATE, return_tensors="pt", padding=True)
        logits = model(inputs["input_values"], inputs["attention_mask"]).logits
        texts += processor.batch_decode(logits.argmax(-1))
    return texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--positions", default="rotary")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch-seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps({**machine(options.threads), **vars(options)}), flush=True)

    clips = draw_clips(options.clips)
    theirs, ours, processor = build(options.preset, options.positions)
    transcriber = Transcriber(ours, processor, batch_seconds=options.batch_seconds)
    texts: dict[str, list[str]] = {}

    def our_run() -> None:
        texts["many"] = [result.text for result in transcriber.transcribe_many(clips)]

    def one_by_one() -> None:
        texts["one"] = [transcriber.transcribe(clip, sample_rate=RATE).text for clip in clips]

    sides = {
        "transformers, batches of 8": lambda: their_run(theirs, processor, clips),
        "ours, transcribe_many": our_run,
        "ours, one at a time": one_by_one,
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    used: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            begun, busy = time.perf_counter(), time.process_time()
            run()
            taken[name].append(time.perf_counter() - begun)
            used[name].append(time.process_time() - busy)
    medians = {name: round(statistics.median(times), 2) for name, times in taken.items()}
    first, *rest = sides
    longest = [max(map(len, clips[start : start + BATCH])) for start in range(0, len(clips), BATCH)]
    padded = sum(longest[index // BATCH] for index in range(len(clips)))
    print(
        json.dumps(
            {
                "seconds of audio": round(sum(map(len, clips)) / RATE, 1),
                "seconds": medians,
                "ratio": {name: round(medians[first] / medians[name], 2) for name in rest},
                "ratio by processor seconds": {
                    name: round(statistics.median(used[first]) / statistics.median(used[name]), 2) for name in rest
                },
                "padding of their batches": round(1 - sum(map(len, clips)) / padded, 3),
                "same texts": sum(a == b for a, b in zip(texts["many"], texts["one"], strict=True)),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
