"""`wav2vec2-conformer train pretraining`: it learns, it tells, it stops where it should, and a kill costs nothing."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import speech
from wav2vec2_conformer import Transcriber, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.training import CTCSettings, PretrainingSettings, ctc, pretraining
from wav2vec2_conformer.training.checkpoints import last_checkpoint
from wav2vec2_conformer.training.collapse import WINDOW

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NEGATIVES = 20
UPDATES = 200
FIGURES = [
    *("contrastive", "accuracy", "diversity", "penalty", "temperature", "masked_share", "grad_norm", "learning_rate"),
    *("hard_perplexity_1", "hard_perplexity_2", "soft_perplexity_1", "soft_perplexity_2", "speed", "waiting"),
]


def write_preset(path: Path, network: dict[str, Any] | None = None, **training: Any) -> Path:
    """A recipe for the tiny network of the tests."""
    model = {name: value for name, value in speech.TINY.items() if name != "model_type"} | {
        "mask_time_prob": 0.65,
        "mask_time_length": 4,
        "num_negatives": NEGATIVES,
        "feat_quantizer_dropout": 0.0,
        "num_codevectors_per_group": 8,
        "codevector_dim": 16,
        "proj_codevector_dim": 16,
        **(network or {}),
    }
    training = {
        "updates": UPDATES,
        "learning_rate": 5e-3,
        "batch_seconds": 16.0,
        "crop_seconds": 2.0,
        "least_seconds": 0.5,
        "feature_penalty": 0.0,
        "feature_gradient_scale": 1.0,
        "do_normalize": True,
        "bf16": False,
        "log_every": 1,
        "evaluate_every": 50,
        "workers": 0,
    } | training
    tables = {"model": model, "training": training}
    lines = [f"[{table}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tables[table].items()) for table in tables]
    path.write_text("\n".join(lines))
    return path


def run(*arguments: Any) -> speech.Trained:
    """The command in this process."""
    command = ["train", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(command)
    return speech.Trained(code, stdout.getvalue(), stderr.getvalue(), Path(arguments[-1]))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that are started here: sums in another order would differ in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings, another to judge by, and presets."""
    folder = tmp_path_factory.mktemp("corpus")
    speech.write_manifest(folder / "train" / "train.jsonl", speech.sentences(60, 0))
    speech.write_manifest(folder / "dev" / "dev.jsonl", speech.sentences(10, 1), seed=1)
    write_preset(folder / "healthy.toml")
    write_preset(folder / "deaf.toml", learning_rate=0.0)
    dropouts = dict.fromkeys(["hidden_dropout", "attention_dropout", "conformer_conv_dropout", "layerdrop"], 0.1)
    network = {**dropouts, "feat_quantizer_dropout": 0.1, "num_hidden_layers": 2}
    training = {"updates": 21, "evaluate_every": 5, "accumulate": 2, "workers": 1, "warmup": 0.1, "keep_going": True}
    write_preset(folder / "random.toml", network, **training)
    return folder


def arguments(corpus: Path, preset: str, output: Path, *more: Any) -> list[Any]:
    sources = ["--train", corpus / "train", "--dev", corpus / "dev"]
    return ["pretraining", *sources, "--preset", corpus / f"{preset}.toml", *more, "--output", output]


@pytest.fixture(scope="module")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> speech.Trained:
    """200 updates on the toy language (7 s on a core)."""
    return run(*arguments(corpus, "healthy", tmp_path_factory.mktemp("pretrained") / "model"))


def test_it_learns(pretrained: speech.Trained) -> None:
    """And the rule against collapse, which sees 200 logs, lets it."""
    assert pretrained.code == 0, pretrained.stderr
    assert pretrained.stdout.count("\n") == 1
    result = pretrained.result
    assert result.pop("best_accuracy") > 5 / (NEGATIVES + 1)
    assert result == {"updates": UPDATES, "skipped_recordings": 0, "skipped_updates": 0, "stopped": None}
    assert "ERROR" not in pretrained.stderr
    assert "WARNING" not in pretrained.stderr
    assert f"step {UPDATES}/{UPDATES}" in pretrained.stderr
    assert "dev accuracy" in pretrained.stderr


def test_tensorboard_reads_every_figure_of_every_update(pretrained: speech.Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (pretrained.folder / "runs").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    for name in FIGURES:
        scalars = accumulator.Scalars(f"train/{name}")
        assert [event.step for event in scalars] == list(range(1, UPDATES + 1)), name
        assert all(math.isfinite(event.value) for event in scalars), name
    accuracies = [event.value for event in accumulator.Scalars("eval/accuracy")]
    assert max(accuracies) == pytest.approx(pretrained.result["best_accuracy"])
    assert len(accuracies) == 4
    temperatures = [event.value for event in accumulator.Scalars("train/temperature")]
    assert temperatures[0] == 2
    assert temperatures[-1] == 0.5
    losses = [event.value for event in accumulator.Scalars("train/contrastive")]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_the_report_is_a_picture(pretrained: speech.Trained) -> None:
    from matplotlib import image

    picture = image.imread(pretrained.folder / "report.png")
    assert 600 < picture.shape[0] < 1200
    assert 1000 < picture.shape[1] < 2000
    assert picture[..., :3].std() > 0.05


def test_the_folder_gives_the_same_model(pretrained: speech.Trained, corpus: Path) -> None:
    model, info = Wav2Vec2ConformerForPreTraining.from_pretrained(pretrained.folder, output_loading_info=True)
    assert not any(info.values())
    record = json.loads((pretrained.folder / "training.json").read_text())
    settings = PretrainingSettings(**record)
    loader = pretraining.make_loader(
        pretraining.usable_recordings([str(corpus / "dev")], settings),
        settings=settings,
        config=model.config,
        shuffle=False,
    )
    model.eval()
    masked, correct, loss = 0, 0, 0.0
    for batch in loader:
        batch.pop("skipped_names")
        with torch.no_grad():
            outputs = model(**batch, output_statistics=True)
        masked += int(outputs.statistics.masked)
        correct += int(outputs.statistics.correct)
        loss += float(outputs.contrastive_loss)
    assert correct / masked == pytest.approx(pretrained.result["best_accuracy"])
    checkpoint = last_checkpoint(pretrained.folder)
    assert checkpoint is not None
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    (best,) = [log for log in history if log.get("eval_accuracy") == pretrained.result["best_accuracy"]]
    assert loss / masked == pytest.approx(best["eval_contrastive"], rel=1e-5)


def test_it_goes_into_a_recogniser(pretrained: speech.Trained, corpus: Path, tmp_path: Path) -> None:
    sources = ["--train", corpus / "train" / "train.jsonl", "--dev", corpus / "dev" / "dev.jsonl"]
    options = ["--epochs", 1, "--learning-rate", 0, "--workers", 0, "--no-augment", "--batch-seconds", 30]
    done = run("ctc", "--init", pretrained.folder, *sources, *options, "--output", tmp_path / "recogniser")
    assert done.code == 0, done.stderr
    messages = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert [re.sub(r"^.*pretrained\d*/", "", line) for line in messages] == [
        "model does not have lm_head.bias, lm_head.weight: drawn at random"
    ]
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained.folder, done.folder))
    inside = [name for name in after if name.startswith("wav2vec2_conformer.") and "batch_norm" not in name]
    assert len(inside) > 30
    assert all(torch.equal(before[name], after[name]) for name in inside)
    assert {name.split(".")[0] for name in after} == {"wav2vec2_conformer", "lm_head"}
    assert set("ABCDEF") <= json.loads((done.folder / "vocab.json").read_text()).keys()
    assert Transcriber.from_pretrained(done.folder).transcribe(speech.speak("AB"), sample_rate=speech.RATE)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_recogniser_hears_as_the_pretrained_model_did(corpus: Path, tmp_path: Path, normalize: bool) -> None:
    write_preset(tmp_path / "short.toml", updates=1, do_normalize=normalize)
    source = ["--train", corpus / "train", "--preset", tmp_path / "short.toml"]
    assert run("pretraining", *source, "--output", tmp_path / "pretrained").code == 0
    train = speech.write_manifest(tmp_path / "train.jsonl", ["AB CD"])
    task = ctc.CTCTask(CTCSettings([str(train)], "out", str(train), init=str(tmp_path / "pretrained")))
    assert task.normalize is normalize
    assert task.processor.feature_extractor.do_normalize is normalize


# --- before it begins ------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_happen_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    files = sorted(tmp_path.rglob("*"))
    more = ["--batch-seconds", 9, "--accumulate", 4, "--updates", 50, "--dry-run"]
    done = run(*arguments(corpus, "healthy", tmp_path / "out", *more))
    assert done.code == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == files
    settings = PretrainingSettings.from_preset(
        str(corpus / "healthy.toml"), train=[str(corpus / "train")], output="", batch_seconds=9.0, accumulate=4
    )
    model = pretraining.prepare_model(settings)
    loader = pretraining.make_loader(
        pretraining.usable_recordings(settings.train, settings), settings=settings, config=model.config
    )
    first, batches = next(iter(loader)), len(loader)
    assert batches % 4  # the last update of an epoch has fewer micro-batches
    updates = -(-batches // 4)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if not line.startswith("first batch"))
    assert lines["data"].startswith("60 recordings, ")
    assert lines["effective batch"] == "up to 0.0100 h (9 s x 4 micro-batches x 1 processes)"
    assert lines["updates"] == f"{updates} an epoch, 50 in all, about {50 / updates:.1f} epochs"
    memory = re.fullmatch(r"about (\S+) GB for weights and optimizer, (\S+) GB for activations", lines["memory"])
    assert memory is not None
    parameters = sum(p.numel() for p in model.parameters())
    assert float(memory[1]) == pytest.approx(16 * parameters / 1e9, abs=0.005)
    for name in ("input_values", "mask_time_indices", "sampled_negative_indices"):
        assert f"first batch: {name} {tuple(first[name].shape)} " in done.stdout
    assert lines["masked"] == f"{first['mask_time_indices'].float().mean():.0%} of its frames"


def test_the_estimate_of_memory_is_what_autograd_keeps(corpus: Path) -> None:
    settings = PretrainingSettings.from_preset(str(corpus / "healthy.toml"), train=[str(corpus / "train")], output="")
    kept = []
    for chosen in (settings, replace(settings, model=settings.model | {"num_hidden_layers": 5})):
        model = pretraining.prepare_model(chosen)
        recordings = pretraining.usable_recordings(chosen.train, chosen)
        batch = next(iter(pretraining.make_loader(recordings, settings=chosen, config=model.config)))
        batch = {name: value[:1] for name, value in batch.items() if name != "skipped_names"}
        kept.append(pretraining.activation_bytes(model, batch))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        kept.append(pretraining.activation_bytes(model, batch))
    assert kept[0] > batch["input_values"].numel() * 4
    assert kept[2] > 1.5 * kept[0]
    assert kept[3] < 0.6 * kept[2]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--preset", "nowhere"], "there is no preset 'nowhere'"),
        (["--train", "nowhere"], "no such manifest"),
        (["--train", "{empty}"], "no audio file that can be read"),
        (["--dev", "{empty}"], "no audio file that can be read"),
        (["--crop-seconds", "20"], "must hold a crop"),
        (["--schedule", "square"], "linear, cosine, tri-stage"),
        (["--updates", "0"], "`--updates` must be above 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    corpus: Path, tmp_path: Path, changed: list[str], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    changed = [part.format(empty=tmp_path / "empty") for part in changed]
    done = run(*arguments(corpus, "healthy", tmp_path / "out", *changed))
    assert (done.code, done.stdout) == (2, "")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- where it must stop ----------------------------------------------------------------------------------------------


def test_a_collapse_is_exit_code_1_and_keeping_going_a_warning(corpus: Path, tmp_path: Path) -> None:
    stopped = run(*arguments(corpus, "deaf", tmp_path / "out", "--updates", 60))
    assert stopped.code == 1
    assert stopped.result["updates"] < 60
    diagnosis = str(stopped.result["stopped"])
    assert "nothing is recognised" in diagnosis
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("ERROR")]
    assert diagnosis in line
    assert "--keep-going" in line
    assert (tmp_path / "out" / "report.png").stat().st_size > 20_000

    going = run(*arguments(corpus, "deaf", tmp_path / "going", "--updates", 2 * WINDOW + 5, "--keep-going"))
    assert (going.code, going.result["updates"]) == (0, 2 * WINDOW + 5)
    assert going.result["stopped"] is None
    (line,) = [line for line in going.stderr.splitlines() if line.startswith("WARNING")]
    assert "nothing is recognised" in line


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("unlimited")
def test_a_full_disk_is_one_line_and_exit_code_2(corpus: Path, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a third of the weights
    done = run(*arguments(corpus, "healthy", tmp_path / "out", "--updates", 4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (done.code, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert "the model could not be written" in line
    assert "too large" in line.lower()
    assert not list((tmp_path / "out").glob("*incomplete"))


# --- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(*arguments(corpus, "random", whole))
    assert expected.code == 0, expected.stderr
    command = [sys.executable, "-m", "wav2vec2_conformer", "train", *map(str, arguments(corpus, "random", broken))]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 200
        while not (broken / "checkpoint-5").is_dir():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5 * random.random())  # between two checkpoints, or in the middle of writing one
        os.killpg(process.pid, signal.SIGKILL)  # with its worker
    first, last = last_checkpoint(broken), last_checkpoint(whole)
    assert first is not None
    assert last is not None
    assert first.name != last.name
    start = load_file(first / "model.safetensors")
    again = run(*arguments(corpus, "random", broken))
    assert (again.code, again.stdout) == (2, "")
    assert "--resume" in again.stderr
    resumed = run(*arguments(corpus, "random", broken, "--resume", "--workers", 0))
    assert resumed.code == 0, resumed.stderr
    assert resumed.result == expected.result
    assert (broken / last.name / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    end = load_file(last / "model.safetensors")
    assert any(not start[name].equal(end[name]) for name in start)
    assert run(*arguments(corpus, "random", broken, "--resume")).result == expected.result  # it is done
    assert (broken / last.name / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
