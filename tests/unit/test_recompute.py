"""Results that are computed twice instead of kept change nothing but the memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.modeling import recompute

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 3,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
DROPOUTS = dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "conformer_conv_dropout"], 0.2)


@pytest.fixture(params=["relative", "rotary", None])
def fields(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SMALL | {"position_embeddings_type": request.param}


def gradients(fields: dict[str, Any]) -> list[Tensor]:
    """Of all weights, for a padded batch in training."""
    torch.manual_seed(0)
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**fields)).double().train()
    waveforms = torch.randn(3, 700, dtype=torch.float64)
    mask = (torch.arange(700) < torch.tensor([[700], [430], [100]])).long()
    out = model(waveforms, attention_mask=mask).last_hidden_state
    (out * torch.randn(out.shape[-1], dtype=torch.float64)).sum().backward()
    return [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]


def everything_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one clip at a time."""
    for limit in ("LARGE", "LARGE_AND_COSTLY"):
        monkeypatch.setattr(recompute, limit, 1)
    monkeypatch.setattr(recompute, "TOGETHER", 1)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], norm: str) -> None:
    fields = fields | {"feat_extract_norm": norm} | dict.fromkeys(DROPOUTS, 0.0) | {"feat_proj_dropout": 0.0}
    kept = gradients(fields)
    everything_twice(monkeypatch)
    for ours, expected in zip(gradients(fields), kept, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_dropout_drops_the_same_the_second_time(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    everything_twice(monkeypatch)
    twice = gradients(fields | DROPOUTS)
    calls = []

    def once(function: Any, *inputs: Any, **options: Any) -> Any:
        calls.append(function)
        return function(*inputs)

    monkeypatch.setattr(recompute, "checkpoint", once)
    expected = gradients(fields | DROPOUTS)
    assert calls
    assert all(torch.equal(a, b) for a, b in zip(twice, expected, strict=True))


def test_large_results_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """(T, T) weights of the attention and (T, intermediate size) of the feed-forward layers, above all."""

    def largest() -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**SMALL)).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 4000))
        return max(sizes)

    before = largest()
    everything_twice(monkeypatch)
    assert largest() < before / 4
