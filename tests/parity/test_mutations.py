"""The comparison of `test_live.py` sees what it should see: each wrong network below is far outside its tolerance.

This also pins the deliberate oddities of the network: the rotation comes before the projections, the inner LayerNorms
keep their eps of 1e-5, the last hidden state is after the final LayerNorm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wav2vec2_conformer.modeling import attention, conformer
from wav2vec2_conformer.modeling.attention import SelfAttention
from wav2vec2_conformer.modeling.batch_norm import BatchStatistics, FrameBatchNorm

from .random_models import Case, build, differences, draw_cases, flip_positions, inputs

CASES = draw_cases(3)  # relative, rotary, none
Mutation = Callable[[Any, pytest.MonkeyPatch], None]


def attentions(model: Any) -> list[SelfAttention]:
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


def positions_flipped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_positions(monkeypatch)


def u_and_v_swapped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SelfAttention._attend

    def wrong(self: SelfAttention, *args: Any) -> Any:
        swapped = SimpleNamespace(
            pos_bias_u=self.pos_bias_v,
            pos_bias_v=self.pos_bias_u,
            heads=self.heads,
            head_size=self.head_size,
        )
        return right(swapped, *args)

    monkeypatch.setattr(SelfAttention, "_attend", wrong)


def u_left_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in attentions(model):
        module.pos_bias_u.register_hook(torch.zeros_like)
        module.pos_bias_u.data.zero_()


def shifted_by_one_frame(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.shift
    monkeypatch.setattr(attention, "shift", lambda scores, keys: right(scores.roll(1, dims=-1), keys))


def position_scores_without_scale(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.by_head
    monkeypatch.setattr(attention, "by_head", lambda query, columns: right(query, columns) * query.shape[-1] ** 0.5)


def rotation_after_the_projections(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = attention.apply_rotary
    positions = model.wav2vec2_conformer.encoder.embed_positions
    monkeypatch.setattr(attention, "apply_rotary", lambda x, cos, sin, heads: x)
    for module in attentions(model):
        for projection in (module.linear_q, module.linear_k):
            projection.register_forward_hook(
                lambda _, __, out, heads=module.heads: rotate(out, *positions(out), heads=heads)
            )


def values_rotated_too(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = attention.apply_rotary
    positions = model.wav2vec2_conformer.encoder.embed_positions
    for module in attentions(model):
        module.linear_v.register_forward_pre_hook(
            lambda _, args, heads=module.heads: (rotate(args[0], *positions(args[0]), heads=heads),)
        )


def neighbouring_channels_rotated(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        x = x.unflatten(-1, (heads, -1))
        cos, sin = (t[..., : t.shape[-1] // 2].repeat_interleave(2, dim=-1) for t in (cos, sin))
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        return (x * cos + turned * sin).flatten(-2)

    monkeypatch.setattr(attention, "apply_rotary", wrong)


def exact_frequencies_for_rounded_ones(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = model.wav2vec2_conformer.encoder.embed_positions
    positions.inv_freq = positions.exact_frequencies()


def glu_halves_swapped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, dim: int) -> Tensor:
        gate, value = x.chunk(2, dim)
        return value * gate.sigmoid()

    monkeypatch.setattr(conformer, "F", SimpleNamespace(**{**vars(F), "glu": wrong}))


def whole_feed_forwards_for_halves(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in model.wav2vec2_conformer.encoder.layers:
        block.ffn1.register_forward_hook(lambda _, __, out: 2 * out)
        block.ffn2.register_forward_hook(lambda _, __, out: 2 * out)


def second_feed_forward_first(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in model.wav2vec2_conformer.encoder.layers:
        block.ffn1, block.ffn2 = block.ffn2, block.ffn1


def configured_eps_in_inner_norms(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in model.wav2vec2_conformer.encoder.layers.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = model.config.layer_norm_eps


def fixed_eps_in_outer_norms(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.wav2vec2_conformer.encoder.layer_norm.eps = 1e-5


def without_the_final_norm(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.wav2vec2_conformer.encoder.layer_norm.register_forward_hook(lambda _, args, out: args[0] + 0 * out)


def depthwise_kernel_reversed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = conformer.conv1d_channels_last
    monkeypatch.setattr(
        conformer,
        "conv1d_channels_last",
        lambda x, kernel, *bias, **options: right(x, kernel.flip(-1), *bias, **options),
    )


EVERYWHERE: list[Mutation] = [
    glu_halves_swapped,
    whole_feed_forwards_for_halves,
    second_feed_forward_first,
    configured_eps_in_inner_norms,
    fixed_eps_in_outer_norms,
    without_the_final_norm,
    depthwise_kernel_reversed,
]
MUTATIONS: list[tuple[str | None, Mutation]] = [
    ("relative", positions_flipped),
    ("relative", u_and_v_swapped),
    ("relative", u_left_out),
    ("relative", shifted_by_one_frame),
    ("relative", position_scores_without_scale),
    ("rotary", positions_flipped),
    ("rotary", rotation_after_the_projections),
    ("rotary", values_rotated_too),
    ("rotary", neighbouring_channels_rotated),
    ("rotary", exact_frequencies_for_rounded_ones),
    *((position, mutation) for position in ("relative", "rotary", None) for mutation in EVERYWHERE),
]


def case_with(position: str | None) -> Case:
    """A case whose settings make each mutation matter: several heads and frames, an eps that is no default."""
    case = next(case for case in CASES if case.settings["position_embeddings_type"] == position)
    settings = {
        **case.settings,
        "num_attention_heads": 3,
        "hidden_size": 24,
        "output_hidden_size": 24,
        "num_hidden_layers": 2,
        "conv_depthwise_kernel_size": 7,
        "layer_norm_eps": 0.05,
    }
    return dataclasses.replace(case, settings=settings)


def worst(ours: Any, reference: Any, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Largest relative difference: of anything that is compared, and of the logits."""
    found = differences(ours, reference, batch)
    found.pop("loss", None)
    return max(found.values()), found["logits"]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("position", "mutate"), MUTATIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_mutation_is_seen(
    position: str | None, mutate: Mutation, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_with(position)
    ours, reference = build(case)
    ours.train(training)
    reference.train(training)
    batch = {"input_values": inputs(case)["input_values"]}
    assert worst(ours, reference, batch)[0] < 1e-10
    mutate(ours, monkeypatch)
    anything, logits = worst(ours, reference, batch)
    assert anything > 1e-3
    assert logits > 1e-3


def test_padded_keys_attended_to_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_with("relative")
    ours, reference = build(case, padding="reference")
    batch = {name: tensor for name, tensor in inputs(case).items() if name != "labels"}
    assert worst(ours, reference, batch)[0] < 1e-10
    monkeypatch.setattr(attention, "exclude_padding", lambda bias, frame_mask, like: bias)
    assert worst(ours, reference, batch)[1] > 1e-3


def test_the_default_padding_is_not_the_references() -> None:
    """What `padding` selects matters, so that the padded comparison in test_live proves the reference's leaks."""
    case = case_with("relative")
    ours, reference = build(case, padding="invariant")
    batch = inputs(case)
    del batch["labels"]
    with torch.no_grad():
        valid = ours._get_feature_vector_attention_mask(10_000, batch["attention_mask"]).sum(-1)
        logits, expected = ours(**batch).logits, reference(**batch).logits
    apart = [(logits[b, :n] - expected[b, :n]).abs().max() / expected.abs().max() for b, n in enumerate(valid)]
    assert apart[0] < 1e-10  # the longest clip has no padding
    assert min(apart[1:]) > 1e-3


def test_biased_running_variance_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_with("relative")
    ours, reference = build(case)
    ours.train()
    reference.train()
    right = FrameBatchNorm.commit

    def wrong(self: FrameBatchNorm, statistics: BatchStatistics) -> None:
        frames = statistics.frames
        right(self, statistics._replace(variance=statistics.variance * (frames - 1) / frames))

    monkeypatch.setattr(FrameBatchNorm, "commit", wrong)
    found = differences(ours, reference, {"input_values": inputs(case)["input_values"]})
    seen = {name for name, difference in found.items() if difference > 1e-4}
    assert len(seen) == 2
    assert all(name.endswith("running_var") for name in seen)
