"""Converted checkpoints of fairseq against stored numbers, by three ways that share no code.

`golden_fairseq.py` made the numbers by the arithmetic of the checkpoint's own keys. Here the converted models and
transformers' own modules must give them again, and the formula behind the weights must still be the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from checkpoints_fairseq import STYLES, write_dictionary
from golden_fairseq import GOLDEN, KINDS, NETWORKS, Formula, compute, waveform, write_checkpoint
from wav2vec2_conformer import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.checkpoints.fairseq import convert_fairseq

from .random_models import relative_difference

MODELS = {"wav2vec2": Wav2Vec2ConformerForPreTraining, "wav2vec_ctc": Wav2Vec2ConformerForCTC}
FILES = [*({"style": style} for style in STYLES), {"style": "args", "legacy": True}]

each_network = pytest.mark.parametrize("network", NETWORKS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def golden(network: str, kind: str) -> dict[str, Tensor]:
    prefix = f"{network}.{kind}."
    found = {key.removeprefix(prefix): tensor for key, tensor in load_file(GOLDEN).items() if key.startswith(prefix)}
    assert found.keys() == ({"logits"} if kind == "wav2vec_ctc" else {"projected_states", "projected_quantized_states"})
    return found


def convert(folder: Path, network: str, kind: str, **options: Any) -> Path:
    file = write_checkpoint(folder / "checkpoint.pt", network, kind, **options)
    dictionary = write_dictionary(folder / "dict.ltr.txt") if kind == "wav2vec_ctc" else None
    return convert_fairseq(file, folder / "model", dictionary).output


def differences(model: Any, expected: dict[str, Tensor]) -> float:
    """The largest difference of what a model computes, in units of the largest number."""
    with torch.no_grad():
        output = model.eval()(waveform()[None].to(model.dtype))
    return max(relative_difference(getattr(output, name)[0], tensor) for name, tensor in expected.items())


def test_the_formula_is_the_one_that_made_them() -> None:
    """To the last bit, whatever the versions of torch and numpy."""
    numbers = Formula()(10_000)
    assert numbers[:4].tolist() == [1.3278275728225708, -0.23719406127929688, -1.6404814720153809, 1.6311829090118408]
    digest = hashlib.sha256(numbers.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "7df41113e201c6635f0c0a36b6a394107bdcae6413c48dac37cf21b2883c5a43"


def test_the_files_size() -> None:
    assert GOLDEN.stat().st_size < 200_000


@each_network
@each_kind
@pytest.mark.parametrize("file", FILES, ids=lambda file: "-".join(map(str, file.values())))
def test_converted_models(tmp_path: Path, network: str, kind: str, file: dict[str, Any]) -> None:
    """All ways in which fairseq wrote its files give the same model; 1e-5 is what float32 rounds."""
    folder = convert(tmp_path, network, kind, **file)
    expected = golden(network, kind)
    assert differences(MODELS[kind].from_pretrained(folder), expected) < 1e-5
    assert differences(MODELS[kind].from_pretrained(folder).double(), expected) < 1e-10


@each_network
@each_kind
def test_the_arithmetic(tmp_path: Path, network: str, kind: str) -> None:
    expected = golden(network, kind)
    found = compute(write_checkpoint(tmp_path / "checkpoint.pt", network, kind))
    assert max(relative_difference(found[name], tensor) for name, tensor in expected.items()) < 1e-12


class PositionsThenNorm(nn.Module):
    """What fairseq's base models do before the first block."""

    def __init__(self, positions: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.positions, self.norm = positions, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.positions(x))  # type: ignore[no-any-return]


@each_network
@each_kind
def test_transformers_modules(tmp_path: Path, network: str, kind: str) -> None:
    """The second route to the same numbers. Base models are put together from its modules in fairseq's order."""
    folder = convert(tmp_path, network, kind)
    peer, info = getattr(transformers, MODELS[kind].__name__).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    encoder = peer.wav2vec2_conformer.encoder
    if network == "base":
        encoder.dropout = PositionsThenNorm(encoder.pos_conv_embed, encoder.layer_norm)
        encoder.layer_norm = nn.Identity()
    assert differences(peer.double(), golden(network, kind)) < 1e-10


@each_kind
@pytest.mark.parametrize("field", ["encoder_layer_norm", "position_embeddings_type"])
def test_another_order_or_other_positions_are_seen(tmp_path: Path, kind: str, field: str) -> None:
    """The numbers depend on what they are there for."""
    folder, change = convert(tmp_path, "base", kind), {"encoder_layer_norm": "after", "position_embeddings_type": None}
    model = MODELS[kind].from_pretrained(folder, **{field: change[field]})
    assert differences(model.double(), golden("base", kind)) > 0.01
