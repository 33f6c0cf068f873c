"""Random small models, ours and the installed transformers' own with the same weights, and what they differ by.

Weights are drawn large enough that attention is far from uniform: the default initial values (0.02) would hide a wrong
position term. Both compute in float64, so that a difference of 1e-10 is a difference in what is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC
from wav2vec2_conformer.modeling.positions import RelativePositions, RotaryPositions

POSITIONS = ("relative", "rotary", None)
NORMS = ("layer", "group")
ACTIVATIONS = ("gelu", "swish", "relu")
ADAPTERS = ("off", "same width", "other width")
# (kernels, strides) of the feature encoder: the released one, and a short one of 16 samples a frame
FEATURE_ENCODERS = (((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)), ((8, 3, 3), (4, 2, 2)))
NO_RANDOMNESS = {
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0),
    **dict.fromkeys(("final_dropout", "conformer_conv_dropout", "layerdrop", "mask_time_prob"), 0.0),
    "apply_spec_augment": False,
}


@dataclass(frozen=True)
class Case:
    """A configuration and a batch for it; `lengths` are the real samples of each clip where a mask is given."""

    index: int
    settings: dict[str, Any]
    attention: str
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        s = self.settings
        adapter = f"adapter{s['adapter_kernel_size']}" if s["add_adapter"] else "plain"
        return f"{self.index}-{s['position_embeddings_type']}-{s['feat_extract_norm']}-{s['hidden_act']}-{adapter}"


def draw_cases(count: int, seed: int = 2026) -> list[Case]:
    """Cases that run through all positions x norms x adapters in turn, with all else at random."""
    generator = torch.Generator().manual_seed(seed)

    def pick(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    cases = []
    for index in range(count):
        position, norm = POSITIONS[index % 3], NORMS[index // 3 % 2]
        adapter = ADAPTERS[index // 6 % 3]
        heads = pick((1, 2, 3, 4))
        width = heads * pick((6, 8, 10))
        encoder = pick((0, 1))
        kernels, strides = FEATURE_ENCODERS[encoder]
        settings = {
            **NO_RANDOMNESS,
            "vocab_size": pick((5, 12, 33)),
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_hidden_layers": pick((1, 2, 3)),
            "intermediate_size": pick((7, 20, 31)),
            "hidden_act": pick(ACTIVATIONS),
            "feat_extract_activation": pick(ACTIVATIONS),
            "feat_extract_norm": norm,
            "layer_norm_eps": pick((1e-5, 1e-3)),
            "conv_dim": tuple(pick((5, 8, 12)) for _ in kernels),
            "conv_kernel": kernels,
            "conv_stride": strides,
            "conv_bias": pick((True, False)),
            "num_conv_pos_embeddings": 6,
            "num_conv_pos_embedding_groups": 2,
            "position_embeddings_type": position,
            "rotary_embedding_base": pick((10000, 500)),
            "max_source_positions": pick((10, 400)),
            "conv_depthwise_kernel_size": pick((1, 3, 7, 15, 31)),
            "add_adapter": adapter != "off",
            "output_hidden_size": width + 5 if adapter == "other width" else width,
            "adapter_kernel_size": pick((3, 3, 3, 2, 4)),
            "adapter_stride": pick((2, 2, 3)),
            "num_adapter_layers": pick((1, 2)),
            "ctc_loss_reduction": pick(("sum", "mean")),
            "ctc_zero_infinity": pick((True, False)),
        }
        longest, shortest = ((7001, 3400), (601, 300))[encoder]  # 21 and 36 frames, and about half of them
        longest += 2 * int(torch.randint(200, (), generator=generator)) * (1 - encoder)
        spread = torch.randint(shortest, longest, (2,), generator=generator).tolist()
        cases.append(Case(index, settings, pick(("sdpa", "eager")), (longest, *spread)))
    return cases


def draw_weights(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Fill all weights and statistics with values that make every part of the network matter."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        leaf, kind = name.split(".")[-2:] if "." in name else ("", name)
        if kind == "inv_freq":
            drawn = tensor.half().double()  # rounded as in released models
        elif kind == "num_batches_tracked":
            continue
        elif kind == "running_var":
            drawn = noise.square() + 0.5
        elif kind.startswith("pos_bias"):
            drawn = noise
        elif kind == "bias" or kind == "running_mean":
            drawn = 0.15 * noise
        elif "norm" in leaf:
            drawn = 1 + 0.3 * noise
        elif tensor.dim() > 1:
            gain = {"linear_q": 3.0, "linear_k": 3.0, "projection": 2.5, "linear_pos": 1.5}.get(leaf, 1.2)
            drawn = gain * noise / math.sqrt(tensor[0].numel())
        else:
            drawn = noise
        with torch.no_grad():
            tensor.copy_(drawn)


def build(case: Case, padding: str = "invariant") -> tuple[Wav2Vec2ConformerForCTC, Any]:
    """Ours and the reference with the same weights, in float64; what is copied goes through strict state dicts."""
    ours = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**case.settings, padding=padding)).double()
    ours.set_attn_implementation(case.attention)
    reference = transformers.Wav2Vec2ConformerForCTC(
        transformers.Wav2Vec2ConformerConfig(**case.settings, attn_implementation="eager", tie_last_hidden_states=True)
    ).double()
    draw_weights(reference, torch.Generator().manual_seed(case.index))
    ours.load_state_dict(reference.state_dict())
    return ours.eval(), reference.eval()


def inputs(case: Case) -> dict[str, Tensor]:
    """Clips of changing tones, their mask and labels; what the mask leaves out is no silence."""
    generator = torch.Generator().manual_seed(1000 + case.index)
    shape = len(case.lengths), max(case.lengths)
    tones = 2 * torch.rand((shape[0], 20), generator=generator, dtype=torch.float64).square()  # radians a sample
    phases = tones.repeat_interleave(shape[1] // 20 + 1, dim=1)[:, : shape[1]].cumsum(1)
    waveforms = phases.sin() + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (torch.arange(shape[1]) < torch.tensor(case.lengths)[:, None]).long()
    labels = torch.randint(1, case.settings["vocab_size"], (shape[0], 2), generator=generator)
    labels[1, 1] = -100
    return {"input_values": waveforms, "attention_mask": mask, "labels": labels}


def loss_is_comparable(case: Case) -> bool:
    """Whether the reference reckons the frames after the adapter rightly (it takes every adapter kernel for 1)."""
    return not case.settings["add_adapter"] or case.settings["adapter_kernel_size"] == 3


def relative_difference(tensor: Tensor, reference: Tensor, least_scale: float = 0.0) -> float:
    """max |tensor - reference| in units of max |reference|, or of `least_scale` where that is larger."""
    assert tensor.shape == reference.shape
    assert torch.isfinite(tensor).all()
    scale = max(float(reference.abs().max()), least_scale)
    return float((tensor.double() - reference.double()).abs().max()) / scale


def report(what: str, found: dict[str, float]) -> None:
    """Print the largest differences, for `pytest -rP` (docs/exactness.md says how to collect them)."""
    kinds = {"gradients": lambda n: n.startswith("grad."), "statistics": lambda n: "running" in n}
    kinds["outputs"] = lambda n: not any(kinds[k](n) for k in ("gradients", "statistics"))
    for kind, chosen in kinds.items():
        values = [value for name, value in found.items() if chosen(name)]
        if values:
            print(f"live {what} {kind}: {max(values):.1e}")


def outcome(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything a model computes: outputs, gradients of a fixed random projection of the logits, statistics."""
    model.zero_grad()
    encoded: list[Tensor] = []
    last: list[Tensor] = []
    hooks = (
        model.wav2vec2_conformer.encoder.layer_norm.register_forward_hook(lambda _, __, out: encoded.append(out)),
        model.dropout.register_forward_pre_hook(lambda _, args: last.append(args[0])),
    )
    output = model(**batch, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    states = list(output.hidden_states)
    if isinstance(model, transformers.Wav2Vec2ConformerForCTC):
        states[-1] = encoded[0]  # transformers 5 puts the adapter's output here, 4.34.0 and ours the encoder's
    projection = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (output.logits * projection).sum().backward()
    found = {"logits": output.logits, "last_hidden_state": last[0]}
    found |= {f"hidden_states.{i}": state for i, state in enumerate(states)}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {name: b.double() for name, b in model.named_buffers() if "running" in name or "tracked" in name}
    if output.loss is not None:
        found["loss"] = output.loss
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def differences(ours: Any, reference: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """Relative difference of everything the two compute; a gradient's scale is at least 1e-3 of the largest one."""
    found, expected = outcome(ours, batch), outcome(reference, batch)
    assert found.keys() == expected.keys()
    largest = max(float(t.abs().max()) for name, t in expected.items() if name.startswith("grad."))
    return {
        name: relative_difference(found[name], tensor, 1e-3 * largest if name.startswith("grad.") else 1e-300)
        for name, tensor in expected.items()
    }


def flip_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutate our positions: the distance (relative) or the time (rotary) changes its sign."""
    relative, rotary = RelativePositions.forward, RotaryPositions.forward

    def flipped_relative(self: RelativePositions, hidden_states: Tensor) -> Tensor:
        table = relative(self, hidden_states)
        return torch.cat((table[:-1].flip(0), table[-1:]))

    def flipped_rotary(self: RotaryPositions, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(self, hidden_states)
        return cos, -sin

    monkeypatch.setattr(RelativePositions, "forward", flipped_relative)
    monkeypatch.setattr(RotaryPositions, "forward", flipped_rotary)
