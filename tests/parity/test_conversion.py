"""A converted checkpoint of fairseq computes what its own arithmetic computes, and what transformers computes with it.

The arithmetic (`checkpoints/verification.py`) reads the original weights by their original names; transformers' class
loads the converted folder; ours is compared with both in float64.
"""

from __future__ import annotations

import ast
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from checkpoints_fairseq import CONVOLUTIONS, SMALL, STYLES, VOCABULARY, weights, write, write_dictionary
from wav2vec2_conformer import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.checkpoints import arithmetic
from wav2vec2_conformer.checkpoints.arithmetic import Arithmetic
from wav2vec2_conformer.checkpoints.fairseq import FairseqCheckpoint, convert_fairseq
from wav2vec2_conformer.checkpoints.fairseq_keys import fairseq_keys
from wav2vec2_conformer.checkpoints.verification import verify

KINDS = {"wav2vec2": Wav2Vec2ConformerForPreTraining, "wav2vec_ctc": Wav2Vec2ConformerForCTC}
POSITIONS = ("rel_pos", "rope", "abs")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_position = pytest.mark.parametrize("position", POSITIONS)


def convert(folder: Path, kind: str, changes: dict[str, Any], **options: Any) -> tuple[Path, Path]:
    """Write a checkpoint and convert it: the file and the new folder."""
    file = write(folder / "checkpoint.pt", {**SMALL, **changes}, kind, **options)
    dictionary = write_dictionary(folder / "dict.ltr.txt") if kind == "wav2vec_ctc" else None
    number = len(list(folder.glob("model*")))
    return file, convert_fairseq(file, folder / f"model{number}", dictionary).output


def outputs(model: Any, kind: str, waveform: Tensor) -> dict[str, Tensor]:
    """What a model computes of one clip, in float64."""
    names = ["logits"] if kind == "wav2vec_ctc" else ["projected_states", "projected_quantized_states"]
    with torch.no_grad():
        output = model.double().eval()(waveform[None])
    return {name: getattr(output, name)[0] for name in names}


def source_outputs(file: Path, waveform: Tensor) -> dict[str, Tensor]:
    with FairseqCheckpoint(file) as checkpoint:
        return Arithmetic(checkpoint).run(waveform)


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference in units of the largest number."""
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in found)
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in found)


WAVEFORM = torch.randn(4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@each_kind
@each_position
@pytest.mark.parametrize("style", STYLES)
def test_ours_is_the_sources_arithmetic(tmp_path: Path, kind: str, position: str, style: str) -> None:
    file, folder = convert(tmp_path, kind, {"pos_enc_type": position}, style=style)
    ours = outputs(KINDS[kind].from_pretrained(folder), kind, WAVEFORM)
    assert difference(ours, source_outputs(file, WAVEFORM)) < 1e-10


VARIANTS: dict[str, dict[str, Any]] = {
    "norm before the blocks": {"layer_norm_first": False},
    "norm over time": {"extractor_mode": "default", "conv_bias": False},
    "default sizes of the codebook": {"final_dim": 0, "latent_dim": 0},
    "no blocks": {"encoder_layers": 0},
    "odd kernel of positions": {"conv_pos": 3, "pos_enc_type": "abs"},
    "base": {"layer_norm_first": False, "extractor_mode": "default", "pos_enc_type": "abs", "conv_bias": False},
}


@each_kind
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(tmp_path: Path, kind: str, name: str) -> None:
    file, folder = convert(tmp_path, kind, VARIANTS[name])
    ours = outputs(KINDS[kind].from_pretrained(folder), kind, WAVEFORM)
    assert difference(ours, source_outputs(file, WAVEFORM)) < 1e-10


@each_kind
@each_position
def test_no_projection_where_the_widths_agree(tmp_path: Path, kind: str, position: str) -> None:
    convolutions = (*CONVOLUTIONS[:-1], (12, 2, 2))
    changes = {"conv_feature_layers": "[(8, 16, 8), (10, 4, 4), (12, 2, 2)]", "pos_enc_type": position}
    state = weights({**SMALL, **changes}, kind, convolutions)
    assert not [key for key in state if "post_extract_proj" in key]
    file, folder = convert(tmp_path, kind, changes, state=state)
    ours = outputs(KINDS[kind].from_pretrained(folder), kind, WAVEFORM)
    assert difference(ours, source_outputs(file, WAVEFORM)) < 1e-10


@each_kind
@pytest.mark.parametrize("position", ["rel_pos", "rope"])
@pytest.mark.parametrize("mode", ["default", "layer_norm"])
def test_transformers_computes_the_same(tmp_path: Path, kind: str, position: str, mode: str) -> None:
    """The second route: the peer's class on the converted files."""
    file, folder = convert(tmp_path, kind, {"pos_enc_type": position, "extractor_mode": mode})
    peer = getattr(transformers, KINDS[kind].__name__)
    theirs, info = peer.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert difference(outputs(theirs, kind, WAVEFORM), source_outputs(file, WAVEFORM)) < 1e-10


@each_kind
@pytest.mark.parametrize("position", ["rel_pos", "rope"])
def test_through_transformers_and_back_is_the_identity(tmp_path: Path, kind: str, position: str) -> None:
    """fairseq -> ours -> transformers -> ours, where transformers can express the model."""
    _, folder = convert(tmp_path, kind, {"pos_enc_type": position})
    getattr(transformers, KINDS[kind].__name__).from_pretrained(folder).save_pretrained(tmp_path / "peer")
    ours, again = (KINDS[kind].from_pretrained(path) for path in (folder, tmp_path / "peer"))
    state = again.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())
    assert difference(outputs(again, kind, WAVEFORM), outputs(ours, kind, WAVEFORM)) == 0


@each_kind
@each_position
def test_there_and_back_is_the_identity(tmp_path: Path, kind: str, position: str) -> None:
    """Our weights under fairseq's keys are the file's, all of them, and convert to the same weights again."""
    _, folder = convert(tmp_path, kind, {"pos_enc_type": position})
    model = KINDS[kind].from_pretrained(folder)
    state = model.state_dict()
    prefix = "w2v_encoder.w2v_model." if kind == "wav2vec_ctc" else ""
    table = fairseq_keys(state, prefix=prefix, norm=model.config.feat_extract_norm, layers=2)
    original = weights({**SMALL, "pos_enc_type": position}, kind)
    assert table.keys() == original.keys()
    assert set(table.values()) == state.keys()
    assert all(torch.equal(state[ours], original[theirs].to(state[ours].dtype)) for theirs, ours in table.items())
    _, again = convert(
        tmp_path, kind, {"pos_enc_type": position}, state={theirs: state[ours] for theirs, ours in table.items()}
    )
    for key, tensor in KINDS[kind].from_pretrained(again).state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_the_arithmetic_imports_nothing_of_the_network() -> None:
    """Else the two could be wrong in the same way."""
    tree = ast.parse(Path(arithmetic.__file__).read_text())
    found = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    found |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert found == {"__future__", "math", "typing", "torch", "torch.nn.functional", "fairseq_settings"}


def test_files_of_old_torch(tmp_path: Path) -> None:
    """The format of torch before 1.6 gives the same model."""
    _, new = convert(tmp_path, "wav2vec_ctc", {}, style="args")
    _, old = convert(tmp_path, "wav2vec_ctc", {}, style="args", legacy=True)
    assert not zipfile.is_zipfile(tmp_path / "checkpoint.pt")
    assert (old / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
    assert (old / "config.json").read_text() == (new / "config.json").read_text()


def test_frequencies_are_loaded_and_not_computed(tmp_path: Path) -> None:
    _, folder = convert(tmp_path, "wav2vec2", {"pos_enc_type": "rope"})
    positions = Wav2Vec2ConformerForPreTraining.from_pretrained(folder).wav2vec2_conformer.encoder.embed_positions
    assert torch.equal(positions.inv_freq, positions.exact_frequencies().half().float())
    assert not torch.equal(positions.inv_freq, positions.exact_frequencies())


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in weights(SMALL).items()}
    file, folder = convert(tmp_path, "wav2vec2", {}, state=state)
    model = Wav2Vec2ConformerForPreTraining.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert difference(outputs(model, "wav2vec2", WAVEFORM), source_outputs(file, WAVEFORM)) < 1e-10


def change_settings(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() >= changes.keys()
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "norm order": lambda folder: change_settings(folder, encoder_layer_norm="before"),
    "no positions": lambda folder: change_settings(folder, position_embeddings_type=None),
    "activation": lambda folder: change_settings(folder, hidden_act="gelu"),
    "heads": lambda folder: change_settings(folder, num_attention_heads=3),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verification_finds_a_wrong_conversion(tmp_path: Path, name: str) -> None:
    file, folder = convert(tmp_path, "wav2vec_ctc", {"pos_enc_type": "abs"})
    right = verify(file, folder, seconds=0.3)
    assert right.passed
    assert right.largest < 2e-5
    DAMAGE[name](folder)
    wrong = verify(file, folder, seconds=0.3)
    assert not wrong.passed
    assert wrong.largest > 1e-3


@st.composite
def configurations(draw: Any) -> tuple[dict[str, Any], tuple[tuple[int, int, int], ...]]:
    """Settings of a small network, and its convolutions."""
    heads, size = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([2, 4, 6]))
    width = heads * size
    layers = draw(st.lists(st.tuples(st.integers(3, 9), st.integers(2, 8), st.integers(2, 6)), min_size=1, max_size=3))
    if draw(st.booleans()):
        layers[-1] = (width, *layers[-1][1:])  # no projection
    text = " + ".join(f"[{layer}] * 1" if draw(st.booleans()) else f"[{layer}]" for layer in layers)
    changes = {
        "extractor_mode": draw(st.sampled_from(["default", "layer_norm"])),
        "encoder_layers": draw(st.integers(0, 2)),
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": draw(st.integers(1, 20)),
        "encoder_attention_heads": heads,
        "pos_enc_type": draw(st.sampled_from(POSITIONS)),
        "depthwise_conv_kernel_size": draw(st.sampled_from([1, 3, 7])),
        "layer_norm_first": draw(st.booleans()),
        "conv_feature_layers": text,
        "conv_bias": draw(st.booleans()),
        "conv_pos": draw(st.integers(1, 6)),
        "conv_pos_groups": draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0])),
        "latent_vars": draw(st.integers(1, 6)),
        "latent_groups": draw(st.sampled_from([1, 2])),
        "latent_dim": draw(st.sampled_from([0, 4])),
        "final_dim": draw(st.sampled_from([0, 6])),
    }
    return {**SMALL, **changes}, tuple(layers)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configurations(), st.sampled_from(sorted(KINDS)), st.sampled_from(STYLES), st.integers(0, 2**31))
def test_random_configurations(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[dict[str, Any], tuple[tuple[int, int, int], ...]],
    kind: str,
    style: str,
    seed: int,
) -> None:
    configuration, convolutions = drawn
    state = weights(configuration, kind, convolutions, seed)
    file, folder = convert(tmp_path_factory.mktemp("random"), kind, configuration, state=state, style=style)
    field = 1
    for _, kernel, stride in reversed(convolutions):
        field = (field - 1) * stride + kernel
    waveform = torch.randn(
        field + 9 * math.prod(layer[2] for layer in convolutions),  # 10 frames
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    model = KINDS[kind].from_pretrained(folder)
    found = outputs(model, kind, waveform)
    assert len(next(iter(found.values()))) == 10
    assert difference(found, source_outputs(file, waveform)) < 1e-8
    assert kind != "wav2vec_ctc" or model.config.vocab_size == VOCABULARY
