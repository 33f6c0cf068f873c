"""The golden files of the other heads (transformers 4.34.0), as `test_golden.py` has those of CTC."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.frame_classification import Wav2Vec2ConformerForAudioFrameClassification
from wav2vec2_conformer.modeling.layer_mixture import LayerMixtureModel
from wav2vec2_conformer.modeling.sequence_classification import Wav2Vec2ConformerForSequenceClassification
from wav2vec2_conformer.modeling.xvector import Wav2Vec2ConformerForXVector

from .random_models import relative_difference

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
if not GOLDEN.is_dir():
    pytest.skip(f"the golden files are not here: {GOLDEN} is absent", allow_module_level=True)

HEADS: dict[str, type[LayerMixtureModel]] = {
    "frame-relative-weighted": Wav2Vec2ConformerForAudioFrameClassification,
    "sequence-rotary-weighted": Wav2Vec2ConformerForSequenceClassification,
    "xvector-relative": Wav2Vec2ConformerForXVector,
}
TOLERANCE = 1e-5  # of scale = max |reference tensor|

each_folder = pytest.mark.parametrize("name", HEADS)
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@functools.cache
def stored(name: str, file: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{file}.safetensors")


def expected(name: str, prefix: str) -> dict[str, Tensor]:
    found = {k.removeprefix(prefix): v for k, v in stored(name, "expected").items() if k.startswith(prefix)}
    assert found
    return found


def load(name: str, attention: str = "sdpa", **settings: Any) -> LayerMixtureModel:
    return HEADS[name].from_pretrained(GOLDEN / name, attn_implementation=attention, **settings).eval()


def without_mask(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in stored(name, "inputs").items() if k != "attention_mask"}


def tensors(output: Any) -> dict[str, Tensor]:
    """All tensors of an output by the names that the files have for them."""
    found: dict[str, Tensor] = {}
    for key, value in output.items():
        found |= {key: value} if isinstance(value, Tensor) else {f"{key}.{i}": t for i, t in enumerate(value)}
    return found


def check(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    apart = {key: relative_difference(found[key].detach(), tensor) for key, tensor in reference.items()}
    assert {key: difference for key, difference in apart.items() if difference > TOLERANCE} == {}


def test_all_folders_are_tested() -> None:
    folders = [path.name for path in GOLDEN.iterdir() if path.is_dir()]
    assert sorted(n for n in folders if not n.startswith(("ctc-", "pretraining-"))) == sorted(HEADS)


@each_attention
@each_folder
def test_outputs(name: str, attention: str) -> None:
    model, reference = load(name, attention), expected(name, "whole.")
    with torch.no_grad():
        asked = tensors(model(**without_mask(name), output_hidden_states=True, output_attentions=True))
        plain = tensors(model(**without_mask(name)))  # without attention weights, sdpa runs fused
    assert asked.keys() == reference.keys()
    assert plain.keys() == {key for key in reference if "." not in key}
    check(asked, reference)
    check({**asked, **plain}, reference)


@each_attention
@each_folder
def test_padding_as_in_the_reference(name: str, attention: str) -> None:
    """The loss included, which counts padded frames (frame classification) or too many of them (x-vectors)."""
    model = load(name, attention, padding="reference")
    with torch.no_grad():
        found = tensors(model(**stored(name, "inputs"), output_hidden_states=True))
    check(found, expected(name, "padded_as_reference."))


@pytest.mark.parametrize("name", ["frame-relative-weighted", "xvector-relative"])
def test_the_reference_padding_is_not_ours(name: str) -> None:
    with torch.no_grad():
        loss = load(name)(**stored(name, "inputs")).loss
    assert relative_difference(loss, expected(name, "padded_as_reference.")["loss"]) > 1e-3


@each_attention
@pytest.mark.parametrize("name", ["sequence-rotary-weighted", "xvector-relative"])
def test_each_clip_alone(name: str, attention: str) -> None:
    """A clip cut to its length, and the same clip padded in a batch, both give what the reference gives it alone."""
    model, alone = load(name, attention), expected(name, "alone.")
    waveforms, mask = (stored(name, "inputs")[key] for key in ("input_values", "attention_mask"))
    samples = mask.sum(-1).tolist()
    assert len(set(samples)) == len(samples)
    with torch.no_grad():
        padded = tensors(model(waveforms, attention_mask=mask, output_hidden_states=True))
        cut = [tensors(model(waveforms[b : b + 1, :n], output_hidden_states=True)) for b, n in enumerate(samples)]
    for row, length in enumerate(samples):
        reference = {k.removeprefix(f"{row}."): t for k, t in alone.items() if k.startswith(f"{row}.")}
        frames = frames_of(length, model.config)
        inside = {k: t[row : row + 1] for k, t in padded.items()}
        inside |= {k: t[:, :frames] for k, t in inside.items() if k.startswith("hidden_states")}
        check(inside, reference)
        check(cut[row], reference)


def gradients(model: LayerMixtureModel, name: str) -> dict[str, Tensor]:
    batch = without_mask(name)
    model(batch["input_values"].to(model.dtype), labels=batch["labels"]).loss.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def gradient_errors(name: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """As in `test_golden.py`: in units of the golden gradient's scale, at least 1e-3 of the model's largest one."""
    golden = expected(name, "grad.")
    assert found.keys() == reference.keys() == golden.keys()
    largest = max(float(tensor.abs().max()) for tensor in golden.values())
    return {
        key: float((found[key].double() - reference[key].double()).abs().max())
        / max(float(tensor.abs().max()), 1e-3 * largest)
        for key, tensor in golden.items()
    }


@each_attention
@each_folder
def test_gradients(name: str, attention: str, record_property: Any) -> None:
    """To the files, and the files' to the true ones: our network in float64, which `test_live_heads.py` vouches for.

    Unlike CTC's, these losses do not amplify float32's rounding, so the files can tell a gradient right to 1e-5.
    """
    golden, own = expected(name, "grad."), gradients(load(name, attention), name)
    truth = gradients(load(name, "eager").double(), name)
    table = {
        "ours to golden": gradient_errors(name, own, golden),
        "golden to truth": gradient_errors(name, golden, truth),
        "ours to truth": gradient_errors(name, own, truth),
    }
    print(f"{name:26}{attention:8}", *(f"{label} {max(e.values()):.1e}" for label, e in table.items()), sep="  ")
    for label, errors in table.items():
        record_property(f"largest gradient error, {label}", max(errors.values()))
        if label != "ours to truth":
            assert {key: error for key, error in errors.items() if error > TOLERANCE} == {}, label


@each_folder
def test_state_dicts_are_the_files(name: str) -> None:
    model, info = HEADS[name].from_pretrained(GOLDEN / name, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state, file = model.state_dict(), stored(name, "model")
    assert state.keys() == file.keys()
    assert [key for key in file if not torch.equal(state[key], file[key])] == []
    assert model.load_state_dict(file, strict=True).missing_keys == []
