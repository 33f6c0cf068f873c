"""transformers' tools on our models: Auto classes, pipelines, Trainer, PEFT. `docs/drop-in.md` lists these tests."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, Wav2Vec2FeatureExtractor, Wav2Vec2Processor, pipeline

import wav2vec2_conformer.modeling.linear as fast_linear
from wav2vec2_conformer import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    register_auto_classes,
    unregister_auto_classes,
)
from wav2vec2_conformer.audio import load_audio
from wav2vec2_conformer.auto import MODELS
from wav2vec2_conformer.modeling import sample_negatives
from wav2vec2_conformer.processing import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
SAMPLE, TRANSCRIPT = ROOT / "examples" / "sample.wav", "ENTER SEVEN FOUR ONE NINE"
RATE = 16_000

TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_dim": (16, 16),
    "conv_kernel": (10, 40),
    "conv_stride": (5, 64),
    "conv_bias": True,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "conv_depthwise_kernel_size": 7,
    "position_embeddings_type": "rotary",
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "num_labels": 5,
    "classifier_proj_size": 12,
    "tdnn_dim": (10, 12),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 9,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "num_codevectors_per_group": 8,
}
HEADS = [name for name in MODELS if name != "AutoModel"]
SAMPLES, FRAMES, CLIPS = 6000, 19, 4


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_auto_classes()
    yield
    unregister_auto_classes()


def build(name: str = "AutoModelForCTC", **values: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name).from_config(Wav2Vec2ConformerConfig(**{**TINY, **values}))


def clips() -> tuple[Tensor, Tensor]:
    """Noise of two lengths, and its attention mask."""
    lengths = torch.tensor([SAMPLES, 5000, SAMPLES, 4000])
    mask = (torch.arange(SAMPLES) < lengths[:, None]).long()
    return torch.randn(CLIPS, SAMPLES, generator=torch.Generator().manual_seed(0)) * mask, mask


def examples(name: str) -> list[dict[str, Tensor]]:
    """What Trainer puts into batches: one dictionary a clip."""
    source = torch.Generator().manual_seed(1)
    values, mask = clips()
    batch = {"input_values": values, "attention_mask": mask}
    if name == "AutoModelForPreTraining":
        frames = torch.rand(CLIPS, FRAMES, generator=source) < 0.5
        frames[:, 12:] = False  # the shortest clip has 12
        negatives = sample_negatives(frames, 6, generator=source)
        # They name frames of the whole batch; Trainer mixes the clips, so they are numbered from the clip's first.
        batch |= {"mask_time_indices": frames, "sampled_negative_indices": negatives % FRAMES}
    else:
        shape = {"AutoModelForCTC": (CLIPS, 4), "AutoModelForAudioFrameClassification": (CLIPS, FRAMES)}
        batch["labels"] = torch.randint(1, 5, shape.get(name, (CLIPS,)), generator=source)
    return [{key: value[row] for key, value in batch.items()} for row in range(CLIPS)]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    if "sampled_negative_indices" in batch:
        batch["sampled_negative_indices"] = batch["sampled_negative_indices"] + (
            FRAMES * torch.arange(len(rows)).view(-1, 1, 1)
        )
    return batch


def train(model: Any, name: str, folder: Path, steps: int = 30, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": CLIPS,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(model, TrainingArguments(**settings), collate, examples(name), examples(name))
        trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


# --- pipelines ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recognizer() -> Any:
    with register_auto_classes():
        recognizer = pipeline("automatic-speech-recognition", model=str(DEFAULT_MODEL))
    assert type(recognizer.model) is Wav2Vec2ConformerForCTC
    return recognizer


@pytest.fixture
def recording() -> Any:
    return load_audio(SAMPLE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_length_s": 2.0},
        {"chunk_length_s": 2.0, "stride_length_s": (0.5, 0.4), "batch_size": 2},
        {"chunk_length_s": 30.0},
    ],
)
def test_recognition(recognizer: Any, recording: Any, options: dict[str, Any]) -> None:
    assert recognizer(recording.copy(), **options) == {"text": TRANSCRIPT}


def test_recognition_with_timestamps_of_characters(recognizer: Any, recording: Any) -> None:
    """Each character stands where the model's best path has it."""
    found = recognizer(recording.copy(), return_timestamps="char")
    assert "".join(chunk["text"] for chunk in found["chunks"]) == found["text"] == TRANSCRIPT

    processor = Wav2Vec2Processor.from_pretrained(DEFAULT_MODEL)
    inputs = processor.feature_extractor(recording, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        path = recognizer.model(**inputs).logits[0].argmax(-1).tolist()
    step = recognizer.model.config.inputs_to_logits_ratio / RATE
    runs, before = [], processor.tokenizer.pad_token_id
    for frame, token in enumerate(path):
        if token != before and token != processor.tokenizer.pad_token_id:
            runs.append([frame, frame])
        if token != processor.tokenizer.pad_token_id:
            runs[-1][1] = frame + 1
        before = token
    times = [chunk["timestamp"] for chunk in found["chunks"]]
    np.testing.assert_allclose(times, np.array(runs) * step)


def test_recognition_with_timestamps_of_words(recognizer: Any, recording: Any) -> None:
    """Each word begins with its first character and ends with its last, also where it was heard in chunks."""
    characters = recognizer(recording.copy(), return_timestamps="char")["chunks"]
    found = recognizer(recording.copy(), return_timestamps="word")["chunks"]
    assert [word["text"] for word in found] == TRANSCRIPT.split()
    first = 0
    for word in found:
        last = first + len(word["text"]) - 1
        assert word["timestamp"] == (characters[first]["timestamp"][0], characters[last]["timestamp"][1])
        first = last + 2
    chunked = recognizer(recording.copy(), return_timestamps="word", chunk_length_s=2.0)["chunks"]
    assert [word["text"] for word in chunked] == TRANSCRIPT.split()
    for one, other in zip(chunked, found, strict=True):
        np.testing.assert_allclose(one["timestamp"], other["timestamp"], atol=0.05)


def test_a_batch_of_recordings_gives_what_each_gives_alone(recognizer: Any, recording: Any) -> None:
    recordings = [recording, recording[:30_000], recording[8_000:]]
    alone = [recognizer(one.copy(), return_timestamps="char") for one in recordings]
    together = recognizer([one.copy() for one in recordings], return_timestamps="char", batch_size=3)
    assert together == alone
    assert len({result["text"] for result in alone}) == 3


def test_the_pipeline_gives_what_it_gives_with_the_models_of_transformers(recognizer: Any, recording: Any) -> None:
    options = {"chunk_length_s": 2.0, "return_timestamps": "char"}
    ours = recognizer(recording.copy(), **options)
    unregister_auto_classes()
    theirs = pipeline("automatic-speech-recognition", model=str(DEFAULT_MODEL))
    assert type(theirs.model).__module__.startswith("transformers.")
    assert theirs(recording.copy(), **options) == ours


def test_the_pipeline_does_not_know_of_the_strided_adapter(recording: Any) -> None:
    """A limit that `docs/drop-in.md` names: it takes the frames of the feature encoder for those of the logits."""
    processor = Wav2Vec2Processor.from_pretrained(DEFAULT_MODEL)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    ends = []
    for adapter in (False, True):
        model = build(vocab_size=len(processor.tokenizer), add_adapter=adapter, num_adapter_layers=2).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(30)
        recognizer = pipeline("automatic-speech-recognition", model=model, **parts)
        ends.append(recognizer(recording.copy(), return_timestamps="char")["chunks"][-1]["timestamp"][1])
    seconds = len(recording) / RATE
    assert ends[0] == pytest.approx(seconds, abs=0.5)
    assert ends[1] < seconds / 3  # two adapter layers, each of stride 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_classification(tmp_path: Path, recording: Any, dtype: torch.dtype) -> None:
    names = {0: "bed", 1: "cat", 2: "dog", 3: "no", 4: "yes"}
    model = build("AutoModelForAudioClassification", id2label=names, label2id={v: k for k, v in names.items()})
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    classifier = pipeline("audio-classification", model=str(tmp_path), dtype=dtype)
    assert type(classifier.model) is MODELS["AutoModelForAudioClassification"]
    assert classifier.model.dtype == dtype
    found = classifier(recording)
    waveform = torch.from_numpy(recording)[None]
    waveform = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    scores = model.eval()(waveform).logits[0].softmax(-1)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    for one in found:
        assert one["score"] == pytest.approx(scores[model.config.label2id[one["label"]]].item(), rel=tolerance)
    assert {one["label"] for one in found} == set(names.values())
    assert scores.std() > 2 * tolerance  # so an answer to another question would be seen
    assert len(classifier(recording, top_k=2)) == 2


# --- Trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_trainer_trains(name: str, tmp_path: Path) -> None:
    """Every parameter moves, the loss falls, and what is saved is what was trained."""
    model = build(name, mask_time_prob=0.5 if "Pre" in name else 0.0)
    assert type(model) is MODELS[name]
    before = weights(model)
    trainer = train(model, name, tmp_path)
    found = losses(trainer)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    still = set(before) - changed(model, before)
    assert {key for key in still if not re.search(r"pos_conv_embed|inv_freq", key)} == set()

    trainer.save_model(str(tmp_path / "trained"))
    again = getattr(transformers, name).from_pretrained(tmp_path / "trained")
    assert type(again) is type(model)
    assert changed(again, weights(model)) == set()


@pytest.mark.parametrize("name", [name for name in HEADS if "Pre" not in name])
def test_trainer_evaluates_and_predicts(name: str, tmp_path: Path) -> None:
    model = build(name)
    trainer = train(model, name, tmp_path, steps=1)
    batch = collate(examples(name))
    with torch.no_grad():
        expected = model.eval()(**batch)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    predictions = trainer.predict(examples(name)).predictions
    logits = predictions[0] if name == "AutoModelForAudioXVector" else predictions
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)


def test_trainer_evaluates_pretraining_where_it_is_told_the_label(tmp_path: Path) -> None:
    name = "AutoModelForPreTraining"
    trainer = train(build(name), name, tmp_path, steps=1, label_names=["sampled_negative_indices"])
    with torch.no_grad():
        expected = trainer.model.eval()(**collate(examples(name)))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)


def test_trainer_in_bfloat16_with_checkpointing_and_accumulation(tmp_path: Path) -> None:
    model = build()
    options = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with warnings_of_transformers():
        trainer = train(model, "AutoModelForCTC", tmp_path, bf16=True, **options)
    assert checkpointed(model)
    found = losses(trainer)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])


def checkpointed(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextlib.contextmanager
def warnings_of_transformers() -> Iterator[None]:
    """Let deprecations inside transformers pass: the old name is the one that 5.17 has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        yield


# --- PEFT --------------------------------------------------------------------------------------------------------

STRIDED_ADAPTER = r".*adapter\.layers\.\d+\.conv"
CONVOLUTIONS = r".*feature_extractor\.conv_layers\.\d+\.conv"
ATTENTION = ["linear_q", "linear_k", "linear_v", "linear_out"]


def lora(model: Any, targets: list[str] | str = ATTENTION, saved: list[str] | None = None, **options: Any) -> Any:
    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1, **options}
    return get_peft_model(model, LoraConfig(target_modules=targets, modules_to_save=saved, **settings))


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    values, mask = clips()
    return model.eval()(input_values=values, attention_mask=mask).logits


@torch.no_grad()
def enlarge_lora(model: Any) -> None:
    """As if it had been trained: LoRA's second factor starts at 0."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_lora_with_checkpointing_trains_and_leaves_the_base_alone(reentrant: bool, tmp_path: Path) -> None:
    base = build()
    model = lora(base, saved=["lm_head", "batch_norm"])
    before, original = weights(model), weights(build())
    model.enable_input_require_grads()
    with warnings_of_transformers():
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        trainer = train(model, "AutoModelForCTC", tmp_path, **options)
    assert checkpointed(base)
    found = losses(trainer)
    assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])

    moved = changed(model, before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable <= moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), logits_of(build()))
    assert changed(build(), original) == set()

    # The adapter's file and the base give the trained model, batch-norm statistics included.
    trained = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(build(), tmp_path / "adapter")
    assert torch.equal(logits_of(again), trained)

    merged = model.merge_and_unload()
    assert type(merged) is Wav2Vec2ConformerForCTC
    torch.testing.assert_close(logits_of(merged), trained, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits_of(Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "merged")), trained, atol=1e-4, rtol=1e-4
    )


def test_statistics_of_a_base_move_unless_the_adapter_has_its_own() -> None:
    """As with every batch norm under LoRA; the trap that `docs/drop-in.md` tells of."""
    for saved in (["lm_head"], ["lm_head", "batch_norm"]):
        model = lora(build(), saved=saved)
        before = weights(model)
        model.train()(**collate(examples("AutoModelForCTC"))).loss.backward()
        moved = changed(model, before)
        assert len(moved) == 2 * 3
        assert all(("modules_to_save" in name) == ("batch_norm" in saved) for name in moved)


@pytest.mark.parametrize(
    "targets",
    [
        ATTENTION,
        ["intermediate_dense", "output_dense"],
        ["pointwise_conv1"],
        ["pointwise_conv2"],
        ["depthwise_conv"],
        CONVOLUTIONS,
        STRIDED_ADAPTER,
        ["projection"],
        "all-linear",
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_lora_acts_and_learns_on_every_layer(targets: list[str] | str, training: bool) -> None:
    """Nowhere does the network read a layer's weight past the LoRA that was put around it."""
    r = TINY["hidden_size"] if targets == ["depthwise_conv"] else 4  # PEFT wants a rank that the groups divide
    base = build(add_adapter=targets == STRIDED_ADAPTER, num_adapter_layers=1)
    model = lora(base, targets, r=r, lora_dropout=0.0).train(training)
    values, mask = clips()
    with torch.no_grad():
        plain = model(input_values=values, attention_mask=mask).logits
    enlarge_lora(model)
    logits = model(input_values=values, attention_mask=mask).logits
    assert (logits - plain).abs().max() > 1e-4
    logits.square().sum().backward()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trainable)
    if targets != ["depthwise_conv"]:  # PEFT cannot merge convolutions with groups
        found = logits_of(model)
        torch.testing.assert_close(logits_of(model.merge_and_unload()), found, atol=1e-4, rtol=1e-3)


def test_lora_of_a_convolution_on_a_clip_without_frames() -> None:
    model = lora(build(), CONVOLUTIONS).eval()
    assert model(input_values=torch.zeros(1, 9)).logits.shape == (1, 0, 11)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_lora_acts_where_the_fast_linear_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_linear, "ONEDNN", True)  # also where it is not the faster one
    model = lora(build(), [*ATTENTION, "intermediate_dense", "output_dense"]).eval()
    enlarge_lora(model)
    plain = logits_of(model)
    calls = []
    onednn = fast_linear.onednn
    monkeypatch.setattr(fast_linear, "FEWEST_ROWS", 1)
    monkeypatch.setattr(fast_linear, "SMALLEST_WEIGHT", 1)
    monkeypatch.setattr(fast_linear, "FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(fast_linear, "onednn", lambda *inputs: calls.append(1) or onednn(*inputs))
    fast = logits_of(model)
    assert len(calls) > 2 * 8  # the linear layers of two blocks
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)
    with model.disable_adapter():
        assert (logits_of(model) - fast).abs().max() > 0.01


# --- copies, modes, compilation ----------------------------------------------------------------------------------


def inputs_of(name: str) -> dict[str, Tensor]:
    """A batch without what a loss needs."""
    return {
        key: value for key, value in collate(examples(name)).items() if "labels" not in key and "negative" not in key
    }


def logits_in(outputs: Any) -> Tensor:
    return (
        outputs.projected_states + outputs.projected_quantized_states
        if "projected_states" in outputs
        else outputs.logits
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_copy_is_the_same_and_its_own(name: str) -> None:
    model = build(name, mask_time_prob=0.5).eval()
    twin = copy.deepcopy(model)
    expected, before = logits_in(model(**inputs_of(name))), weights(model)
    assert torch.equal(logits_in(twin(**inputs_of(name))), expected)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.add_(1)
    assert changed(model, before) == set()
    assert torch.equal(logits_in(model(**inputs_of(name))), expected)


@pytest.mark.parametrize("name", HEADS)
def test_training_after_inference_mode(name: str) -> None:
    """Nothing made under inference mode is kept and met again."""
    model = build(name, mask_time_prob=0.5).eval()
    with torch.inference_mode():
        before = logits_in(model(**inputs_of(name)))
    model.train()(**collate(examples(name))).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    with torch.inference_mode():
        assert not torch.equal(logits_in(model.eval()(**inputs_of(name))), before)


# `unit/test_model.py` and `unit/test_heads.py` compile the others.
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("AutoModelForPreTraining", False),
        ("AutoModelForPreTraining", True),
        pytest.param("AutoModelForAudioClassification", True, marks=pytest.mark.slow),
        pytest.param("AutoModelForAudioFrameClassification", False, marks=pytest.mark.slow),
        pytest.param("AutoModelForAudioXVector", True, marks=pytest.mark.slow),
    ],
)
def test_compiles_as_one_graph(name: str, training: bool) -> None:
    torch._dynamo.reset()
    eager = build(name, mask_time_prob=0.5, num_hidden_layers=1).train(training)
    drop = [module for module in eager.modules() if isinstance(module, nn.Dropout)]
    for module in drop:
        module.p = 0.0
    eager.config.attention_dropout = 0.0
    for block in eager.wav2vec2_conformer.encoder.layers:
        block.self_attn.dropout = 0.0
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="eager")
    found = []
    for model in (eager, compiled):
        torch.manual_seed(0)
        found.append(logits_in(model(**inputs_of(name))))
    assert (found[1] - found[0]).abs().max() <= 1e-5 * found[0].abs().max()


# --- types and devices -------------------------------------------------------------------------------------------


def wide(model: nn.Module) -> dict[str, Tensor]:
    """Batch-norm statistics and rotary frequencies, and nothing else."""
    found = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    assert len(found) == 2 * TINY["num_hidden_layers"] + 1
    return found


def drawn() -> Any:
    """A model whose statistics and frequencies are no numbers of half precision."""
    model = build().eval()
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for buffer in wide(model).values():
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=source))
            assert not torch.equal(buffer.half().float(), buffer)
            assert not torch.equal(buffer.bfloat16().float(), buffer)
    return model


CASTS: dict[str, Any] = {
    "half()": lambda model: model.half(),
    "bfloat16()": lambda model: model.bfloat16(),
    "to(dtype)": lambda model: model.to(torch.float16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.bfloat16),
    "type(dtype)": lambda model: model.type(torch.bfloat16),
    "to() of a parent": lambda model: nn.Sequential(nn.ModuleDict({"model": model})).to(torch.bfloat16)[0]["model"],
    "to() of a copy": lambda model: copy.deepcopy(model).to(torch.float16),
    "back and forth": lambda model: model.half().float().double().bfloat16().float().half(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_statistics_and_frequencies_are_not_rounded(cast: str) -> None:
    model = drawn()
    before, keys = {name: buffer.clone() for name, buffer in wide(model).items()}, list(model.state_dict())
    values, mask = clips()
    expected = logits_of(model)
    model = CASTS[cast](model)
    assert {parameter.dtype for parameter in model.parameters()} <= {torch.float16, torch.bfloat16}
    assert all(count.dtype == torch.int64 for name, count in model.named_buffers() if "batches" in name)
    for name, buffer in wide(model).items():
        assert buffer.dtype in (torch.float32, torch.float64), name
        assert torch.equal(buffer.float(), before[name]), name
    assert list(model.state_dict()) == keys
    found = model(values.to(model.dtype), attention_mask=mask).logits
    assert found.dtype == model.dtype
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_double_is_double() -> None:
    model = build().double().eval()
    assert {tensor.dtype for tensor in [*model.parameters(), *wide(model).values()]} == {torch.float64}
    values, mask = clips()
    assert model(values.double(), attention_mask=mask).logits.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_files_of_half_precision_keep_them_wide(tmp_path: Path, dtype: torch.dtype, device_map: str | None) -> None:
    """`from_pretrained(dtype=...)` reads them as they are in the file, and a saved half model has them in float32."""
    model = drawn()
    before = {name: buffer.clone() for name, buffer in wide(model).items()}
    model.save_pretrained(tmp_path / "float")
    options = {} if device_map is None else {"device_map": device_map}
    half = transformers.AutoModelForCTC.from_pretrained(tmp_path / "float", dtype=dtype, **options)
    half.save_pretrained(tmp_path / "half")
    saved = load_file(tmp_path / "half" / "model.safetensors")
    again = transformers.AutoModelForCTC.from_pretrained(tmp_path / "half", **options)
    for name, buffer in before.items():
        for found in (wide(half)[name], saved[name], wide(again)[name]):
            assert found.dtype == torch.float32
            assert torch.equal(found, buffer), name
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    kinds = {tensor.dtype for key, tensor in saved.items() if key not in before and "pos_conv_embed" not in key}
    assert kinds == {dtype, torch.int64}  # the latter: how many batches were counted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_that_was_rounded_is_read_into_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """As transformers' own classes save a half model."""
    ours = drawn()
    ours.save_pretrained(tmp_path / "ours")
    peer = transformers.Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "ours").to(dtype)
    peer.save_pretrained(tmp_path / "theirs")
    rounded = load_file(tmp_path / "theirs" / "model.safetensors")
    for options in ({}, {"dtype": dtype}, {"dtype": torch.float32}):
        model = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "theirs", **options)
        for name, buffer in wide(model).items():
            assert rounded[name].dtype == dtype
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, rounded[name].float())
    for assign in (False, True):
        model = build().to(dtype)
        model.load_state_dict(rounded, assign=assign)
        assert {buffer.dtype for buffer in wide(model).values()} == {torch.float32}


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_device_moves() -> None:
    device = torch.accelerator.current_accelerator()
    model = drawn()
    before, expected = {name: buffer.clone() for name, buffer in wide(model).items()}, logits_of(model)
    values, mask = clips()
    for place, dtype in ((device, torch.float32), (device, torch.float16), ("cpu", torch.float32)):
        model = model.to(place, dtype)
        for name, buffer in wide(model).items():
            assert buffer.device.type == torch.device(place).type
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer.cpu(), before[name])
        with torch.inference_mode():
            found = model(values.to(place, dtype), attention_mask=mask.to(place)).logits.float().cpu()
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
        labels = torch.ones(CLIPS, 3, dtype=torch.long, device=place)
        model.train()(values.to(place, dtype), attention_mask=mask.to(place), labels=labels).loss.backward()
        model.zero_grad()
        model.eval()
        for name, buffer in wide(model).items():
            buffer.copy_(before[name])


# --- docs/drop-in.md ---------------------------------------------------------------------------------------------

GUIDE = (ROOT / "docs" / "drop-in.md").read_text()


def test_the_guides_lines_print_what_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    unregister_auto_classes()  # the guide begins without
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", ""] * 3
    names: dict[str, Any] = {}
    for (_, code), (_, shown) in zip(blocks[::2], blocks[1::2], strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/drop-in.md", "exec"), names)
        assert printed.getvalue() == shown


def test_every_test_that_the_guide_names_exists() -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", row)
        assert named
        assert named[0][0]
        source = ""
        for file, test in named:
            source = (ROOT / "tests" / file).read_text() if file else source
            assert f"def {test}(" in source, test
