"""Training: honest losses, safe checkpoints, nothing silently left out, resumed = uninterrupted."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from speech import TINY, sentences, speak, write_config, write_manifest
from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel
from wav2vec2_conformer.audio import SAMPLE_RATE
from wav2vec2_conformer.data import build_processor
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.batch_norm import FrameBatchNorm
from wav2vec2_conformer.training import CTCSettings, finetuning, train_ctc
from wav2vec2_conformer.training import ctc as ctc_module
from wav2vec2_conformer.training import settings as settings_module
from wav2vec2_conformer.training.checkpoints import NEEDED, keep_newest, last_checkpoint, remove

State = dict[str, Tensor]
# Everything random at once: what a resumed run must take up where it was.
RANDOM = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "conformer_conv_dropout": 0.1,
    "layerdrop": 0.2,
    "num_hidden_layers": 2,
    "mask_time_prob": 0.2,
    "mask_time_length": 3,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 3,
}


class Recorder(TrainerCallback):
    """Sees a training from inside: takes the progress bar's place."""

    def __init__(self) -> None:
        self.gradients: list[State] = []
        self.weights: list[State] = []  # before each step
        self.logs: list[dict[str, float]] = []
        self.stop_at: int | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    result = Recorder()
    monkeypatch.setattr(finetuning, "ProgressBar", lambda: result)
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(folder / "train.jsonl", sentences(8, 0, words=(1, 2), letters=(1, 2)))
    write_manifest(folder / "dev.jsonl", sentences(2, 1, words=(1, 1)), seed=1)
    write_config(folder / "config.json")
    write_config(folder / "random.json", **RANDOM)
    return folder


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Callable[..., CTCSettings]:
    def make(**changes: Any) -> CTCSettings:
        chosen: dict[str, Any] = {
            "train": [str(corpus / "train.jsonl")],
            "dev": str(corpus / "dev.jsonl"),
            "output": str(tmp_path / "out"),
            "config": None if "init" in changes else str(corpus / "config.json"),
            "epochs": 1,
            "max_batch": 2,
            "learning_rate": 1e-3,
            "augment": False,
            "workers": 0,
        }
        return CTCSettings(**(chosen | changes))

    return make


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def last_weights(output: str) -> State:
    from safetensors.torch import load_file

    checkpoint = last_checkpoint(Path(output))
    assert checkpoint is not None
    return dict(load_file(checkpoint / "model.safetensors"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, *, without: str = "") -> Path:
    path.mkdir(parents=True)
    for name in (*NEEDED, "model.safetensors"):
        if name != without:
            (path / name).write_text("x")
    return path


def test_last_checkpoint_is_the_newest_complete_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_checkpoint(tmp_path / "missing") is None
    assert last_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path / "checkpoint-90")
    expected = write_checkpoint(tmp_path / "checkpoint-100")  # by number: as a string, 90 is greater
    (tmp_path / "checkpoint-300").write_text("a file")
    write_checkpoint(tmp_path / "checkpoint-best")
    assert last_checkpoint(tmp_path) == expected
    assert not caplog.records


@pytest.mark.parametrize("lacking", [*NEEDED, "model.safetensors"])
def test_an_incomplete_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    expected = write_checkpoint(tmp_path / "checkpoint-1")
    write_checkpoint(tmp_path / "checkpoint-2", without=lacking)
    assert last_checkpoint(tmp_path) == expected
    assert "checkpoint-2: skipped" in caplog.text
    assert lacking in caplog.text


def test_an_unfinished_checkpoint_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = write_checkpoint(tmp_path / "checkpoint-1")
    write_checkpoint(tmp_path / "checkpoint-2.incomplete" / "checkpoint-2")
    assert last_checkpoint(tmp_path) == expected
    assert "checkpoint-2.incomplete: skipped, it was not written to its end" in caplog.text


def test_sharded_weights_make_a_complete_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-1", without="model.safetensors")
    (path / "model-00001-of-00002.safetensors").write_text("x")
    assert last_checkpoint(tmp_path) == path


def test_keep_newest_deletes_the_oldest_complete_ones(tmp_path: Path) -> None:
    for step in (5, 10, 20, 100):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    write_checkpoint(tmp_path / "checkpoint-200", without="optimizer.pt")
    keep_newest(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-20", "checkpoint-100", "checkpoint-200"}
    keep_newest(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-1")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(path)
    assert last_checkpoint(tmp_path) is None


# --- the loss of a step ----------------------------------------------------------------------------------------------


def first_gradients(recorder: Recorder, settings: CTCSettings) -> State:
    recorder.gradients.clear()
    recorder.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        train_ctc(settings)
    return recorder.gradients[0]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every utterance is computed as if it were alone, and any number of them fit into a batch."""
    # In training, batch norm normalises with the statistics of its micro-batch, so that the cut into micro-batches
    # is part of the function. With its running statistics the loss is what may differ.
    monkeypatch.setattr(FrameBatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
    # `spread` keeps utterances of different lengths apart.
    monkeypatch.setattr(finetuning, "SpeechLoader", with_spread(finetuning.SpeechLoader))


def assert_close(expected: State, got: State) -> None:
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 1e-2
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert float((gradient - got[name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("max_batch", [1, 3])  # 8 micro-batches of 1; 3 uneven ones, of 3, 3 and 2
def test_accumulated_micro_batches_equal_one_batch(
    settings: Callable[..., CTCSettings], recorder: Recorder, tmp_path: Path, max_batch: int
) -> None:
    # The norm to clip at is out of reach: clipping would hide a wrong scale.
    whole = first_gradients(recorder, settings(max_batch=8, clip=1e9, epochs=2))
    accumulate = -(-8 // max_batch)
    parts = settings(epochs=2, max_batch=max_batch, accumulate=accumulate, clip=1e9, output=str(tmp_path / "parts"))
    assert_close(whole, first_gradients(recorder, parts))


@pytest.mark.usefixtures("alone")
def test_the_loss_is_a_mean_over_utterances(
    settings: Callable[..., CTCSettings], recorder: Recorder, corpus: Path, tmp_path: Path
) -> None:
    once = first_gradients(recorder, settings(max_batch=8, clip=1e9, epochs=2))
    twice = settings(
        train=[str(corpus / "train.jsonl")] * 2, max_batch=16, clip=1e9, epochs=2, output=str(tmp_path / "twice")
    )
    assert_close(once, first_gradients(recorder, twice))


def with_spread(loader: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: loader(*args, spread=0.9, **kwargs)


PROCESSES = """
import json, sys, torch
from wav2vec2_conformer.training import CTCSettings, finetuning, train_ctc
from test_training import Recorder

recorder = Recorder()
recorder.stop_at = 1
finetuning.ProgressBar = lambda: recorder
settings = CTCSettings(**json.loads(sys.argv[1]))
try:
    train_ctc(settings)
except KeyboardInterrupt:
    pass
rank = torch.distributed.get_rank()
torch.save(recorder.gradients[0], f"{settings.output}/gradients-{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_two_micro_batches(
    settings: Callable[..., CTCSettings], recorder: Recorder, tmp_path: Path
) -> None:
    # Batch norm may work here: each process and each micro-batch has the same utterances, thus the same statistics.
    one = first_gradients(recorder, settings(max_batch=3, accumulate=2, clip=1e9))
    both = settings(max_batch=3, clip=1e9, output=str(tmp_path / "both"))
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, json.dumps(vars(both))], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / "both" / f"gradients-{rank}.pt") for rank in range(2)]
    assert same(*ranks)
    assert_close(one, ranks[0])


# --- steps that are not finite ---------------------------------------------------------------------------------------


def infinite(loss: Tensor, logits: Tensor) -> Tensor:
    return loss * torch.inf


def not_a_number(loss: Tensor, logits: Tensor) -> Tensor:
    return loss * torch.nan


def steep(loss: Tensor, logits: Tensor) -> Tensor:
    return loss + (logits * 0).sqrt().sum()  # a finite loss, a gradient of 0 * inf


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("spoil", [infinite, not_a_number, steep])
def test_a_step_that_is_not_finite_changes_nothing(
    settings: Callable[..., CTCSettings],
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Tensor, Tensor], Tensor],
    accumulate: int,
) -> None:
    calls, loss = [0], ctc_module.ctc_loss

    def spoilt(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        value = loss(logits, *args, **kwargs)
        return spoil(value, logits) if calls[0] == accumulate + 1 else value  # step 2, its first micro-batch

    monkeypatch.setattr(ctc_module, "ctc_loss", spoilt)
    result = train_ctc(settings(accumulate=accumulate, epochs=accumulate, warmup=0.0))
    assert (result["skipped_steps"], result["steps"]) == (1, 4)
    assert "step 2 skipped: its loss or gradient is not finite (1 so far)" in caplog.text
    parameters = recorder.gradients[0]
    before = [{name: weights[name] for name in parameters} for weights in recorder.weights]
    assert not same(before[0], before[1])
    assert same(before[1], before[2])
    assert not same(before[2], before[3])
    # The run goes on with sane figures: one bad step must not turn the logged loss into NaN for good.
    assert all(torch.isfinite(value).all() for value in last_weights(str(settings().output)).values())
    losses = [log["train_loss"] for log in recorder.logs if "train_loss" in log]
    assert losses
    assert all(0 < value < float("inf") for value in losses)


def test_a_step_that_is_not_finite_leaves_the_running_statistics_alone(
    settings: Callable[..., CTCSettings], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = ctc_module.Wav2Vec2ConformerForCTC.forward, [0]

    def overflowing(self: Any, input_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls[0] += self.training
        spoil = self.training and calls[0] == 2
        return forward(self, input_values * (float("nan") if spoil else 1), *args, **kwargs)

    monkeypatch.setattr(ctc_module.Wav2Vec2ConformerForCTC, "forward", overflowing)
    result = train_ctc(settings(warmup=0.0))
    assert result["skipped_steps"] == 1
    assert same(recorder.weights[1], recorder.weights[2])  # with the buffers
    assert not same(recorder.weights[2], recorder.weights[3])


# --- utterances that cannot be used ----------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Eight utterances; of two a letter a frame is missing, one is no audio."""
    path = write_manifest(tmp_path / "damaged.jsonl", sentences(8, 0, words=(1, 2), letters=(1, 2)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["text"] = "ABC" * 60
    lines[2]["text"] = "A" * int(lines[2]["duration"] * 50 * 0.6)  # fits the frames, but not with blanks between
    (tmp_path / lines[3]["audio"]).write_bytes(b"no audio at all")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("max_batch", [1, 4])  # 1: batches of nothing but a bad utterance
@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_utterances_are_named_counted_and_left_out(
    settings: Callable[..., CTCSettings],
    damaged: Path,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    max_batch: int,
    workers: int,
) -> None:
    result = train_ctc(settings(train=[str(damaged)], dev=str(damaged), max_batch=max_batch, workers=workers))
    assert (result["skipped_utterances"], result["skipped_steps"]) == (3, 0)
    named = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert sorted(message.split(":")[0] for message in named) == [
        f"skipped damaged-{number}.wav" for number in (1, 2, 3)
    ]
    assert sum("labels need" in message for message in named) == 2
    # For the error rate only the file without sound is left out: no utterance is too short to be judged.
    assert [log["eval_skipped"] for log in recorder.logs if "eval_skipped" in log] == [1]


def test_only_the_first_skipped_utterances_are_named(
    settings: Callable[..., CTCSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_manifest(tmp_path / "many.jsonl", ["ABCDEF"] * 9)
    for number in range(8):
        (tmp_path / f"many-{number}.wav").write_bytes(b"no audio at all")
    assert train_ctc(settings(train=[str(path)]))["skipped_utterances"] == 8
    messages = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("skipped many-") for message in messages) == 5
    assert sum("only counted" in message for message in messages) == 1


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed something")

    monkeypatch.setattr(finetuning, "FineTuningTrainer", refuse)


@pytest.mark.usefixtures("untouched")
def test_unknown_characters_past_the_limit_are_refused(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    write_manifest(tmp_path / "dev.jsonl", ["AB", "CD"])
    lower = (tmp_path / "dev.jsonl").read_text().replace('"CD"', '"cd"')
    (tmp_path / "dev.jsonl").write_text(lower)
    changed = settings(dev=str(tmp_path / "dev.jsonl"))
    with pytest.raises(ValueError, match=r"dev\.jsonl: 2 of 4 characters .*upper case") as error:
        train_ctc(changed)
    assert "'c' (1)" in str(error.value)
    with pytest.raises(AssertionError, match="computed something"):  # 50 % are allowed: the way is free
        train_ctc(settings(dev=changed.dev, unknown_limit=0.5))


@pytest.mark.usefixtures("untouched")
def test_unknown_characters_of_a_given_vocabulary_are_refused(
    settings: Callable[..., CTCSettings], tmp_path: Path
) -> None:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC"])}
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**TINY | {"vocab_size": 8}))
    model.save_pretrained(tmp_path / "model")
    build_processor(vocabulary).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"train\.jsonl: .* not in the vocabulary"):
        train_ctc(settings(init=str(tmp_path / "model")))


def test_a_configuration_that_is_none_and_one_with_a_slip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.json"
    for content, problem in (("[1]", "expected a JSON object"), ("{", "not a JSON file"), ("\xff", "not a JSON file")):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=problem):
            settings_module.read_config(path)
    path.write_text(json.dumps({"hidden_size": 96, "num_layers": 3, "architectures": ["X"]}))
    config = settings_module.read_config(path)
    assert config.hidden_size == 96
    assert "without effect: num_layers" in caplog.text


@pytest.mark.usefixtures("untouched")
def test_a_folder_that_holds_a_training_is_refused(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-7")
    with pytest.raises(ValueError, match=r"holds a training \(checkpoint-7\); pass --resume"):
        train_ctc(settings())


@pytest.mark.usefixtures("untouched")
def test_resuming_with_other_settings_is_refused_and_says_which(
    settings: Callable[..., CTCSettings], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="computed"):
        train_ctc(settings())
    with pytest.raises(ValueError, match=r"`seed`: 0 before, 3 now.*resume with the same") as error:
        train_ctc(settings(seed=3, clip=0.5, workers=2), resume=True)
    assert "`clip`: 1.0 before, 0.5 now" in str(error.value)
    for name in ("epochs", "workers", "FREE"):
        assert name not in str(error.value)
    # The refusal changed nothing: with the first settings, and with what is free, it goes on.
    with pytest.raises(AssertionError, match="computed"):
        train_ctc(settings(workers=2, cache_gb=0.1), resume=True)


@pytest.mark.usefixtures("untouched")
def test_two_ways_to_begin_are_refused(settings: Callable[..., CTCSettings], corpus: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        train_ctc(settings(init="model", config=str(corpus / "config.json")))


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("evaluate_every", "stop_at"), [(0, 4), (0, 6), (3, 3), (3, 7)])
def test_resumed_equals_uninterrupted(
    settings: Callable[..., CTCSettings],
    corpus: Path,
    recorder: Recorder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    evaluate_every: int,
    stop_at: int,
) -> None:
    """Four steps an epoch: stopped at its border, within it, and at and past a checkpoint in its middle."""
    common = {
        "config": str(corpus / "random.json"),
        "epochs": 2.5,
        "evaluate_every": evaluate_every,
        "augment": True,
        "learning_rate": 1e-2,
        "prior_share": 0.8,
    }
    whole = settings(**common, output=str(tmp_path / "whole"))
    expected = train_ctc(whole)

    broken = settings(**common)
    recorder.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        train_ctc(broken)
    recorder.stop_at = None
    caplog.clear()
    torch.rand(7)  # what another process would not have drawn
    result = train_ctc(settings(**common, workers=1), resume=True)
    assert result == expected
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [
        warning for warning in warnings if "wrote nothing" not in warning.message
    ]  # too short a training to write
    assert same(last_weights(whole.output), last_weights(broken.output))
    for name in ("model.safetensors", "config.json", "vocab.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    figures = [log["loss"] for log in recorder.logs if "loss" in log]
    assert all(value == value for value in figures)


def test_resuming_nothing_begins_with_a_warning(
    settings: Callable[..., CTCSettings], caplog: pytest.LogCaptureFixture
) -> None:
    assert train_ctc(settings(), resume=True)["steps"] == 4
    assert "holds no complete checkpoint: starting from the beginning" in caplog.text


def test_resuming_what_is_done_changes_nothing(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    first = train_ctc(settings())
    model = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert train_ctc(settings(), resume=True) == first
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model


# --- what comes out --------------------------------------------------------------------------------------------------


def test_the_output_folder_is_a_model_even_when_no_evaluation_was_due(
    settings: Callable[..., CTCSettings], tmp_path: Path
) -> None:
    result = train_ctc(settings(evaluate_every=1000))
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert result["best_wer"] > 0  # four steps teach nothing: 0 would be a claim without an evaluation
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.endswith("incomplete")) == []


def test_the_best_model_is_kept_not_the_last(
    settings: Callable[..., CTCSettings], recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = iter([0.9, 0.2, 0.5, 0.3])
    monkeypatch.setattr(ctc_module.ErrorRates, "wer", property(lambda self: self.words))
    monkeypatch.setattr(ctc_module.ErrorRates, "from_counts", classmethod(lambda cls, counts: cls(words=next(rates))))
    result = train_ctc(settings(epochs=4, learning_rate=1e-2))
    assert result["best_wer"] == 0.2
    best = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "out").state_dict()
    assert same(best, recorder.weights[8])  # as after epoch 2, before the ninth step
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-16"]


def test_starting_from_a_base_model_takes_its_weights(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    base = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**TINY))
    base.save_pretrained(tmp_path / "base")
    train_ctc(settings(init=str(tmp_path / "base"), learning_rate=0.0))
    trained = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "out")
    expected = dict(base.named_parameters())
    parameters = dict(trained.wav2vec2_conformer.named_parameters())
    assert parameters.keys() == expected.keys()
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)
    assert trained.config.vocab_size == trained.lm_head.out_features == 11  # 5 special tokens, A to F
    assert trained.config.pad_token_id == 0


def test_starting_from_a_ctc_model_keeps_its_vocabulary(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    vocabulary = {token: index for index, token in enumerate([*"ZFEDCBA", "<unk>", "|", "<s>", "</s>", "<pad>"])}
    config = Wav2Vec2ConformerConfig(**TINY | {"vocab_size": 12, "pad_token_id": 11})
    model = Wav2Vec2ConformerForCTC(config)
    model.save_pretrained(tmp_path / "model")
    build_processor(vocabulary).save_pretrained(tmp_path / "model")
    train_ctc(settings(init=str(tmp_path / "model"), learning_rate=0.0))
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == vocabulary
    trained = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path / "out")
    assert trained.config.pad_token_id == 11
    assert torch.equal(trained.lm_head.weight, model.lm_head.weight)


def test_a_frozen_feature_encoder_stays(settings: Callable[..., CTCSettings], recorder: Recorder) -> None:
    train_ctc(settings(freeze_feature_encoder=True, learning_rate=1e-2))
    inside = [name for name in recorder.weights[0] if ".feature_extractor." in name]
    first, last = recorder.weights[0], last_weights(settings().output)
    assert inside
    assert all(torch.equal(first[name], last[name]) for name in inside)
    assert not same({n: first[n] for n in last if n not in inside}, {n: last[n] for n in last if n not in inside})


def test_what_workers_get_can_be_pickled(settings: Callable[..., CTCSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes are spawned (macOS, Windows, Python 3.14), the collator and the dataset are pickled."""
    collators = []

    class Stop(Exception):  # noqa: N818
        pass

    def catch(*args: Any, train_loader: Any, dev_loader: Any, **kwargs: Any) -> None:
        collators.extend([train_loader, dev_loader])
        raise Stop

    monkeypatch.setattr(finetuning, "FineTuningTrainer", catch)
    with pytest.raises(Stop):
        train_ctc(settings())
    for loader in collators:
        collate, dataset = pickle.loads(pickle.dumps((loader.collate_fn, loader.dataset)))
        assert collate([dataset[0], dataset[1]])["input_values"].shape[0] == 2


def test_a_lone_dev_utterance_longer_than_a_batch(settings: Callable[..., CTCSettings], tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "dev.jsonl", ["AB " * 8])
    duration = json.loads(path.read_text())["duration"]
    assert duration > 3
    assert train_ctc(settings(dev=str(path), batch_seconds=3.0))["steps"] >= 4


def test_speak_is_long_enough_for_its_labels() -> None:
    assert len(speak("AB CD")) > 16_000 // 2


def test_a_new_head_begins_with_how_common_letters_are(
    settings: Callable[..., CTCSettings], recorder: Recorder, corpus: Path, tmp_path: Path
) -> None:
    train_ctc(settings(max_batch=8))
    begun = recorder.weights[0]["lm_head.bias"].exp()
    config = Wav2Vec2ConformerConfig.from_pretrained(tmp_path / "out")
    processor = ctc_module.load_processor(str(tmp_path / "out"))
    assert processor is not None
    vocabulary = processor.tokenizer.get_vocab()
    lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    frames = sum(frames_of(round(line["duration"] * SAMPLE_RATE), config) for line in lines)
    letters = "".join(line["text"] for line in lines)
    for token, index in vocabulary.items():
        count = letters.count(" " if token == "|" else token)
        if index != config.pad_token_id:
            assert float(begun[index]) == pytest.approx(max(count / frames, 1e-5), rel=1e-4)
    assert float(begun.sum()) == pytest.approx(1, rel=1e-3)

    recorder.weights.clear()  # a head that was trained is taken as it is
    train_ctc(settings(init=str(tmp_path / "out"), output=str(tmp_path / "again"), max_batch=8))
    assert torch.equal(recorder.weights[0]["lm_head.bias"], model_weights(tmp_path / "out")["lm_head.bias"])


def model_weights(folder: Path) -> State:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def test_priors_fade(settings: Callable[..., CTCSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided out wholly in three quarters of their share of the updates, then less and less, and never in judging."""
    used: list[float] = []
    loss = ctc_module.ctc_loss

    def note(*args: Any, prior_scale: float, **kwargs: Any) -> Tensor:
        used.append(prior_scale)
        return loss(*args, prior_scale=prior_scale, **kwargs)

    monkeypatch.setattr(ctc_module, "ctc_loss", note)
    train_ctc(settings(updates=10, prior_share=0.8))
    assert used == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0])
    with pytest.raises(ValueError, match="`prior_share` is a share: it must be at least 0 and below 1, got 1"):
        settings(prior_share=1.5)
