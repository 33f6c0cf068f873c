"""Wrong inputs to the network: refused before anything is computed, with what was expected and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_model import TINY, enlarge
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

SAMPLES = 2000
CLIPS = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))


def build(**values: Any) -> Wav2Vec2ConformerForCTC:
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**TINY, **values}))
    enlarge(model)
    return model.eval()


def mask_with(*zeros: slice) -> Tensor:
    mask = torch.ones(2, SAMPLES, dtype=torch.long)
    for places in zeros:
        mask[1, places] = 0
    return mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (2 * mask_with(), "must hold ones"),
        (-mask_with(), "must hold ones"),
        (mask_with()[:, :-1], "must have the shape"),
        (mask_with().numpy(), "must be a torch tensor, got ndarray"),
    ],
    ids=["twos", "negative", "shape", "numpy"],
)
def test_masks_that_are_none(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(CLIPS, attention_mask=mask)


@pytest.mark.parametrize("zeros", [slice(0, 500), slice(700, 900), slice(1500, SAMPLES)], ids=["left", "hole", "right"])
def test_a_mask_that_is_no_right_padding_is_warned_of(zeros: slice, caplog: pytest.LogCaptureFixture) -> None:
    build()(CLIPS, attention_mask=mask_with(zeros))
    assert ("Pad clips on the right" in caplog.text) == (zeros.stop != SAMPLES)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.int32, torch.float32])
def test_right_padding_of_any_type(dtype: torch.dtype) -> None:
    model, mask = build(), mask_with(slice(1500, SAMPLES))
    expected = model(CLIPS, attention_mask=mask).logits
    assert torch.equal(model(CLIPS, attention_mask=mask.to(dtype)).logits, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (CLIPS.numpy(), "must be a torch tensor, got ndarray"),
        (None, "must be a torch tensor, got NoneType"),
        (CLIPS[0], "a single waveform needs"),
        (CLIPS.long(), "floating-point"),
        (torch.from_numpy(np.zeros((1, SAMPLES))), r"network's type torch.float32, got torch.float64"),
    ],
    ids=["numpy", "none", "one clip", "integers", "float64"],
)
def test_waveforms(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(values)


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([[1, 2]]), torch.tensor([[1, 2]] * 3), torch.tensor([1, 2]), torch.tensor([[1.5, 2.0]] * 2)],
    ids=["one row", "three rows", "no rows", "fractions"],
)
def test_ctc_labels(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels must be whole numbers of shape \(batch, length\) with a batch of 2"):
        build()(CLIPS, labels=labels)


@pytest.mark.parametrize("positions", ["relative", "rotary", None])
def test_a_batch_without_clips(positions: str | None) -> None:
    model = build(position_embeddings_type=positions)
    assert model(CLIPS[:0]).logits.shape == (0, *model(CLIPS).logits.shape[1:])


def test_a_configuration_of_transformers_is_named() -> None:
    theirs = transformers.Wav2Vec2ConformerConfig(vocab_size=12)
    with pytest.raises(ValueError, match=r"wav2vec2_conformer\.Wav2Vec2ConformerConfig, got .*from_dict"):
        Wav2Vec2ConformerForCTC(theirs)
    assert Wav2Vec2ConformerConfig.from_dict(theirs.to_dict()).vocab_size == 12


def test_a_lora_folder_is_no_language(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    model = build()
    adapted = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=["linear_q"]))
    adapted.save_pretrained(tmp_path)
    for arguments, name in (((str(tmp_path),), "default"), ((str(tmp_path), "other"), "other")):
        model.load_adapter(*arguments)
        assert name in model.peft_config
