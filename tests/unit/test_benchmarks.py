"""The harness of benchmarks: operations by formula against torch's counter, and a sweep that survives its peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from wav2vec2_conformer import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerForPreTraining,
)
from wav2vec2_conformer.lengths import frames_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import isolation
import report
import run
from flops import flop_counter, forward_flops, training_flops
from measuring import interleave
from networks import Case
from tasks.common import Run, Settings, Work

POSITIONS = ["relative", "rotary", None]
CLIPS, SAMPLES = 2, 16_000
FIELDS: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (8, 8, 12),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 5,
    "codevector_dim": 8,
    "proj_codevector_dim": 10,
    "num_codevectors_per_group": 6,
    "num_negatives": 4,
    "layerdrop": 0.0,
    "mask_time_prob": 0.3,
    "mask_time_length": 2,
}
THEIRS = {
    "ctc": transformers.Wav2Vec2ConformerForCTC,
    "pretraining": transformers.Wav2Vec2ConformerForPreTraining,
}
OURS = {"ctc": Wav2Vec2ConformerForCTC, "pretraining": Wav2Vec2ConformerForPreTraining}


def build(side: str, head: str, positions: str | None, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    fields = {**FIELDS, "position_embeddings_type": positions}
    if side == "ours":
        model: Any = OURS[head](Wav2Vec2ConformerConfig(**fields))
    else:
        model = THEIRS[head](transformers.Wav2Vec2ConformerConfig(**fields))
    model.set_attn_implementation(attention)
    return model


def given(head: str, config: Any) -> dict[str, Tensor]:
    """What a training step is given beside the samples; the second half of the frames is masked."""
    frames = frames_of(SAMPLES, config)
    if head == "ctc":
        return {"labels": torch.randint(1, 12, (CLIPS, 5))}
    mask = torch.zeros(CLIPS, frames, dtype=torch.bool)
    mask[:, frames // 2 :] = True
    rows = frames * torch.arange(CLIPS).view(-1, 1, 1)
    return {
        "mask_time_indices": mask,
        "sampled_negative_indices": rows + frames - 1 - torch.arange(4).expand(CLIPS, frames, 4),
    }


def count_forward(model: Any) -> int:
    with torch.inference_mode(), flop_counter() as counter:
        model.eval()(torch.randn(CLIPS, SAMPLES))
    return int(counter.get_total_flops())


def count_step(model: Any, head: str, frozen: bool) -> int:
    if frozen:
        model.freeze_feature_encoder()
    inputs = given(head, model.config)
    with flop_counter() as counter:
        model.train()(torch.randn(CLIPS, SAMPLES), **inputs).loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_transformers_forward_pass(positions: str | None, attention: str) -> None:
    model = build("theirs", "ctc", positions, attention)
    every_distance = 2 * frames_of(SAMPLES, model.config) - 1
    assert count_forward(model) == forward_flops(model.config, CLIPS, SAMPLES, distances=every_distance)


@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_our_forward_pass(positions: str | None) -> None:
    model = build("ours", "ctc", positions)
    needed = forward_flops(model.config, CLIPS, SAMPLES)
    frames = frames_of(SAMPLES, model.config)
    if positions == "relative":  # how many distances more than needed are computed is a matter of blocks
        assert needed <= count_forward(model) <= forward_flops(model.config, CLIPS, SAMPLES, distances=2 * frames)
    else:
        assert count_forward(model) == needed


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("head", ["ctc", "pretraining"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_transformers_training_step(positions: str | None, head: str, frozen: bool) -> None:
    model = build("theirs", head, positions, "eager")
    config = model.config
    every_distance = 2 * frames_of(SAMPLES, config) - 1
    formula = training_flops(config, CLIPS, SAMPLES, head=head, frozen=frozen, distances=every_distance)
    # Trained, its encoder computes a gradient of the waveform, which nothing needs.
    of_waveform = 0 if frozen else 2 * CLIPS * 3199 * 10 * 8
    assert count_step(model, head, frozen) == formula + of_waveform


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("head", ["ctc", "pretraining"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_operations_of_our_training_step(positions: str | None, head: str, frozen: bool) -> None:
    model = build("ours", head, positions)
    config, frames = model.config, frames_of(SAMPLES, model.config)
    formula = training_flops(config, CLIPS, SAMPLES, head=head, frozen=frozen, distances=2 * frames)
    left_out = 0
    if head == "pretraining":  # the look-up as a product with the chosen entries, similarities, the perplexities' means
        masked = frames - frames // 2
        look_up, similarities = 6 * config.codevector_dim, masked * config.proj_codevector_dim
        left_out = 2 * CLIPS * frames * (3 * (look_up + similarities) + 2 * 6 * 2)
    assert count_step(model, head, frozen) == formula + left_out


# --- peers that fail ---------------------------------------------------------------------------------------------


def test_a_peer_that_fails_has_no_further_turn_and_disturbs_nobody() -> None:
    turns = {"good": [], "bad": []}  # type: dict[str, list[int]]

    def good() -> dict[str, float]:
        turns["good"].append(1)
        return {"seconds": 1.0}

    def bad() -> dict[str, float]:
        turns["bad"].append(1)
        if len(turns["bad"]) == 2:
            raise RuntimeError("can't allocate memory: you tried to allocate\n8 bytes")
        return {"seconds": 2.0}

    taken, failed = interleave({"bad": bad, "good": good}, 3, lambda what: None)
    assert taken == {"good": [{"seconds": 1.0}] * 3}
    assert len(turns["bad"]) == 2
    assert failed == {"bad": "out of memory: can't allocate memory: you tried to allocate 8 bytes"}


class ScriptedPipe:
    """What a process sends before it ends."""

    def __init__(self, messages: list[tuple[Any, str]]) -> None:
        self.messages = messages

    def recv(self) -> tuple[Any, str]:
        if not self.messages:
            raise EOFError
        return self.messages.pop(0)

    def __enter__(self) -> ScriptedPipe:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class KilledProcess:
    exitcode = -9

    def join(self) -> None:
        pass


def test_what_ends_the_process_is_left_out_and_the_sweep_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case("inference", "tiny", "rotary", 1, seconds, 1, "cpu", "float32") for seconds in (1.0, 2.0, 3.0)]
    scripts = iter(
        [
            [
                (None, "ours, first call"),
                ({"result": 1}, ""),
                (None, "ours, first call"),
                (None, "large, round 2 of 3"),
            ],
            [(None, "ours, first call"), ({"result": 2}, ""), (None, "large, first call")],
            [],
        ]
    )
    started: list[tuple[int, dict[str, str]]] = []

    def start(left: list[Case], settings: Settings, excluded: dict[str, str], folder: str) -> tuple[Any, Any]:
        started.append((len(left), dict(excluded)))
        return KilledProcess(), ScriptedPipe(next(scripts))

    monkeypatch.setattr(isolation, "start", start)
    results = list(isolation.run_cases(cases, Settings(("ours", "large"), 3), lambda what: None))
    killed = "the process was killed, as it is where memory runs out"
    assert started == [
        (3, {}),
        (2, {"large": f"{killed}, while large, round 2 of 3"}),
        (1, {"large": f"{killed}, while large, first call"}),
    ]
    assert results == [{"result": 1}, {"result": 2}, {"failed": f"{killed}, while starting"}]


# --- the sweep's file and its report -----------------------------------------------------------------------------


def found(seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of a combination in which peers took so long."""
    peers = {name: {"seconds": value, "megabytes": 10 * value} for name, value in seconds.items()}
    case = Case("inference", "tiny", "rotary", 1, 2.0, 1, "cpu", "float32")
    Run(case, [], Settings((), 1), {}, print).add_figures(
        peers, dict.fromkeys(seconds, "float32"), Work(flops=100, audio=2.0, rates={"float32": 200.0})
    )
    return {"gflop": 1e-7, "matrix_rates": {"float32": 200.0}, "peers": {**peers, "openvino": {"absent": "no wheels"}}}


def test_ratios_are_to_the_fastest_mode_of_transformers() -> None:
    peers = found({"transformers-eager": 4.0, "transformers-sdpa": 2.0, "ours": 0.5})["peers"]
    assert [peers[name]["ratio_of_seconds"] for name in ("transformers-eager", "transformers-sdpa", "ours")] == [
        0.5,
        1,
        4,
    ]
    assert peers["ours"]["ratio_of_megabytes"] == 4
    assert peers["ours"]["times_real_time"] == 4
    assert peers["ours"]["share_of_matrix_rate"] == 1


def sweep(monkeypatch: pytest.MonkeyPatch, output: Path, *extra: str) -> list[Case]:
    """Run the command with measurements made up; which combinations it measured."""
    measured: list[Case] = []

    def run_cases(cases: list[Case], settings: Settings, say: Any) -> Iterator[dict[str, Any]]:
        for case in cases:
            if output.exists():  # what was measured before is in the file already
                done = [result["case"] for result in json.loads(output.read_text())["results"]]
                assert all(asdict(earlier) in done for earlier in measured)
            measured.append(case)
            yield found({"transformers-sdpa": case.audio, "ours": case.audio / 2})

    monkeypatch.setattr(run, "run_cases", run_cases)
    arguments = ["run.py", "inference", "--size", "tiny", "--positions", "rotary", "none", "--seconds", "2", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output), *extra])
    run.main()
    return measured


def test_a_sweep_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "results" / "file.json"
    first = sweep(monkeypatch, output, "--batch", "1")
    assert [(case.positions, case.audio) for case in first] == [("rotary", 1), ("rotary", 2), ("none", 1), ("none", 2)]
    second = sweep(monkeypatch, output, "--batch", "4", "1")
    assert [(case.positions, case.audio) for case in second] == [("rotary", 4), ("rotary", 8), ("none", 4), ("none", 8)]
    assert len(json.loads(output.read_text())["results"]) == 8


def test_other_settings_do_not_mix_in_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "file.json"
    sweep(monkeypatch, output)
    before = output.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        sweep(monkeypatch, output, "--rounds", "2")
    assert stopped.value.code == 2
    assert "holds results with other settings" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_the_report_shows_every_combination(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "file.json"
    sweep(monkeypatch, output)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report.py", str(output), "--plots", str(tmp_path / "plots")])
    report.main()
    told = capsys.readouterr().out
    for row in (
        "| rotary | 1 | 1 | 2 | 1.00 (1.00) | 0.500 (2.00) |",
        "| rotary | 2 | 1 | 2 | 2.00 (1.00) | 1.00 (2.00) |",
        "| none | 1 | 1 | 2 | 1.00 (1.00) | 0.500 (2.00) |",
        "| none | 2 | 1 | 2 | 2.00 (1.00) | 1.00 (2.00) |",
        "* openvino absent: no wheels",
    ):
        assert row in told.splitlines()
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == [f"file-{what}-by-length.png" for what in ("memory", "ratio", "speed")]
    assert all(f"plots/{name}" in told for name in drawn)
