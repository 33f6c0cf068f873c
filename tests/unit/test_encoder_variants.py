"""What fairseq's models have and transformers' have not: the norm before the blocks, no projection, conv positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

SMALL: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_dim": (10, 12),
    "conv_kernel": (8, 3),
    "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 3,
    "conv_depthwise_kernel_size": 5,
    "layerdrop": 0.0,
}
VARIANTS = {
    "encoder_layer_norm": {"encoder_layer_norm": "before"},
    "feat_projection": {"feat_projection": False},
    "convolutional": {"position_embeddings_type": "convolutional"},
    "odd kernel": {"position_embeddings_type": "convolutional", "num_conv_pos_embeddings": 3},
    "all": {
        "encoder_layer_norm": "before",
        "feat_projection": False,
        "position_embeddings_type": "convolutional",
        "feat_extract_norm": "layer",
    },
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def build(**settings: Any) -> Wav2Vec2ConformerForCTC:
    torch.manual_seed(0)
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**SMALL, **settings})).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for every part to matter
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def clips(*lengths: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(len(lengths), max(lengths), generator=generator, dtype=torch.float64)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_values": values, "attention_mask": mask.long()}


@torch.no_grad()
def test_the_norm_before_the_blocks() -> None:
    encoder = build(encoder_layer_norm="before", position_embeddings_type=None).wav2vec2_conformer.encoder
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    expected = encoder.layer_norm(x)
    output = encoder(x, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states[0], expected)
    for block in encoder.layers:
        expected = block(expected, None)[0]
    torch.testing.assert_close(output.last_hidden_state, expected)
    torch.testing.assert_close(output.hidden_states[-1], expected)
    other = encoder.layer_norm(expected)
    assert (other - expected).abs().max() > 0.1


@torch.no_grad()
def test_no_projection() -> None:
    model = build(feat_projection=False).wav2vec2_conformer
    assert not [name for name in model.state_dict() if "projection.projection" in name]
    features = torch.randn(1, 5, 12, dtype=torch.float64)
    hidden_states, normed = model.feature_projection(features)
    torch.testing.assert_close(hidden_states, normed)
    torch.testing.assert_close(normed, model.feature_projection.layer_norm(features))
    assert isinstance(model.get_input_embeddings(), torch.nn.Module)


@pytest.mark.parametrize("kernel", [3, 4])
@torch.no_grad()
def test_convolutional_positions_are_torchs_weight_normed_convolution(kernel: int) -> None:
    model = build(position_embeddings_type="convolutional", num_conv_pos_embeddings=kernel)
    positions = model.wav2vec2_conformer.encoder.pos_conv_embed
    conv = torch.nn.Conv1d(12, 12, kernel, padding=kernel // 2, groups=3).double()
    conv = torch.nn.utils.parametrizations.weight_norm(conv, dim=2)
    conv.load_state_dict(positions.conv.state_dict())
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    expected = F.gelu(conv(x.transpose(1, 2))[..., :9]).transpose(1, 2)
    torch.testing.assert_close(positions(x), expected)
    encoder = model.wav2vec2_conformer.encoder
    entering = encoder(x, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(entering, x + expected)


@each_variant
def test_batched_is_alone(name: str) -> None:
    model = build(**VARIANTS[name])
    batch = clips(200, 97, 3)
    with torch.no_grad():
        together = model(**batch).logits
        for row, length in enumerate((200, 97, 3)):
            alone = model(batch["input_values"][row : row + 1, :length]).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-10)


@each_variant
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = build(**VARIANTS[name]).float()
    model.save_pretrained(tmp_path)
    again, info = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    values = clips(150)["input_values"].float()
    with torch.no_grad():
        assert torch.equal(again.eval()(values).logits, model(values).logits)


@each_variant
def test_everything_learns(name: str) -> None:
    """Every parameter gets a gradient, the positions' included, also with gradient checkpointing."""
    model = build(**VARIANTS[name]).train()
    model.gradient_checkpointing_enable()
    model(**clips(200, 97), labels=torch.tensor([[3, 4], [5, -100]])).loss.backward()
    still = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert still in ([], ["wav2vec2_conformer.masked_spec_embed"])


def test_initial_values_of_convolutional_positions() -> None:
    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig(
        **{**SMALL, "hidden_size": 48, "conv_dim": (10, 48)}, position_embeddings_type="convolutional"
    )
    weight = Wav2Vec2ConformerForCTC(config).wav2vec2_conformer.encoder.pos_conv_embed.conv.parametrizations["weight"]
    assert weight.original1.std().item() == pytest.approx(2 / (4 * 48) ** 0.5, rel=0.1)
    torch.testing.assert_close(weight(), weight.original1)


def test_missing_convolutional_positions_are_an_error(tmp_path: Path) -> None:
    build(position_embeddings_type="convolutional").float().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if "pos_conv_embed" not in key}
    assert len(kept) == len(tensors) - 3
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"3 weights of the network are missing .*pos_conv_embed"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)


def test_old_names_of_weight_norm_load(tmp_path: Path) -> None:
    model = build(position_embeddings_type="convolutional")
    state = model.state_dict()
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in state.items()
    }
    assert old.keys() != state.keys()
    other = Wav2Vec2ConformerForCTC(model.config).double()
    other.load_state_dict(old)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
