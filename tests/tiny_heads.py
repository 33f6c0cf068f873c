"""Tiny random models with a head, saved as a training would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import speech
from wav2vec2_conformer import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForAudioFrameClassification,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2ConformerForXVector,
)
from wav2vec2_conformer.data import build_feature_extractor

WORDS = {0: "yes", 1: "no", 2: "stop"}


def save(model: Any, folder: Path, *, normalize: bool = True) -> Path:
    model.save_pretrained(folder)
    build_feature_extractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def build(model_class: Any, **fields: Any) -> Any:
    """With weights large enough for its answers to differ between recordings."""
    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig(**speech.TINY | {"initializer_range": 0.3} | fields)
    return model_class(config).eval()


def classifier(folder: Path, **fields: Any) -> Path:
    """A sequence classification model of three words."""
    fields = {"id2label": WORDS, "classifier_proj_size": 16} | fields
    return save(build(Wav2Vec2ConformerForSequenceClassification, **fields), folder)


def speaker_encoder(folder: Path, *, threshold: float | None = None, **fields: Any) -> Path:
    """An x-vector model, with or without a calibrated threshold."""
    shape = {"tdnn_dim": [16, 16, 24], "tdnn_kernel": [3, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 12}
    save(build(Wav2Vec2ConformerForXVector, **shape, num_labels=4, **fields), folder)
    if threshold is not None:
        (folder / "verification.json").write_text(json.dumps({"threshold": threshold}))
    return folder


def diarizer(folder: Path, **fields: Any) -> Path:
    """A frame classification model of two speakers at once."""
    fields = {"num_labels": 2, "problem_type": "multi_label_classification"} | fields
    return save(build(Wav2Vec2ConformerForAudioFrameClassification, **fields), folder)
