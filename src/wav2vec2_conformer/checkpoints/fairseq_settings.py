"""Our configuration from the settings in a fairseq checkpoint, and refusals of what our network cannot be."""

from __future__ import annotations

import ast
import re
from typing import Any

from ..configuration import Wav2Vec2ConformerConfig
from .inert import Inert

__all__ = ["Layered", "Settings", "configuration", "loss_weights", "parse_conv_layers", "plain", "refuse_unsupported"]

LARGEST = 2**20  # of any size in a configuration
DEEPEST = 20  # nodes in nodes, references to references
LONGEST = 200  # characters of a reference
CONV_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"  # fairseq's default
# fairseq's name, ours, type, fairseq's default. What a file does not say was not an option when it was written.
FIELDS: tuple[tuple[str, str, type, Any], ...] = (
    ("encoder_embed_dim", "hidden_size", int, 768),
    ("encoder_layers", "num_hidden_layers", int, 12),
    ("encoder_attention_heads", "num_attention_heads", int, 12),
    ("encoder_ffn_embed_dim", "intermediate_size", int, 3072),
    ("depthwise_conv_kernel_size", "conv_depthwise_kernel_size", int, 31),
    ("conv_bias", "conv_bias", bool, False),
    ("conv_pos", "num_conv_pos_embeddings", int, 128),
    ("conv_pos_groups", "num_conv_pos_embedding_groups", int, 16),
    ("dropout_input", "feat_proj_dropout", float, 0.0),
    ("dropout_features", "feat_quantizer_dropout", float, 0.0),
    ("encoder_layerdrop", "layerdrop", float, 0.0),
    ("mask_prob", "mask_time_prob", float, 0.65),
    ("mask_length", "mask_time_length", int, 10),
    ("mask_channel_prob", "mask_feature_prob", float, 0.0),
    ("mask_channel_length", "mask_feature_length", int, 10),
    ("latent_vars", "num_codevectors_per_group", int, 320),
    ("latent_groups", "num_codevector_groups", int, 2),
    ("logit_temp", "contrastive_logits_temperature", float, 0.1),
    ("num_negatives", "num_negatives", int, 100),
)
CHOICES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("extractor_mode", "feat_extract_norm", {"default": "group", "layer_norm": "layer"}, "default"),
    (
        "pos_enc_type",
        "position_embeddings_type",
        {"rel_pos": "relative", "rope": "rotary", "abs": "convolutional"},
        "abs",
    ),
)
# One rate there, four here.
DROPOUTS = ("hidden_dropout", "activation_dropout", "attention_dropout", "conformer_conv_dropout")
# Name, fairseq's default, the only value that can be converted.
NEEDED: tuple[tuple[str, Any, Any], ...] = (
    ("layer_type", "transformer", "conformer"),
    ("attn_type", "", "espnet"),
    ("quantize_input", False, False),
    ("target_glu", False, False),
    ("pos_conv_depth", 1, 1),
    ("codebook_negatives", 0, 0),
    ("quantizer_depth", 1, 1),
)


# Settings of fine-tuning that replace those of the pre-trained model inside it, by their names there.
OVERRIDES = {
    **{name: name for name in ("dropout", "dropout_input", "mask_prob", "mask_length", "feature_grad_mult")},
    **{name: name for name in ("mask_channel_prob", "mask_channel_length")},
    **{name: name for name in ("mask_selection", "mask_other", "no_mask_overlap")},
    **{name: name for name in ("mask_channel_selection", "mask_channel_other", "no_mask_channel_overlap")},
    "layerdrop": "encoder_layerdrop",
}


class Settings:
    """A part of a checkpoint's settings: `Namespace`, omegaconf container or plain dictionary, read field by field.

    Args:
        content: the part.
        root: the whole, in which references such as `${task.normalize}` are looked up.
        name: what it is called in messages.
    """

    def __init__(self, content: Any, root: Any = None, name: str = "settings") -> None:
        self.fields, self.root, self.name = fields(content) or {}, root, name

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def raw(self, name: str) -> Any:
        """A value without its wrapping; None where there is none.

        Raises:
            ValueError: it stands for a value that is not in the file.
        """
        value = plain(self.fields.get(name))
        for _ in range(DEEPEST):
            if isinstance(value, str) and value == "???":
                raise ValueError(
                    f"{self.name}.{name} is '???', which marks a value that was never set; save the checkpoint again "
                    "with the value"
                )
            if not isinstance(value, str) or "${" not in value:
                return value
            value = self._follow(name, value)
        raise ValueError(f"{self.name}.{name} refers to itself")

    def _follow(self, name: str, reference: str) -> Any:
        """What a reference leads to. Not fairseq's default where that is nothing: the model was built from a value."""
        path = re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", reference) if len(reference) <= LONGEST else None
        value = self.root
        for part in path[1].split(".") if path else ():
            inside = fields(value)
            if inside is None or part not in inside:
                path = None
                break
            value = plain(inside[part])
        if path is None:
            raise ValueError(
                f"{self.name}.{name} refers to {reference[:80]!r}, which leads to nothing in the file; expected a "
                "value or a reference such as '${task.normalize}'; save the checkpoint again with the value"
            )
        return value

    def part(self, name: str) -> Settings:
        """Settings inside these."""
        return Settings(self.raw(name), self.root, f"{self.name}.{name}")

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A value of a type, checked.

        Raises:
            ValueError: it is of another type or beyond all measure.
        """
        value = self.raw(name)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) <= LARGEST else value
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right or (kind is not str and not -LARGEST <= value <= LARGEST):
            shown = f"{value!r}"[:80] if isinstance(value, str | float | bool) else f"a {type(value).__name__}"
            bound = f" of at most {LARGEST}" if kind in (int, float) else ""
            raise ValueError(f"{self.name}.{name}: expected {kind.__name__}{bound}, got {shown}")
        return value


class Layered:
    """The network's settings, some of which those of fine-tuning replace; each is read in its own file's terms."""

    def __init__(self, model: Settings, outer: Settings) -> None:
        self.model, self.outer = model, outer
        self.replaced = {inner: name for name, inner in OVERRIDES.items() if name in outer}

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A value of a type, checked, as `Settings.get`."""
        if name in self.replaced:
            return self.outer.get(self.replaced[name], kind, default)
        return self.model.get(name, kind, default)


def fields(value: Any) -> dict[str, Any] | None:
    """The fields of a container, or None where it has none."""
    for _ in range(DEEPEST):
        if isinstance(value, dict):
            return value
        if not isinstance(value, Inert) or not isinstance(value.state, dict):
            return None
        if value.name.startswith("omegaconf."):
            value = value.state.get("_content")
        else:
            value = value.state if value.name == "argparse.Namespace" else None
    return None


def plain(value: Any) -> Any:
    """A value without the nodes of omegaconf, enums and list containers around it."""
    for _ in range(DEEPEST):
        if not isinstance(value, Inert):
            return value
        state = value.state if isinstance(value.state, dict) else {}
        if value.name.startswith("omegaconf.") and "_val" in state:
            value = state["_val"]
        elif value.name == "omegaconf.listconfig.ListConfig":
            value = state.get("_content")
        elif value.name.startswith("fairseq.") and len(value.arguments) == 1:  # an enum, by its value
            value = value.arguments[0]
        else:
            return value
    return None


def refuse_unsupported(settings: Settings) -> None:
    """Refuse a model that ours cannot be."""
    for name, default, needed in NEEDED:
        value = settings.get(name, type(needed), default)
        if value != needed:
            remedy = (
                "only Wav2Vec2-Conformer models can be converted" if name == "layer_type" else "it is not supported"
            )
            raise ValueError(f"{settings.name}.{name} must be {needed!r}, got {value!r}; {remedy}")


def configuration(model: Settings, fine_tuning: Settings | None, criterion: Settings) -> Wav2Vec2ConformerConfig:
    """Our configuration.

    Args:
        model: settings of the network, by fairseq's `Wav2Vec2Config`.
        fine_tuning: settings of the CTC model around it, some of which replace the network's.
        criterion: settings of the loss.

    Raises:
        ValueError: a setting that cannot be converted, by its name.
    """
    refuse_unsupported(model)
    outer = fine_tuning or Settings({})
    refuse_blank_weight(outer)
    layered = Layered(model, outer)
    values: dict[str, Any] = {ours: layered.get(name, kind, default) for name, ours, kind, default in FIELDS}
    for name, ours, choices, usual in CHOICES:
        value = layered.get(name, str, usual)
        if value not in choices:
            raise ValueError(f"{model.name}.{name} must be one of {', '.join(choices)}, got {value[:80]!r}")
        values[ours] = choices[value]
    values |= dict.fromkeys(DROPOUTS, layered.get("dropout", float, 0.1))
    values["encoder_layer_norm"] = "after" if layered.get("layer_norm_first", bool, False) else "before"
    convolutions = parse_conv_layers(layered.get("conv_feature_layers", str, CONV_LAYERS))
    values["conv_dim"], values["conv_kernel"], values["conv_stride"] = zip(*convolutions, strict=True)
    values["feat_projection"] = values["conv_dim"][-1] != values["hidden_size"]
    final = layered.get("final_dim", int, 0)
    values["proj_codevector_dim"] = final if final > 0 else values["hidden_size"]
    latent = layered.get("latent_dim", int, 0)
    values["codevector_dim"] = latent if latent > 0 else values["proj_codevector_dim"]
    values["diversity_loss_weight"] = loss_weights(criterion)[0] if fine_tuning is None else 0.1
    values["ctc_zero_infinity"] = criterion.get("zero_infinity", bool, False)
    values["final_dropout"] = outer.get("final_dropout", float, 0.0)
    values["apply_spec_augment"] = fine_tuning is None or outer.get("apply_mask", bool, False)
    try:
        return Wav2Vec2ConformerConfig(hidden_act="swish", mask_time_min_masks=2, mask_feature_min_masks=0, **values)
    except ValueError as error:
        raise ValueError(f"{error}{names_there(str(error), model.name)}") from None


def refuse_blank_weight(outer: Settings) -> None:
    """Refuse a constant that fairseq adds to the blank's logit, or puts in its place; our head has none."""
    weight = outer.get("blank_weight", float, 0.0)
    if weight != 0:
        mode = outer.get("blank_mode", str, "add")
        raise ValueError(
            f"{outer.name}.blank_weight must be 0, got {weight:g} (blank_mode {mode[:80]!r}): fairseq changes the "
            "blank's logits by it, and the head here does not; it is not supported"
        )


def names_there(message: str, name: str) -> str:
    """fairseq's names of the fields that a message of ours mentions, to be put after it."""
    theirs = {ours: field for field, ours, *_ in (*FIELDS, *CHOICES)}
    theirs |= dict.fromkeys(DROPOUTS, "dropout")
    theirs |= dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), "conv_feature_layers")
    theirs |= {"codevector_dim": "latent_dim", "proj_codevector_dim": "final_dim", "final_dropout": "final_dropout"}
    found = dict.fromkeys(theirs[field] for field in re.findall(r"`(\w+)`", message) if field in theirs)
    return f" (in the file: {', '.join(f'{name}.{field}' for field in found)})" if found else ""


def loss_weights(criterion: Settings) -> tuple[float, float]:
    """Weights of the diversity loss and of the features' mean square; old files have them as text."""
    value = criterion.raw("loss_weights")
    try:
        value = ast.literal_eval(value) if isinstance(value, str) and len(value) < 100 else value
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        value = ()
    if value is None:
        return 0.1, 10.0
    numbers = [plain(number) for number in value] if isinstance(value, list | tuple) and len(value) <= 2 else []
    if not numbers or not all(isinstance(number, int | float) and abs(number) <= LARGEST for number in numbers):
        raise ValueError(f"{criterion.name}.loss_weights must be a list of one or two numbers, such as [0.1, 10]")
    return float(numbers[0]), float(numbers[1]) if len(numbers) > 1 else 0.0


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """`"[(512, 10, 5)] + [(512, 3, 2)] * 4"` -> (channels, kernel, stride) of each convolution; nothing is evaluated.

    Raises:
        ValueError: anything but lists of three whole numbers, `+` and `*`.
    """
    try:
        if len(text) > 1000:
            raise ValueError("longer than 1000 characters")
        found = concatenate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"conv_feature_layers must be lists of (channels, kernel, stride), added and multiplied, such as "
            f"{CONV_LAYERS!r}; got {text[:80]!r} ({error})"
        ) from None
    if not found:
        raise ValueError("conv_feature_layers names no convolution")
    return found


def concatenate(node: ast.expr) -> list[tuple[int, int, int]]:
    """The layers of an expression."""
    if isinstance(node, ast.List):
        return [layer(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found = concatenate(node.left) + concatenate(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        layers, times = (node.right, node.left) if isinstance(node.left, ast.Constant) else (node.left, node.right)
        found = concatenate(layers) * min(number(times), 100)
    else:
        raise ValueError(f"{type(node).__name__} is not allowed")
    if len(found) > 64:
        raise ValueError("more than 64 convolutions")
    return found


def layer(node: ast.expr) -> tuple[int, int, int]:
    """(channels, kernel, stride)."""
    if not isinstance(node, ast.Tuple | ast.List) or len(node.elts) != 3:
        raise ValueError("a convolution has three numbers")
    channels, kernel, stride = map(number, node.elts)
    return channels, kernel, stride


def number(node: ast.expr) -> int:
    """A whole number written out."""
    if not isinstance(node, ast.Constant) or type(node.value) is not int or not 0 < node.value <= LARGEST:
        raise ValueError(f"expected a whole number from 1 to {LARGEST}")
    return node.value
