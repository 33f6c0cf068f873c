"""Pre-training: recipes as published, crops without padding, one loss however the work is cut, and honest figures."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import resource
import socket
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_training import Recorder, assert_close, last_weights, same
from torch import Tensor, nn

from speech import RATE, TINY, sentences, write_manifest
from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.data import PretrainingCollator, SkippedItem, SpeechItem, read_recordings
from wav2vec2_conformer.data.manifest import ManifestError
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.batch_norm import FrameBatchNorm
from wav2vec2_conformer.modeling.model import Wav2Vec2ConformerModel
from wav2vec2_conformer.modeling.quantizer import GumbelQuantizer
from wav2vec2_conformer.training import PretrainingSettings, train_pretraining
from wav2vec2_conformer.training import pretraining as module
from wav2vec2_conformer.training.checkpoints import last_checkpoint
from wav2vec2_conformer.training.collapse import WINDOW, diagnose
from wav2vec2_conformer.training.presets import FOLDER, PRESETS
from wav2vec2_conformer.training.report import PRETRAINING, write_report
from wav2vec2_conformer.training.schedules import learning_rate_schedule
from wav2vec2_conformer.training.trainer import draw_seed

MODEL = {name: value for name, value in TINY.items() if name != "model_type"} | {
    "mask_time_prob": 0.65,
    "mask_time_length": 4,
    "num_negatives": 20,
    "num_codevectors_per_group": 8,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "feat_quantizer_dropout": 0.0,
}
# Everything random at once.
RANDOM = MODEL | {
    "num_hidden_layers": 3,
    "layerdrop": 0.4,
    **dict.fromkeys(["hidden_dropout", "attention_dropout", "conformer_conv_dropout", "activation_dropout"], 0.1),
    **dict.fromkeys(["feat_proj_dropout", "feat_quantizer_dropout"], 0.1),
}
FIGURES = [
    *("contrastive", "accuracy", "diversity", "penalty", "temperature", "masked_share", "grad_norm", "learning_rate"),
    *("hard_perplexity_1", "hard_perplexity_2", "soft_perplexity_1", "soft_perplexity_2", "speed", "waiting"),
]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    result = Recorder()
    monkeypatch.setattr(module, "ProgressBar", lambda: result)
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(folder / "train.jsonl", sentences(32, 0))
    write_manifest(folder / "dev.jsonl", sentences(4, 1), seed=1)
    return folder


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str | None]]:
    """What would have been drawn: a picture takes longer than most trainings here."""
    drawn: list[tuple[Path, str | None]] = []
    monkeypatch.setattr(
        module, "write_report", lambda path, history, panels, diagnosis: drawn.append((path, diagnosis))
    )
    return drawn


Make = Callable[..., PretrainingSettings]


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> PretrainingSettings:
        chosen: dict[str, Any] = {
            "train": [str(corpus / "train.jsonl")],
            "dev": str(corpus / "dev.jsonl"),
            "output": str(tmp_path / "out"),
            "model": MODEL | changes.pop("network", {}),
            "updates": 4,
            "warmup": 0.0,
            "learning_rate": 1e-3,
            "batch_seconds": 8.0,
            "max_batch": 4,
            "crop_seconds": 2.0,
            "least_seconds": 0.5,
            "do_normalize": True,
            "bf16": False,
            "log_every": 1,
            "workers": 0,
        }
        return PretrainingSettings(**(chosen | changes))

    return make


# --- presets ---------------------------------------------------------------------------------------------------------

# shared/reference/recipes.md; the large learning rate is that of the command line.
MASKS = {"mask_time_prob": 0.65, "mask_time_length": 10, "mask_time_min_masks": 2, "num_negatives": 100}
DROPOUTS = ["hidden_dropout", "attention_dropout", "feat_proj_dropout", "feat_quantizer_dropout"]
PUBLISHED: dict[str, dict[str, Any]] = {
    "base": {
        "sizes": (12, 768, 3072, 12),
        "model": {"feat_extract_norm": "group", "conv_bias": False, "layerdrop": 0.05} | dict.fromkeys(DROPOUTS, 0.1),
        "samples": {"batch_seconds": 1.4e6, "crop_seconds": 250_000, "least_seconds": 32_000},
        "training": {"updates": 400_000, "learning_rate": 5e-4, "feature_penalty": 10, "feature_gradient_scale": 0.1},
        "normalize": False,
        "temperatures": (2, 0.5),
    },
    "large": {
        "sizes": (24, 1024, 4096, 16),
        "model": {"feat_extract_norm": "layer", "conv_bias": True, "layerdrop": 0.0} | dict.fromkeys(DROPOUTS, 0.0),
        "samples": {"batch_seconds": 1.2e6, "crop_seconds": 320_000, "least_seconds": 32_000},
        "training": {"updates": 1_000_000, "learning_rate": 3e-4, "feature_penalty": 0, "feature_gradient_scale": 1},
        "normalize": True,
        "temperatures": (2, 0.1),
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_builds_a_network(name: str) -> None:
    loaded = PretrainingSettings.from_preset(name, train=["a"], output="b")
    config = Wav2Vec2ConformerConfig(**loaded.model)
    with torch.device("meta"):
        network = Wav2Vec2ConformerForPreTraining(config)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert {"tiny": 4, "base": 100, "large": 500}[name] < millions < {"tiny": 12, "base": 250, "large": 700}[name]
    for field, value in loaded.model.items():
        assert getattr(config, field) == value
    assert (loaded.schedule, loaded.weight_decay, loaded.clip) == ("linear", 0.01, 0)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_presets_are_the_published_recipes(name: str) -> None:
    loaded, published = PretrainingSettings.from_preset(name, train=["a"], output="b"), PUBLISHED[name]
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    fields = published["model"] | MASKS | dict(zip(names, published["sizes"], strict=True))
    assert {name: loaded.model[name] for name in fields} == fields
    assert loaded.model["diversity_loss_weight"] == 0.1
    seconds = {field: getattr(loaded, field) * RATE for field in published["samples"]}
    assert seconds == pytest.approx(published["samples"])
    assert {field: getattr(loaded, field) for field in published["training"]} == published["training"]
    assert loaded.do_normalize is published["normalize"]
    assert loaded.warmup * loaded.updates == pytest.approx(32_000)
    start, end = published["temperatures"]
    for step in [*range(0, loaded.updates, 12_345), loaded.updates]:
        assert loaded.temperature(step) == pytest.approx(max(start * 0.999995**step, end), abs=1e-3)
    arguments = module.training_arguments(loaded, Path("b"))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-6)
    assert arguments.max_grad_norm == 0


def test_the_defaults_are_those_of_base() -> None:
    base = PretrainingSettings.from_preset("base", train=["a"], output="b")
    assert base == PretrainingSettings(train=["a"], output="b")
    assert base.model["mask_time_prob"] == 0.65


def test_a_given_model_is_trained_by_the_recipe_and_keeps_its_network(
    settings: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = module.prepare_model(settings(network={"mask_time_prob": 0.3, "hidden_dropout": 0.2}))
    network.save_pretrained(tmp_path / "model")
    changed = {"mask_time_prob": 0.5, "hidden_dropout": 0.0, "intermediate_size": MODEL["intermediate_size"] + 1}
    model = module.prepare_model(settings(init=str(tmp_path / "model"), network=changed))
    assert (model.config.mask_time_prob, model.config.hidden_dropout) == (0.5, 0.0)
    assert model.config.intermediate_size == MODEL["intermediate_size"]
    assert "keeps its own intermediate_size; the preset's are ignored" in caplog.text
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[training]\nupdats = 3\nseed = 1", "training.updats"),
        ("[model]\nhiden_size = 3", "model.hiden_size"),
        ('[training]\noutput = "x"', "training.output"),
        ("[modle]\nhidden_size = 3", "modle"),
        ("updates = 3", "is called updates;"),
        ("model = 3", "is called model;"),
        ("[training", "not a TOML file"),
        ("[training]\nupdates = 'many'", "`updates` must be a whole number, got 'many'"),
        ("[training]\nupdates = 3.5", "`updates` must be a whole number, got 3.5"),
        ("[training]\nlearning_rate = '1e-3'", "`learning_rate` must be a number"),
        ("[training]\nclip = true", "`clip` must be a number, got True"),
        ("[training]\nbf16 = 1", "`bf16` must be true or false, got 1"),
    ],
)
def test_what_a_preset_cannot_say_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(named)):
        PretrainingSettings.from_preset(str(tmp_path / "my.toml"), train=["a"], output="b")


@pytest.mark.parametrize("name", ["bse", "tiny.toml", "."])
def test_a_preset_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no preset '{re.escape(name)}'; use tiny, base, large"):
        PretrainingSettings.from_preset(name, train=["a"], output="b")


def test_the_command_line_goes_before_the_preset(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what decided is recorded."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("computed something")

    monkeypatch.setattr(module, "PretrainingTrainer", refuse)
    preset = tmp_path / "my.toml"
    preset.write_text("[model]\nnum_hidden_layers = 1\n[training]\nupdates = 70\nseed = 5\nleast_seconds = 0.5\n")
    command = ["train", "pretraining", "--train", str(corpus / "train.jsonl"), "--output", str(tmp_path / "out")]
    assert main([*command, "--preset", str(preset), "--updates", "30", "--bf16", "--learning-rate", "0.25"]) == 2
    assert "computed something" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    chosen = {name: record[name] for name in ("updates", "bf16", "learning_rate", "seed", "least_seconds", "model")}
    given = {"updates": 30, "bf16": True, "learning_rate": 0.25}
    assert chosen == {**given, "seed": 5, "least_seconds": 0.5, "model": {"num_hidden_layers": 1}}
    assert record.keys() == PretrainingSettings.__dataclass_fields__.keys()

    # Without a choice it is the machine's, and what it chose is what a continuation must find.
    monkeypatch.setattr(module, "computes_bfloat16", lambda: True)
    assert main([*command[:-1], str(tmp_path / "other"), "--preset", str(preset)]) == 2
    assert json.loads((tmp_path / "other" / "training.json").read_text())["bf16"] is True
    assert main([*command[:-1], str(tmp_path / "not"), "--preset", str(preset), "--no-bf16"]) == 2
    assert json.loads((tmp_path / "not" / "training.json").read_text())["bf16"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "`updates` must be above 0"),
        ({"warmup": 1.0}, "`warmup` is a share"),
        ({"schedule": "square"}, "must be one of linear, cosine, tri-stage, got 'square'"),
        ({"schedule": "tri-stage", "warmup": 0.7}, "`warmup` must be below 0.6, got 0.7"),
        ({"least_seconds": 3.0}, "`least_seconds` must be at most `crop_seconds`"),
        ({"batch_seconds": 1.0}, "must hold a crop"),
        ({"learning_rate": math.nan}, "`learning_rate` must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(**changes)


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "corners"),
    [
        ("linear", {0: 1 / 20, 9: 0.5, 19: 1, 20: 1, 60: 0.5, 100: 0}),
        ("cosine", {0: 1 / 20, 9: 0.5, 19: 1, 20: 1, 40: 0.5 + math.sqrt(0.125), 60: 0.5, 100: 0}),
        ("tri-stage", {0: 0.01, 10: 0.505, 20: 1, 59: 1, 60: 1, 80: math.sqrt(0.05), 100: 0.05}),
    ],
)
def test_schedules_at_their_corners(name: str, corners: dict[int, float]) -> None:
    factor = learning_rate_schedule(name, 100, 0.2)
    assert {step: factor(step) for step in corners} == pytest.approx(corners, abs=1e-12)
    values = [factor(step) for step in range(101)]
    assert values[:20] == sorted(values[:20])
    assert values[20:] == sorted(values[20:], reverse=True)
    for warmup in (0.0, 0.2):
        shortest = learning_rate_schedule(name, 1, warmup)
        assert 0 < shortest(0) <= 1


def test_the_learning_rate_and_the_temperature_follow_the_settings(
    settings: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []  # by the quantizer itself
    quantize = GumbelQuantizer.forward

    def note(self: GumbelQuantizer, *args: Any) -> Any:
        used.extend([self.temperature] if self.training else [])
        return quantize(self, *args)

    monkeypatch.setattr(GumbelQuantizer, "forward", note)
    chosen = settings(updates=10, schedule="tri-stage", warmup=0.3, temperature_share=0.5)
    train_pretraining(chosen)
    factor = learning_rate_schedule("tri-stage", 10, 0.3)
    logs = [log for log in recorder.logs if "contrastive" in log]
    assert [log["learning_rate"] for log in logs] == pytest.approx([1e-3 * factor(step) for step in range(10)])
    expected = [2 * 0.25 ** (min(step, 5) / 5) for step in range(10)]
    assert [log["temperature"] for log in logs] == pytest.approx(expected)
    assert used == pytest.approx(expected)


# --- crops, masks, negatives -----------------------------------------------------------------------------------------


def item(samples: int, index: int = 0, epoch: int = 0) -> SpeechItem:
    """Samples that tell where they are from: the recording's index before the decimal point, the place behind it."""
    waveform = (index + np.arange(samples) / 2**17).astype(np.float32)
    return SpeechItem(
        input_values=waveform, labels=[], text="", draw=1000 * epoch + index, index=index, name=f"{index}.wav"
    )


@pytest.fixture
def collate() -> PretrainingCollator:
    config = Wav2Vec2ConformerConfig(**MODEL)
    return PretrainingCollator(
        partial(frames_of, config=config),
        partial(module.draw_masks, config=config),
        partial(module.draw_negatives, count=20),
        shortest=8000,
        longest=24_000,
    )


@pytest.mark.parametrize("lengths", [(9000, 12_345, 30_000, 8000), (24_001, 32_000, 50_000), (8000,)])
def test_a_batch_is_crops_without_padding(collate: PretrainingCollator, lengths: tuple[int, ...]) -> None:
    starts = set()
    for epoch in range(20):
        batch = collate([item(samples, index, epoch) for index, samples in enumerate(lengths)])
        samples = min(24_000, *lengths, 10**9)
        frames = frames_of(samples, Wav2Vec2ConformerConfig(**MODEL))
        assert batch["input_values"].shape == (len(lengths), samples)
        for row, waveform in enumerate(batch["input_values"]):
            place = (waveform - row) * 2**17
            assert torch.equal(place - place[0], torch.arange(samples).float())
            assert 0 <= place[0] <= lengths[row] - samples
            starts.add((row, int(place[0])))
        mask, negatives = batch["mask_time_indices"], batch["sampled_negative_indices"]
        assert mask.shape == (len(lengths), frames)
        assert mask.dtype == torch.bool
        counts = set(mask.sum(1).tolist())
        assert len(counts) == 1
        assert 0.2 * frames < counts.pop() < 0.8 * frames
        assert negatives.shape == (*mask.shape, 20)
        rows, columns = mask.nonzero(as_tuple=True)
        chosen = negatives[rows, columns]
        assert torch.equal(chosen // frames, rows[:, None].expand_as(chosen))
        assert mask[chosen // frames, chosen % frames].all()
        assert (chosen % frames != columns[:, None]).all()
        assert batch["skipped_names"] == []
    assert len(starts) > 15 * sum(length > samples + 500 for length in lengths)  # at random places


def test_lengths_of_batches_come_again() -> None:
    config = Wav2Vec2ConformerConfig(**MODEL)
    rounding = PretrainingCollator(
        partial(frames_of, config=config),
        partial(module.draw_masks, config=config),
        partial(module.draw_negatives, count=20),
        shortest=8000,
        longest=24_000,
        rounded=True,
    )
    for samples, expected in ((8000, 8000), (8300, 8192), (17_000, 16_384), (23_999, 22_528), (24_001, 24_000)):
        batch = rounding([item(samples, 1), item(samples + 500, 2)])
        assert batch["input_values"].shape == (2, expected)
        assert batch["mask_time_indices"].shape == (2, frames_of(expected, config))


def equal(left: Any, right: Any) -> bool:
    names = ("input_values", "mask_time_indices", "sampled_negative_indices")
    return all(torch.equal(left[name], right[name]) for name in names)


def test_a_batch_is_a_function_of_its_draws(collate: PretrainingCollator) -> None:
    items = [item(9000 + 1000 * index, index) for index in range(4)]
    first = collate(items)
    torch.rand(3)
    np.random.rand(3)
    assert equal(first, collate(items))
    other = collate([item(9000 + 1000 * index, index, epoch=1) for index in range(4)])
    for name in ("input_values", "mask_time_indices", "sampled_negative_indices"):
        assert not torch.equal(first[name], other[name])  # type: ignore[literal-required]


def batches(settings: PretrainingSettings, epoch: int, **loading: Any) -> list[Any]:
    recordings = module.usable_recordings(settings.train, settings)
    config = Wav2Vec2ConformerConfig(**settings.model)
    loader = module.make_loader(recordings, settings=settings, config=config, **loading)
    loader.set_epoch(epoch)
    return list(loader)


def test_batches_are_a_function_of_seed_and_epoch(settings: Make) -> None:
    first = batches(settings(), 0)
    again = batches(settings(), 0, workers=2)
    assert len(first) == len(again) > 5
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    halves = [batches(settings(), 0, rank=rank, world_size=2) for rank in range(2)]
    for number, batch in enumerate(first):
        assert equal(batch, halves[number % 2][number // 2])
    for other in (batches(settings(), 1), batches(settings(seed=1), 0)):
        assert len(other) == len(first)
        assert not any(equal(*pair) for pair in zip(first, other, strict=True) if pair[0]["input_values"].shape[0])


def test_what_is_too_short_or_broken_is_named_and_an_empty_batch_passes(collate: PretrainingCollator) -> None:
    bad = [item(7999, 1), SkippedItem(2, "b.wav", "is no audio")]
    named = ["1.wav: 0.50 s, shorter than the least of 0.50 s", "b.wav: is no audio"]
    batch = collate([bad[0], item(9000, 7), bad[1]])
    assert batch["skipped_names"] == named
    assert batch["input_values"].shape == (1, 9000)
    assert batch["input_values"][0, 0] == 7
    empty = collate(bad)
    assert empty["skipped_names"] == named
    assert empty["input_values"].shape[0] == empty["mask_time_indices"].shape[0] == 0


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as it may be found: 12 good recordings of several formats, and 5 that cannot be used."""
    folder = tmp_path / "mixed"
    generator = np.random.default_rng(0)
    for number in range(12):
        path = folder / f"speaker {number % 3}" / f"{number}.{('wav', 'flac', 'ogg', 'WAV')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = (16_000, 8000, 44_100)[number % 3]
        soundfile.write(path, generator.normal(0, 0.1, rate * 2), rate)
    (folder / "notes.txt").write_text("no audio")
    (folder / "album.wav").mkdir()
    (folder / "noise.wav").write_bytes(b"no audio at all")
    (folder / "nothing.flac").write_bytes(b"")
    soundfile.write(folder / "silent.wav", np.zeros(0), 16_000)
    (folder / "gone.ogg").symlink_to(folder / "moved away.ogg")
    whole = (folder / "speaker 0" / "0.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 8])  # promises 2 s, holds a quarter of one
    return folder


def test_a_folder_of_mixed_recordings(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_recordings(mixed)
    assert [utterance.name for utterance in found] == sorted(
        [str(path.relative_to(mixed)) for path in mixed.rglob("speaker*/*")] + ["cut.wav"]
    )
    (message,) = [record.getMessage() for record in caplog.records]
    assert "4 of 17 files left out" in message
    for name in (
        "noise.wav: ",
        "nothing.flac: is empty",
        "silent.wav: holds no samples",
        "gone.ogg: file does not exist",
    ):
        assert name in message
    assert "notes.txt" not in message


def test_unusable_recordings_are_named_counted_and_skipped(
    settings: Make, mixed: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    broken = mixed / "speaker 1" / "1.flac"
    content = bytearray(broken.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)  # a good header, nothing behind it
    broken.write_bytes(content)
    result = train_pretraining(settings(train=[str(mixed)], dev=str(mixed), updates=8, max_batch=2))
    named = {record.getMessage().split(":")[0] for record in caplog.records if "skipped " in record.getMessage()}
    assert named == {"skipped cut.wav", "skipped speaker 1/1.flac"}
    assert result["updates"] == 8
    assert 2 <= result["skipped_recordings"] <= 4  # of more than an epoch
    assert [log["eval_skipped"] for log in recorder.logs if "eval_skipped" in log] == [2]
    logs = [log for log in recorder.logs if "loss" in log]
    assert all(math.isfinite(value) for log in logs for value in log.values())


def test_sources_without_usable_recordings_are_refused(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no audio")
    with pytest.raises(ManifestError, match="no audio file that can be read lies below this folder"):
        train_pretraining(settings(train=[str(tmp_path / "texts")]))
    soundfile.write(tmp_path / "texts" / "short.wav", np.zeros(1000), RATE)
    with pytest.raises(ValueError, match=r"texts: no recording of at least 0\.5 s"):
        train_pretraining(settings(train=[str(tmp_path / "texts")]))
    with pytest.raises(ValueError, match=r"`least_seconds` 0\.05 gives 2 frames, and `mask_time_length` is 4"):
        train_pretraining(settings(least_seconds=0.05))
    with pytest.raises(ValueError, match="`mask_time_prob` must be above 0"):
        train_pretraining(settings(network={"mask_time_prob": 0.0}))
    assert not (tmp_path / "out").exists()


def test_a_micro_batch_of_nothing_changes_nothing(settings: Make, recorder: Recorder, tmp_path: Path) -> None:
    paths = [write_manifest(tmp_path / f"{name}.jsonl", ["ABC DEF AB"] * 2) for name in ("good", "bad")]
    for number in range(2):
        (tmp_path / f"bad-{number}.wav").write_bytes(b"no audio at all")
    # Four batches of one recording: whatever their order, update 2 has the last one.
    chosen = settings(train=[str(path) for path in paths], max_batch=1, updates=4, learning_rate=0.1, dev=None)
    assert train_pretraining(chosen)["skipped_recordings"] == 2
    moved = []
    for before, after in zip(recorder.weights, [*recorder.weights[1:], last_weights(chosen.output)], strict=True):
        statistics = [name for name in before if "running_" in name]
        assert statistics
        moved.append(not all(torch.equal(before[name], after[name]) for name in statistics))
    logs = [log for log in recorder.logs if "loss" in log]
    assert moved == ["contrastive" in log for log in logs]
    assert sum(moved) == 2


# --- one loss, however the work is cut -------------------------------------------------------------------------------


def work(rank: int, count: int, port: int, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What each of several processes does; `torchrun` sets the same variables."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    task(rank, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def in_processes(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Run `task(rank, *arguments)` in several processes that find one another."""
    context = multiprocessing.get_context("forkserver")  # which imports once
    context.set_forkserver_preload(["pytest", "wav2vec2_conformer.training"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=work, args=(rank, count, port, task, arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count


def watched(chosen: PretrainingSettings, recorder: Recorder) -> dict[str, Any]:
    """Train, and say what was seen from inside."""
    drawn: list[list[bool] | None] = []
    original = Wav2Vec2ConformerModel._draw_layerdrop

    def draw_and_note(self: Any) -> Any:
        decisions = original(self)
        if self.training:
            drawn.append(decisions)
        return decisions

    Wav2Vec2ConformerModel._draw_layerdrop = draw_and_note  # type: ignore[method-assign]
    try:
        result = train_pretraining(chosen)
    finally:
        Wav2Vec2ConformerModel._draw_layerdrop = original  # type: ignore[method-assign]
    return {
        "gradients": recorder.gradients,
        "weights": [*recorder.weights, last_weights(chosen.output)],
        "logs": recorder.logs,
        "layerdrop": drawn,
        "result": result,
    }


def train_and_save(rank: int, chosen: PretrainingSettings, folder: Path) -> None:
    recorder = Recorder()
    module.ProgressBar = lambda: recorder  # type: ignore[assignment,misc]
    torch.save(watched(chosen, recorder), folder / f"{rank}.pt")


@pytest.mark.slow
def test_four_processes_equal_four_micro_batches(settings: Make, recorder: Recorder, tmp_path: Path) -> None:
    """With dropout, Gumbel noise, LayerDrop and masks: what is random depends on the place in the step alone."""
    common: dict[str, Any] = {"network": RANDOM, "updates": 3, "max_batch": 2, "feature_penalty": 0.1}
    one = watched(settings(**common, accumulate=4, output=str(tmp_path / "one")), recorder)
    in_processes(4, train_and_save, settings(**common, output=str(tmp_path / "four")), tmp_path)
    four = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    names = dict(Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**RANDOM)).named_parameters()).keys()
    for step in range(3):
        # Every parameter has a gradient, also those of dropped blocks: DDP need not look for others.
        assert one["gradients"][step].keys() == names
        for rank in four:
            assert rank["gradients"][step].keys() == four[0]["gradients"][step].keys()
            assert {name.removeprefix("module.") for name in rank["gradients"][step]} == names
    assert_close(one["gradients"][0], four[0]["gradients"][0])
    for rank in four[1:]:
        assert same(four[0]["gradients"][0], rank["gradients"][0])
        assert rank["layerdrop"] == four[0]["layerdrop"]
    assert one["layerdrop"] == [drawn for drawn in four[0]["layerdrop"] for _ in range(4)]
    assert {True, False} == {value for drawn in one["layerdrop"] for value in drawn}
    for name in names:
        assert torch.allclose(one["weights"][-1][name], four[0]["weights"][-1][name], rtol=0, atol=1e-4), name
    for name in ("loss", "contrastive", "accuracy", "hard_perplexity_1", "soft_perplexity_2", "penalty", "grad_norm"):
        ours, theirs = ([log[name] for log in run["logs"] if "loss" in log] for run in (one, four[0]))
        assert ours == pytest.approx(theirs, rel=1e-4), name


def test_the_loss_is_divided_by_the_masked_frames_of_the_whole_step(
    settings: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float, int]] = []
    share = module.PretrainingTrainer.share_of_step

    def note(self: Any, loss: Tensor, items: Any) -> Tensor:
        result = share(self, loss, items)
        seen.append((int(items), float(loss.detach()), 0))
        return result

    monkeypatch.setattr(module.PretrainingTrainer, "share_of_step", note)
    chosen = settings(updates=1, accumulate=3, dev=None)
    train_pretraining(chosen)
    masked = [int(batch["mask_time_indices"].sum()) for batch in batches(chosen, 0)[:3]]
    assert len(set(masked)) > 1
    assert [items for items, _, _ in seen] == [sum(masked)] * 3
    (log,) = [log for log in recorder.logs if "loss" in log]
    assert log["loss"] == pytest.approx(sum(loss for _, loss, _ in seen) / sum(masked), rel=1e-5)


def test_gradient_checkpointing_with_layerdrop_gives_the_same_gradients(
    settings: Make, recorder: Recorder, tmp_path: Path
) -> None:
    for checkpointing in (False, True):
        output = str(tmp_path / str(checkpointing))
        train_pretraining(settings(network=RANDOM, updates=2, gradient_checkpointing=checkpointing, output=output))
    first, again = recorder.gradients[:2], recorder.gradients[2:]
    for left, right in zip(first, again, strict=True):
        assert_close(left, right)
    assert any(not gradient.any() for gradient in first[0].values())  # of a dropped block


def spoil_one_rank(rank: int, chosen: PretrainingSettings, folder: Path) -> None:
    compute, calls = module.PretrainingTrainer.compute_loss, [0]

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        # Its gradient is finite, so that nothing but the loss tells.
        return compute(self, *args, **kwargs) + (math.inf if rank == 1 and calls[0] == 2 else 0)

    module.PretrainingTrainer.compute_loss = spoilt  # type: ignore[method-assign]
    train_and_save(rank, chosen, folder)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_skips_the_step_on_all(settings: Make, tmp_path: Path) -> None:
    in_processes(2, spoil_one_rank, settings(updates=3, max_batch=2, sync_batch_norm=True), tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank in ranks:
        assert rank["result"]["skipped_updates"] == 1
        before, spoilt, after, end = rank["weights"]
        assert not same(before, spoilt)
        assert same(spoilt, after)
        assert not all(torch.equal(after[name], end[name.removeprefix("module.")]) for name in after)


def lose_a_batch(rank: int, chosen: PretrainingSettings, folder: Path) -> None:
    if rank == 0:
        for path in Path(chosen.train[0]).parent.glob("bad-*.wav"):
            path.write_bytes(b"no audio at all")
    train_and_save(rank, chosen, folder)


@pytest.mark.slow
def test_a_process_without_a_usable_recording_keeps_the_others_company(settings: Make, tmp_path: Path) -> None:
    """With what waits for all processes: gradients, batch norm, logs, evaluation."""
    paths = [write_manifest(tmp_path / f"{name}.jsonl", ["ABC DEF AB"] * 3) for name in ("bad", "good")]
    for number in range(3):
        (tmp_path / f"bad-{number}.wav").write_bytes(b"no audio at all")
    chosen = settings(train=[str(path) for path in paths], max_batch=1, updates=3, sync_batch_norm=True)
    in_processes(2, train_and_save, chosen, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [rank["result"]["skipped_recordings"] for rank in ranks] == [3, 3]
    assert all(math.isfinite(value) for log in ranks[0]["logs"] for value in log.values())
    assert torch.equal(*(rank["weights"][-1]["project_q.weight"] for rank in ranks))


class Halves(nn.Module):
    """Two batch norms with something between them, so that gradients pass through statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(FrameBatchNorm(6) for _ in range(2))
        self.between = nn.Linear(6, 6)
        for norm in self.norms:
            norm.synchronised = True
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for norm in self.norms:
            x, statistics = norm(self.between(x), mask)
            norm.commit(statistics)
        return x

    def figures(self, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        self.double()
        x = x.double().requires_grad_()
        out = self(x, mask)
        out.sin().sum().backward()
        gradients = {name: p.grad for name, p in self.named_parameters()}
        return {"out": out.detach(), "x": x.grad, **dict(self.named_buffers()), **gradients}


def half_batch(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    x, mask = torch.load(folder / "batch.pt")
    half = slice(2 * rank, 2 * rank + 2)
    torch.save([Halves().figures(x[half], None), Halves().figures(x[half], mask[half])], folder / f"half-{rank}.pt")


@pytest.mark.slow
def test_synchronised_batch_norms_of_two_halves_equal_one_of_the_whole(tmp_path: Path) -> None:
    x = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(1)) * 3 + 5
    mask = torch.arange(30) < torch.tensor([30, 11, 17, 2])[:, None]
    torch.save((x, mask), tmp_path / "batch.pt")
    in_processes(2, half_batch, tmp_path)
    halves = [torch.load(tmp_path / f"half-{rank}.pt") for rank in range(2)]
    for case, given in enumerate((None, mask)):
        whole = Halves().figures(x.clone(), given)
        for name, value in whole.items():
            parts = [half[case][name] for half in halves]
            if name in ("out", "x"):
                got = torch.cat(parts)
            elif "num_batches" in name or "running" in name:
                assert torch.equal(*parts)
                got = parts[0]
            else:
                got = parts[0] + parts[1]
            assert float((got - value).abs().max()) <= 1e-6 * max(1.0, float(value.abs().max())), (case, name)


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_every_log_has_all_figures(settings: Make, recorder: Recorder) -> None:
    train_pretraining(settings(updates=7, log_every=3, network={"layerdrop": 0.5}))
    logs = [log for log in recorder.logs if "loss" in log]
    assert len(logs) == 3  # updates 1, 3, 6
    for log in logs:
        assert set(FIGURES) <= log.keys()
        assert all(math.isfinite(value) for value in log.values())
        assert 0.2 < log["masked_share"] < 0.8
        assert log["speed"] > 0
        assert 0 <= log["waiting"] <= 1


def perplexity(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def hook(seen: dict[str, Any], name: str) -> Callable[..., None]:
    return lambda network, inputs, output: seen.update({name: output})


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_figures_are_those_of_brute_force(settings: Make, recorder: Recorder, clip: float) -> None:
    chosen = settings(updates=1, accumulate=2, dev=None, clip=clip, feature_penalty=0.3, network={"num_negatives": 5})
    train_pretraining(chosen)
    (log,) = [log for log in recorder.logs if "loss" in log]
    network = module.prepare_model(chosen)
    network.load_state_dict(recorder.weights[0])
    network.train()
    right, contrastive, hard, soft, frames, diversity, penalty = 0, 0.0, np.zeros(2), np.zeros(2), 0, 0.0, 0.0
    for place, batch in enumerate(batches(chosen, 0)[:2]):
        seen: dict[str, Any] = {}
        watch = partial(hook, seen)
        hooks = [
            network.quantizer.weight_proj.register_forward_hook(watch("logits")),
            network.quantizer.register_forward_hook(watch("quantized")),
            network.wav2vec2_conformer.feature_extractor.register_forward_hook(watch("features")),
        ]
        torch.manual_seed(draw_seed(0, 0, place))
        outputs = network(batch["input_values"], mask_time_indices=batch["mask_time_indices"])
        for handle in hooks:
            handle.remove()
        mask = batch["mask_time_indices"].numpy()
        codes = seen["quantized"].codes.numpy()
        states, targets = (
            value.detach().double().numpy() for value in (outputs.projected_states, outputs.projected_quantized_states)
        )
        count = int(mask.sum())
        for row, frame in zip(*mask.nonzero(), strict=True):
            places = [divmod(int(n), mask.shape[1]) for n in batch["sampled_negative_indices"][row, frame]]
            places = [p for p in places if tuple(codes[p]) != tuple(codes[row, frame])]
            a = states[row, frame]
            logits = [
                a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.1
                for b in [targets[row, frame], *(targets[p] for p in places)]
            ]
            contrastive += np.log(np.exp(logits).sum()) - logits[0]
            right += bool(places) and logits[0] > max(logits[1:])
        probabilities = seen["logits"].detach().unflatten(-1, (2, 8)).softmax(-1).double().numpy()[mask].mean(0)
        ours = np.array([perplexity(np.bincount(codes[..., group][mask], minlength=8)) for group in range(2)])
        theirs = np.array([perplexity(probabilities[group]) for group in range(2)])
        hard, soft = hard + count * ours, soft + count * theirs
        diversity += count * (16 - theirs.sum()) / 16
        penalty += count * float(seen["features"].detach().double().square().mean())
        frames += count
    expected = {
        "contrastive": contrastive / frames,
        "accuracy": right / frames,
        **{f"hard_perplexity_{group + 1}": hard[group] / frames for group in range(2)},
        **{f"soft_perplexity_{group + 1}": soft[group] / frames for group in range(2)},
        "diversity": diversity / frames,
        "penalty": penalty / frames,
        "loss": (contrastive + 0.1 * diversity + 0.3 * penalty) / frames,
    }
    assert {name: log[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in recorder.gradients[0].values()))
    if clip:
        assert norm == pytest.approx(clip, rel=1e-2)
        assert log["grad_norm"] > 10 * clip  # as it was before
    else:
        assert log["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_the_features_gradient_is_scaled(settings: Make, recorder: Recorder, tmp_path: Path) -> None:
    for scale in (1.0, 0.25):
        train_pretraining(settings(updates=1, feature_gradient_scale=scale, output=str(tmp_path / str(scale))))
    whole, scaled = recorder.gradients
    for name, gradient in whole.items():
        factor = 0.25 if "feature_extractor" in name else 1.0
        assert torch.allclose(scaled[name], factor * gradient, rtol=1e-4, atol=1e-9), name


# --- the collapse rule -----------------------------------------------------------------------------------------------


def healthy(**changes: float) -> dict[str, float]:
    return {"contrastive": 3.0, "accuracy": 0.3, "hard_perplexity_1": 50.0, "hard_perplexity_2": 40.0} | changes


@pytest.mark.parametrize(
    ("changes", "before", "found"),
    [
        ({}, 0.3, None),
        ({"accuracy": 0.02}, None, None),
        ({"accuracy": 0.02}, 0.01, None),
        (
            {"accuracy": 0.02},
            0.02,
            "the accuracy was 2.0% in the last 10 logs and 2.0% in the first",
        ),
        ({"accuracy": 0.01}, 0.5, "guessing gives 1.0%"),
        ({"hard_perplexity_2": 1.9}, None, "of group 2 at most 1.9 entries"),
        ({"hard_perplexity_2": 2.1}, 0.01, None),
        ({"contrastive": math.nan, "hard_perplexity_1": math.nan}, 0.01, "not a finite number any more"),
        ({"contrastive": math.inf}, 0.01, "not a finite number any more"),
    ],
)
def test_each_pattern_has_its_diagnosis(changes: dict[str, float], before: float | None, found: str | None) -> None:
    logs, first = [healthy(**changes)] * WINDOW, None if before is None else [healthy(accuracy=before)] * WINDOW
    diagnosis = diagnose(logs, first, 100)
    assert (diagnosis is None) if found is None else (diagnosis is not None and found in diagnosis)
    assert diagnose([*logs[1:], healthy(accuracy=0.9)], first, 100) is None  # once without it is enough


def one_entry(network: Wav2Vec2ConformerForPreTraining) -> None:
    with torch.no_grad():
        network.quantizer.weight_proj.weight.zero_()
        network.quantizer.weight_proj.bias[:8] = torch.tensor([100.0, *[0.0] * 7])  # of group 1


def not_a_number(network: Wav2Vec2ConformerForPreTraining) -> None:
    with torch.no_grad():
        network.project_hid.weight[0, 0] = math.nan


def as_it_is(network: Wav2Vec2ConformerForPreTraining) -> None:
    pass


COLLAPSES: list[tuple[Callable[[Wav2Vec2ConformerForPreTraining], None], dict[str, Any], str]] = [
    (one_entry, {"network": {"diversity_loss_weight": 0.0}}, "the codebook collapsed: of group 1 at most 1.0 entries"),
    (not_a_number, {}, "the contrastive loss is not a finite number any more"),
    (as_it_is, {"learning_rate": 0.0, "updates": 40}, "nothing is recognised: the accuracy was"),
]


@pytest.mark.parametrize("keep_going", [False, True])
@pytest.mark.parametrize(("spoil", "changes", "diagnosis"), COLLAPSES)
def test_a_run_made_to_collapse_stops_and_says_why(
    settings: Make,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reports: list[tuple[Path, str | None]],
    tmp_path: Path,
    spoil: Callable[[Wav2Vec2ConformerForPreTraining], None],
    changes: dict[str, Any],
    diagnosis: str,
    keep_going: bool,
) -> None:
    prepare = module.prepare_model

    def spoilt(chosen: PretrainingSettings) -> Wav2Vec2ConformerForPreTraining:
        network = prepare(chosen)
        spoil(network)
        return network

    monkeypatch.setattr(module, "prepare_model", spoilt)
    chosen = settings(**{"updates": 12, "dev": None, "keep_going": keep_going} | changes)
    result = train_pretraining(chosen)
    ((path, told),) = reports
    assert path == tmp_path / "out" / "report.png"
    assert told is not None
    assert diagnosis in told
    assert result["stopped"] == (None if keep_going else told)
    if keep_going:
        assert result["updates"] == chosen.updates
    else:
        assert result["updates"] == (WINDOW if chosen.learning_rate else 2 * WINDOW)
    messages = [record.getMessage() for record in caplog.records if "skipped" not in record.getMessage()]
    assert [diagnosis in message for message in messages] == [True]
    assert ("It goes on" in messages[0]) is keep_going


def test_recordings_of_nothing_stop_it(settings: Make, tmp_path: Path) -> None:
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(2 * RATE), RATE)
    result = train_pretraining(settings(train=[str(tmp_path)], dev=None, updates=60))
    assert result["updates"] < 60
    assert "the codebook collapsed" in result["stopped"] or "nothing is recognised" in result["stopped"]


def test_the_rule_remembers_what_was_logged_before_a_resume(settings: Make, recorder: Recorder) -> None:
    common: dict[str, Any] = {"updates": 30, "learning_rate": 0.0, "evaluate_every": 15, "dev": None}
    recorder.stop_at = 17
    with pytest.raises(KeyboardInterrupt):
        train_pretraining(settings(**common))
    recorder.stop_at = None
    assert train_pretraining(settings(**common), resume=True)["updates"] == 2 * WINDOW
    # And going on all the same is no other training.
    assert train_pretraining(settings(**common, keep_going=True), resume=True)["updates"] == 30


# --- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [6, 7])
def test_resumed_equals_uninterrupted(settings: Make, recorder: Recorder, tmp_path: Path, stop_at: int) -> None:
    """In the middle of an epoch, at a checkpoint and past it."""
    common: dict[str, Any] = {"network": RANDOM, "updates": 10, "accumulate": 2, "evaluate_every": 3, "warmup": 0.2}
    whole = settings(**common, output=str(tmp_path / "whole"))
    expected = train_pretraining(whole)
    figures = [log for log in recorder.logs if "loss" in log]
    recorder.logs.clear()
    recorder.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        train_pretraining(settings(**common))
    recorder.stop_at = None
    torch.rand(7)
    assert train_pretraining(settings(**common, workers=1), resume=True) == expected
    assert same(last_weights(whole.output), last_weights(settings().output))
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    again = [log for log in recorder.logs if "loss" in log]  # with the updates before and after the interruption
    done = stop_at - stop_at % 3
    for log, before in zip(again, [*figures[:stop_at], *figures[done:]], strict=True):
        for name in ("contrastive", "accuracy", "temperature", "masked_share", "learning_rate", "grad_norm"):
            assert log[name] == before[name]


def test_tuples_of_the_settings_may_be_resumed(settings: Make) -> None:
    network = {"conv_dim": (32, 32), "conv_kernel": (160, 4), "conv_stride": (80, 4)}
    train_pretraining(settings(network=network))
    assert train_pretraining(settings(network=network), resume=True)["updates"] == 4
    with pytest.raises(ValueError, match=r"other settings \(`seed`: 0 before, 1 now\)"):
        train_pretraining(settings(network=network, seed=1), resume=True)


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("room", [0.5, 1.5])  # of the weights: for them, or for the optimizer's state
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_written(
    settings: Make, recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str], room: float
) -> None:
    common: dict[str, Any] = {"updates": 6, "evaluate_every": 2, "dev": None}
    whole = settings(**common, output=str(tmp_path / "whole"))
    expected = train_pretraining(whole)
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    step_begin = Recorder.on_step_begin

    class Full(Recorder):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * size), hard))
            step_begin(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ProgressBar", Full)
        with pytest.raises(OSError, match=r"the model could not be written .*go on with --resume") as error:
            train_pretraining(settings(**common))
    assert "\n" not in str(error.value)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert not [name for name in left if name.endswith("incomplete")]
    checkpoint = last_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    assert Wav2Vec2ConformerForPreTraining.from_pretrained(tmp_path / "out")
    assert train_pretraining(settings(**common), resume=True) == expected
    assert same(last_weights(whole.output), last_weights(settings().output))


# --- what comes out --------------------------------------------------------------------------------------------------


def test_starting_from_a_model(settings: Make, tmp_path: Path) -> None:
    """From a pre-trained one, all its weights; from a recogniser, its network."""
    config = Wav2Vec2ConformerConfig(**MODEL, vocab_size=9)
    for number, kind in enumerate((Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerForCTC)):
        given = kind(config)
        given.save_pretrained(tmp_path / kind.__name__)
        output = tmp_path / f"out-{number}"
        train_pretraining(settings(init=str(tmp_path / kind.__name__), learning_rate=0.0, output=str(output)))
        trained = dict(Wav2Vec2ConformerForPreTraining.from_pretrained(output).named_parameters())
        shared = [name for name in dict(given.named_parameters()) if name in trained]
        assert len(shared) == len(trained) - (0, 7)[number]
        for name, parameter in given.named_parameters():
            if name in trained:
                assert torch.equal(parameter, trained[name]), name


def test_the_best_model_has_the_best_accuracy(
    settings: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = iter([0.2, 0.6, 0.5, 0.6])
    take = module.Totals.take

    def told(self: Any, reduce: Any) -> dict[str, float]:
        found = take(self, reduce)
        return found if "penalty" in found else found | {"accuracy": next(figures)}

    monkeypatch.setattr(module.Totals, "take", told)
    result = train_pretraining(settings(updates=8, evaluate_every=2))
    assert result["best_accuracy"] == 0.6
    best = Wav2Vec2ConformerForPreTraining.from_pretrained(tmp_path / "out").state_dict()
    assert same(best, recorder.weights[4])  # before the fifth update


def test_without_a_development_set_the_last_model_is_kept(settings: Make, tmp_path: Path) -> None:
    result = train_pretraining(settings(dev=None, updates=5, evaluate_every=3))
    assert result["best_accuracy"] is None
    kept = Wav2Vec2ConformerForPreTraining.from_pretrained(tmp_path / "out").state_dict()
    assert same(kept, last_weights(str(tmp_path / "out")))


def test_the_report_is_a_picture(tmp_path: Path) -> None:
    from matplotlib import image

    history = [healthy(step=step, learning_rate=0.1, grad_norm=1.0, speed=9.0) for step in range(1, 40)]
    history.append({"step": 40, "eval_contrastive": 3.0, "eval_accuracy": 0.5})
    write_report(tmp_path / "plain.png", history, PRETRAINING)
    write_report(
        tmp_path / "told.png",
        history,
        PRETRAINING,
        "update 9: the codebook collapsed: " + "of group 1 many words, " * 20,
    )
    plain, told = (image.imread(tmp_path / f"{name}.png") for name in ("plain", "told"))
    for picture in (plain, told):
        assert 600 < picture.shape[0] < 1200
        assert 1000 < picture.shape[1] < 2000
        assert picture[..., :3].std() > 0.05
    red = [(abs(picture[..., :3] - np.array([178, 34, 34]) / 255).max(-1) < 0.1).sum() for picture in (plain, told)]
    assert red[1] > red[0] + 500
    write_report(tmp_path / "none.png", [{"step": 1, "train_loss": 3.0}], PRETRAINING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.png", "told.png"]


def test_presets_say_where_values_come_from() -> None:
    for name in PRESETS:
        text = (FOLDER / f"{name}.toml").read_text()
        assert tomllib.loads(text).keys() == {"model", "training"}
        for line in text.splitlines():
            if "=" in line and not line.startswith("#"):
                assert "#" in line or "position_embeddings_type" in line, (name, line)
