"""`wav2vec2-conformer train ctc`: it learns, it tells, and a kill costs nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import speech
from wav2vec2_conformer import Transcriber, Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.training import CTCSettings, FrameSettings, SequenceSettings, XVectorSettings
from wav2vec2_conformer.training.checkpoints import last_checkpoint
from wav2vec2_conformer.training.presets import CTC_PRESETS

COMMAND = [sys.executable, "-m", "wav2vec2_conformer"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> speech.Trained:
    return speech.trained_model(tmp_path_factory)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The arguments of a short training in which everything random happens."""
    dropouts = dict.fromkeys(["hidden_dropout", "attention_dropout", "conformer_conv_dropout", "layerdrop"], 0.1)
    masks = {"mask_time_prob": 0.2, "mask_time_length": 3, "mask_feature_prob": 0.1, "mask_feature_length": 3}
    arguments = {
        "--train": speech.write_manifest(tmp_path / "train.jsonl", speech.sentences(30, 0)),
        "--dev": speech.write_manifest(tmp_path / "dev.jsonl", speech.sentences(4, 1), seed=1),
        "--config": speech.write_config(tmp_path / "config.json", **dropouts, **masks, num_hidden_layers=2),
        "--batch-seconds": 6,
        "--accumulate": 2,
        "--evaluate-every": 5,
        "--epochs": 4,
    }
    return ["train", "ctc", *(str(part) for pair in arguments.items() for part in pair)]


def test_it_learns(trained: speech.Trained) -> None:
    assert trained.code == 0
    assert trained.result["best_wer"] <= 0.1
    assert trained.result["steps"] > 0
    assert trained.result["skipped_utterances"] == trained.result["skipped_steps"] == 0
    counts = ("steps", "skipped_utterances", "skipped_steps")
    assert all(isinstance(trained.result[name], int) for name in counts)


def test_stdout_is_one_json_object_and_stderr_the_progress(trained: speech.Trained) -> None:
    assert trained.stdout.count("\n") == 1
    assert set(json.loads(trained.stdout)) == {"best_wer", "steps", "skipped_utterances", "skipped_steps"}
    assert "WER" in trained.stderr
    assert "x real time" in trained.stderr


def test_the_output_folder_transcribes(trained: speech.Trained) -> None:
    transcriber = Transcriber.from_pretrained(trained.folder)
    texts, generator = speech.sentences(6, 5), np.random.default_rng(5)
    heard = [transcriber.transcribe(speech.speak(text, generator), sample_rate=speech.RATE).text for text in texts]
    right = sum(a == b for a, b in zip(texts, heard, strict=True))
    assert right >= 5, list(zip(texts, heard, strict=True))


def test_tensorboard_reads_the_logs(trained: speech.Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (trained.folder / "runs").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {"train/loss", "train/learning_rate", "train/speed", "eval/wer", "eval/cer"} <= set(tags)
    assert min(event.value for event in accumulator.Scalars("eval/wer")) == pytest.approx(trained.result["best_wer"])
    losses = [event.value for event in accumulator.Scalars("train/loss")]
    assert losses[-1] < 0.2 * losses[0]


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=280, **options
    )


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(data: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run([*data, "--output", str(whole)])
    assert expected.returncode == 0, expected.stderr

    with subprocess.Popen(
        [*COMMAND, *data, "--output", str(broken)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while not (broken / "checkpoint-5").is_dir():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
    first = last_checkpoint(broken)
    assert first is not None
    start = load_file(first / "model.safetensors")
    last = last_checkpoint(whole)
    assert last is not None
    assert first.name != last.name
    again = run([*data, "--output", str(broken)])
    assert (again.returncode, again.stdout) == (2, "")
    assert "--resume" in again.stderr
    # As a kill in the middle of writing leaves it.
    (broken / "checkpoint-9999.incomplete" / "checkpoint-9999").mkdir(parents=True)

    resumed = run([*data, "--output", str(broken), "--resume", "--workers", "0"])
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(expected.stdout)
    assert "checkpoint-9999.incomplete: skipped" in resumed.stderr
    assert (broken / last.name / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    end = load_file(last / "model.safetensors")
    assert any(not start[name].equal(end[name]) for name in start)


@pytest.mark.slow
def test_as_a_command_from_a_base_model(data: list[str], tmp_path: Path) -> None:
    config = json.loads((tmp_path / "config.json").read_text())
    Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**config)).save_pretrained(tmp_path / "base")
    position = data.index("--config")
    data[position : position + 2] = ["--init", str(tmp_path / "base")]
    done = run([*data, "--output", str(tmp_path / "out"), "--epochs", "1", "--bf16"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] > 0
    assert Transcriber.from_pretrained(tmp_path / "out").transcribe(speech.speak("AB"), sample_rate=speech.RATE)


def test_wrong_input_is_one_line_and_exit_code_2(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"audio": "nowhere.wav", "text": "A"}\n')
    (tmp_path / "empty.json").write_text("not json")
    out = ["--output", str(tmp_path / "out")]
    for changed, expected in (
        (["--train", str(tmp_path / "none.jsonl")], "no such manifest"),
        (["--dev", str(tmp_path / "bad.jsonl")], "nowhere.wav does not exist"),
        (["--batch-seconds", "0.5"], "longer than `--batch-seconds`"),
        (["--config", str(tmp_path / "none.json")], "none.json: expected a file, the config.json of a model, got no"),
        (["--config", str(tmp_path)], f"{tmp_path}: expected a file, the config.json of a model, got a folder"),
        (["--config", str(tmp_path / "empty.json")], "empty.json"),
        (["--output", str(tmp_path / "empty.json")], "empty.json is a file; name another"),
        (["--output", str(tmp_path / "empty.json" / "out")], "empty.json is a file; name another"),
    ):
        assert main([*data, *out, *changed]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert expected in captured.err
        assert "Traceback" not in captured.err
        assert "Errno" not in captured.err
        assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("task", ["ctc", "pretraining"])
def test_a_path_to_start_from_that_is_not_there_fails_before_the_hub_is_asked(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(speech.write_manifest(tmp_path / "train.jsonl", speech.sentences(4, 0)))
    options = ["--train", manifest, "--dev", manifest, "--init", "model.pt", "--output", str(tmp_path / "out")]
    assert main(["train", task, *options]) == 2
    assert "'model.pt': no such folder, and no Hub id" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_a_training(data: list[str], tmp_path: Path) -> None:
    """With what leaves parameters without a gradient on one process alone: LayerDrop, masks, unusable batches."""
    for number in (3, 11):
        (tmp_path / f"train-{number}.wav").write_bytes(b"no audio at all")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wav2vec2_conformer"]
    changed = ["--max-batch", "1", "--accumulate", "1", "--epochs", "1", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *torchrun, *data, *changed], env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert (result["steps"], result["skipped_utterances"], result["skipped_steps"]) == (15, 2, 0)
    assert Transcriber.from_pretrained(tmp_path / "out")


def test_main_may_be_called_often(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        main(["train", "ctc", "--train", "none.jsonl", "--dev", "none.jsonl", "--output", os.devnull])
    capsys.readouterr()
    logging.getLogger("wav2vec2_conformer.training").warning("only once")
    assert capsys.readouterr().err == "WARNING: only once\n"


def test_init_and_config_exclude_each_other(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*data, "--output", "x", "--init", "y"])
    assert exit_.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["ctc", "sequence", "frame", "xvector"])
def test_help_tells_the_defaults(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"ctc": CTCSettings, "sequence": SequenceSettings, "frame": FrameSettings, "xvector": XVectorSettings}
    with pytest.raises(SystemExit):
        main(["train", task, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    told = dict(re.findall(r"--([a-z-]+) [A-Z]+ (?:(?! --).)*?\(([\d.]+|cosine)\)", text))
    assert len(told) >= 13
    defaults = {f.name.replace("_", "-"): str(f.default) for f in dataclasses.fields(kinds[task])}
    assert told == {name: defaults[name] for name in told}


@pytest.mark.parametrize("preset", CTC_PRESETS)
def test_every_preset_makes_settings(preset: str) -> None:
    settings = CTCSettings.from_preset(preset, train=["t"], dev="d", output="o", learning_rate=7.0)
    assert settings.schedule == "tri-stage"
    assert settings.learning_rate == 7.0  # what is given goes first
    assert Wav2Vec2ConformerConfig(**settings.model).mask_time_prob >= 0.5


def test_messages_name_options_as_they_are_typed(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output", str(tmp_path / "out")]
    (tmp_path / "mine.toml").write_text("[training]\nwarmup = 2.0\n")
    for arguments, said in (
        (["--learning-rate", "-1"], "`--learning-rate` must be at least 0"),
        (["--preset", str(tmp_path / "mine.toml")], "`warmup` is a share"),  # which stands in the file
        (["--preset", str(tmp_path / "mine.toml"), "--warmup", "3"], "`--warmup` is a share"),
    ):
        assert main([*data, *out, *arguments]) == 2
        assert said in capsys.readouterr().err
    frame = ["train", "frame", "--train", "a", "--dev", "b", *out, "--crop-seconds", "90"]
    assert main(frame) == 2
    assert "`--batch-seconds` must be at least `--crop-seconds`, got 60 and 90" in capsys.readouterr().err


def test_a_preset_that_is_none(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main([*data, *out, "--preset", "ctc-huge"]) == 2
    assert "there is no preset 'ctc-huge'; use ctc-base-10m, " in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("[training]\nspeed = 3\n")
    assert main([*data, *out, "--preset", str(tmp_path / "mine.toml")]) == 2
    assert "nothing here is called training.speed" in capsys.readouterr().err
