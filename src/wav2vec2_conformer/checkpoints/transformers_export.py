"""Out again: a model of this package as a folder that transformers' own Wav2Vec2-Conformer classes load.

Their numbers for a clip without padding are then ours: same weights under the same names, and a `config.json` with what
transformers 4.34 and 5.x both read. What those classes cannot compute is refused before anything is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from ..auto import architecture_of
from ..configuration import Wav2Vec2ConformerConfig
from ..files import check_vacant, new_folder
from ..modeling import Wav2Vec2ConformerPreTrainedModel
from ..processing import load_processor, model_name, normalizes
from .model_folder import find_config, load_model

__all__ = ["Export", "export_transformers"]

OWN_FIELDS = ("padding", "encoder_layer_norm", "feat_projection", "adapter_attn_dim")  # transformers has none of them
CLASSES_FIELDS = ("id2label", "label2id", "problem_type")
# Of transformers 4.34; later ones know more, and some of those have weights of their own.
ACTIVATIONS = frozenset(
    "gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_pytorch_tanh laplace linear mish quick_gelu relu "
    "relu2 relu6 sigmoid silu swish tanh".split()
)
EXTRACTOR_FIELDS = "do_normalize feature_size padding_side padding_value return_attention_mask sampling_rate".split()
# The two versions differ in whether texts are cleaned up by default, so the file says it. The tokens' ids are in
# vocab.json alone: what 5.x would say of them here makes 4.34 leave the spaces out of texts without special tokens.
TOKENIZER_FIELDS = (
    "bos_token eos_token unk_token pad_token word_delimiter_token replace_word_delimiter_char do_lower_case "
    "clean_up_tokenization_spaces"
).split()


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        output: the new folder.
        architecture: the class of transformers that loads it.
        weights: how many tensors were written.
    """

    output: Path
    architecture: str
    weights: int


def export_transformers(model: str | os.PathLike[str] | None, output: str | os.PathLike[str]) -> Export:
    """Write a model, with its processor if it has one, as a folder for transformers' own classes, 4.34 and later.

    All weights are written in float32. The folder appears when it is complete, or not at all.

    Args:
        model: a folder or a Hub id; `None`: the small English model that comes with the package.
        output: a folder that does not exist, or is empty.

    Raises:
        ValueError: with the file's name: no model or a damaged one; transformers' classes cannot compute it (the
            message names the field), weights of its head are missing, or there is something at `output`.
        OSError: there is no such model on the Hub, it cannot be reached, or `output` cannot be written.
    """
    target = Path(output)
    check_vacant(target)
    name = model_name(model)
    config = find_config(name, "export")
    model_class = architecture_of(config, name)
    architecture: str = model_class.__name__
    for problem in inexpressible(config, architecture):
        raise ValueError(
            f"{name}: {problem}. This package runs it, also inside transformers' pipelines (`register_auto_classes`)"
        )
    documents = {"config.json": config_document(config, architecture), **processor_documents(name)}
    weights = weights_of(load(name, config, model_class))
    with new_folder(target) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for file, content in documents.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / file).write_text(text, encoding="utf-8")
    return Export(target, architecture, len(weights))


def inexpressible(config: Wav2Vec2ConformerConfig, architecture: str) -> Iterator[str]:
    """What transformers' classes would ignore or compute otherwise: the field, its value and the remedy."""
    if config.encoder_layer_norm == "before":
        yield (
            "`encoder_layer_norm='before'` cannot be exported: the encoder of transformers normalises after its "
            "blocks; expected a model with 'after'"
        )
    if config.position_embeddings_type == "convolutional":
        yield (
            "`position_embeddings_type='convolutional'` cannot be exported: transformers never applies this "
            "convolution; expected a model with 'relative', 'rotary' or None"
        )
    if config.adapter_attn_dim is not None:
        yield (
            f"`adapter_attn_dim={config.adapter_attn_dim}` cannot be exported: the conformer blocks of transformers "
            "have no language adapters; expected a model without them (None)"
        )
    for field in ("hidden_act", "feat_extract_activation"):
        if getattr(config, field) not in ACTIVATIONS:
            yield (
                f"`{field}={getattr(config, field)!r}` cannot be exported: transformers 4.34 does not know this "
                f"activation; expected one of {', '.join(sorted(ACTIVATIONS))}"
            )
    if architecture == "Wav2Vec2ConformerForXVector" and config.add_adapter:
        if config.use_weighted_layer_sum:
            yield (
                "`add_adapter=True` under `use_weighted_layer_sum=True` cannot be exported: transformers 5 would mix "
                "the adapter's output in; it has no effect on the result, so save the model with add_adapter=False"
            )
        elif config.output_hidden_size != config.hidden_size:
            yield (
                f"`output_hidden_size={config.output_hidden_size}` cannot be exported: the x-vector head of "
                f"transformers reads `hidden_size` channels; expected {config.hidden_size}"
            )


def config_document(config: Wav2Vec2ConformerConfig, architecture: str) -> dict[str, Any]:
    """The content of `config.json`: every field of the network that transformers has, and nothing else."""
    defaults = {name: getattr(Wav2Vec2ConformerConfig, name) for name in Wav2Vec2ConformerConfig.__annotations__}
    values, classes = config.to_dict(), config.to_diff_dict()
    document = {name: values[name] for name in defaults if name not in OWN_FIELDS}
    for name, default in defaults.items():
        if isinstance(default, float):
            document[name] = float(document[name])  # transformers 5 refuses 1 where it expects 1.0
    document |= {name: classes[name] for name in CLASSES_FIELDS if name in classes}
    document |= {"architectures": [architecture], "model_type": config.model_type, "torch_dtype": "float32"}
    if not config.add_adapter:  # whose output transformers 5 would take for the last of the hidden states
        document["tie_last_hidden_states"] = True  # after the last norm, as in 4.34, which does not read this
    return dict(sorted(document.items()))


def load(name: str, config: Wav2Vec2ConformerConfig, model_class: Any) -> Wav2Vec2ConformerPreTrainedModel:
    """The model in float32.

    Raises:
        ValueError: weights are missing that `from_pretrained` would draw at random.
    """
    model, info = load_model(name, config, model_class)
    drawn = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if drawn:
        raise ValueError(
            f"{name}: {', '.join(drawn[:5])}{', ...' if len(drawn) > 5 else ''} are missing and would be written at "
            f"random; expected all weights of a {model_class.__name__}, as its `save_pretrained` writes them"
        )
    return model  # type: ignore[no-any-return]


def weights_of(model: Wav2Vec2ConformerPreTrainedModel) -> dict[str, Tensor]:
    """The state dict as transformers' class of the same name has it.

    The names are the same. `pos_conv_embed`, a parameter there and unused, is under its names of torch 2.1 and later
    (`parametrizations`), which 4.34 wants with such a torch and 5.x with any. A projection that is not there becomes
    the identity.
    """
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    if not model.config.feat_projection:
        inside = "" if model.base_model is model else f"{model.base_model_prefix}."
        width = model.config.hidden_size
        weights[f"{inside}feature_projection.projection.weight"] = torch.eye(width)
        weights[f"{inside}feature_projection.projection.bias"] = torch.zeros(width)
    return weights


def processor_documents(name: str) -> dict[str, Any]:
    """File -> content of a model's processor, as 4.34 and 5.x both read them; of a pre-trained model, the first only.

    Raises:
        ValueError: its tokenizer is none for CTC.
    """
    documents: dict[str, Any] = {}
    if normalizes(name) is not None:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(name)
        fields = {field: getattr(extractor, field) for field in EXTRACTOR_FIELDS}
        documents["preprocessor_config.json"] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", **fields}
    processor = load_processor(name)
    if processor is None:
        return documents
    tokenizer = processor.tokenizer
    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        raise ValueError(
            f"{name}: its tokenizer is a {type(tokenizer).__name__}; only a Wav2Vec2CTCTokenizer can be exported. Move "
            "its files away to export the model without"
        )
    classes = {"processor_class": "Wav2Vec2Processor"}
    documents["preprocessor_config.json"] |= classes
    fields = {field: getattr(tokenizer, field) for field in TOKENIZER_FIELDS}
    documents["tokenizer_config.json"] = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **classes, **fields}
    documents["vocab.json"] = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return documents
