"""The convolutions on (B, T, C): values and gradients are those of `conv1d`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.modeling import convolution
from wav2vec2_conformer.modeling import linear as linear_module
from wav2vec2_conformer.modeling.convolution import Depthwise, Strided, conv1d_channels_last
from wav2vec2_conformer.modeling.positions import build_conv_positions


@pytest.fixture(autouse=True, params=[False, True])
def both_kernels_for_small_ones_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and convolutions, and gradients of our own, whatever this processor would take."""
    monkeypatch.setattr(convolution, "SMALLEST_WEIGHT", 0)
    monkeypatch.setattr(convolution, "SMALLEST_DEPTHWISE", 0)
    monkeypatch.setattr(convolution, "WIDE_ONEDNN", request.param)


def operands(clips: int, length: int, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(clips, length, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, kernel, dtype=torch.float64, requires_grad=True)
    return x, weight, torch.randn(6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
@pytest.mark.parametrize("kernel", [1, 3, 15])
def test_the_depthwise_convolution_is_conv1d_also_for_clips_shorter_than_its_kernel(
    clips: int, length: int, kernel: int
) -> None:
    x, weight, bias = operands(clips, length, kernel)
    out = conv1d_channels_last(x, weight, bias, padding=kernel // 2, groups=6)
    assert out.grad_fn is not None
    assert out.grad_fn.name() == "DepthwiseBackward"
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=6).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    same_gradients(out, expected, (x, weight, bias))


@pytest.mark.parametrize(
    ("kernel", "stride", "length"), [(3, 2, 21), (2, 2, 8), (5, 2, 5), (4, 3, 20), (2, 5, 30), (3, 1, 9)]
)
def test_the_strided_convolution_is_conv1d(kernel: int, stride: int, length: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    out = conv1d_channels_last(x, weight, bias, stride=stride)
    assert out.grad_fn is not None
    assert out.grad_fn.name() == "StridedBackward"
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    same_gradients(out, expected, (x, weight, bias))


def same_gradients(out: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    gradient = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_have_gradients_and_work_under_functional_transforms() -> None:
    x, weight, bias = operands(2, 9, 5)
    assert torch.autograd.gradgradcheck(Depthwise.apply, (x, weight, bias))
    wide = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: Strided.apply(x, weight, None, 2), (x, wide))

    def energy(kernel: Tensor) -> Tensor:
        return conv1d_channels_last(x, kernel, padding=2, groups=6).square().sum()

    (expected,) = torch.autograd.grad(energy(weight), weight)
    torch.testing.assert_close(torch.func.grad(energy)(weight.detach()), expected)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(15, 1, 6), (3, 2, 1)])
def test_under_autocast_gradients_come_in_the_types_of_the_weights(kernel: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 6, requires_grad=True)
    weight, bias = torch.randn(6, 6 // groups, kernel, requires_grad=True), torch.randn(6, requires_grad=True)
    given = {"stride": stride, "groups": groups, "padding": kernel // 2 if groups > 1 else 0}
    exact = conv1d_channels_last(x, weight, bias, **given)
    gradient = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, (x, weight, bias), gradient)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = conv1d_channels_last(x, weight, bias, **given)
    assert rounded.dtype == torch.bfloat16
    for ours, theirs in zip(
        torch.autograd.grad(rounded, (x, weight, bias), gradient.bfloat16()), expected, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "groups"),
    [(16, 4, 4, 1), (24, 20, 20, 1), (2, 2, 3, 1), (8, 8, 1, 1), (16, 8, 4, 1), (24, 20, 8, 1), (256, 20, 1, 32)],
)
@pytest.mark.parametrize("frames", [100, 1000, 6000])
def test_few_channels_are_right_in_bfloat16(channels: int, kernel: int, stride: int, groups: int, frames: int) -> None:
    """oneDNN's own are not, on processors with AMX (torch 2.13): every number is another one."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, frames, channels), torch.randn(32, channels // groups, kernel)
    x.requires_grad_()
    weight.requires_grad_()
    exact = conv1d_channels_last(x, weight, stride=stride, groups=groups)
    expected = torch.autograd.grad(exact.square().sum(), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        half = conv1d_channels_last(x, weight, stride=stride, groups=groups)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.01 * exact.norm()
    for got, wanted in zip(torch.autograd.grad(half.float().square().sum(), (x, weight)), expected, strict=True):
        assert (got - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize(("width", "groups"), [(96, 16), (160, 16), (256, 32), (32, 2)])
def test_convolutional_positions_are_right_in_bfloat16(width: int, groups: int) -> None:
    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig(
        hidden_size=width, num_attention_heads=2, position_embeddings_type="convolutional",
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=groups,
    )  # fmt: skip
    positions, x = build_conv_positions(config), torch.randn(2, 300, width)
    with torch.no_grad():
        for parameter in positions.parameters():
            parameter.normal_()
        exact = positions(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = positions(x)
    assert (half.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("shape", [(2, 300), (600,), (3, 2, 100)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_wide_linear_layer_is_torchs(
    monkeypatch: pytest.MonkeyPatch, wide: bool, shape: tuple[int, ...], with_bias: bool
) -> None:
    """By oneDNN, also where a processor has a faster way: as a product, and as a convolution."""
    monkeypatch.setattr(linear_module, "ONEDNN", True)
    monkeypatch.setattr(linear_module, "WIDE_ONEDNN", wide)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 1024), torch.randn(1024, 1024), torch.randn(1024) if with_bias else None
    calls = []
    onednn = linear_module.onednn
    monkeypatch.setattr(linear_module, "onednn", lambda *inputs: calls.append(1) or onednn(*inputs))
    with torch.no_grad():
        got = linear_module.linear(x, weight, bias)
        assert calls
        torch.testing.assert_close(got, F.linear(x, weight, bias), atol=1e-3, rtol=1e-4)
        # Neither where somebody else's kind of weight decides what is computed, nor with gradients.
        linear_module.linear(x, weight.as_subclass(OtherKind), bias)
        with torch.backends.mkldnn.flags(enabled=False):
            linear_module.linear(x, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            linear_module.linear(x, weight, bias)
        linear_module.linear(x.double(), weight.double(), None)
        linear_module.linear(x[:0], weight, bias)
    linear_module.linear(x.requires_grad_(), weight, bias)
    assert len(calls) == 1


class OtherKind(Tensor):
    """As libraries put them in a weight's place."""
