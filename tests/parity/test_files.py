"""Files: what ours writes the installed transformers reads, and the other way round; what a file may lack."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel
from wav2vec2_conformer.modeling.unused import UnusedTensors

from .random_models import FEATURE_ENCODERS, draw_weights, relative_difference

SETTINGS: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_dim": (6, 6, 6),
    "conv_kernel": FEATURE_ENCODERS[1][0],
    "conv_stride": FEATURE_ENCODERS[1][1],
    "conv_bias": True,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "max_source_positions": 100,
    "conv_depthwise_kernel_size": 7,
}
POSITIONS = pytest.mark.parametrize("position", ["relative", "rotary", None])
PREFIX = "wav2vec2_conformer."
CONV = PREFIX + "encoder.pos_conv_embed.conv."
INV_FREQ = PREFIX + "encoder.embed_positions.inv_freq"
WAVEFORMS = torch.randn((2, 801), generator=torch.Generator().manual_seed(0))


def our_model(position: str | None = "relative", **settings: Any) -> Wav2Vec2ConformerForCTC:
    """Ours, with weights drawn and no conv position tensors from any file."""
    config = Wav2Vec2ConformerConfig(**SETTINGS, position_embeddings_type=position, **settings)
    model = Wav2Vec2ConformerForCTC(config)
    draw_weights(model, torch.Generator().manual_seed(1))
    return model.eval()


def their_model(position: str | None = "relative") -> Any:
    config = transformers.Wav2Vec2ConformerConfig(**SETTINGS, position_embeddings_type=position)
    model = transformers.Wav2Vec2ConformerForCTC(config)
    draw_weights(model, torch.Generator().manual_seed(2))
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(WAVEFORMS).logits


def conv_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in state.items() if "pos_conv_embed" in key}
    assert len(found) == 3
    return found


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def rewrite(folder: Path, change: Any, binary: bool = False) -> None:
    """Change the state dict of a saved model: `change` gets the dictionary."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    path.unlink()
    if binary:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, path, metadata={"format": "pt"})


def drop(*parts: str) -> Any:
    """A change that removes every key with one of `parts` in it, and checks that there were some."""

    def change(state: dict[str, Tensor]) -> None:
        for part in parts:
            keys = [key for key in state if part in key]
            assert keys
            for key in keys:
                del state[key]

    return change


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What transformers logs at warning level and above; its loggers do not propagate to pytest's handler."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger = transformers.utils.logging.get_logger()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


# Both directions


@POSITIONS
def test_the_reference_reads_ours(position: str | None, tmp_path: Path) -> None:
    ours = our_model(position)
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    assert_equal(theirs.state_dict(), ours.state_dict())
    assert relative_difference(logits(theirs.eval()), logits(ours)) < 1e-5


@POSITIONS
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_ours_reads_the_reference(position: str | None, binary: bool, tmp_path: Path) -> None:
    theirs = their_model(position)
    theirs.save_pretrained(tmp_path)
    if binary:
        rewrite(tmp_path, lambda state: None, binary=True)
    ours, info = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert_equal(ours.state_dict(), theirs.state_dict())
    assert not ours.training
    assert relative_difference(logits(ours), logits(theirs)) < 1e-5


@POSITIONS
def test_there_and_back_again(position: str | None, tmp_path: Path) -> None:
    """Reference -> ours -> reference -> ours: nothing is lost or changed on the way, conv positions included."""
    theirs = their_model(position)
    wanted = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "0")
    for step, kind in enumerate(
        (Wav2Vec2ConformerForCTC, transformers.Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForCTC)
    ):
        model = kind.from_pretrained(tmp_path / str(step))
        assert_equal(model.state_dict(), wanted)
        model.save_pretrained(tmp_path / str(step + 1))
        assert_equal(load_file(tmp_path / str(step + 1) / "model.safetensors"), wanted)


def test_the_configuration_survives(tmp_path: Path) -> None:
    ours = our_model("rotary", padding="reference", layer_norm_eps=1e-3)
    ours.save_pretrained(tmp_path)
    assert Wav2Vec2ConformerForCTC.from_pretrained(tmp_path).config.padding == "reference"
    theirs = transformers.Wav2Vec2ConformerConfig.from_pretrained(tmp_path)
    for name in SETTINGS:
        wanted = getattr(ours.config, name)
        assert getattr(theirs, name) == (list(wanted) if isinstance(wanted, tuple) else wanted)
    assert theirs.layer_norm_eps == 1e-3
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Wav2Vec2ConformerForCTC"]


@pytest.mark.parametrize(
    "reader", [Wav2Vec2ConformerForCTC, transformers.Wav2Vec2ConformerForCTC], ids=["ours", "theirs"]
)
def test_several_files(reader: Any, tmp_path: Path) -> None:
    ours = our_model("rotary")
    ours.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(reader.from_pretrained(tmp_path).state_dict(), ours.state_dict())


# Base model and head


def test_base_checkpoint_into_ctc(tmp_path: Path, logged: list[str]) -> None:
    """Fine-tuning starts like this: the network comes from the file, the head is new, and the log says so."""
    theirs = their_model().wav2vec2_conformer
    theirs.save_pretrained(tmp_path)
    ours, info = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, vocab_size=17, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert any("lm_head.weight" in message for message in logged)
    assert_equal(ours.wav2vec2_conformer.state_dict(), theirs.state_dict())
    assert ours.lm_head.weight.shape == (17, 16)
    assert 0.005 < ours.lm_head.weight.std() < 0.05
    assert torch.equal(ours.lm_head.bias, torch.zeros(17))


@pytest.mark.parametrize("writer", [our_model, their_model])
def test_ctc_checkpoint_into_base(writer: Any, tmp_path: Path) -> None:
    model = writer("rotary")
    model.save_pretrained(tmp_path)
    base, info = Wav2Vec2ConformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert_equal(base.state_dict(), model.wav2vec2_conformer.state_dict())
    with torch.no_grad():
        found, wanted = (m(WAVEFORMS).last_hidden_state for m in (base, model.wav2vec2_conformer))
    assert relative_difference(found, wanted) < 1e-5
    base.save_pretrained(tmp_path / "base")
    assert_equal(load_file(tmp_path / "base" / "model.safetensors"), base.state_dict())


# Every layout that is published


def store(folder: Path, state: dict[str, Tensor], files: str) -> None:
    """Write a state dict as one or two files of safetensors or pickles."""
    name, kind = ("model", "safetensors") if "safetensors" in files else ("pytorch_model", "bin")
    if "several" not in files:
        parts = {f"{name}.{kind}": state}
    else:
        keys = sorted(state)
        halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
        parts = {
            f"{name}-0000{n}-of-00002.{kind}": {key: state[key] for key in half} for n, half in enumerate(halves, 1)
        }
        places = {key: file for file, part in parts.items() for key in part}
        size = sum(tensor.nbytes for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / f"{name}.{kind}.index.json").write_text(json.dumps(index))
    for file, part in parts.items():
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)


OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
# What config.json of transformers 4.x says beside the fields, inert ones included.
FROM_4 = {
    "_name_or_path": "/scratch/model",
    "torch_dtype": "float32",
    "transformers_version": "4.19.0.dev0",
    "do_stable_layer_norm": True,
    "feat_extract_dropout": 0.0,
    "hidden_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "num_feat_extract_layers": 3,
}


@pytest.mark.parametrize("files", ["safetensors", "several safetensors", "bin", "several bin"])
@pytest.mark.parametrize("weight_norm", ["weight_g", "parametrizations"])
@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("source", ["bare", "prefixed", "ctc"])
def test_every_layout_comes_in(source: str, version: str, weight_norm: str, files: str, tmp_path: Path) -> None:
    """A base model with and without the prefix, and one with a head; into the base model and, with a head, into CTC."""
    theirs = their_model("rotary")
    whole = theirs.state_dict()
    base = {key.removeprefix(PREFIX): tensor for key, tensor in whole.items() if key.startswith(PREFIX)}
    state = {"bare": base, "prefixed": {PREFIX + key: tensor for key, tensor in base.items()}, "ctc": whole}[source]
    theirs.config.architectures = ["Wav2Vec2ConformerForCTC" if source == "ctc" else "Wav2Vec2ConformerModel"]
    theirs.config.save_pretrained(tmp_path)
    if version == "4":
        path = tmp_path / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "dtype"} | FROM_4))
    if weight_norm == "weight_g":
        for new, old in OLD_NAMES.items():
            state = {key.replace(new, old): tensor for key, tensor in state.items()}
        assert sum("weight_g" in key or "weight_v" in key for key in state) == 2
    store(tmp_path, {key: tensor.clone() for key, tensor in state.items()}, files)
    ours, info = Wav2Vec2ConformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert source == "ctc" or not info["unexpected_keys"]
    assert_equal(ours.state_dict(), base)
    with_head, info = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == (set() if source == "ctc" else {"lm_head.weight", "lm_head.bias"})
    assert not info["unexpected_keys"]
    assert_equal(with_head.wav2vec2_conformer.state_dict(), base)
    if source == "ctc":
        assert relative_difference(logits(with_head), logits(theirs.eval())) < 1e-5


# What a file may lack, and what it may not


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    "key",
    [
        "encoder.layers.1.self_attn.linear_q.weight",
        "encoder.layers.0.self_attn.pos_bias_u",
        "encoder.layers.0.conv_module.batch_norm.running_mean",
        "encoder.layer_norm.bias",
        "feature_extractor.conv_layers.2.conv.weight",
        "feature_projection.projection.bias",
    ],
)
def test_a_missing_weight_is_an_error(key: str, binary: bool, tmp_path: Path) -> None:
    our_model().save_pretrained(tmp_path)
    rewrite(tmp_path, drop(PREFIX + key), binary)
    with pytest.raises(ValueError, match=f"1 weights of the network are missing.*{PREFIX + key}"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"1 weights of the network are missing.*{key}"):
        Wav2Vec2ConformerModel.from_pretrained(tmp_path)


def test_a_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    our_model().save_pretrained(tmp_path)
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights of the network are missing"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)


def test_a_weight_of_another_shape_is_an_error(tmp_path: Path, logged: list[str]) -> None:
    our_model().save_pretrained(tmp_path)
    key = PREFIX + "encoder.layers.1.ffn1.output_dense.weight"
    rewrite(tmp_path, lambda state: state.update({key: state[key][:, :-1].clone()}))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    assert any(key in message and "MISMATCH" in message for message in logged)


def test_a_missing_mask_embedding_is_drawn_with_a_warning(tmp_path: Path, logged: list[str]) -> None:
    ours = our_model()
    ours.save_pretrained(tmp_path)
    rewrite(tmp_path, drop("masked_spec_embed"))
    loaded, info = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {PREFIX + "masked_spec_embed"}
    assert any("masked_spec_embed" in message for message in logged)
    drawn = loaded.wav2vec2_conformer.masked_spec_embed
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn.std() > 0.1
    assert torch.equal(logits(loaded), logits(ours))


def test_missing_frequencies_are_computed(tmp_path: Path) -> None:
    our_model("rotary").save_pretrained(tmp_path)
    rewrite(tmp_path, drop("inv_freq"))
    loaded = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    exact = torch.tensor([10000.0 ** (-i / 4) for i in range(4)])  # heads of 8 channels
    torch.testing.assert_close(loaded.state_dict()[INV_FREQ], exact, rtol=1e-6, atol=0)
    assert torch.isfinite(logits(loaded)).all()


def test_missing_batch_counts_start_at_zero(tmp_path: Path) -> None:
    ours = our_model()
    for block in ours.wav2vec2_conformer.encoder.layers:
        block.conv_module.batch_norm.num_batches_tracked.fill_(5)
    ours.save_pretrained(tmp_path)
    rewrite(tmp_path, drop("num_batches_tracked"))
    loaded = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    wanted = ours.state_dict()
    counts = [key for key in wanted if key.endswith("num_batches_tracked")]
    assert len(counts) == 2
    wanted |= {key: torch.tensor(0) for key in counts}
    assert_equal(loaded.state_dict(), wanted)


def test_nothing_optional_is_needed_at_once(tmp_path: Path) -> None:
    ours = our_model("rotary")
    ours.save_pretrained(tmp_path)
    rewrite(tmp_path, drop("masked_spec_embed", "inv_freq", "num_batches_tracked", "pos_conv_embed"), binary=True)
    loaded = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    optional = ("masked_spec_embed", "inv_freq", "num_batches_tracked", "pos_conv_embed")
    kept = {key for key in ours.state_dict() if not any(part in key for part in optional)}
    assert_equal(*({k: v for k, v in model.state_dict().items() if k in kept} for model in (loaded, ours)))
    assert not [key for key, tensor in loaded.state_dict().items() if tensor.is_meta]
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == ours.state_dict().keys()


# Rotary frequencies: the file's, never recomputed


def test_rounded_frequencies_are_loaded_and_used(tmp_path: Path) -> None:
    ours = our_model("rotary")
    ours.save_pretrained(tmp_path)
    exact = ours.wav2vec2_conformer.encoder.embed_positions.exact_frequencies()
    rounded = (0.9 * exact).half().float()
    rewrite(tmp_path, lambda state: state.update({INV_FREQ: rounded}))
    loaded = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    assert torch.equal(loaded.state_dict()[INV_FREQ], rounded)
    theirs = transformers.Wav2Vec2ConformerForCTC.from_pretrained(tmp_path).eval()
    assert relative_difference(logits(loaded), logits(theirs)) < 1e-5
    assert relative_difference(logits(loaded), logits(ours)) > 1e-3
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[INV_FREQ], rounded)
    for dtype in (torch.bfloat16, torch.float16):
        half = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, dtype=dtype)
        found = half.wav2vec2_conformer.encoder.embed_positions.inv_freq
        assert found.dtype == torch.float32
        assert torch.equal(found, rounded)


# Conv positions: carried, never used


def conv_tensors(model: torch.nn.Module) -> list[UnusedTensors]:
    found = [module for module in model.modules() if isinstance(module, UnusedTensors)]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("source", ["built", "ours", "theirs", "base", "lacking"])
def test_conv_positions_are_no_parameters_and_no_buffers(source: str, tmp_path: Path) -> None:
    if source == "built":
        model: Any = our_model()
    elif source == "base":
        their_model().wav2vec2_conformer.save_pretrained(tmp_path)
        model = Wav2Vec2ConformerModel.from_pretrained(tmp_path)
    else:
        (their_model() if source == "theirs" else our_model()).save_pretrained(tmp_path)
        if source == "lacking":
            rewrite(tmp_path, drop("pos_conv_embed"))
        model = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    named = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert not [name for name in named if "pos_conv_embed" in name]
    for module in conv_tensors(model):
        assert not list(module.parameters())
        assert not list(module.buffers())
    assert {t.device.type for t in conv_positions(model.state_dict()).values()} == {"cpu"}


def test_conv_positions_keep_their_values_whatever_the_model_becomes(tmp_path: Path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path)
    wanted = conv_positions(theirs.state_dict())
    ours = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    ours.train()
    torch.optim.SGD(ours.parameters(), lr=1.0, weight_decay=0.5).step()
    assert_equal(conv_positions(ours.state_dict()), wanted)
    other = our_model()
    other.load_state_dict(ours.state_dict())
    assert_equal(conv_positions(other.state_dict()), wanted)
    ours.half().save_pretrained(tmp_path / "half")
    saved = conv_positions(load_file(tmp_path / "half" / "model.safetensors"))
    assert [key for key in wanted if not torch.equal(saved[key].half(), wanted[key].half())] == []


def test_conv_positions_of_a_model_that_never_had_any(tmp_path: Path) -> None:
    """The references' initial values, the same in every file."""
    states = []
    for name in "ab":
        torch.manual_seed(ord(name))
        Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**SETTINGS)).save_pretrained(tmp_path / name)
        states.append(conv_positions(load_file(tmp_path / name / "model.safetensors")))
    assert_equal(states[0], states[1])
    bias, norm, direction = (
        states[0][CONV + key]
        for key in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
    )
    assert torch.equal(bias, torch.zeros(16))
    spread = 2 / (6 * 16) ** 0.5  # 2 / sqrt(kernel * width)
    assert 0.9 * spread < direction.std() < 1.1 * spread
    # The norm belongs to the direction, so the reference sees the very weight that was drawn.
    theirs = transformers.Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(theirs.wav2vec2_conformer.encoder.pos_conv_embed.conv.weight, direction)
    torch.testing.assert_close(norm, direction.norm(dim=(0, 1), keepdim=True))
    Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    assert_equal(conv_positions(load_file(tmp_path / "c" / "model.safetensors")), states[0])


def test_half_of_the_conv_positions_is_no_reason_to_fail(tmp_path: Path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, drop("pos_conv_embed.conv.bias"))
    state = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path).state_dict()
    wanted = theirs.state_dict()
    assert torch.equal(state[CONV + "bias"], torch.zeros(16))
    for key in ("parametrizations.weight.original0", "parametrizations.weight.original1"):
        assert torch.equal(state[CONV + key], wanted[CONV + key])


@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy_is_the_same_and_its_own(loaded: bool, tmp_path: Path) -> None:
    ours = our_model("rotary")
    if loaded:
        their_model("rotary").save_pretrained(tmp_path)
        ours = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    twin = copy.deepcopy(ours)
    assert_equal(twin.state_dict(), ours.state_dict())
    assert torch.equal(logits(twin), logits(ours))
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.add_(1)
    assert_equal(ours.state_dict(), before)


# Pickles are data


class Touch:
    """Unpickled without care, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    our_model().save_pretrained(tmp_path)
    victim = tmp_path / "executed"
    rewrite(tmp_path, lambda state: state.update({"surprise": Touch(victim)}), binary=True)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        Wav2Vec2ConformerForCTC.from_pretrained(tmp_path)
    assert not victim.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert victim.exists()  # the trap itself works
