"""The golden files of transformers 4.34.0: whole tensors, in float32, under both attention implementations."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerForCTC
from wav2vec2_conformer.lengths import frames_of

from .random_models import relative_difference

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
if not GOLDEN.is_dir():
    pytest.skip(f"the golden files are not here: {GOLDEN} is absent", allow_module_level=True)

NAMES = ["ctc-mean-reduction", "ctc-none-group", "ctc-relative", "ctc-relative-adapter", "ctc-rotary"]
TOLERANCE = 1e-5  # of scale = max |reference tensor|
# How far the golden gradients are from the true ones, in units of their scale. They were computed in float32, and the
# forward-backward recursion of CTC amplifies float32's rounding: measured 1.9e-5 at most (ctc-rotary); transformers
# 5.23.0 in float32 is up to 3.4e-5 away from the same files. So these files cannot tell a gradient that is right to
# 1e-5 from one that is right to 3e-5, and what the issue asks of gradients is shown in three steps below.
GOLDEN_GRADIENT_ERROR = 2.5e-5
# A key's bias has no gradient: what is found is rounding, in the same units. 2.5e-5 at most on AMD's processors, 2.9e-5
# on Intel's, whose BLAS sums in another order.
ROUNDING = 5e-5

each_folder = pytest.mark.parametrize("name", NAMES)
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@functools.cache
def stored(name: str, file: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{file}.safetensors")


def expected(name: str, prefix: str) -> dict[str, Tensor]:
    found = {k.removeprefix(prefix): v for k, v in stored(name, "expected").items() if k.startswith(prefix)}
    assert found
    return found


def load(name: str, attention: str = "sdpa", **settings: Any) -> Wav2Vec2ConformerForCTC:
    return Wav2Vec2ConformerForCTC.from_pretrained(GOLDEN / name, attn_implementation=attention, **settings).eval()


def without_mask(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in stored(name, "inputs").items() if k != "attention_mask"}


def check(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    apart = {key: relative_difference(found[key], tensor) for key, tensor in reference.items()}
    assert {key: difference for key, difference in apart.items() if difference > TOLERANCE} == {}


def test_all_folders_are_tested() -> None:
    assert sorted(path.name for path in GOLDEN.glob("ctc-*")) == NAMES


@each_attention
@each_folder
def test_outputs(name: str, attention: str) -> None:
    model = load(name, attention)
    with torch.no_grad():
        output = model(**without_mask(name), output_hidden_states=True, output_attentions=True)
        plain = model(**without_mask(name))  # without attention weights, sdpa runs fused
    found = {"logits": output.logits, "loss": output.loss}
    found |= {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    found |= {f"attentions.{i}": weights for i, weights in enumerate(output.attentions)}
    check(found, expected(name, "whole."))
    check({**found, "logits": plain.logits, "loss": plain.loss}, expected(name, "whole."))


@each_attention
@each_folder
def test_padding_as_in_the_reference(name: str, attention: str) -> None:
    model = load(name, attention, padding="reference")
    with torch.no_grad():
        output = model(**stored(name, "inputs"))
    check({"logits": output.logits, "loss": output.loss}, expected(name, "padded_as_reference."))


@each_attention
@each_folder
def test_each_clip_alone(name: str, attention: str) -> None:
    """A clip cut to its length, and the same clip padded in a batch, both give what the reference gives it alone."""
    model = load(name, attention)
    waveforms, mask = (stored(name, "inputs")[key] for key in ("input_values", "attention_mask"))
    samples = mask.sum(-1).tolist()
    frames = [frames_of(n, model.config) for n in samples]
    assert len(set(samples)) == len(samples)
    alone = expected(name, "alone.")
    with torch.no_grad():
        padded = model(waveforms, attention_mask=mask).logits
        cut = [model(waveforms[b : b + 1, :n]).logits for b, n in enumerate(samples)]
    check({f"{b}.logits": padded[b : b + 1, :n] for b, n in enumerate(frames)}, alone)
    check({f"{b}.logits": logits for b, logits in enumerate(cut)}, alone)


def gradients(model: Wav2Vec2ConformerForCTC, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def loss_in_float64(model: Wav2Vec2ConformerForCTC, name: str) -> Tensor:
    """The loss by torch's own function, in float64 from the logits on."""
    inputs = stored(name, "inputs")
    labels, config = inputs["labels"], model.config
    logits = model(inputs["input_values"].to(model.dtype)).logits
    log_probs = logits.double().log_softmax(-1).transpose(0, 1)
    wanted = labels >= 0
    return F.ctc_loss(
        log_probs,
        labels[wanted],
        torch.full(labels.shape[:1], logits.shape[1]),
        wanted.sum(-1),
        blank=config.pad_token_id,
        reduction=config.ctc_loss_reduction,
        zero_infinity=config.ctc_zero_infinity,
    )


@functools.cache
def true_gradients(name: str) -> dict[str, Tensor]:
    """Our network and the loss in float64; `test_live.py` shows such gradients to be the reference's to 1e-10."""
    model = load(name, "eager").double()
    return gradients(model, loss_in_float64(model, name))


def gradient_errors(name: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Per parameter, in units of the golden gradient's scale, which is at least 1e-3 of the model's largest gradient.

    `linear_k.bias` adds the same number to all scores of a query, so its true gradient is zero and what stands in the
    files is rounding: it is measured in the same scale here, never relative to itself.
    """
    golden = expected(name, "grad.")
    assert found.keys() == reference.keys() == golden.keys()
    largest = max(float(tensor.abs().max()) for tensor in golden.values())
    return {
        key: float((found[key].double() - reference[key].double()).abs().max())
        / max(float(tensor.abs().max()), 1e-3 * largest)
        for key, tensor in golden.items()
    }


def above(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    return {key: error for key, error in errors.items() if error > tolerance}


@each_folder
def test_golden_gradients_are_the_true_ones_to_float32(name: str) -> None:
    """Step 1: the files agree with the true gradients as far as they can."""
    truth = true_gradients(name)
    largest = max(float(tensor.abs().max()) for tensor in truth.values())
    zeros = [key for key in truth if key.endswith("linear_k.bias")]
    assert len(zeros) == 3
    assert all(truth[key].abs().max() < 1e-12 * largest for key in zeros)
    assert above(gradient_errors(name, expected(name, "grad."), truth), GOLDEN_GRADIENT_ERROR) == {}


@each_attention
@each_folder
def test_gradients_in_float32(name: str, attention: str) -> None:
    """Step 2: our network in float32 is within 1e-5 of them; only the loss is in float64, for what it amplifies."""
    model = load(name, attention)
    errors = gradient_errors(name, gradients(model, loss_in_float64(model, name)), true_gradients(name))
    rounding = {key: errors.pop(key) for key in list(errors) if key.endswith("linear_k.bias")}
    assert above(errors, TOLERANCE) == {}
    assert above(rounding, ROUNDING) == {}


@each_attention
@each_folder
def test_gradients_of_the_models_own_loss(name: str, attention: str, record_property: Any) -> None:
    """Step 3: with the model's own loss, which is float32 as the reference's, the distance to the files."""
    model = load(name, attention)
    own = gradients(model, model(**without_mask(name)).loss)
    golden = expected(name, "grad.")
    to_golden = gradient_errors(name, own, golden)
    table = {
        "ours to golden": max(to_golden.values()),
        "golden to truth": max(gradient_errors(name, golden, true_gradients(name)).values()),
        "ours to truth": max(gradient_errors(name, own, true_gradients(name)).values()),
    }
    print(f"{name:22}{attention:8}", *(f"{label} {value:.1e}" for label, value in table.items()), sep="  ")
    for label, value in table.items():
        record_property(f"largest gradient error, {label}", value)
    assert above(to_golden, TOLERANCE + GOLDEN_GRADIENT_ERROR) == {}


@each_folder
def test_both_spellings_of_weight_norm(name: str, tmp_path: Path) -> None:
    """Old files say weight_g and weight_v; what is loaded from them is the same, and is written back."""
    prefix = "wav2vec2_conformer.encoder.pos_conv_embed.conv."
    new = stored(name, "model")
    spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {prefix + spelling.get(k.removeprefix(prefix), "") if "original" in k else k: v for k, v in new.items()}
    assert {prefix + "weight_g", prefix + "weight_v"} == old.keys() - new.keys()
    safetensors, pickled = tmp_path / "safetensors", tmp_path / "bin"
    for folder in (safetensors, pickled):
        folder.mkdir()
        shutil.copyfile(GOLDEN / name / "config.json", folder / "config.json")
    save_file(old, safetensors / "model.safetensors", metadata={"format": "pt"})
    torch.save(old, pickled / "pytorch_model.bin")
    for folder in (safetensors, pickled):
        model, info = Wav2Vec2ConformerForCTC.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        state = model.state_dict()
        assert state.keys() == new.keys()
        assert [key for key in new if not torch.equal(state[key], new[key])] == []
        with torch.no_grad():
            check({"logits": model(**without_mask(name)).logits}, {"logits": expected(name, "whole.")["logits"]})
