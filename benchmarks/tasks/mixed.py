"""Recordings of mixed lengths to text: padded batches in file order against batches of similar lengths.

The lengths are drawn like LibriSpeech's test utterances (a gamma distribution of mean 7.4 s, from 1.3 to 35 s). Each
peer runs in the ways that its users have: transformers' model and feature extractor on padded batches with attention
masks, and clip by clip; exported models, which know no masks, clip by clip; ours with `Transcriber.transcribe_many`, as
`transcribe` runs it, and clip by clip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from flops import forward_flops
from measuring import first_calls, timed
from networks import LETTERS, SAMPLE_RATE, Case, Network
from numpy.typing import NDArray
from peers import Call, Peer, TorchPeer

from wav2vec2_conformer import Transcriber
from wav2vec2_conformer.data import build_processor

from .common import Found, Run, Work, best_of_transformers

DEFAULTS = {"size": "base", "positions": ["rotary"], "seconds": [None], "batch": [8], "rounds": 3}
BATCHED, SINGLE = "batched", "one at a time"

Clips = list[NDArray[np.float32]]
Way = Callable[[], list[str]]  # runs through all clips


def draw_clips(count: int) -> Clips:
    """Noise of LibriSpeech-like lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2.2, 7.4 / 2.2, count), 1.3, 35.0)
    return [rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32) for seconds in lengths]


def padding(clips: Clips, batch: int) -> float:
    """The share of padding in batches in file order."""
    longest = [max(map(len, clips[first : first + batch])) for first in range(0, len(clips), batch)]
    return 1 - sum(map(len, clips)) / sum(longest[index // batch] for index in range(len(clips)))


@torch.inference_mode()
def in_padded_batches(call: Call, processor: Any, clips: Clips, batch: int, device: str) -> list[str]:
    """Batches in the clips' order, with attention masks."""
    texts: list[str] = []
    for first in range(0, len(clips), batch):
        inputs = processor(clips[first : first + batch], sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True)
        logits = call(inputs["input_values"].to(device), inputs["attention_mask"].to(device))
        texts += processor.batch_decode(logits.argmax(-1).cpu())
    return texts


@torch.inference_mode()
def one_by_one(call: Call, processor: Any, clips: Clips, device: str) -> list[str]:
    """Each clip alone."""
    texts: list[str] = []
    for clip in clips:
        values = processor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_values"]
        texts += processor.batch_decode(call(values.to(device)).argmax(-1).cpu())
    return texts


def ways(peer: Peer, network: Network, case: Case, clips: Clips, batch_seconds: float) -> dict[str, Way]:
    """The ways in which a peer runs, by name."""
    processor = build_processor(LETTERS)
    if not isinstance(peer, TorchPeer):
        return {SINGLE: partial(one_by_one, peer.inference(network, case), processor, clips, case.device)}
    model: Any = peer.inference_module(network, case, dynamic=True)
    if peer.family == "transformers":
        call = peer.logits_of(model)
        return {
            BATCHED: partial(in_padded_batches, call, processor, clips, case.batch, case.device),
            SINGLE: partial(one_by_one, call, processor, clips, case.device),
        }
    transcriber = Transcriber(model, processor, device=case.device, batch_seconds=batch_seconds)
    return {
        BATCHED: lambda: [result.text for result in transcriber.transcribe_many(clips)],
        SINGLE: lambda: [transcriber.transcribe(clip, sample_rate=SAMPLE_RATE).text for clip in clips],
    }


def run(run: Run, network: Network) -> dict[str, Any]:
    """Time all ways in turn; ratios of a batched way are to the best batched one of transformers, and so on."""
    case, clips = run.case, draw_clips(run.settings.clips)
    audio = sum(map(len, clips)) / SAMPLE_RATE
    calls: dict[str, Way] = {}

    def prepare(peer: Peer) -> dict[str, Any]:
        own = ways(peer, network, case, clips, run.settings.batch_seconds)
        found: dict[str, Any] = {}
        texts: dict[str, list[str]] = {}
        for name, way in own.items():

            def call(way: Way = way, name: str = name) -> None:
                texts[name] = way()

            found[name] = first_calls(call, case.device, pooled=peer.family == "exported")
        if BATCHED in texts:
            same = sum(a == b for a, b in zip(texts[BATCHED], texts[SINGLE], strict=True))
            found[BATCHED]["same_texts_as_one_at_a_time"] = same
        calls.update({f"{peer.name}, {name}": way for name, way in own.items()})
        return found

    found = by_way(run.try_all(prepare))
    types = {f"{peer.name}, {way}": peer.type_in(case) for peer in run.peers for way in (BATCHED, SINGLE)}
    rates = run.take_turns({name: partial(timed, way, case.device) for name, way in calls.items()}, types, found)
    flops = sum(forward_flops(network.config, 1, len(clip)) for clip in clips)
    work = Work(flops, audio, rates)
    for way in (BATCHED, SINGLE):
        run.add_figures({name: one for name, one in found.items() if name.endswith(way)}, types, work)
    add_ratio_to_single(found)
    return {
        "gflop": flops / 1e9,
        "matrix_rates": rates,
        "seconds_of_audio": audio,
        "clips": len(clips),
        "padding_in_file_order": padding(clips, case.batch),
        "peers": found,
    }


def by_way(tried: Found) -> Found:
    """What was found of each peer and way; why there is nothing stands with the peer alone."""
    found: Found = {}
    for name, one in tried.items():
        if "absent" in one or "failed" in one:
            found[name] = one
        else:
            found |= {f"{name}, {way}": figures for way, figures in one.items()}
    return found


def add_ratio_to_single(found: Found) -> None:
    """Of the batched ways, how many times as long the best mode of transformers takes clip by clip."""
    singles = {name: one for name, one in found.items() if name.endswith(SINGLE) and "seconds" in one}
    best = best_of_transformers(singles)
    for name, one in found.items():
        if best is not None and name.endswith(BATCHED) and "seconds" in one:
            one["ratio_of_seconds_to_one_at_a_time"] = singles[best]["seconds"] / one["seconds"]
