"""Small checkpoints as fairseq writes them: its keys, its settings, and its objects in the pickle.

Keys and shapes are written out here from the description of the format, and not taken from our own table. Modules named
`omegaconf` and `fairseq` exist only while a file is written, so that its pickle names them.
"""

from __future__ import annotations

import argparse
import collections
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LETTERS = ["|", *"ETAONIHSRDLU"]
VOCABULARY = 4 + len(LETTERS)

SMALL: dict[str, Any] = {
    "_name": "wav2vec2",
    "extractor_mode": "layer_norm",
    "encoder_layers": 2,
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 20,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_type": "conformer",
    "attn_type": "espnet",
    "pos_enc_type": "rel_pos",
    "depthwise_conv_kernel_size": 5,
    "layer_norm_first": True,
    "conv_feature_layers": "[(8, 16, 8)] + [(10, 4, 4)] + [(10, 2, 2)] * 1",
    "conv_bias": True,
    "dropout": 0.05,
    "attention_dropout": 0.3,
    "activation_dropout": 0.4,
    "dropout_input": 0.1,
    "dropout_features": 0.15,
    "encoder_layerdrop": 0.02,
    "mask_prob": 0.65,
    "mask_length": 7,
    "mask_channel_prob": 0.25,
    "mask_channel_length": 3,
    "conv_pos": 4,
    "conv_pos_groups": 3,
    "latent_vars": 6,
    "latent_groups": 2,
    "latent_dim": 8,
    "final_dim": 14,
    "logit_temp": 0.2,
    "num_negatives": 9,
    "quantize_targets": True,
    "quantize_input": False,
    "target_glu": False,
    "codebook_negatives": 0,
    "quantizer_depth": 1,
    "pos_conv_depth": 1,
    "feature_grad_mult": 0.1,
    "latent_temp": [2.0, 0.1, 0.999995],
    "require_same_masks": True,
}
FINE_TUNING: dict[str, Any] = {
    "_name": "wav2vec_ctc",
    "w2v_path": "/checkpoint/pretrained.pt",
    "apply_mask": True,
    "dropout": 0.0,
    "dropout_input": 0.01,
    "final_dropout": 0.07,
    "layerdrop": 0.11,
    "mask_prob": 0.5,
    "mask_length": 6,
    "mask_channel_prob": 0.35,
    "mask_channel_length": 4,
    "feature_grad_mult": 0.0,
    "normalize": "${task.normalize}",
}
# Stands for what `conv_feature_layers` above means.
CONVOLUTIONS = ((8, 16, 8), (10, 4, 4), (10, 2, 2))


def weights(
    settings: dict[str, Any],
    kind: str = "wav2vec2",
    convolutions: tuple[tuple[int, int, int], ...] = CONVOLUTIONS,
    seed: int = 0,
    draw: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor]:
    """A state dict of fairseq's, with numbers large enough that every part of the network matters.

    `draw(*shape)` gives numbers of mean 0 and variance 1; by default they are normal ones of `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = draw or (lambda *shape: torch.randn(shape, generator=generator))
    found: dict[str, Tensor] = collections.OrderedDict()
    network = "w2v_encoder.w2v_model." if kind == "wav2vec_ctc" else ""
    width, inner = settings["encoder_embed_dim"], settings["encoder_ffn_embed_dim"]
    heads, kernel = settings["encoder_attention_heads"], settings["depthwise_conv_kernel_size"]

    def dense(key: str, outputs: int, *inputs: int, bias: bool = True, gain: float = 1.2) -> None:
        found[f"{key}.weight"] = gain * draw(outputs, *inputs) / math.sqrt(math.prod(inputs))
        if bias:
            found[f"{key}.bias"] = 0.15 * draw(outputs)

    def norm(key: str, size: int) -> None:
        found[f"{key}.weight"], found[f"{key}.bias"] = 1 + 0.3 * draw(size), 0.15 * draw(size)

    found[f"{network}mask_emb"] = draw(width)
    channels = 1
    for index, (outputs, size, _) in enumerate(convolutions):
        key = f"{network}feature_extractor.conv_layers.{index}"
        dense(f"{key}.0", outputs, channels, size, bias=settings["conv_bias"])
        if settings["extractor_mode"] == "layer_norm":
            norm(f"{key}.2.1", outputs)
        elif index == 0:
            norm(f"{key}.2", outputs)
        channels = outputs
    if channels != width:
        dense(f"{network}post_extract_proj", width, channels, gain=2.5)
    if kind == "wav2vec2":
        final = settings["final_dim"] if settings["final_dim"] > 0 else width
        latent = settings["latent_dim"] if settings["latent_dim"] > 0 else final
        groups, entries = settings["latent_groups"], settings["latent_vars"]
        found["quantizer.vars"] = draw(1, groups * entries, latent // groups)
        dense("quantizer.weight_proj", groups * entries, channels)
        dense("project_q", final, latent)
    groups, size = settings["conv_pos_groups"], settings["conv_pos"]
    found[f"{network}encoder.pos_conv.0.bias"] = 0.15 * draw(width)
    found[f"{network}encoder.pos_conv.0.weight_g"] = draw(1, 1, size).abs() + 0.5
    found[f"{network}encoder.pos_conv.0.weight_v"] = draw(width, width // groups, size)
    frequencies = (1.0 / 10000 ** (torch.arange(0, width // heads, 2) / (width // heads))).half()
    for layer in range(settings["encoder_layers"]):
        key = f"{network}encoder.layers.{layer}"
        for half in ("ffn1", "ffn2"):
            norm(f"{key}.{half}.layer_norm", width)
            dense(f"{key}.{half}.w_1", inner, width)
            dense(f"{key}.{half}.w_2", width, inner)
        norm(f"{key}.self_attn_layer_norm", width)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            dense(f"{key}.self_attn.{name}", width, width, gain=3.0 if name in ("linear_q", "linear_k") else 1.2)
        if settings["pos_enc_type"] == "rel_pos":
            dense(f"{key}.self_attn.linear_pos", width, width, bias=False)
            found[f"{key}.self_attn.pos_bias_u"] = draw(heads, width // heads)
            found[f"{key}.self_attn.pos_bias_v"] = draw(heads, width // heads)
        if settings["pos_enc_type"] == "rope":
            found[f"{key}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
        norm(f"{key}.conv_module.layer_norm", width)
        dense(f"{key}.conv_module.pointwise_conv1", 2 * width, width, 1, bias=False)
        dense(f"{key}.conv_module.depthwise_conv", width, 1, kernel, bias=False)
        norm(f"{key}.conv_module.batch_norm", width)
        found[f"{key}.conv_module.batch_norm.running_mean"] = 0.15 * draw(width)
        found[f"{key}.conv_module.batch_norm.running_var"] = draw(width).square() + 0.5
        found[f"{key}.conv_module.batch_norm.num_batches_tracked"] = torch.tensor(400 + layer)
        dense(f"{key}.conv_module.pointwise_conv2", width, width, 1, bias=False)
        norm(f"{key}.final_layer_norm", width)
    norm(f"{network}encoder.layer_norm", width)
    norm(f"{network}layer_norm", channels)
    if kind == "wav2vec2":
        dense("final_proj", final, width)
    else:
        dense("w2v_encoder.proj", VOCABULARY, width)
    return found


STYLES = ("omegaconf", "plain", "args")


def write(
    path: Path,
    settings: dict[str, Any],
    kind: str = "wav2vec2",
    style: str = "omegaconf",
    state: dict[str, Tensor] | None = None,
    *,
    fine_tuning: dict[str, Any] | None = None,
    normalize: bool = True,
    dictionary: list[str] | None = None,
    legacy: bool = False,
    **more: Any,
) -> Path:
    """Write a checkpoint.

    Args:
        path: the file.
        settings: of the pre-trained network.
        kind: `wav2vec2` or `wav2vec_ctc`.
        style: `omegaconf` (2021's containers), `plain` (later dictionaries) or `args` (the Namespace before them).
        state: the weights; drawn where not given.
        fine_tuning: settings of the CTC model.
        normalize: whether waveforms were normalised.
        dictionary: letters of the target dictionary that the checkpoint carries.
        legacy: whether to write the format of torch before 1.6.
        more: other entries of the file.
    """
    task = {"_name": "audio_finetuning" if kind == "wav2vec_ctc" else "audio_pretraining", "normalize": normalize}
    criterion = {"_name": "ctc", "zero_infinity": True}
    if kind == "wav2vec2":
        criterion = {"_name": "wav2vec", "loss_weights": [0.2, 10.0], "infonce": True}
    model = dict(settings)
    if kind == "wav2vec_ctc":
        model = {
            **FINE_TUNING,
            **(fine_tuning or {}),
            "w2v_args": {"_name": None, "model": settings, "task": dict(task)},
        }
    cfg = {"_name": None, "common": {"fp16": True, "seed": 1}, "model": model, "task": task, "criterion": criterion}
    content: dict[str, Any] = {
        "args": None,
        "cfg": None,
        "model": weights(settings, kind) if state is None else state,
        "criterion": None,
        "optimizer_history": [
            {"optimizer_name": "FairseqAdam", "num_updates": 3, "lr_scheduler_state": {"best": None}}
        ],
        "task_state": {},
        "extra_state": {"epoch": 2, "metrics": [(0, "default", "AverageMeter", {"val": 1.5})], "val_loss": 0.7},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        **more,
    }
    with stand_ins() as modules:
        if style == "omegaconf":
            cfg["model"] = {**model}
            if "extractor_mode" in model:
                cfg["model"]["extractor_mode"] = modules["Choices"](model["extractor_mode"])
            content["cfg"] = modules["wrap"](cfg)
        elif style == "plain":
            content["cfg"] = cfg
        else:
            content["args"] = namespace(settings, kind, {**FINE_TUNING, **(fine_tuning or {})}, normalize, criterion)
        if dictionary is not None:
            content["task_state"] = {"target_dictionary": modules["Dictionary"](dictionary)}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def namespace(
    settings: dict[str, Any], kind: str, fine_tuning: dict[str, Any], normalize: bool, criterion: dict[str, Any]
) -> argparse.Namespace:
    """Settings as before 2021: all in one, lists as text."""
    flat = {key: value for key, value in settings.items() if key != "_name"}
    flat["latent_temp"] = str(tuple(settings["latent_temp"]))
    if "loss_weights" in criterion:
        flat["loss_weights"] = str(criterion["loss_weights"])
    arguments = argparse.Namespace(arch="wav2vec2", task="audio_pretraining", normalize=normalize, **flat)
    if kind == "wav2vec2":
        return arguments
    outer = {key: value for key, value in fine_tuning.items() if key not in ("_name", "normalize")}
    return argparse.Namespace(
        arch="wav2vec_ctc",
        task="audio_pretraining",
        normalize=normalize,
        zero_infinity=True,
        w2v_args=arguments,
        **outer,
    )


@contextmanager
def stand_ins() -> Iterator[dict[str, Any]]:
    """Modules and classes with the names that fairseq's pickles have, while a file is written."""
    made: dict[str, types.ModuleType] = {}

    def define(module: str, name: str) -> Any:
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            made.setdefault(part, types.ModuleType(part))
        cls = type(name, (), {"__module__": module})
        setattr(made[module], name, cls)
        return cls

    dict_config, list_config = (
        define("omegaconf.dictconfig", "DictConfig"),
        define("omegaconf.listconfig", "ListConfig"),
    )
    node, inner = define("omegaconf.nodes", "AnyNode"), define("omegaconf.base", "Metadata")
    outer = define("omegaconf.base", "ContainerMetadata")
    letters, choices = define("fairseq.data.dictionary", "Dictionary"), define("fairseq.dataclass.constants", "Choices")
    config = define("fairseq.dataclass.configs", "FairseqConfig")

    def wrap(value: Any, parent: Any = None, key: Any = None) -> Any:
        """A container of omegaconf 2.0, whose nodes know their parents."""
        wrapped = (dict_config if isinstance(value, dict) else list_config if isinstance(value, list) else node)()
        metadata = inner() if isinstance(wrapped, node) else outer()
        metadata.__dict__ |= {"ref_type": Any, "object_type": config, "optional": True, "key": key, "flags": {}}
        if not isinstance(wrapped, node):
            metadata.__dict__ |= {
                "resolver_cache": collections.defaultdict(dict),
                "key_type": Any,
                "element_type": dict,
            }
        wrapped.__dict__ |= {"_metadata": metadata, "_parent": parent}
        if isinstance(value, dict):
            wrapped._content = {name: wrap(item, wrapped, name) for name, item in value.items()}
        elif isinstance(value, list):
            wrapped._content = [wrap(item, wrapped, place) for place, item in enumerate(value)]
        else:
            wrapped._val = value
        return wrapped

    def dictionary(symbols: list[str]) -> Any:
        made_of = letters()
        whole = ["<s>", "<pad>", "</s>", "<unk>", *symbols]
        made_of.__dict__ |= {"bos_word": "<s>", "symbols": whole, "count": [1] * len(whole), "nspecial": 4}
        made_of.indices = {symbol: place for place, symbol in enumerate(whole)}
        return made_of

    def choice(value: str) -> Any:
        made_of = choices()
        made_of.value = value
        return made_of

    choices.__reduce__ = lambda self: (choices, (self.value,))
    assert not made.keys() & sys.modules.keys(), "a real omegaconf or fairseq is loaded"
    sys.modules.update(made)
    try:
        yield {"wrap": wrap, "Dictionary": dictionary, "Choices": choice}
    finally:
        for name in made:
            del sys.modules[name]


def write_dictionary(path: Path, symbols: list[str] = LETTERS) -> Path:
    """Write `dict.ltr.txt`."""
    path.write_text("".join(f"{symbol} {1000 - place}\n" for place, symbol in enumerate(symbols)), encoding="utf-8")
    return path
