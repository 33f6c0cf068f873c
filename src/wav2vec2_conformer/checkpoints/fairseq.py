"""Checkpoints of fairseq: what is in them, and their conversion to a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..configuration import Wav2Vec2ConformerConfig
from ..data.vocabulary import build_processor
from ..files import check_vacant, new_folder
from ..modeling import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from .fairseq_dictionary import read_dictionary, stored_dictionary, vocabulary
from .fairseq_keys import BARE_PREFIX, CTC_PREFIX, dropped_because, fairseq_keys
from .fairseq_recipe import recipe
from .fairseq_settings import Settings, configuration, fields
from .inert import StoredTensor
from .torch_file import DTYPES, TorchFile

__all__ = ["Conversion", "FairseqCheckpoint", "convert_fairseq"]

MODELS: dict[str, Any] = {"wav2vec2": Wav2Vec2ConformerForPreTraining, "wav2vec_ctc": Wav2Vec2ConformerForCTC}
SHOWN = 8  # keys in a message
# Settings that say the weights' shapes, and that all files have.
SIZES = ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "conv_feature_layers")


@dataclass
class Conversion:
    """What was converted.

    Args:
        output: the new folder.
        architecture: the class that loads it.
        weights: how many tensors were converted.
        dropped: key of the checkpoint that was left out -> why.
        notes: what the file does not say and was taken to be as fairseq's default.
    """

    output: Path
    architecture: str
    weights: int
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class FairseqCheckpoint:
    """A pre-trained or CTC checkpoint of fairseq, open; use it in a `with` statement.

    Raises:
        ValueError: with the file's name: it is damaged, hostile, of another kind of model, or its settings cannot be
            converted.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.file = TorchFile(path)
        try:
            self._read(self.file.content)
        except ValueError as error:
            self.file.close()
            raise ValueError(f"{path}: {error}") from None

    def __enter__(self) -> FairseqCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _read(self, content: Any) -> None:
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise ValueError("not a checkpoint of fairseq: expected its weights under 'model', beside 'cfg' or 'args'")
        if not content["model"]:
            raise ValueError("under 'model' there is nothing; expected the weights")
        not_tensors = [key for key, value in content["model"].items() if not isinstance(value, StoredTensor)]
        if not_tensors:
            raise ValueError(f"under 'model' there must be tensors only, got {len(not_tensors)} other things")
        self.tensors: dict[str, StoredTensor] = {str(key): value for key, value in content["model"].items()}
        if sum(tensor.bytes for tensor in self.tensors.values()) > self.file.size:  # views of one storage may be many
            raise ValueError("its tensors share their numbers, so that they would take more memory than the file has")
        model, task, criterion = find_settings(content)
        self.kind = model_name(model)
        self.head = "CTC" if self.kind == "wav2vec_ctc" else "pre-training"
        self.prefix = CTC_PREFIX if self.kind == "wav2vec_ctc" else BARE_PREFIX
        self.network = inner_model(model) if self.kind == "wav2vec_ctc" else model
        fine_tuning = model if self.kind == "wav2vec_ctc" else None
        self.config = configuration(self.network, fine_tuning, criterion)
        self.config.architectures = [MODELS[self.kind].__name__]
        if self.kind == "wav2vec_ctc":
            head = self.tensors.get("w2v_encoder.proj.bias")
            if head is None or len(head.shape) != 1:
                raise ValueError("its CTC head is missing: expected the weights w2v_encoder.proj.weight and .bias")
            self.config.vocab_size = head.shape[0]
        layers = self.config.num_hidden_layers
        if 30 * layers > len(self.tensors):  # before a network of that size is built; a block has more weights
            raise ValueError(f"its settings say encoder_layers = {layers}, but it has only {len(self.tensors)} weights")
        self.do_normalize = task.get("normalize", bool, False)
        self.symbols = stored_dictionary(content)
        self.recipe = recipe(self.network, fine_tuning, criterion)
        self.notes = []
        if "layer_norm_first" not in self.network:
            self.notes.append(
                f"{self.network.name}.layer_norm_first is not in the file; fairseq's default is taken (False: "
                "LayerNorm before the blocks). A model trained otherwise has other outputs"
            )

    def read_weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Our state dict in float32, and the keys that were left out with the reasons.

        Raises:
            ValueError: weights are missing, unexpected, or of another shape or kind; they are listed.
        """
        try:
            wanted = kinds(self.config, MODELS[self.kind])
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        table = fairseq_keys(
            wanted,
            prefix=self.prefix,
            norm=self.config.feat_extract_norm,
            layers=self.config.num_hidden_layers,
        )
        dropped = {key: reason for key in self.tensors.keys() - table.keys() if (reason := dropped_because(key))}
        missing = sorted(table.keys() - self.tensors.keys())
        unexpected = sorted(self.tensors.keys() - table.keys() - dropped.keys())
        wrong = [
            f"{key}: expected {wanted[ours]}, got {kind_of(self.tensors[key])}"
            for key, ours in sorted(table.items())
            if key in self.tensors and kind_of(self.tensors[key]) != wanted[ours]
        ]
        if missing or unexpected or wrong:
            lists = {"missing": missing, "unexpected": unexpected, "of another shape or kind": wrong}
            said = "; ".join(f"{len(keys)} {what} ({shorten(keys)})" for what, keys in lists.items() if keys)
            silent = [name for name in SIZES if name not in self.network]
            why = f". The settings do not say {', '.join(silent)}, so fairseq's defaults are expected" if silent else ""
            raise ValueError(
                f"{self.path}: its weights do not belong to the {self.head} model that its settings describe: "
                f"{said}{why if wrong else ''}"
            )
        weights: dict[str, Tensor] = {}
        for theirs, ours in table.items():
            tensor = self.file.read(self.tensors[theirs])
            tensor = (tensor.long() if wanted[ours].whole else tensor.float()).contiguous()
            if ours in weights and not torch.equal(weights[ours], tensor):
                raise ValueError(
                    f"{self.path}: {theirs} differs from that of the first block; expected the same in all"
                )
            weights[ours] = tensor
        return weights, dropped


def shorten(keys: list[str]) -> str:
    """The first few of many."""
    more = f", ... {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(key[:120] for key in keys[:SHOWN]) + more


class TensorKind(NamedTuple):
    """What a weight must be: its shape, and whether it has whole numbers."""

    shape: tuple[int, ...]
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.shape}{' whole numbers' if self.whole else ''}"


def kind_of(tensor: StoredTensor) -> TensorKind:
    return TensorKind(tensor.shape, not DTYPES[tensor.storage.kind].is_floating_point)


def kinds(config: Wav2Vec2ConformerConfig, model: Any) -> dict[str, TensorKind]:
    """The keys of a model's state dict and what they must be, without the memory of one."""
    try:
        with torch.device("meta"):
            state = model(config).state_dict()
    except RuntimeError as error:
        raise ValueError(f"no network has the sizes that the settings say ({str(error)[:200]})") from None
    return {key: TensorKind(tuple(value.shape), not value.is_floating_point()) for key, value in state.items()}


def find_settings(content: dict[Any, Any]) -> tuple[Settings, Settings, Settings]:
    """The settings of model, task and criterion: `cfg` of newer files, or `args`, one for all, of older ones."""
    if fields(content.get("cfg")):
        cfg = Settings(content["cfg"], content["cfg"], "cfg")
        return cfg.part("model"), cfg.part("task"), cfg.part("criterion")
    if fields(content.get("args")):
        args = Settings(content["args"], content["args"], "args")
        return args, args, args
    raise ValueError("not a checkpoint of fairseq: expected its settings under 'cfg' or 'args'")


def name_of(model: Settings) -> str:
    """fairseq's name of the kind of model: `_name` in `cfg`, `arch` in `args`."""
    return str(model.get("_name", str, "") or model.get("arch", str, ""))


def model_name(model: Settings) -> str:
    """`wav2vec2` (pre-trained) or `wav2vec_ctc`."""
    name = name_of(model)
    if not name:
        raise ValueError(
            f"its settings do not name the kind of model; expected one of {' and '.join(map(repr, MODELS))} under "
            f"{model.name}.{'arch' if model.name == 'args' else '_name'}"
        )
    if name not in MODELS:
        raise ValueError(
            f"it is a model of fairseq's kind {name[:80]!r}; only {' and '.join(map(repr, MODELS))} with conformer "
            "blocks can be converted"
        )
    return name


def inner_model(model: Settings) -> Settings:
    """The pre-trained model's settings, which a CTC checkpoint has in `w2v_args`."""
    arguments = model.part("w2v_args")
    if not arguments.fields:
        raise ValueError(
            f"{model.name}.w2v_args is missing: the settings of the pre-trained model that was fine-tuned lie in "
            "another file (`w2v_path`); save the checkpoint again with a fairseq that stores them"
        )
    inner = arguments.part("model") if "model" in arguments else arguments
    inner.root = arguments.fields
    if name_of(inner) != "wav2vec2":
        raise ValueError(
            f"{inner.name}: what was fine-tuned is a model of fairseq's kind {name_of(inner)[:80]!r}; expected "
            "'wav2vec2'"
        )
    return inner


def convert_fairseq(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dictionary: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Convert a checkpoint of fairseq to a folder with `config.json`, `model.safetensors` and the processor's files.

    The folder appears when it is complete, or not at all.

    Args:
        path: the checkpoint; nothing in it is executed.
        output: a folder that does not exist, or is empty.
        dictionary: `dict.ltr.txt` of a CTC model, where the checkpoint does not have it.

    Raises:
        ValueError: with the file and the problem.
        OSError: the folder cannot be written.
    """
    target = Path(output)
    check_vacant(target)
    with FairseqCheckpoint(path) as checkpoint:
        tokens = tokens_of(checkpoint, dictionary)
        weights, dropped = checkpoint.read_weights()
        with new_folder(target) as folder:
            write_model(folder, checkpoint, weights, tokens)
        return Conversion(target, MODELS[checkpoint.kind].__name__, len(weights), dropped, checkpoint.notes)


def tokens_of(checkpoint: FairseqCheckpoint, dictionary: str | os.PathLike[str] | None) -> dict[str, int] | None:
    """The vocabulary of a CTC model."""
    if checkpoint.kind != "wav2vec_ctc":
        if dictionary is not None:
            raise ValueError(f"{checkpoint.path}: a pre-trained model has no letters; leave --dict out")
        return None
    size = checkpoint.config.vocab_size or 0
    symbols = checkpoint.symbols if dictionary is None else read_dictionary(dictionary)
    if symbols is None:
        raise ValueError(
            f"{checkpoint.path}: it does not say which letters its {size} outputs are; pass the dictionary it was "
            "trained with: --dict dict.ltr.txt"
        )
    return vocabulary(size, symbols, str(checkpoint.path if dictionary is None else dictionary), checkpoint.symbols)


def write_model(
    folder: Path, checkpoint: FairseqCheckpoint, weights: dict[str, Tensor], tokens: dict[str, int] | None
) -> None:
    """Write what `from_pretrained` and `load_processor` read, and the recipe's settings that no field here has."""
    # Of a pre-trained model only the part that prepares waveforms is of use.
    processor = build_processor(tokens or {"<pad>": 0}, do_normalize=checkpoint.do_normalize)
    files: Any = processor.feature_extractor if tokens is None else processor
    files.save_pretrained(folder)
    checkpoint.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "fairseq_recipe.json").write_text(json.dumps(checkpoint.recipe, indent=2) + "\n", encoding="utf-8")
