"""Fewer bits: integer products against their definition, rows for themselves, and refusals of what goes wrong."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor, nn

from wav2vec2_conformer import AudioError, Transcriber, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, transcription
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.compute_types import COMPUTE_TYPES, Conversion, convert, convert_checked
from wav2vec2_conformer.modeling import packed, quantized, row_blocks
from wav2vec2_conformer.modeling.activation import Activation
from wav2vec2_conformer.modeling.conformer import ConvolutionModule, FeedForward
from wav2vec2_conformer.modeling.feature_encoder import FeatureEncoder
from wav2vec2_conformer.modeling.linear import Linear
from wav2vec2_conformer.modeling.packed import PackedLinear, can_pack, packed_feed_forward
from wav2vec2_conformer.modeling.quantized import (
    PackedProduct,
    PackedShiftedProduct,
    PlainProduct,
    QuantizedLinear,
    integer_product,
    linear_layers,
    quantized_feed_forward,
)
from wav2vec2_conformer.processing import DEFAULT_MODEL, load_processor

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.wav"
NARROW = [name for name in COMPUTE_TYPES if name != "float32"]


def default_model() -> Any:
    return Wav2Vec2ConformerForCTC.from_pretrained(DEFAULT_MODEL).eval()


def sample() -> Tensor:  # (1, N)
    waveform, _ = soundfile.read(SAMPLE, dtype="float32")
    values = torch.from_numpy(waveform)[None]
    return (values - values.mean()) / values.std()


def off(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    return float((got.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture(params=[PackedProduct, PackedShiftedProduct, PlainProduct])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All ways to multiply integers, whichever this machine would take."""
    if request.param is not PlainProduct and integer_product() is PlainProduct:
        pytest.skip("this build of torch, or this processor, has no packed product of integers")
    monkeypatch.setattr(quantized, "integer_product", lambda: request.param)
    return request.param


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("bias", [True, False])
def test_integer_product_is_its_definition(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 24, bias=bias)
    x = 5 * torch.randn(2, 7, 48)
    x[1, 3] = 0  # a row without a scale
    with torch.inference_mode():
        got = QuantizedLinear(linear.weight, linear.bias)(x)
    expected = torch.zeros(2, 7, 24, dtype=torch.float64)
    weight, rows = linear.weight.detach().double(), x.double()
    for output in range(24):
        unit = weight[output].abs().max() / 127
        for clip in range(2):
            for frame in range(7):
                own = rows[clip, frame].abs().max() / 127
                if own > 0:
                    whole = torch.round(rows[clip, frame] / own) @ torch.round(weight[output] / unit)
                    expected[clip, frame, output] = whole * own * unit
                if bias:
                    expected[clip, frame, output] += linear.bias.detach().double()[output]
    # A number within rounding of a half may fall to either side: a step of the integers at most.
    torch.testing.assert_close(got.double(), expected, atol=0.02, rtol=0)
    assert off(got, linear(x).detach()) < 0.02


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("block", [1, 100, 1 << 19])  # numbers: a row, two rows, everything at once
def test_layers_in_a_row_are_those_one_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several layers read is quantized once, and what lies between two is not written down: the same numbers."""
    torch.manual_seed(0)
    first, second, wide = (QuantizedLinear(torch.randn(48, 48), torch.randn(48)) for _ in range(3))
    x, y = torch.randn(2, 7, 48), torch.randn(2, 7, 48)
    plain = nn.Linear(48, 5)
    with torch.inference_mode():
        alone = first(x), plain(x), second(x), wide(y)
        through = second(torch.relu(first(x)))
        monkeypatch.setattr(row_blocks, "BLOCK", block)
        together = linear_layers([(first, x), (plain, x), (second, x), (wide, y)])
        for got, expected in zip(together, alone, strict=True):
            assert torch.equal(got, expected)
        assert torch.equal(quantized_feed_forward(first, torch.relu, second, x), through)


@pytest.mark.usefixtures("kernel")
def test_integers_are_copied_and_pickled_and_have_no_state() -> None:
    torch.manual_seed(0)
    layer, x = QuantizedLinear(torch.randn(24, 48), torch.randn(24)), torch.randn(7, 48)
    check_copies(layer, x)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer).double()(x), layer(x))
    with pytest.raises(RuntimeError, match="a model in int8 runs on a CPU, and its input is on meta"):
        layer(x.to("meta"))


def check_copies(layer: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), layer(x))
    for use in (layer.state_dict, lambda: layer.load_state_dict({})):
        with pytest.raises(ValueError, match=r"is not saved, and has no state to load: keep the float32 model"):
            use()


packs = pytest.mark.skipif(not can_pack(), reason="this processor, or build of torch, packs no weights in bfloat16")


@packs
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layer_is_its_definition(bias: bool) -> None:
    """Products of what bfloat16 makes of weights and inputs, rounded once."""
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 24, bias=bias), (5 * torch.randn(3, 70, 48)).to(torch.bfloat16)
    layer = PackedLinear(linear.weight, linear.bias)
    expected = x.double() @ linear.weight.detach().to(torch.bfloat16).double().t()
    expected = expected + linear.bias.detach().double() if bias else expected
    with torch.inference_mode():
        got = layer(x)
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)
        assert layer(x[:, :0]).shape == (3, 0, 24)
    check_copies(layer, x)
    with pytest.raises(RuntimeError, match="a packed model cannot be trained"):
        layer(x.requires_grad_())
    for other in (x.detach().float(), x.detach().to("meta")):
        with pytest.raises(RuntimeError, match=r"computes in bfloat16 on a CPU, and its input is torch.* on "):
            layer(other)


def test_a_build_whose_packed_products_are_missing_or_wrong_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, weight: Tensor) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    def wrong(self: Any, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.outputs, dtype=torch.bfloat16)

    for kind, name, stand_in in ((packed.PackedWeight, "__init__", missing), (PackedLinear, "forward", wrong)):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, stand_in)
            assert can_pack.__wrapped__() is False


@pytest.mark.parametrize("compute_type", ["int8", "bfloat16"])
def test_a_converted_model_is_copied_and_pickled_and_used_with_gradients_on(compute_type: str) -> None:
    model = default_model()
    convert(model, compute_type)
    x = sample().to(model.dtype)
    with torch.inference_mode():
        expected = model(x).logits
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x).logits, expected)
    if model.is_converted:
        with pytest.raises(ValueError, match="was converted already; load it anew"):
            convert(model, "bfloat16")


@packs
@pytest.mark.parametrize("activation", ["swish", "gelu"])
@pytest.mark.parametrize("block", [1, 100, 1 << 20])  # numbers: a row, two rows, everything at once
def test_packed_feed_forward_is_its_layers(activation: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first, second = PackedLinear(torch.randn(48, 24), torch.randn(48)), PackedLinear(torch.randn(24, 48), None)
    x = torch.randn(2, 7, 24, dtype=torch.bfloat16)
    monkeypatch.setattr(packed, "BLOCK", block)
    with torch.inference_mode():
        got = packed_feed_forward(first, Activation(activation), second, x)
        expected = second(Activation(activation)(first(x)))
    assert got.shape == expected.shape
    assert off(got, expected) < 0.01  # SiLU before and after rounding


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_weights_laid_out_once_give_the_same_features(norm: str) -> None:
    def encoder(seed: int) -> FeatureEncoder:
        torch.manual_seed(seed)
        return FeatureEncoder(Wav2Vec2ConformerConfig(feat_extract_norm=norm)).eval()

    plain, kept, other = encoder(0), encoder(0), encoder(1)
    x = torch.randn(2, 20_000)
    kept.keep_matrices()
    assert any(layer.kept_matrix is not None for layer in kept.conv_layers)
    assert list(kept.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        expected = plain(x)
        assert torch.equal(kept(x), expected)
        assert off(copy.deepcopy(kept).to(torch.bfloat16)(x.to(torch.bfloat16)), expected) < 0.05
        kept.load_state_dict(other.state_dict())
        assert torch.equal(kept(x), other(x))


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("batch", [1, 2])
def test_inference_under_autocast(norm: str, batch: int) -> None:
    """As a training in bfloat16 evaluates."""
    torch.manual_seed(0)
    encoder = FeatureEncoder(Wav2Vec2ConformerConfig(feat_extract_norm=norm)).eval()
    x = torch.randn(batch, 60_000)  # two blocks
    with torch.no_grad():
        expected = encoder(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert off(encoder(x), expected) < 0.05


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.*:DeprecationWarning")
def test_a_trace_is_for_other_lengths() -> None:
    encoder = FeatureEncoder(Wav2Vec2ConformerConfig(feat_extract_norm="group")).eval()
    x, y = torch.randn(1, 20_000), torch.randn(2, 30_000)
    with torch.no_grad():
        traced = torch.jit.trace(encoder, (x,))
        torch.testing.assert_close(traced(y), encoder(y), rtol=1e-4, atol=1e-5)


def test_what_torch_takes_by_default_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = integer_product.__wrapped__()
    monkeypatch.setattr(quantized, "integer_product", integer_product.__wrapped__)
    weight, x = torch.randn(24, 48), torch.randn(7, 48)
    before = QuantizedLinear(weight, None)(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert integer_product.__wrapped__() is expected
        assert torch.equal(QuantizedLinear(weight, None)(x), before)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_build_without_the_packed_product_takes_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, weight: Tensor) -> None:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_prepack'")

    def wrong(self: Any, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.zeros(len(rows), len(scale))

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    for name, stand_in in (("__init__", missing), ("__call__", wrong)):  # of both packed ones
        with monkeypatch.context() as patch:
            patch.setattr(PackedProduct, name, stand_in)
            assert integer_product.__wrapped__() is PlainProduct


@pytest.mark.parametrize(
    ("tiles", "vnni", "expected"),
    [(True, True, PackedProduct), (False, True, PackedShiftedProduct), (False, False, PlainProduct)],
)
def test_rows_are_signed_only_where_the_processor_multiplies_such(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vnni: bool, expected: type[PlainProduct]
) -> None:
    """oneDNN gives right products of signed rows elsewhere, too, a thousand times slower: no product would tell."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(quantized, "is_right", lambda *_: True)
    assert integer_product.__wrapped__() is expected


@pytest.mark.usefixtures("kernel")
def test_rows_do_not_depend_on_each_other() -> None:
    torch.manual_seed(0)
    layer = QuantizedLinear(torch.randn(40, 64), torch.randn(40))
    x = torch.randn(3, 50, 64)
    x[2] *= 1e4
    with torch.inference_mode():
        together = layer(x)
        for clip in range(3):
            assert torch.equal(layer(x[clip : clip + 1])[0], together[clip])
        assert torch.equal(layer(x[:, :9]), together[:, :9])
        assert layer(x[:, :0]).shape == (3, 0, 40)


@pytest.mark.parametrize(
    ("compute_type", "kind"),
    [("int8", QuantizedLinear), pytest.param("bfloat16", PackedLinear, marks=packs)],
)
@pytest.mark.parametrize("positions", ["relative", "rotary", None])
def test_all_linear_layers_of_the_blocks_are_replaced(
    positions: str | None, compute_type: str, kind: type[nn.Module], tmp_path: Path
) -> None:
    config = Wav2Vec2ConformerConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, vocab_size=8,
        conv_dim=[32, 32], conv_kernel=[160, 4], conv_stride=[80, 4], position_embeddings_type=positions,
    )  # fmt: skip
    model = Wav2Vec2ConformerForCTC(config).eval()
    convert(model, compute_type)
    left = [name for name, module in model.base_model.encoder.layers.named_modules() if isinstance(module, Linear)]
    assert left == []
    kinds = {type(module).__name__ for module in model.base_model.encoder.layers.modules()}
    assert kind.__name__ in kinds
    assert FeedForward.__name__ in kinds
    assert ConvolutionModule.__name__ in kinds
    found = sum(isinstance(module, kind) for module in model.modules())
    assert found == 2 * (4 + 4 + 2 + (positions == "relative"))
    with torch.inference_mode():
        assert model(torch.randn(1, 3200).to(model.dtype)).logits.isfinite().all()
    with pytest.raises(ValueError, match="is not saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("compute_type", NARROW)
def test_the_carried_model_hears_the_same(compute_type: str) -> None:
    expected = default_model()
    converted = default_model()
    conversion = convert_checked(converted, compute_type)
    assert conversion is not None
    assert 0 < conversion.error < 0.05
    with torch.inference_mode():
        exact = expected(sample()).logits
        got = converted(sample().to(converted.dtype)).logits
    assert 0 < off(got, exact) < 0.03
    text = Transcriber.from_pretrained(compute_type=compute_type).transcribe(SAMPLE).text
    assert text == "ENTER SEVEN FOUR ONE NINE"


@pytest.mark.parametrize("compute_type", NARROW)
def test_results_do_not_depend_on_padding_or_other_clips(compute_type: str) -> None:
    """Up to what rounding makes of the last bits: far less than the rounding itself."""
    model = default_model()
    convert(model, compute_type)
    clip = sample()
    batch = torch.zeros(3, 2 * clip.shape[1])
    batch[0] = torch.randn(batch.shape[1], generator=torch.Generator().manual_seed(1))
    batch[1, : clip.shape[1]] = clip[0]
    batch[1, clip.shape[1] :] = float("nan")
    batch[2, :5000] = 1e3
    mask = torch.zeros(3, batch.shape[1], dtype=torch.long)
    for row, length in enumerate((batch.shape[1], clip.shape[1], 5000)):
        mask[row, :length] = 1
    with torch.inference_mode():
        alone = model(clip.to(model.dtype)).logits[0].float()
        together = model(batch.to(model.dtype), mask).logits[1, : alone.shape[0]].float()
    assert off(together, alone) < 0.01
    assert torch.equal(together.argmax(-1), alone.argmax(-1))


@pytest.mark.parametrize("compute_type", ["float32", "float16"])
def test_what_is_measured_against_float32_was_in_float32(compute_type: str) -> None:
    """Whatever the model was given in."""
    model = default_model().half()
    conversion = convert_checked(model, compute_type)
    assert model.dtype == getattr(torch, compute_type)
    assert (conversion is None) == (compute_type == "float32")
    assert conversion is None or conversion.error > 0


def test_speeds_that_are_the_same_by_measure_are_not_told_apart() -> None:
    said = {speed: str(Conversion("int8", speed, 0.01)) for speed in (0.8, 0.95, 1.1, 2.0)}
    assert said[0.8].endswith("; float32 is faster here")
    assert said[0.95].endswith("; float32 is about as fast here")
    assert said[1.1].endswith("; float32 is about as fast here")
    assert said[2.0] == "int8: 2.00 times as fast as float32, hidden states 1.0% off"


def test_damaged_weights_give_an_error_and_no_empty_text() -> None:
    model = default_model()
    with torch.no_grad():
        model.lm_head.weight[3, 5] = torch.nan
    with pytest.raises(AudioError, match=r"computes inf or NaN of it in float32: .* the weights are damaged"):
        Transcriber(model, load_processor(DEFAULT_MODEL)).transcribe(SAMPLE)


def test_a_model_that_integers_would_change_is_refused() -> None:
    model = default_model()
    with torch.no_grad():  # the same function in float32; in integers one channel leaves nothing of the others
        for block in model.base_model.encoder.layers:
            block.ffn1_layer_norm.weight[3] *= 1e4
            block.ffn1_layer_norm.bias[3] *= 1e4
            block.ffn1.intermediate_dense.weight[:, 3] /= 1e4
    with pytest.raises(
        ValueError, match=r"in int8 this model's hidden states are \d+% off .* load it anew and use float32"
    ):
        convert_checked(model, "int8")


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = default_model()
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16, int8, got 'int4'"):
        convert(model, "int4")
    with pytest.raises(ValueError, match="quantized to 'int8', got 'int4'"):
        model.quantize("int4")
    model.quantize("int8")
    with pytest.raises(ValueError, match="was converted already; load it anew to quantize it"):
        model.quantize("int8")
    with pytest.raises(ValueError, match="is not saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model(sample().requires_grad_())
    with pytest.raises(SystemExit):
        main(["transcribe", "--compute-type", "int4", str(SAMPLE)])
    assert "invalid choice: 'int4'" in capsys.readouterr().err


def test_casting_keeps_the_scales() -> None:
    layer = QuantizedLinear(torch.randn(8, 16), torch.randn(8))
    before = layer.scale.clone()
    layer.to(torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.scale, before)


def test_the_command_says_what_a_type_gains_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--compute-type", "int8", str(SAMPLE)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "ENTER SEVEN FOUR ONE NINE\n"
    assert "int8: " in shown.err
    assert "times as fast as float32, hidden states" in shown.err


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
def test_kernels_meet_few_shapes(compute_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fewer bits, windows are padded to one of a few lengths, masked, and whole windows are left as they are."""
    model = default_model()
    convert(model, compute_type)
    transcriber = Transcriber(model, load_processor(DEFAULT_MODEL), batch_seconds=1.0)
    seen: list[tuple[int, int]] = []  # samples with padding, and without
    outputs = transcriber._outputs

    def note(values: Tensor, mask: Tensor) -> Tensor:
        seen.append((values.shape[1], int(mask.sum())))
        return outputs(values, mask)

    monkeypatch.setattr(transcriber, "_outputs", note)
    monkeypatch.setattr(transcription, "WINDOW", 2.0)
    monkeypatch.setattr(transcription, "OVERLAP", 1.0)
    waveform = sample()[0].numpy()
    lengths = [16_001, 17_000, 17_777, 32_000, 33_000]
    assert len(list(transcriber.transcribe_many([waveform[:samples] for samples in lengths]))) == len(lengths)
    assert sorted(real for _, real in seen) == [16_001, 17_000, 17_000, 17_777, 32_000, 32_000]
    padded = {real: samples for samples, real in seen}
    if compute_type == "float32":
        assert all(samples == real for real, samples in padded.items())
    else:
        assert padded == {16_001: 16_384, 17_000: 18_432, 17_777: 18_432, 32_000: 32_000}
