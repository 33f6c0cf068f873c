"""What a model is: its size, head, letters, speed and pitfalls."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import Wav2Vec2Processor

from ..audio import SAMPLE_RATE
from ..auto import architecture_of
from ..checkpoints.model_folder import read_config, refusal, without_memory
from ..checkpoints.stored_weights import StoredWeights
from ..lengths import conv_layers, receptive_field, samples_a_frame
from ..modeling import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerModel
from ..modeling.unused import seal_unused
from ..processing import load_processor, model_name, normalizes
from .pitfalls import Pitfall, processor_pitfalls, training_pitfalls, weight_pitfalls
from .speed import Speed, estimate_speed

__all__ = ["Inspection", "Vocabulary", "inspect_model"]

WITHOUT_LABELS = (Wav2Vec2ConformerModel, Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerForCTC)
PRECISIONS = ("float32", "bfloat16", "float16")
CARD_START = 2**16  # characters of README.md in which its front matter must end
LICENCE = re.compile(r"^license:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
ADAPTER = re.compile(r"adapter\.([A-Za-z0-9][A-Za-z0-9_-]*)\.(safetensors|bin)")


@dataclass(frozen=True)
class Vocabulary:
    """What the columns of a CTC model's logits mean.

    Args:
        size: number of tokens.
        characters: those that are written as they are, in the order of their columns.
        special_tokens: padding, beginning, end and unknown, likewise.
        blank: the token of the blank's column; `None` where that column has none.
        word_delimiter: the token that stands for a space.
    """

    size: int
    characters: tuple[str, ...]
    special_tokens: tuple[str, ...]
    blank: str | None
    word_delimiter: str | None


@dataclass(frozen=True)
class Inspection:
    """What a model is.

    Args:
        path: its folder.
        architecture: the class that it was saved from, which says the head.
        parameters: numbers that training changes.
        buffers: numbers beside them that the network uses: batch-norm statistics, rotary frequencies.
        unused: numbers that files carry and the network never uses.
        blocks: conformer blocks.
        width: of the blocks.
        vocab_size: columns of a CTC head, else `None`.
        num_labels: classes of a classifying head, else `None`.
        position_embeddings: `"relative"`, `"rotary"`, `"convolutional"` or `None`.
        feature_extractor_norm: `"group"` or `"layer"`.
        encoder_layer_norm: `"after"` the blocks or `"before"` them.
        do_normalize: whether waveforms are normalised; `None` where no file says it.
        frames_per_second: of the output.
        receptive_field_ms: milliseconds of audio that the feature encoder sees for a frame.
        vocabulary: of the tokenizer; `None` where there is none.
        languages: whose adapters lie in the folder.
        licence: by the front matter of README.md.
        files: names of the files with weights.
        stored: type, such as `"float32"` -> numbers that are stored in it.
        memory: type -> bytes that the weights take when the model is loaded in it.
        speed: an estimate for this machine's CPU; `None` where it would take too long to make, or no clip can be run.
        pitfalls: what is wrong or easily overlooked.
    """

    path: Path
    architecture: str
    parameters: int
    buffers: int
    unused: int
    blocks: int
    width: int
    vocab_size: int | None
    num_labels: int | None
    position_embeddings: str | None
    feature_extractor_norm: str
    encoder_layer_norm: str
    do_normalize: bool | None
    frames_per_second: float
    receptive_field_ms: float
    vocabulary: Vocabulary | None
    languages: tuple[str, ...]
    licence: str | None
    files: tuple[str, ...]
    stored: dict[str, int]
    memory: dict[str, int]
    speed: Speed | None
    pitfalls: tuple[Pitfall, ...]


def inspect_model(model: str | Path | None = None) -> Inspection:
    """Say what a model is by its small files and the headers of the large ones; nothing is downloaded or executed.

    Args:
        model: a folder, or the Hub id of a model that has been downloaded before; `None`: the small English model that
            comes with the package.

    Raises:
        ValueError: with the file's name: no model, one of another kind, or a damaged or truncated file.
    """
    folder = find_folder(model)
    config = read_config(folder / "config.json")
    architecture = architecture_of(config, str(folder))
    weights = StoredWeights(folder)
    network = without_memory(architecture, config, folder)
    processor, do_normalize, unreadable = read_processor(folder)
    pitfalls = [
        *weight_pitfalls(weights, network),
        *(unreadable or processor_pitfalls(network, processor, do_normalize)),
        *training_pitfalls(config),
    ]
    carried = count(network.buffers())
    seal_unused(network)
    buffers = count(network.buffers())
    stored: Counter[str] = Counter()
    for weight in weights.found.values():
        stored[weight.dtype] += weight.count
    field, _ = receptive_field(conv_layers(config))
    return Inspection(
        path=folder,
        architecture=architecture.__name__,
        parameters=count(network.parameters()),
        buffers=buffers,
        unused=carried - buffers,
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        vocab_size=config.vocab_size if architecture is Wav2Vec2ConformerForCTC else None,
        num_labels=None if architecture in WITHOUT_LABELS else config.num_labels,
        position_embeddings=config.position_embeddings_type,
        feature_extractor_norm=config.feat_extract_norm,
        encoder_layer_norm=config.encoder_layer_norm,
        do_normalize=do_normalize,
        frames_per_second=SAMPLE_RATE / samples_a_frame(config),
        receptive_field_ms=1000 * field / SAMPLE_RATE,
        vocabulary=None if processor is None else describe_vocabulary(processor.tokenizer, config.pad_token_id),
        languages=tuple(sorted({found[1] for path in folder.iterdir() if (found := ADAPTER.fullmatch(path.name))})),
        licence=read_licence(folder / "README.md"),
        files=tuple(weights.files),
        stored=dict(stored.most_common()),
        memory={name: bytes_in(network, getattr(torch, name)) for name in PRECISIONS},
        speed=estimate_speed(architecture, config),
        pitfalls=tuple(pitfalls),
    )


def find_folder(model: str | Path | None) -> Path:
    """The folder of a model, which for a Hub id is in the cache of downloads."""
    name = model_name(model)
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(refusal(path, "inspect"))
    cached = try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        raise ValueError(
            f"{name!r}: no such folder, and no model of the Hub that has been downloaded; loading it once "
            "(`transcribe --model`) does that"
        )
    return Path(cached).parent


def read_processor(folder: Path) -> tuple[Wav2Vec2Processor | None, bool | None, list[Pitfall]]:
    """The processor, whether it normalises waveforms, and what is wrong where it cannot be read."""
    try:
        do_normalize = normalizes(str(folder))
        return None if do_normalize is None else load_processor(folder), do_normalize, []
    except Exception as error:  # the library raises whatever the files make it stumble over
        return None, None, [Pitfall("unreadable_processor", f"the processor's files cannot be read: {error}")]


def describe_vocabulary(tokenizer: Any, blank: int | None) -> Vocabulary:
    """The vocabulary of a CTC tokenizer, of several languages the one that is switched on."""
    tokens = sorted(tokenizer.encoder, key=tokenizer.encoder.get)
    special = {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    return Vocabulary(
        size=len(tokens),
        characters=tuple(token for token in tokens if token not in special | {tokenizer.word_delimiter_token}),
        special_tokens=tuple(token for token in tokens if token in special),
        blank=tokenizer.decoder.get(blank),
        word_delimiter=tokenizer.word_delimiter_token,
    )


def read_licence(card: Path) -> str | None:
    """What the front matter of a model card says under `license`."""
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        start = file.read(CARD_START)
    front = re.match(r"---\n(.*?)^---$", start, re.DOTALL | re.MULTILINE)
    found = LICENCE.search(front[1]) if front else None
    return found[1].strip("\"'") if found else None


def count(tensors: Any) -> int:
    """How many numbers there are in all."""
    return sum(tensor.numel() for tensor in tensors)


def bytes_in(network: Any, dtype: torch.dtype) -> int:
    """Bytes of a network's weights after it is cast to a type; some buffers stay in float32."""
    nn.Module.to(network, dtype)
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
