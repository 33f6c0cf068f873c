"""Names, shapes and counts of the released large models, compared without allocating them (meta device)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel

# config.json of facebook/wav2vec2-conformer-{rel-pos,rope}-large*, with the keys that no code reads any more
LARGE: dict[str, Any] = {
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "codevector_dim": 768,
    "conformer_conv_dropout": 0.1,
    "conv_bias": True,
    "conv_depthwise_kernel_size": 31,
    "ctc_loss_reduction": "sum",
    "do_stable_layer_norm": True,
    "feat_extract_dropout": 0.0,
    "feat_extract_norm": "layer",
    "feat_proj_dropout": 0.1,
    "feat_quantizer_dropout": 0.0,
    "gradient_checkpointing": False,
    "hidden_act": "swish",
    "hidden_dropout": 0.1,
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "max_source_positions": 5000,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "proj_codevector_dim": 768,
    "vocab_size": 32,
}
UNUSED = 8_389_760  # parameters of the reference's pos_conv_embed, which nothing uses
OURS = {"base": Wav2Vec2ConformerModel, "ctc": Wav2Vec2ConformerForCTC}
REFERENCE = {"base": transformers.Wav2Vec2ConformerModel, "ctc": transformers.Wav2Vec2ConformerForCTC}
COUNTS = {
    ("base", "relative"): 618_559_104,
    ("ctc", "relative"): 618_591_904,
    ("base", "rotary"): 593_344_128,
    ("ctc", "rotary"): 593_376_928,
}


def on_meta(model: type, config: type, settings: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return model(config(**settings))


def shapes(tensors: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in dict(tensors).items()}


def both(head: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    return (
        on_meta(OURS[head], Wav2Vec2ConformerConfig, settings),
        on_meta(REFERENCE[head], transformers.Wav2Vec2ConformerConfig, settings),
    )


@pytest.mark.parametrize(("head", "position"), COUNTS)
def test_large_models(head: str, position: str) -> None:
    ours, reference = both(head, {**LARGE, "position_embeddings_type": position})
    assert shapes(ours.state_dict()) == shapes(reference.state_dict())
    assert all(tensor.is_meta for tensor in ours.state_dict().values())

    used = {k: v for k, v in shapes(reference.named_parameters()).items() if "pos_conv_embed" not in k}
    assert shapes(ours.named_parameters()) == used

    assert sum(p.numel() for p in reference.parameters()) == COUNTS[head, position]
    assert sum(p.numel() for p in ours.parameters()) == COUNTS[head, position] - UNUSED
    assert ours.num_parameters() == COUNTS[head, position] - UNUSED


@pytest.mark.parametrize("head", OURS)
@pytest.mark.parametrize("position", ["relative", "rotary", None])
@pytest.mark.parametrize(
    "settings",
    [
        {"feat_extract_norm": "group", "conv_bias": False},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.0},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.1},
        {"add_adapter": True},
        {"add_adapter": True, "output_hidden_size": 512, "num_adapter_layers": 2, "adapter_kernel_size": 5},
    ],
    ids=["group", "no-masks", "feature-masks", "adapter", "narrow-adapter"],
)
def test_other_structures(settings: dict[str, Any], position: str | None, head: str) -> None:
    settings = {**LARGE, "num_hidden_layers": 2, "position_embeddings_type": position, **settings}
    ours, reference = both(head, settings)
    assert shapes(ours.state_dict()) == shapes(reference.state_dict())
    ours_total, reference_total = (sum(p.numel() for p in m.parameters()) for m in (ours, reference))
    assert ours_total == reference_total - UNUSED


def test_a_built_model_is_the_model_on_meta() -> None:
    """A model that is really allocated has the same state dict and parameters, and nothing unused among its buffers."""
    settings = {**LARGE, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "conv_dim": (16,) * 7}
    settings |= {"position_embeddings_type": "rotary"}
    built = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**settings))
    ours, reference = both("ctc", settings)
    assert shapes(built.state_dict()) == shapes(ours.state_dict()) == shapes(reference.state_dict())
    assert shapes(built.named_parameters()) == shapes(ours.named_parameters())
    assert not [name for name, _ in built.named_buffers() if "pos_conv_embed" in name]
    assert not [name for name, tensor in built.state_dict().items() if tensor.is_meta]
