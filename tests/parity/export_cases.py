"""Small models of every head that can be exported: all positions, norms of the feature encoder and adapters.

For `test_export.py`, and for `tools/check_export_on_old_transformers.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import wav2vec2_conformer
from wav2vec2_conformer import Wav2Vec2ConformerConfig

from .random_models import NORMS, POSITIONS, draw_weights

HEADS = "Model ForCTC ForSequenceClassification ForAudioFrameClassification ForXVector ForPreTraining".split()
ADAPTERS = {"Model": ("off", "same", "other"), "ForCTC": ("off", "same", "other"), "ForXVector": ("off", "same")}
WIDTH = 16
SETTINGS: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "hidden_act": "swish",
    "conv_dim": (6, 6, 6),
    "conv_kernel": (8, 3, 3),
    "conv_stride": (4, 2, 2),
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 7,
    "num_adapter_layers": 1,
    "num_labels": 3,
    "classifier_proj_size": 7,
    "tdnn_dim": (8, 10),
    "tdnn_kernel": (3, 2),
    "tdnn_dilation": (2, 1),
    "xvector_output_dim": 5,
    "num_codevectors_per_group": 6,
    "codevector_dim": 8,
    "proj_codevector_dim": 10,
}
WAVEFORM = torch.randn((1, 1201), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class ExportCase(NamedTuple):
    """A model: its head, and what its configuration has beside `SETTINGS`."""

    head: str
    changes: dict[str, Any]


def draw_cases() -> dict[str, ExportCase]:
    """Name -> case."""
    cases: dict[str, ExportCase] = {}
    for head in HEADS:
        for position in POSITIONS:
            for norm in NORMS:
                for adapter in ADAPTERS.get(head, ("off",)):
                    cases[f"{head}-{position}-{norm}-{adapter}"] = ExportCase(
                        head,
                        {
                            "position_embeddings_type": position,
                            "feat_extract_norm": norm,
                            "conv_bias": norm == "layer",
                            "add_adapter": adapter != "off",
                            "output_hidden_size": WIDTH + 5 * (adapter == "other"),
                        },
                    )
        cases[f"{head}-no-projection"] = ExportCase(head, {"conv_dim": (6, 6, WIDTH), "feat_projection": False})
        cases[f"{head}-no-masks"] = ExportCase(head, {"mask_time_prob": 0, "mask_feature_prob": 0})
        if "Classification" in head or "Vector" in head:
            cases[f"{head}-mixture"] = ExportCase(head, {"use_weighted_layer_sum": True})
    return cases


CASES = draw_cases()


def build(case: ExportCase) -> Any:
    """Ours, with weights that make every part of the network matter."""
    model = getattr(wav2vec2_conformer, f"Wav2Vec2Conformer{case.head}")(
        Wav2Vec2ConformerConfig(**{**SETTINGS, **case.changes})
    )
    draw_weights(model, torch.Generator().manual_seed(len(str(case))))
    return model.eval()


def outputs(model: Any, waveform: Tensor) -> dict[str, Tensor]:
    """What a model computes of a clip: its outputs, and the hidden states as far as the libraries agree on them."""
    with torch.no_grad():
        output = model(waveform, output_hidden_states=True)
    found = {name: value for name, value in output.items() if isinstance(value, Tensor) and value.dim() > 0}
    # With an adapter, transformers 5 puts its output last.
    states = output.hidden_states[:-1] if model.config.add_adapter else output.hidden_states
    return found | {f"hidden_states.{i}": state for i, state in enumerate(states)}
