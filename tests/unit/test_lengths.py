"""Length arithmetic: what it says is what the convolutions give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2ConformerConfig as PeerConfig
from transformers import Wav2Vec2ConformerModel as PeerModel

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.lengths import (
    adapter_lengths,
    conv_layers,
    conv_length,
    feature_lengths,
    frame_mask,
    frames_of,
    reference_frame_mask,
)
from wav2vec2_conformer.modeling.adapter import StridedAdapter

TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": (4,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 3,
}
# samples -> frames of the released geometry: 400 samples for the first frame, 320 for each further one
KNOWN = {0: 0, 1: 0, 9: 0, 10: 0, 399: 0, 400: 1, 401: 1, 719: 1, 720: 2, 16000: 49, 160000: 499}


def conv_outputs(length: int, kernel: int, stride: int, padding: int = 0) -> int:
    """What torch makes of `length` inputs; no shape is 0 outputs."""
    if length + 2 * padding < kernel:
        return 0
    x = torch.empty(1, 1, length, device="meta")
    return torch.nn.functional.conv1d(x, torch.empty(1, 1, kernel, device="meta"), None, stride, padding).shape[-1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 400), st.integers(1, 12), st.integers(1, 7), st.integers(0, 3))
def test_one_convolution(length: int, kernel: int, stride: int, padding: int) -> None:
    expected = conv_outputs(length, kernel, stride, padding)
    assert conv_length(length, kernel, stride, padding) == expected
    assert conv_length(torch.tensor([length]), kernel, stride, padding).tolist() == [expected]


layers = st.lists(st.tuples(st.integers(1, 10), st.integers(1, 5)), min_size=1, max_size=7)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 3000), layers)
def test_feature_encoder_of_any_geometry(samples: int, layers: list[tuple[int, int]]) -> None:
    expected = samples
    for kernel, stride in layers:
        expected = conv_outputs(expected, kernel, stride) if expected else 0
    assert feature_lengths(samples, layers) == expected
    assert feature_lengths(torch.tensor([[samples]]), layers).tolist() == [[expected]]


def test_released_geometry() -> None:
    config = Wav2Vec2ConformerConfig()
    assert {samples: frames_of(samples, config) for samples in KNOWN} == KNOWN
    assert frames_of(torch.tensor(list(KNOWN)), config).tolist() == list(KNOWN.values())
    assert isinstance(frames_of(400, config), int)
    assert conv_layers(config) == [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize("samples", [0, 1, 9, 10, 399, 400, 401, 719, 720, 2000])
@pytest.mark.parametrize("adapter", [False, True])
def test_model_has_as_many_frames(samples: int, adapter: bool) -> None:
    config = Wav2Vec2ConformerConfig(**TINY, add_adapter=adapter)
    with torch.device("meta"):
        model = Wav2Vec2ConformerModel(config).eval()
        outputs = model(torch.empty(1, samples))
    assert outputs.last_hidden_state.shape[1] == frames_of(samples, config)
    assert outputs.extract_features.shape[1] == frames_of(samples, config, add_adapter=False)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_adapter_lengths_are_the_adapters(kernel: int, stride: int, count: int) -> None:
    config = Wav2Vec2ConformerConfig(
        **TINY, add_adapter=True, adapter_kernel_size=kernel, adapter_stride=stride, num_adapter_layers=count
    )
    with torch.device("meta"):
        adapter = StridedAdapter(config)
        given_frames = list(range(21))
        frames = [adapter(torch.empty(1, length, 8)).shape[1] for length in given_frames]
    assert [adapter_lengths(length, config) for length in given_frames] == frames
    assert adapter_lengths(torch.tensor(given_frames), config).tolist() == frames
    assert frames[0] == 0  # an empty clip stays empty


def test_adapter_is_reckoned_only_where_there_is_one() -> None:
    config = Wav2Vec2ConformerConfig(**TINY, add_adapter=True)
    assert frames_of(16000, config) == 7  # 49 -> 25 -> 13 -> 7
    assert frames_of(16000, config, add_adapter=False) == 49
    assert frames_of(16000, Wav2Vec2ConformerConfig(**TINY)) == 49
    assert frames_of(16000, Wav2Vec2ConformerConfig(**TINY), add_adapter=True) == 7


def test_frame_mask() -> None:
    mask = frame_mask(torch.tensor([0, 2, 4, 9]), 4)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[False] * 4, [True, True, False, False], [True] * 4, [True] * 4]
    assert frame_mask(torch.tensor([0, 3]), 0).shape == (2, 0)


def both(**values: Any) -> tuple[Wav2Vec2ConformerModel, PeerModel]:
    with torch.device("meta"):
        ours = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**{**TINY, **values}))
        values.pop("padding", None)
        return ours, PeerModel(PeerConfig(**{**TINY, **values}))


def test_output_lengths_of_the_model() -> None:
    ours, peer = both(add_adapter=True)
    scalar = ours._get_feat_extract_output_lengths(16000)
    assert isinstance(scalar, torch.Tensor)
    assert scalar.shape == ()
    assert scalar.item() == 7
    assert ours._get_feat_extract_output_lengths(16000, add_adapter=False).item() == 49
    samples = torch.arange(400, 20000, 97)
    for adapter in (None, False, True):
        expected = peer._get_feat_extract_output_lengths(samples, add_adapter=adapter)
        assert torch.equal(ours._get_feat_extract_output_lengths(samples, add_adapter=adapter), expected)
    short = torch.tensor([0, 1, 10, 399])
    assert ours._get_feat_extract_output_lengths(short, add_adapter=False).tolist() == [0] * 4  # never negative
    assert ours._get_feat_extract_output_lengths(short, add_adapter=True).tolist() == [0] * 4
    assert ours._get_feat_extract_output_lengths(0, add_adapter=False).item() == 0


@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
def test_reference_padding_reckons_with_kernel_1(kernel: int) -> None:
    ours, peer = both(add_adapter=True, adapter_kernel_size=kernel, padding="reference")
    samples = torch.arange(400, 20000, 97)
    expected = peer._get_feat_extract_output_lengths(samples, add_adapter=True)
    assert torch.equal(ours._get_feat_extract_output_lengths(samples, add_adapter=True), expected)
    true, _ = both(add_adapter=True, adapter_kernel_size=kernel)
    assert not torch.equal(true._get_feat_extract_output_lengths(samples), expected)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("padding", ["invariant", "reference"])
def test_feature_vector_attention_mask(adapter: bool, padding: str) -> None:
    ours, peer = both(add_adapter=adapter, padding=padding)
    samples = torch.tensor([16000, 4000, 720, 400])
    mask = (torch.arange(16000) < samples[:, None]).long()
    frames = 7 if adapter else 49
    result = ours._get_feature_vector_attention_mask(frames, mask)
    assert result.dtype == torch.bool
    assert result.sum(-1).tolist() == ours._get_feat_extract_output_lengths(samples).tolist()
    assert torch.equal(result, peer._get_feature_vector_attention_mask(frames, mask, add_adapter=adapter).bool())


def test_reference_mask_of_clips_too_short_for_a_frame() -> None:
    """The references index the last frame from the right end there; only `padding="reference"` does the same."""
    ours, peer = both(padding="reference")
    invariant, _ = both()
    samples = torch.tensor([4000, 399, 1, 0])
    mask = (torch.arange(4000) < samples[:, None]).long()
    expected = peer._get_feature_vector_attention_mask(12, mask).bool()
    assert torch.equal(ours._get_feature_vector_attention_mask(12, mask), expected)
    assert torch.equal(reference_frame_mask(samples, ours.config, 12, adapter=False), expected)
    assert invariant._get_feature_vector_attention_mask(12, mask).sum(-1).tolist() == [12, 0, 0, 0]
