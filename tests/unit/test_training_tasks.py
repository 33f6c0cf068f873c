"""The tasks of fine-tuning: each learns a toy, keeps what its folder needs, and refuses what cannot work."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from speech import RATE, TINY, Waveform, sentences, silence, tone, write_config, write_manifest
from wav2vec2_conformer import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForAudioFrameClassification,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2ConformerForXVector,
    Wav2Vec2ConformerModel,
)
from wav2vec2_conformer.data import ClassCollator, FrameCollator, Segment, SpeechDataset, Utterance, read_manifest
from wav2vec2_conformer.lengths import frame_centres, frames_of
from wav2vec2_conformer.modeling.losses import permutation_invariant_loss
from wav2vec2_conformer.training import (
    CTCSettings,
    FrameSettings,
    SequenceSettings,
    XVectorSettings,
    train_ctc,
    train_frame,
    train_sequence,
    train_xvector,
)
from wav2vec2_conformer.training.monitors import BlankMonitor, Drift
from wav2vec2_conformer.training.xvector import XVectorTask

SMALL = TINY | {"classifier_proj_size": 16, "tdnn_dim": [16, 16], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1]}


def voice(letter: str, generator: np.random.Generator, seconds: float = 0.3) -> Waveform:
    """A tone over noise."""
    waveform = np.concatenate([silence(0.05), tone(letter, seconds * generator.uniform(0.8, 1.2)), silence(0.05)])
    return (waveform + 0.01 * generator.standard_normal(len(waveform))).astype(np.float32)


def write_tones(path: Path, field: str, letters: str, count: int, seed: int) -> Path:
    """`count` recordings of each letter, which is their label or speaker."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, letter in enumerate(letters * count):
        name = f"{path.stem}-{number}.wav"
        soundfile.write(path.parent / name, voice(letter, generator), RATE)
        lines.append(json.dumps({"audio": name, field: letter}))
    path.write_text("\n".join(lines))
    return path


def write_conversations(path: Path, count: int, seed: int) -> Path:
    """Two voices that take turns, sometimes at once."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        waveform = 0.01 * generator.standard_normal(2 * RATE)
        segments = []
        for letter in "AE":
            start, length = generator.uniform(0.1, 0.9), generator.uniform(0.4, 0.9)
            first = round(start * RATE)
            sound = tone(letter, length)
            waveform[first : first + len(sound)] += sound
            segments.append({"start": start, "end": start + length, "speaker": letter})
        if generator.random() < 0.5:  # who comes first in the list means nothing
            segments.reverse()
        name = f"{path.stem}-{number}.wav"
        soundfile.write(path.parent / name, waveform.astype(np.float32), RATE)
        lines.append(json.dumps({"audio": name, "segments": segments}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def common(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return {
        "output": str(tmp_path / "out"),
        "config": str(tmp_path / "config.json"),
        "batch_seconds": 5.0,
        "learning_rate": 5e-3,
        "augment": False,
        "workers": 0,
    }


# --- each task learns ------------------------------------------------------------------------------------------------


def test_sequence_learns_labels(common: dict[str, Any], tmp_path: Path) -> None:
    train = write_tones(tmp_path / "train.jsonl", "label", "ACE", 12, 0)
    dev = write_tones(tmp_path / "dev.jsonl", "label", "ACE", 4, 1)
    result = train_sequence(SequenceSettings(train=[str(train)], dev=str(dev), epochs=12, balance=True, **common))
    assert result["best_accuracy"] >= 0.9
    model = Wav2Vec2ConformerForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "A", 1: "C", 2: "E"}
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_normalize"] is True
    assert (tmp_path / "out" / "report.png").read_bytes()[:4] == b"\x89PNG"


HUM = {"p": 250.0, "q": 380.0, "r": 560.0, "s": 820.0, "t": 1230.0, "u": 1850.0, "v": 310.0, "w": 690.0, "x": 1500.0}


def write_speakers(path: Path, speakers: str, count: int, seed: int) -> Path:
    """`count` recordings of each speaker: any letter, loud, over the speaker's own hum."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, speaker in enumerate(speakers * count):
        waveform = voice(str(generator.choice(list("ABCDEF"))), generator)
        time = np.arange(len(waveform)) / RATE
        waveform = waveform + (0.2 * np.sin(2 * np.pi * HUM[speaker] * time)).astype(np.float32)
        name = f"{path.stem}-{number}.wav"
        soundfile.write(path.parent / name, waveform, RATE)
        lines.append(json.dumps({"audio": name, "speaker": speaker}))
    path.write_text("\n".join(lines))
    return path


def test_xvectors_tell_speakers_apart_that_they_have_not_heard(common: dict[str, Any], tmp_path: Path) -> None:
    train = write_speakers(tmp_path / "train.jsonl", "pqrstu", 16, 0)
    dev = write_speakers(tmp_path / "dev.jsonl", "vwx", 8, 1)
    chosen = {**common, "train": [str(train)], "dev": str(dev), "crop_seconds": 0.35}
    untrained = {"epochs": 1, "learning_rate": 0.0, "output": str(tmp_path / "untrained")}
    before = train_xvector(XVectorSettings(**chosen | untrained))["best_eer"]
    after = train_xvector(XVectorSettings(**chosen, epochs=20))["best_eer"]
    assert after < 0.7 * before
    assert Wav2Vec2ConformerForXVector.from_pretrained(tmp_path / "out").config.num_labels == 6
    saved = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert saved["eer"] == after
    assert -1 <= saved["threshold"] <= 1


def test_frames_learn_who_speaks_when(common: dict[str, Any], tmp_path: Path) -> None:
    train = write_conversations(tmp_path / "train.jsonl", 24, 0)
    dev = write_conversations(tmp_path / "dev.jsonl", 6, 1)
    settings = FrameSettings(train=[str(train)], dev=str(dev), epochs=25, crop_seconds=1.5, **common)
    assert train_frame(settings)["best_der"] <= 0.3
    config = Wav2Vec2ConformerForAudioFrameClassification.from_pretrained(tmp_path / "out").config
    assert (config.num_labels, config.problem_type) == (2, "multi_label_classification")


# --- losses and labels -----------------------------------------------------------------------------------------------


def test_permutation_invariant_loss_is_the_best_of_all_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 3, generator=generator)
    targets = (torch.rand(3, 7, 3, generator=generator) < 0.4).float()
    lengths = [7, 4, 0]
    for row, length in enumerate(lengths):
        targets[row, length:] = -100
        logits[row, length:] = torch.nan  # padding has no share, whatever it holds
    expected = 0.0
    for row, length in enumerate(lengths):
        costs = [
            torch.nn.functional.binary_cross_entropy_with_logits(
                logits[row, :length], targets[row, :length][:, list(order)], reduction="sum"
            )
            for order in itertools.permutations(range(3))
        ]
        expected += float(min(costs)) / 3
    assert float(permutation_invariant_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)
    shuffled = targets[:, :, [2, 0, 1]]
    torch.testing.assert_close(
        permutation_invariant_loss(logits, shuffled), permutation_invariant_loss(logits, targets)
    )


def test_the_padding_of_a_permutation_invariant_loss_has_no_gradient() -> None:
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    targets = torch.tensor([[[1.0, 0], [0, 1], [-100, -100], [-100, -100]]])
    permutation_invariant_loss(logits, targets).backward()
    assert isinstance(logits.grad, Tensor)
    assert torch.equal(logits.grad[0, 2:], torch.zeros(2, 2))
    assert bool((logits.grad[0, :2] != 0).all())


def crop_of(segments: tuple[Segment, ...], stretch: float, longest: int | None) -> tuple[Tensor, Tensor]:
    """A ramp whose samples are their own numbers, so that a crop says where it was cut; (samples, labels)."""
    config = Wav2Vec2ConformerConfig(**TINY)
    samples = np.arange(round(3 * RATE * stretch), dtype=np.float32)
    utterance = Utterance(Path("a.wav"), None, 3.0, None, None, "a.wav", segments)
    item: Any = {"input_values": samples, "draw": 5, "name": "a.wav", "utterance": utterance, "stretch": stretch}
    collator = FrameCollator(
        lambda n: frames_of(n, config), lambda frames: frame_centres(frames, config), 2, longest=longest
    )
    batch = collator([item])
    return batch["input_values"][0], batch["labels"][0]


@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("longest", [None, RATE])
def test_frame_labels_follow_crops_and_changes_of_speed(stretch: float, longest: int | None) -> None:
    segments = (Segment(0.5, 1.7, "A"), Segment(1.5, 2.4, "B"))
    samples, labels = crop_of(segments, stretch, longest)
    config = Wav2Vec2ConformerConfig(**TINY)
    centres = (float(samples[0]) + frame_centres(np.arange(len(labels)), config)) / RATE / stretch
    expected = [{s.speaker for s in segments if s.start <= second < s.end} for second in centres]
    columns = {frozenset(np.flatnonzero(labels[:, column].numpy()).tolist()) for column in range(2)}
    spoken = {frozenset(i for i, names in enumerate(expected) if name in names) for name in "AB"}
    assert columns == spoken
    assert len(samples) == (longest or len(samples))


def test_a_crop_with_more_speakers_than_the_model_is_left_out() -> None:
    config = Wav2Vec2ConformerConfig(**TINY)
    utterance = Utterance(
        Path("a.wav"), None, 3.0, None, None, "a.wav", tuple(Segment(i, i + 1, str(i)) for i in range(3))
    )
    item: Any = {"input_values": np.zeros(3 * RATE, np.float32), "draw": 1, "name": "a.wav", "stretch": 1.0}
    item["utterance"] = utterance
    collate = FrameCollator(lambda n: frames_of(n, config), lambda f: frame_centres(f, config), 2, most=2)
    batch = collate([item])
    assert batch["skipped_names"] == ["a.wav: 3 speakers, but the model tells 2 apart"]
    assert batch["input_values"].shape[0] == 0
    # To be judged, all of them count.
    everybody = FrameCollator(lambda n: frames_of(n, config), lambda f: frame_centres(f, config), 2)([item])
    assert everybody["labels"].shape[2] == 3
    assert everybody["skipped_names"] == []


def test_another_speed_is_another_speaker(common: dict[str, Any], tmp_path: Path) -> None:
    """Faster or slower recordings have another pitch: to count them as the same speaker would teach the wrong thing."""
    train = write_tones(tmp_path / "train.jsonl", "speaker", "AB", 2, 0)
    dev = write_tones(tmp_path / "dev.jsonl", "speaker", "CD", 2, 1)
    make = common | {"train": [str(train)], "dev": str(dev), "augment": True}
    task = XVectorTask(XVectorSettings(**make))
    assert task.names == ["A", "A x 0.9", "A x 1.1", "B", "B x 0.9", "B x 1.1"]
    dataset = SpeechDataset(task.train, None, augment=task.augmentation())
    seen = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        for item in (dataset[index] for index in range(4)):
            label = task.names[task.collator(training=True)([item])["labels"].item()]
            speaker, _, speed = label.partition(" x ")
            assert speaker == item["utterance"].speaker
            assert item["stretch"] == pytest.approx(1 / float(speed or 1), rel=1e-3)
            seen.add(label)
    assert seen == set(task.names)
    assert XVectorTask(XVectorSettings(**make | {"augment": False})).names == ["A", "B"]


def test_class_crops_are_a_function_of_the_item(tmp_path: Path) -> None:
    path = write_tones(tmp_path / "train.jsonl", "speaker", "AB", 2, 0)
    dataset = SpeechDataset(read_manifest(path, require="speaker"), None, seed=3)
    collator = ClassCollator(
        {"A": 0}, lambda item: item["utterance"].speaker, lambda samples: samples // 320, longest=3200
    )
    one, two = (collator([dataset[index] for index in range(4)]) for _ in range(2))
    assert torch.equal(one["input_values"], two["input_values"])
    assert one["input_values"].shape == (4, 3200)
    assert one["labels"].tolist() == [0, -100, 0, -100]  # B is no class of the model
    dataset.set_epoch(1)
    assert not torch.equal(collator([dataset[index] for index in range(4)])["input_values"], one["input_values"])


# --- how they learn --------------------------------------------------------------------------------------------------


@pytest.fixture
def tones(common: dict[str, Any], tmp_path: Path) -> Callable[..., SequenceSettings]:
    train = write_tones(tmp_path / "train.jsonl", "label", "AE", 6, 0)

    def make(**changes: Any) -> SequenceSettings:
        return SequenceSettings(**{**common, "train": [str(train)], "dev": str(train), "epochs": 1, **changes})

    return make


def weights(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path / "model.safetensors"))


def base_model(path: Path) -> dict[str, Tensor]:
    """A network without a head, saved, and its weights under the names that a model with a head gives them."""
    torch.manual_seed(1)
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**SMALL))
    model.save_pretrained(path)
    return {f"wav2vec2_conformer.{name}": value for name, value in model.named_parameters()}


def test_only_the_head_learns_while_the_network_is_frozen(
    tones: Callable[..., SequenceSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = base_model(tmp_path / "base")
    start = {"config": None, "init": str(tmp_path / "base"), "weight_decay": 0.1}
    steps = train_sequence(tones(**start, freeze_updates=100))["steps"]
    frozen = weights(tmp_path / "out")
    assert steps > 1
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    assert "only the head will learn" in caplog.text
    statistics = [name for name in frozen if "running_mean" in name]
    assert all(bool((frozen[name] != 0).any()) for name in statistics)  # they follow the new data
    train_sequence(tones(**start, freeze_updates=1, output=str(tmp_path / "later")))
    later = weights(tmp_path / "later")
    moved = [name for name, value in before.items() if not torch.equal(later[name], value)]
    assert len(moved) > 0.9 * len(before)


def test_the_head_has_its_own_learning_rate(tones: Callable[..., SequenceSettings], tmp_path: Path) -> None:
    before = base_model(tmp_path / "base")
    train_sequence(
        tones(config=None, init=str(tmp_path / "base"), learning_rate=0.0, head_learning_rate=1e-2, weight_decay=0.5)
    )
    after = weights(tmp_path / "out")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    initial = {"classifier.bias": torch.zeros(2)}
    assert not torch.equal(after["classifier.bias"], initial["classifier.bias"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_learns_and_is_merged_into_the_saved_model(
    tones: Callable[..., SequenceSettings], tmp_path: Path, checkpointing: bool
) -> None:
    before = base_model(tmp_path / "base")
    result = train_sequence(
        tones(config=None, init=str(tmp_path / "base"), lora=4, epochs=4, gradient_checkpointing=checkpointing)
    )
    after = weights(tmp_path / "out")
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {name for name in before if "self_attn.linear_" in name and name.endswith("weight")}
    assert not [name for name in after if "lora" in name or "base_layer" in name]
    # What is saved is what was judged.
    model = Wav2Vec2ConformerForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    dataset = SpeechDataset(read_manifest(tmp_path / "train.jsonl"), None)
    collator = ClassCollator({"A": 0, "E": 1}, lambda item: item["utterance"].label, lambda samples: samples)
    batch = collator([dataset[i] for i in range(12)])
    with torch.no_grad():
        found = model(batch["input_values"], batch["attention_mask"]).logits.argmax(-1)
    assert float((found == batch["labels"]).float().mean()) == pytest.approx(result["best_accuracy"])


def test_lora_resumes(tones: Callable[..., SequenceSettings], tmp_path: Path) -> None:
    whole = train_sequence(tones(lora=2, epochs=2, output=str(tmp_path / "whole")))
    assert train_sequence(tones(lora=2, epochs=2, output=str(tmp_path / "out")))
    newest = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert train_sequence(tones(lora=2, epochs=2, output=str(tmp_path / "out")), resume=True) == whole
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_training_stops_when_nothing_gets_better(
    tones: Callable[..., SequenceSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    an_epoch = train_sequence(tones(epochs=1, output=str(tmp_path / "one")))["steps"]
    steps = train_sequence(tones(learning_rate=0.0, epochs=9, patience=2))["steps"]
    assert 3 * an_epoch <= steps < 9 * an_epoch
    state = json.loads((tmp_path / "out" / f"checkpoint-{steps:.0f}" / "trainer_state.json").read_text())
    accuracies = [log["eval_accuracy"] for log in state["log_history"] if "eval_accuracy" in log]
    assert accuracies.index(max(accuracies)) == len(accuracies) - 3  # running statistics move, and accuracy with them
    assert "no better accuracy for 2 evaluations" in caplog.text


def test_updates_take_the_place_of_epochs(tones: Callable[..., SequenceSettings]) -> None:
    assert train_sequence(tones(updates=5))["steps"] == 5


def test_a_self_check_learns_a_few_by_heart(common: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", hidden_dropout=0.5, mask_time_prob=0.5, classifier_proj_size=16)
    train = write_tones(tmp_path / "train.jsonl", "label", "AE", 6, 0)
    settings = SequenceSettings(train=[str(train)], overfit=4, epochs=25, **common)
    assert settings.augment is False
    result = train_sequence(settings)
    assert result["learnt"] is True
    config = Wav2Vec2ConformerConfig.from_pretrained(tmp_path / "out")
    assert (config.hidden_dropout, config.mask_time_prob) == (0.0, 0.0)


def test_self_checks_take_what_the_task_needs(common: dict[str, Any], tmp_path: Path) -> None:
    speakers = "pqrstuvw"
    train = tmp_path / "sorted.jsonl"
    lines = write_speakers(train, speakers, 3, 0).read_text().splitlines()
    train.write_text("\n".join(sorted(lines, key=lambda line: json.loads(line)["speaker"])))
    settings = XVectorSettings(train=[str(train)], overfit=6, epochs=1, crop_seconds=0.25, **common)
    assert "learnt" in train_xvector(settings)
    labels = write_tones(tmp_path / "labels.jsonl", "label", "ACE", 4, 0)
    by_class = sorted(labels.read_text().splitlines(), key=lambda line: json.loads(line)["label"])
    labels.write_text("\n".join(by_class))
    check = SequenceSettings(train=[str(labels)], overfit=3, epochs=1, **common | {"output": str(tmp_path / "check")})
    train_sequence(check)
    assert len(Wav2Vec2ConformerConfig.from_pretrained(tmp_path / "check").id2label) == 3


def test_a_self_check_that_fails_says_what_to_look_at(
    common: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write_manifest(tmp_path / "train.jsonl", sentences(6, 0, words=(1, 2), letters=(1, 2)))
    settings = CTCSettings(train=[str(train)], overfit=4, epochs=1, **common | {"learning_rate": 0.0})
    assert train_ctc(settings)["learnt"] is False
    assert "could not learn 4 utterances by heart" in caplog.text


# --- where they begin -------------------------------------------------------------------------------------------------


def test_the_order_of_known_classes_is_kept_and_other_classes_start_anew(
    tones: Callable[..., SequenceSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Wav2Vec2ConformerConfig(**SMALL, id2label={0: "E", 1: "A"}, label2id={"E": 0, "A": 1})
    model = Wav2Vec2ConformerForSequenceClassification(config)
    model.save_pretrained(tmp_path / "known")
    still = {"config": None, "learning_rate": 0.0}
    train_sequence(tones(**still, init=str(tmp_path / "known")))
    trained = Wav2Vec2ConformerForSequenceClassification.from_pretrained(tmp_path / "out")
    assert trained.config.id2label == {0: "E", 1: "A"}
    assert torch.equal(trained.classifier.weight, model.classifier.weight)
    model.config.id2label = {0: "YES", 1: "NO"}
    model.save_pretrained(tmp_path / "other")
    train_sequence(tones(**still, init=str(tmp_path / "other"), output=str(tmp_path / "anew")))
    anew = Wav2Vec2ConformerForSequenceClassification.from_pretrained(tmp_path / "anew")
    assert anew.config.id2label == {0: "A", 1: "E"}
    assert not torch.equal(anew.classifier.weight, model.classifier.weight)
    assert torch.equal(anew.projector.weight, model.projector.weight)
    assert "tells other classes apart: its last layer starts anew" in caplog.text


def test_the_kind_of_problem_is_the_tasks_own_and_a_new_head_is_named_in_one_line(
    tones: Callable[..., SequenceSettings],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(library, "handlers", [caplog.handler])
    library_level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.WARNING)
    config = Wav2Vec2ConformerConfig(**SMALL, num_labels=2, problem_type="multi_label_classification")
    Wav2Vec2ConformerForAudioFrameClassification(config).save_pretrained(tmp_path / "frames")
    train_sequence(tones(config=None, init=str(tmp_path / "frames")))
    logging.getLogger("transformers").setLevel(library_level)
    told = [record.getMessage() for record in caplog.records if "projector" in record.getMessage()]
    named = "classifier.weight, projector.bias, projector.weight"
    assert told == [f"{tmp_path / 'frames'} does not have {named}: drawn at random"]
    assert "LOAD REPORT" not in caplog.text
    assert Wav2Vec2ConformerConfig.from_pretrained(tmp_path / "out").problem_type == "single_label_classification"


@pytest.mark.parametrize("kind", [CTCSettings, SequenceSettings, FrameSettings, XVectorSettings])
def test_the_documented_preset_does_for_every_task(kind: Any, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (block,) = re.findall(r"^ +\[model\].*?^ +augment = false$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    settings = kind.from_preset(str(tmp_path / "mine.toml"), train=["t"], dev="d", output="o")
    assert (settings.learning_rate, settings.updates, settings.augment) == (3e-5, 2000, False)
    assert settings.model == {"mask_time_prob": 0.065, "hidden_dropout": 0.1}


def test_what_is_given_goes_before_the_preset(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("[training]\nupdates = 900\naugment = true\n[model]\nhidden_dropout = 0.3\n")
    own = {"train": ["t"], "dev": "d", "output": "o"}
    assert SequenceSettings.from_preset(str(preset), **own).updates == 900
    changed = SequenceSettings.from_preset(str(preset), **own, epochs=2.0, augment=False)
    assert (changed.updates, changed.epochs, changed.augment) == (0, 2.0, False)
    assert changed.model == {"hidden_dropout": 0.3}


def test_a_continued_training_that_had_stopped_stays_stopped(tones: Callable[..., SequenceSettings]) -> None:
    stopping = tones(learning_rate=0.0, epochs=9, patience=1)
    steps = train_sequence(stopping)["steps"]
    assert train_sequence(stopping, resume=True)["steps"] == steps


# --- what is watched -------------------------------------------------------------------------------------------------


def test_a_model_that_writes_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = BlankMonitor()
    for share in (1.0, 1.0, 0.9, 1.0, 1.0):
        monitor.look(share)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        monitor.look(1.0)
        monitor.look(1.0)
    assert len(caplog.records) == 1
    assert "only blanks" in caplog.text


def test_drift_is_a_relative_distance() -> None:
    layer = torch.nn.Linear(3, 2)
    drift = Drift(layer)
    assert drift.measure() == 0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 1.5
    assert drift.measure() == pytest.approx(0.5)


def test_logs_say_scale_drift_and_blanks(common: dict[str, Any], tmp_path: Path) -> None:
    train = write_manifest(tmp_path / "train.jsonl", sentences(6, 0, words=(1, 2), letters=(1, 2)))
    train_ctc(CTCSettings(train=[str(train)], dev=str(train), epochs=1, log_every=1, **common))
    newest = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    keys = {key for log in state["log_history"] for key in log}
    assert {"logit_scale", "drift"} <= keys
    assert all(log["logit_scale"] < 15 for log in state["log_history"] if "loss" in log)  # padding's -100 left out
    assert {"eval_wer", "eval_cer", "eval_blank", "eval_empty"} <= keys
    assert Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "out").config.pad_token_id == 0


# --- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dev": None}, "a development set"),
        ({"schedule": "stairs"}, "`schedule` must be one of"),
        ({"schedule": "tri-stage", "warmup": 0.7}, "`warmup` must be below"),
        ({"head_learning_rate": -1.0}, "`head_learning_rate` must be at least 0"),
        ({"lora": -1}, "`lora` must be at least 0"),
        ({"init": "x"}, "not both"),
    ],
)
def test_settings_that_cannot_work(
    tones: Callable[..., SequenceSettings], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        tones(**changes)


def test_data_that_cannot_work(tones: Callable[..., SequenceSettings], common: dict[str, Any], tmp_path: Path) -> None:
    one = write_tones(tmp_path / "one.jsonl", "label", "A", 3, 0)
    other = write_tones(tmp_path / "other.jsonl", "label", "AF", 1, 0)
    with pytest.raises(ValueError, match="all training utterances have the label 'A'"):
        train_sequence(tones(train=[str(one)], dev=str(one)))
    with pytest.raises(ValueError, match="1 labels that the training data lacks: F"):
        train_sequence(tones(dev=str(other)))
    with pytest.raises(ValueError, match='no "speaker" field'):
        train_xvector(XVectorSettings(train=[str(one)], dev=str(one), **common))
    speakers = write_tones(tmp_path / "speakers.jsonl", "speaker", "AC", 2, 0)
    alone = write_tones(tmp_path / "alone.jsonl", "speaker", "A", 3, 0)
    with pytest.raises(ValueError, match="pairs are judged: give two speakers or more"):
        train_xvector(XVectorSettings(train=[str(speakers)], dev=str(alone), **common))
    talks = write_conversations(tmp_path / "talks.jsonl", 2, 0)
    with pytest.raises(ValueError, match="a batch must hold a crop"):
        FrameSettings(train=[str(talks)], dev=str(talks), crop_seconds=6.0, **common)
    with pytest.raises(ValueError, match="a model tells 1 to 6 speakers apart, got 7"):
        train_frame(FrameSettings(train=[str(talks)], dev=str(talks), speakers=7, crop_seconds=2.0, **common))


def test_a_training_that_could_use_nothing_says_so(
    common: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = write_conversations(tmp_path / "both.jsonl", 3, 0)  # two speak, the model is to know one
    settings = FrameSettings(
        **common | {"train": [str(both)], "dev": str(both), "speakers": 1, "epochs": 1, "crop_seconds": 2.0}
    )
    with pytest.raises(ValueError, match="none of 3 training utterances could be used, so nothing was learnt"):
        train_frame(settings)
    assert "is learnt from and judged on" in caplog.text


def test_the_saved_model_may_be_read_by_others(common: dict[str, Any], tmp_path: Path) -> None:
    train = write_tones(tmp_path / "train.jsonl", "label", "AC", 2, 0)
    dev = write_tones(tmp_path / "dev.jsonl", "label", "AC", 2, 1)
    train_sequence(SequenceSettings(train=[str(train)], dev=str(dev), epochs=1, **common))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("*.*") if path.is_file()}
    assert modes == {train.stat().st_mode & 0o777}
