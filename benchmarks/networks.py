"""What is measured: a case, and the network that all peers compute in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from wav2vec2_conformer.processing import DEFAULT_MODEL
from wav2vec2_conformer.training import CTCSettings, PretrainingSettings

SIZES = ("tiny", "default", "base", "large")
SAMPLE_RATE = 16_000
LETTERS = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])}
HEADS = {
    "ctc": transformers.Wav2Vec2ConformerForCTC,
    "pretraining": transformers.Wav2Vec2ConformerForPreTraining,
}


@dataclass(frozen=True)
class Case:
    """One combination of the sweep.

    Args:
        task: "inference", "ctc", "pretraining" or "mixed".
        size: one of `SIZES`.
        positions: "relative", "rotary" or "none".
        batch: clips of a batch; of mixed lengths, clips of a padded batch of those who pad.
        seconds: of each clip; None: mixed lengths.
        threads: of the processor.
        device: "cpu" or "cuda".
        dtype: in which the network computes, unless a peer is one of another type.
    """

    task: str
    size: str
    positions: str
    batch: int
    seconds: float | None
    threads: int
    device: str
    dtype: str

    def __str__(self) -> str:
        length = "mixed lengths" if self.seconds is None else f"{self.seconds:g} s"
        threads = f", {self.threads} threads" if self.device == "cpu" else f", {self.device}"
        return f"{self.task} {self.size} {self.positions}, {length} x {self.batch}{threads}, {self.dtype}"

    @property
    def samples(self) -> int:
        """Of a clip; only where all are of one length."""
        return round((self.seconds or 0) * SAMPLE_RATE)

    @property
    def audio(self) -> float:
        """Seconds of a batch; only where all are of one length."""
        return self.batch * (self.seconds or 0)

    @property
    def head(self) -> str:
        """The network's head."""
        return "pretraining" if self.task == "pretraining" else "ctc"


@dataclass
class Network:
    """Fields of a configuration, and random weights that all peers share.

    Args:
        fields: of either package's configuration.
        head: "ctc" or "pretraining".
        folder: for exported files.
    """

    fields: dict[str, Any]
    head: str
    folder: Path
    exported: dict[str, Any] = field(default_factory=dict)  # what peers have made of it, by their names

    @classmethod
    def of(cls, case: Case, folder: Path) -> Network:
        """The network of a case."""
        return cls(network_fields(case), case.head, folder)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights in float32, on the CPU."""
        torch.manual_seed(0)
        return HEADS[self.head](self.config).state_dict()

    def forget(self) -> None:
        """Free the weights; `state` draws the same again."""
        self.__dict__.pop("state", None)

    @property
    def config(self) -> Any:
        """The configuration as transformers reads it."""
        return transformers.Wav2Vec2ConformerConfig(**self.fields)


def network_fields(case: Case) -> dict[str, Any]:
    """Of a pre-training's preset or the default model; without LayerDrop, so that every step does the same work."""
    if case.size == "default":
        fields = json.loads((DEFAULT_MODEL / "config.json").read_text())
        for name in (
            "architectures",
            "dtype",
            "model_type",
            "padding",
            "transformers_version",
            "num_feat_extract_layers",
        ):
            fields.pop(name, None)
    else:
        fields = PretrainingSettings.from_preset(case.size, train=[], output="").model
    if case.task == "ctc":
        fields = fields | ctc_fields(case.size)
    positions = None if case.positions == "none" else case.positions
    return {**fields, "position_embeddings_type": positions, "vocab_size": len(LETTERS), "layerdrop": 0.0}


def ctc_fields(size: str) -> dict[str, Any]:
    """How a network is fine-tuned: dropout and masks."""
    preset = "ctc-large-100h" if size == "large" else "ctc-base-100h"
    return CTCSettings.from_preset(preset, train=[], dev=[""], output="").model
