"""The harness of benchmarks: operations by formula against torch's counter, and a sweep that survives its peers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from wav2vec2_conformer import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerForPreTraining,
)
from wav2vec2_conformer.lengths import frames_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from flops import flop_counter, forward_flops, training_flops

POSITIONS = ["relative", "rotary", None]
CLIPS, SAMPLES = 2, 16_000
FIELDS: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (8, 8, 12),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 5,
    "codevector_dim": 8,
    "proj_codevector_dim": 10,
    "num_codevectors_per_group": 6,
    "num_negatives": 4,
    "layerdrop": 0.0,
    "mask_time_prob": 0.3,
    "mask_time_length": 2,
}
THEIRS = {
    "ctc": transformers.Wav2Vec2ConformerForCTC,
    "pretraining": transformers.Wav2Vec2ConformerForPreTraining,
}
OURS = {"ctc": Wav2Vec2ConformerForCTC, "pretraining": Wav2Vec2ConformerForPreTraining}


def build(side: str, head: str, positions: str | None, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    fields = {**FIELDS, "position_embeddings_type": positions}
    if side == "ours":
        model: Any = OURS[head](Wav2Vec2ConformerConfig(**fields))
    else:
        model = THEIRS[head](transformers.Wav2Vec2ConformerConfig(**fields))
    model.set_attn_implementation(attention)
    return model


def given(head: str, config: Any) -> dict[str, Tensor]:
    """What a training step is given beside the samples; the second half of the frames is masked."""
    frames = frames_of(SAMPLES, config)
    if head == "ctc":
        return {"labels": torch.randint(1, 12, (CLIPS, 5))}
    mask = torch.zeros(CLIPS, frames, dtype=torch.bool)
    mask[:, frames // 2 :] = True
    rows = frames * torch.arange(CLIPS).view(-1, 1, 1)
    return {
        "mask_time_indices": mask,
        "sampled_negative_indices": rows + frames - 1 - torch.arange(4).expand(CLIPS, frames, 4),
    }


def count_forward(model: Any) -> int:
    with torch.inference_mode(), flop_counter() as counter:
        model.eval()(torch.randn(CLIPS, SAMPLES))
    return int(counter.get_total_flops())


def count_step(model: Any, head: str, frozen: bool) -> int:
    if frozen:
        model.freeze_feature_encoder()
    inputs = given(head, model.config)
    with flop_counter() as counter:
        model.train()(torch.randn(CLIPS, SAMPLES), **inputs).loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_transformers_forward_pass(positions: str | None, attention: str) -> None:
    model = build("theirs", "ctc", positions, attention)
    every_distance = 2 * frames_of(SAMPLES, model.config) - 1
    assert count_forward(model) == forward_flops(model.config, CLIPS, SAMPLES, distances=every_distance)


@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_our_forward_pass(positions: str | None) -> None:
    model = build("ours", "ctc", positions)
    needed = forward_flops(model.config, CLIPS, SAMPLES)
    frames = frames_of(SAMPLES, model.config)
    if positions == "relative":  # how many distances more than needed are computed is a matter of blocks
        assert needed <= count_forward(model) <= forward_flops(model.config, CLIPS, SAMPLES, distances=2 * frames)
    else:
        assert count_forward(model) == needed


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("head", ["ctc", "pretraining"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_transformers_training_step(positions: str | None, head: str, frozen: bool) -> None:
    model = build("theirs", head, positions, "eager")
    config = model.config
    every_distance = 2 * frames_of(SAMPLES, config) - 1
    formula = training_flops(config, CLIPS, SAMPLES, head=head, frozen=frozen, distances=every_distance)
    # Trained, its encoder computes a gradient of the waveform, which nothing needs.
    of_waveform = 0 if frozen else 2 * CLIPS * 3199 * 10 * 8
    assert count_step(model, head, frozen) == formula + of_waveform


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("head", ["ctc", "pretraining"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_our_training_step(positions: str | None, head: str, frozen: bool) -> None:
    model = build("ours", head, positions)
    config, frames = model.config, frames_of(SAMPLES, model.config)
    formula = training_flops(config, CLIPS, SAMPLES, head=head, frozen=frozen, distances=2 * frames)
    left_out = 0
    if head == "pretraining":  # the look-up as a product with the chosen entries, similarities, the perplexities' means
        masked = frames - frames // 2
        look_up, similarities = 6 * config.codevector_dim, masked * config.proj_codevector_dim
        left_out = 2 * CLIPS * frames * (3 * (look_up + similarities) + 2 * 6 * 2)
    assert count_step(model, head, frozen) == formula + left_out
