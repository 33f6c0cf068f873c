"""What is wrong with a model's files, or easily overlooked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Wav2Vec2Processor

from ..checkpoints.model_folder import PREFIX, Comparison, listed
from ..checkpoints.stored_weights import StoredWeights
from ..configuration import Wav2Vec2ConformerConfig
from ..modeling import Wav2Vec2ConformerForCTC
from ..modeling.positions import RotaryPositions

__all__ = ["Pitfall", "processor_pitfalls", "training_pitfalls", "weight_pitfalls"]

FREQUENCIES = "encoder.embed_positions.inv_freq"
# What the configurations of the released large models say, whatever they were trained with.
TEMPLATE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "conformer_conv_dropout": 0.1,
    "feat_proj_dropout": 0.1,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
}


@dataclass(frozen=True)
class Pitfall:
    """Something that is wrong or easily overlooked.

    Args:
        kind: a name for programs, such as `"missing_weights"`.
        message: a sentence for people.
    """

    kind: str
    message: str


def weight_pitfalls(weights: StoredWeights, network: Any) -> Iterator[Pitfall]:
    """Compare what lies in the files with what the network needs.

    Args:
        weights: of the files.
        network: the model on the meta device, before its unused tensors are sealed.
    """
    compared = Comparison(weights, network)
    if weights.absent:
        keys = sum(map(len, weights.absent.values()))
        yield Pitfall("absent_shards", f"{listed(weights.absent)} with {keys} weights: named by the index, not there")
    if compared.refused:
        yield Pitfall(
            "missing_weights", f"{listed(compared.refused)} are not in the files, and loading will be refused"
        )
    if compared.drawn:
        yield Pitfall("missing_weights", f"{listed(compared.drawn)} are not in the files, and will be drawn at random")
    if compared.unexpected:
        unexpected = listed(compared.unexpected)
        yield Pitfall("unexpected_weights", f"{unexpected} have no place in the model, and are left out")
    if compared.wrong:
        yield Pitfall("misshapen_weights", f"{listed(compared.wrong)} are not as config.json describes them")
    found = compared.found
    types = {weight.dtype for key, weight in found.items() if not key.endswith(FREQUENCIES)}
    half = sorted(types & {"float16", "bfloat16"})
    if half:
        yield Pitfall(
            "half_precision",
            f"weights are stored in {' and '.join(half)}: `from_pretrained` computes in it; `dtype=torch.float32` "
            "widens them",
        )
    yield from frequency_pitfalls(weights, network)


def frequency_pitfalls(weights: StoredWeights, network: Any) -> Iterator[Pitfall]:
    """Whether the rotary frequencies have been through half precision; only they are read."""
    key = next((key for key in weights.found if key.removeprefix(PREFIX) == FREQUENCIES), None)
    place = network.base_model.encoder.embed_positions
    if key is None or not isinstance(place, RotaryPositions) or weights.found[key].shape != place.inv_freq.shape:
        return
    stored = weights.read(key)
    rounded = torch.equal(stored.float(), stored.half().float())
    exact = RotaryPositions(network.config).exact_frequencies()
    if stored.dtype.itemsize < 4 or (rounded and not torch.equal(stored.float(), exact)):
        yield Pitfall(
            "rounded_frequencies",
            "inv_freq has been rounded to half precision, as in the released models: what was trained with it needs it "
            "as it is, and other programs may compute it anew",
        )


def processor_pitfalls(
    network: Any, processor: Wav2Vec2Processor | None, do_normalize: bool | None
) -> Iterator[Pitfall]:
    """What the files beside the weights leave open, or say otherwise than the configuration."""
    config, needs_letters = network.config, isinstance(network, Wav2Vec2ConformerForCTC)
    if do_normalize is None:
        yield Pitfall(
            "missing_processor",
            "there is no preprocessor_config.json or processor_config.json: it is unknown whether waveforms are "
            "normalised",
        )
    if do_normalize is False and config.feat_extract_norm == "layer":
        # After a GroupNorm a waveform's scale and mean matter no more, so there either value does.
        yield Pitfall(
            "not_normalized",
            "do_normalize is false, but feat_extract_norm='layer' hears how loud a recording is: such models are "
            "trained on normalised waveforms",
        )
    if not needs_letters:
        return
    if processor is None:
        yield Pitfall(
            "missing_processor",
            "there is no tokenizer (vocab.json, tokenizer_config.json) with a feature extractor: it is unknown which "
            "letters the columns mean",
        )
        return
    tokenizer = processor.tokenizer
    if tokenizer.vocab_size != config.vocab_size:
        yield Pitfall(
            "vocabulary_size",
            f"vocab_size is {config.vocab_size}, but the vocabulary has {tokenizer.vocab_size} tokens",
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        yield Pitfall(
            "other_blank",
            f"the blank is column {config.pad_token_id} by config.json, but {tokenizer.pad_token_id} by the tokenizer",
        )


def training_pitfalls(config: Wav2Vec2ConformerConfig) -> Iterator[Pitfall]:
    """What matters to those who train the model further."""
    if all(getattr(config, name) == value for name, value in TEMPLATE.items()):
        yield Pitfall(
            "template_dropouts",
            "dropouts and masks are those of the released models' template, which no training used: choose them before "
            "fine-tuning (results without training do not depend on them)",
        )
