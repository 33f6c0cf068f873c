"""The golden files of transformers 4.34.0 for pre-training: whole tensors, losses and gradients, in float32."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.negatives import sample_negatives
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining

from .random_models import relative_difference
from .test_live_pretraining import in_float64

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
if not GOLDEN.is_dir():
    pytest.skip(f"the golden files are not here: {GOLDEN} is absent", allow_module_level=True)

NAMES = ["pretraining-relative-group", "pretraining-rotary"]
TOLERANCE = 1e-5  # of scale = max |reference tensor|
GOLDEN_GRADIENT_ERROR = 1.5e-5  # how far the files' own gradients, float32 too, are from the true ones

each_folder = pytest.mark.parametrize("name", NAMES)
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@functools.cache
def stored(name: str, file: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{file}.safetensors")


def expected(name: str, prefix: str) -> dict[str, Tensor]:
    found = {k.removeprefix(prefix): v for k, v in stored(name, "expected").items() if k.startswith(prefix)}
    assert found
    return found


def load(name: str, attention: str = "sdpa", **settings: Any) -> Wav2Vec2ConformerForPreTraining:
    model = Wav2Vec2ConformerForPreTraining.from_pretrained(GOLDEN / name, attn_implementation=attention, **settings)
    return model.eval()


def without_mask(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in stored(name, "inputs").items() if k != "attention_mask"}


def tensors(output: Any) -> dict[str, Tensor]:
    found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    for field in ("hidden_states", "attentions"):
        found |= {f"{field}.{i}": value for i, value in enumerate(output[field] or () if field in output else ())}
    return found


def check(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    apart = {key: relative_difference(found[key], tensor) for key, tensor in reference.items()}
    assert {key: difference for key, difference in apart.items() if difference > TOLERANCE} == {}


def test_all_folders_are_tested() -> None:
    assert sorted(path.name for path in GOLDEN.glob("pretraining-*")) == NAMES


@each_folder
def test_the_state_dict_is_the_files(name: str) -> None:
    model, info = Wav2Vec2ConformerForPreTraining.from_pretrained(GOLDEN / name, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    files = stored(name, "model")
    state = model.state_dict()
    assert state.keys() == files.keys()
    assert [key for key in files if not torch.equal(state[key], files[key])] == []


@each_attention
@each_folder
def test_outputs(name: str, attention: str) -> None:
    model = load(name, attention)
    with torch.no_grad():
        output = model(**without_mask(name), output_hidden_states=True, output_attentions=True)
        plain = model(**without_mask(name))  # without attention weights, sdpa runs fused
    check(tensors(output), expected(name, "whole."))
    check({**tensors(output), **tensors(plain)}, expected(name, "whole."))


@each_attention
@each_folder
def test_padding_as_in_the_reference(name: str, attention: str) -> None:
    model = load(name, attention, padding="reference")
    with torch.no_grad():
        output = model(**stored(name, "inputs"))
    check(tensors(output), expected(name, "padded_as_reference."))


def gradients(model: Wav2Vec2ConformerForPreTraining, name: str) -> dict[str, Tensor]:
    batch = without_mask(name)
    batch["input_values"] = batch["input_values"].to(model.dtype)
    model(**batch).loss.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def true_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Network and loss in float64; `test_live_pretraining.py` shows such gradients to be the reference's to 1e-10."""
    model = load(name, "eager").double()
    with monkeypatch.context() as inside:
        in_float64(inside, model)
        return gradients(model, name)


def gradient_errors(name: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Per parameter, in units of the golden gradient's scale, which is at least 1e-3 of the model's largest gradient.

    The true gradient of `linear_k.bias` is zero, so what stands in the files for it is rounding.
    """
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
def test_gradients(name: str, attention: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """Ours are within 1e-5 of the true ones, and as near to the files as the files are to these."""
    truth = true_gradients(name, monkeypatch)
    own, golden = gradients(load(name, attention), name), expected(name, "grad.")
    assert {"quantizer.codevectors", "project_q.weight", "project_hid.bias"} < own.keys()
    errors = {
        "ours to golden": gradient_errors(name, own, golden),
        "golden to truth": gradient_errors(name, golden, truth),
        "ours to truth": gradient_errors(name, own, truth),
    }
    rounding = {}  # gradients that are zero: nothing but rounding on either side
    for label, table in errors.items():
        zeros = [key for key in table if key.endswith("linear_k.bias")]
        assert len(zeros) == 3
        rounding[label] = max(table.pop(key) for key in zeros)
        record_property(f"largest gradient error, {label}", max(table.values()))
        print(f"{name} {attention}: {label} {max(table.values()):.1e}, zeros {rounding[label]:.1e}")
    assert max(errors["ours to truth"].values()) < TOLERANCE
    assert max(errors["golden to truth"].values()) < GOLDEN_GRADIENT_ERROR
    assert max(errors["ours to golden"].values()) < TOLERANCE + GOLDEN_GRADIENT_ERROR
    assert max(rounding.values()) < 4e-5


@each_folder
def test_each_clip_alone(name: str) -> None:
    """The files have no clips alone for this head: ours alone is ours in the padded batch, outputs and loss."""
    model = load(name)
    waveforms, samples = (stored(name, "inputs")[key] for key in ("input_values", "attention_mask"))
    lengths = frames_of(samples.sum(-1), model.config)
    frames = waveforms.shape[1] // 320 - 1
    mask = stored(name, "inputs")["mask_time_indices"] & (torch.arange(frames) < lengths[:, None])
    negatives = sample_negatives(mask, model.config.num_negatives, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch = model(waveforms, samples, mask, negatives)
        total = torch.zeros(())
        for row, (count, length) in enumerate(zip(samples.sum(-1).tolist(), lengths.tolist(), strict=True)):
            cut = negatives[row : row + 1, :length] - row * frames
            alone = model(waveforms[row : row + 1, :count], None, mask[row : row + 1, :length], cut)
            for field in ("projected_states", "projected_quantized_states"):
                check({field: batch[field][row : row + 1, :length]}, {field: alone[field]})
                assert not batch[field][row, length:].any()
            total += alone.contrastive_loss
    check({"loss": batch.contrastive_loss}, {"loss": total})
