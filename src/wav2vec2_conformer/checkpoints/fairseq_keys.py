"""The names of weights in fairseq's checkpoints and in ours: one table, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["BARE_PREFIX", "CTC_PREFIX", "DROPPED", "dropped_because", "fairseq_keys"]

CTC_PREFIX, BARE_PREFIX = "w2v_encoder.w2v_model.", ""  # before the network's keys in fairseq's files
NETWORK = "wav2vec2_conformer."  # before them in ours

# fairseq's name, our name. {i} is a number; {p} a last part such as `weight`, `bias` or `running_mean`.
BLOCK = tuple(
    (f"encoder.layers.{{i}}.{theirs}.{{p}}", f"encoder.layers.{{i}}.{ours}.{{p}}")
    for theirs, ours in (
        ("ffn1.layer_norm", "ffn1_layer_norm"),
        ("ffn1.w_1", "ffn1.intermediate_dense"),
        ("ffn1.w_2", "ffn1.output_dense"),
        ("self_attn_layer_norm", "self_attn_layer_norm"),
        ("self_attn.linear_q", "self_attn.linear_q"),
        ("self_attn.linear_k", "self_attn.linear_k"),
        ("self_attn.linear_v", "self_attn.linear_v"),
        ("self_attn.linear_out", "self_attn.linear_out"),
        ("self_attn.linear_pos", "self_attn.linear_pos"),
        ("conv_module.layer_norm", "conv_module.layer_norm"),
        ("conv_module.pointwise_conv1", "conv_module.pointwise_conv1"),
        ("conv_module.depthwise_conv", "conv_module.depthwise_conv"),
        ("conv_module.batch_norm", "conv_module.batch_norm"),
        ("conv_module.pointwise_conv2", "conv_module.pointwise_conv2"),
        ("ffn2.layer_norm", "ffn2_layer_norm"),
        ("ffn2.w_1", "ffn2.intermediate_dense"),
        ("ffn2.w_2", "ffn2.output_dense"),
        ("final_layer_norm", "final_layer_norm"),
    )
)
TABLE = (
    ("mask_emb", "masked_spec_embed"),
    ("feature_extractor.conv_layers.{i}.0.{p}", "feature_extractor.conv_layers.{i}.conv.{p}"),
    ("layer_norm.{p}", "feature_projection.layer_norm.{p}"),
    ("post_extract_proj.{p}", "feature_projection.projection.{p}"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    *BLOCK,
    ("encoder.layers.{i}.self_attn.pos_bias_u", "encoder.layers.{i}.self_attn.pos_bias_u"),
    ("encoder.layers.{i}.self_attn.pos_bias_v", "encoder.layers.{i}.self_attn.pos_bias_v"),
)
# The feature encoder's norms, by `feat_extract_norm`: after the dropout, between two transpositions or without.
NORMS = {
    "layer": ("feature_extractor.conv_layers.{i}.2.1.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}"),
    "group": ("feature_extractor.conv_layers.{i}.2.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}"),
}
# One set of frequencies here, one in every block there.
FREQUENCIES = ("encoder.layers.{i}.self_attn.rotary_emb.inv_freq", "encoder.embed_positions.inv_freq")
HEADS = (
    ("w2v_encoder.proj.{p}", "lm_head.{p}"),
    ("quantizer.vars", "quantizer.codevectors"),
    ("quantizer.weight_proj.{p}", "quantizer.weight_proj.{p}"),
    ("project_q.{p}", "project_q.{p}"),
    ("final_proj.{p}", "project_hid.{p}"),
)
# Keys of fairseq's that may be left out, and why.
DROPPED = {
    r"(w2v_encoder\.w2v_model\.)?mask_emb": "this configuration masks nothing",
    r"w2v_encoder\.w2v_model\.(quantizer|project_q|final_proj)\..+": "only pre-training uses it",
}


def fairseq_keys(ours: Iterable[str], *, prefix: str, norm: str, layers: int) -> dict[str, str]:
    """The keys that a fairseq checkpoint must have for a model's state dict.

    Args:
        ours: the keys of the state dict.
        prefix: what stands before the network's keys there: `CTC_PREFIX` or `BARE_PREFIX`.
        norm: the configuration's `feat_extract_norm`.
        layers: number of conformer blocks.

    Returns:
        fairseq's key -> our key; several of theirs lead to our one `inv_freq`.

    Raises:
        KeyError: a key that the table does not have.
    """
    found: dict[str, str] = {}
    for key in ours:
        inside = key.removeprefix(NETWORK)
        if inside == FREQUENCIES[1]:
            found |= {prefix + FREQUENCIES[0].format(i=layer): key for layer in range(layers)}
        elif inside != key:
            found[prefix + translate(inside, (*TABLE, NORMS[norm]))] = key
        else:
            found[translate(key, HEADS)] = key
    return found


def translate(key: str, table: Iterable[tuple[str, str]]) -> str:
    """Our key in fairseq's terms."""
    for theirs, ours in table:
        pattern = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", r"(?P<p>\w+)")
        if match := re.fullmatch(pattern, key):
            return theirs.format(**match.groupdict())
    raise KeyError(key)


def dropped_because(key: str, reasons: Mapping[str, str] = DROPPED) -> str | None:
    """Why a key of fairseq's may be left out, or None."""
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, key)), None)
