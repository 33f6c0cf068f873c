"""LayerNorm in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.modeling.layer_norm import LayerNorm


def gradients(norm: nn.LayerNorm, x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Of x, weight and bias."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.itemsize == 2):
        out = norm(x)
    return torch.autograd.grad(out, (x, norm.weight, norm.bias), upstream)


def wide(norm: nn.LayerNorm, x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """The truth: the same numbers in float64."""
    double = nn.LayerNorm(x.shape[-1], eps=norm.eps).double()
    double.load_state_dict(norm.state_dict())
    return gradients(double, x.double(), upstream.double())


def errors(norm: nn.LayerNorm, x: Tensor, upstream: Tensor) -> list[float]:
    pairs = zip(gradients(norm, x, upstream), wide(norm, x, upstream), strict=True)
    return [float((ours - truth).norm() / truth.norm()) for ours, truth in pairs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 24), (3, 1000, 24), (5, 4001, 24)])
def test_gradients_do_not_vanish_in_long_sums(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(24)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x, upstream = torch.randn(shape).to(dtype), (0.1 * torch.randn(shape) + 0.05).to(dtype)
    of_x, of_weight, of_bias = errors(norm, x, upstream)
    assert of_x < 0.01
    assert of_weight < 1e-4
    assert of_bias < 1e-4


def test_torch_still_needs_it() -> None:
    """When this fails, torch sums in float32 by itself, and the module can go."""
    for rows in (3000, 20000):
        torch.manual_seed(0)
        x, upstream = torch.randn(rows, 24).bfloat16(), (0.1 * torch.randn(rows, 24) + 0.05).bfloat16()
        for norm in (nn.LayerNorm(24), LayerNorm(24)):
            _, of_weight, of_bias = errors(norm, x, upstream)
            print(f"{rows} rows, {type(norm).__module__}: weight {of_weight:.1e}, bias {of_bias:.1e}")
            assert (of_bias > 0.1) == (type(norm) is nn.LayerNorm)


def test_every_gradient_of_the_network_keeps_its_direction() -> None:
    """Over 4500 frames; what is nothing but rounding, such as that of the keys' biases, is left out."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    stem = {"conv_dim": [16, 16], "conv_kernel": [20, 4], "conv_stride": [20, 4], "feat_extract_norm": "layer"}
    dropouts = ("hidden_dropout", "activation_dropout", "attention_dropout", "conformer_conv_dropout")
    quiet = dict.fromkeys((*dropouts, "feat_proj_dropout", "layerdrop", "mask_time_prob"), 0.0)
    torch.manual_seed(0)
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**small, **stem, **quiet, position_embeddings_type="rotary"))
    waveforms, towards = torch.randn(3, 120_000), torch.randn(32)

    def found(half: bool) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = model.train()(waveforms).last_hidden_state
        ((out.float() * towards).sigmoid().sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    exact, half = found(False), found(True)
    largest = max(float(gradient.norm()) for gradient in exact.values())
    compared = {name: gradient for name, gradient in exact.items() if gradient.norm() > 1e-4 * largest}
    assert len(compared) > 40
    for name, gradient in compared.items():
        assert torch.cosine_similarity(gradient.flatten(), half[name].flatten(), dim=0) > 0.98, name


def test_float32_is_torchs() -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(7, 24), torch.randn(7, 24)
    for ours, theirs in zip(
        gradients(LayerNorm(24), x, upstream), gradients(nn.LayerNorm(24), x, upstream), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_frozen_weights_get_nothing() -> None:
    norm = LayerNorm(8).requires_grad_(False)
    x = torch.randn(5, 8).bfloat16().requires_grad_()
    norm(x).float().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


def test_every_norm_of_the_network_is_one() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [8, 8], "conv_kernel": [10, 4], "conv_stride": [5, 4], "feat_extract_norm": "layer"}
    more = {"add_adapter": True, "output_hidden_size": 8, "adapter_attn_dim": 4}
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**small, **convolutions, **more))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert all(isinstance(norm, LayerNorm) for norm in norms)
