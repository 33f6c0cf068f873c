"""Exported models in transformers' own classes: all keys there, none too many, and our numbers.

The same with transformers 4.34.0: `tools/check_export_on_old_transformers.py` (docs/checkpoints.md has the figures).
What the files hold and what is refused: `unit/test_export.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import wav2vec2_conformer
from checkpoints_fairseq import SMALL, weights
from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.checkpoints.transformers_export import OWN_FIELDS, export_transformers
from wav2vec2_conformer.processing import DEFAULT_MODEL

from . import test_conversion as conversion
from .export_cases import CASES, WAVEFORM, build, outputs
from .random_models import relative_difference

each_case = pytest.mark.parametrize("name", CASES)


def load_theirs(folder: Path, architecture: str) -> Any:
    """The model in transformers' class, with every key of the file in its place and no other."""
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return model.eval()


def export(model: Any, folder: Path) -> Path:
    """The exported folder of a model."""
    model.save_pretrained(folder / "ours")
    done = export_transformers(folder / "ours", folder / "theirs")
    assert done.architecture == type(model).__name__
    return done.output


@each_case
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    ours = build(CASES[name])
    theirs = load_theirs(export(ours, tmp_path), type(ours).__name__)
    found, expected = (outputs(model.double(), WAVEFORM) for model in (theirs, ours))
    assert expected.keys() <= found.keys()
    assert len(expected) >= 3
    for key, value in expected.items():
        assert relative_difference(found[key], value) < 1e-10, key


@each_case
def test_ours_reads_its_export(name: str, tmp_path: Path) -> None:
    """Weights and outputs are what they were; a projection that was not there is the identity."""
    ours = build(CASES[name])
    again, info = type(ours).from_pretrained(export(ours, tmp_path), output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    check_same(again, ours, WAVEFORM)


def check_same(again: Any, ours: Any, waveform: Tensor) -> None:
    """All that transformers can say of a configuration, all weights and all outputs are the same."""
    fields = Wav2Vec2ConformerConfig.__annotations__.keys() - OWN_FIELDS
    found, expected = again.config.to_dict(), ours.config.to_dict()
    assert {field: found[field] for field in fields} == {field: expected[field] for field in fields}
    state = again.state_dict()
    if not ours.config.feat_projection:
        weight, bias = (key for key in state if "feature_projection.projection." in key)
        assert torch.equal(state.pop(weight), torch.eye(ours.config.hidden_size))
        assert not state.pop(bias).any()
    assert state.keys() == ours.state_dict().keys()
    assert [key for key, tensor in ours.state_dict().items() if not torch.equal(state[key], tensor)] == []
    computed = outputs(again.double().eval(), waveform)
    for key, value in outputs(ours.double().eval(), waveform).items():
        assert torch.equal(computed[key], value), key


def test_the_default_model_in_transformers(tmp_path: Path) -> None:
    """In float32, as people run it."""
    done = export_transformers(DEFAULT_MODEL, tmp_path / "default")
    theirs = load_theirs(done.output, "Wav2Vec2ConformerForCTC")
    ours = wav2vec2_conformer.Wav2Vec2ConformerForCTC.from_pretrained(DEFAULT_MODEL)
    waveform = torch.randn((1, 20_000), generator=torch.Generator().manual_seed(0))
    assert relative_difference(outputs(theirs, waveform)["logits"], outputs(ours, waveform)["logits"]) < 1e-5


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversion.configurations(), st.sampled_from(sorted(conversion.KINDS)), st.integers(0, 2**31))
def test_from_fairseq_through_transformers_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[dict[str, Any], tuple[tuple[int, int, int], ...]],
    kind: str,
    seed: int,
) -> None:
    """fairseq -> ours -> transformers -> ours; what transformers cannot compute is refused by its field."""
    configuration, convolutions = drawn
    folder = tmp_path_factory.mktemp("random")
    state = weights({**SMALL, **configuration}, kind, convolutions, seed)
    _, converted = conversion.convert(folder, kind, configuration, state=state)
    cls = conversion.KINDS[kind]
    field = None
    if not configuration["layer_norm_first"]:
        field = "encoder_layer_norm='before'"
    elif configuration["pos_enc_type"] == "abs":
        field = "position_embeddings_type='convolutional'"
    if field is not None:
        with pytest.raises(ValueError, match=f"`{field}` cannot be exported"):
            export_transformers(converted, folder / "exported")
        assert not (folder / "exported").exists()
        return
    exported = export_transformers(converted, folder / "exported").output
    context = 1
    for _, kernel, stride in reversed(convolutions):
        context = (context - 1) * stride + kernel
    samples = context + 9 * math.prod(stride for _, _, stride in convolutions)  # 10 frames
    waveform = torch.randn((1, samples), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = cls.from_pretrained(converted)
    check_same(cls.from_pretrained(exported), ours, waveform)
    found, expected = (
        conversion.outputs(model, kind, waveform[0]) for model in (load_theirs(exported, cls.__name__), ours)
    )
    assert conversion.difference(found, expected) < 1e-8
