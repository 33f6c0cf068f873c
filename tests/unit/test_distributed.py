"""Several processes: DDP and FSDP around the model compute what one process computes, and nobody waits for ever."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.modeling.batch_norm import FrameBatchNorm
from wav2vec2_conformer.modeling.conformer import ConformerBlock
from wav2vec2_conformer.modeling.masking import sample_spans
from wav2vec2_conformer.modeling.negatives import sample_negatives

State = dict[str, Tensor]
Batch = dict[str, Tensor]

PROCESSES = 2
STEPS = 3
RATE = 1e-2  # of plain gradient descent: an adaptive optimizer would blow differences of rounding up
PATIENCE = 300  # seconds until a test that hangs is ended
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "conv_dim": [32, 32],
    "conv_kernel": [160, 4],
    "conv_stride": [80, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "conv_depthwise_kernel_size": 15,
    "initializer_range": 0.1,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "layerdrop": 0.4,
    "mask_time_prob": 0.65,
    "num_codevectors_per_group": 8,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
}
FRAMES, NEGATIVES = 49, 5
# Of LayerDrop: the first and the third drop some blocks, the second none.
SEEDS = [2, 6, 11]


# --- what every process and the comparison do ------------------------------------------------------------------------


def build(seed: int = 0, **changes: Any) -> Wav2Vec2ConformerForPreTraining:
    torch.manual_seed(seed)
    model = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**{**SMALL, **changes}))
    state = model.state_dict()
    unused = {name: torch.randn_like(tensor) for name, tensor in state.items() if "pos_conv_embed" in name}
    assert len(unused) == 3
    model.load_state_dict({**state, **unused})  # as from a checkpoint
    return model.train()


def clips(number: int, step: int) -> Batch:
    """The two clips of a process at a step, with masks and negatives."""
    generator = torch.Generator().manual_seed(10 * step + number)
    mask = sample_spans(torch.full((2,), FRAMES), FRAMES, probability=0.65, span=3, generator=generator)
    return {
        "input_values": torch.randn(2, 16_000, generator=generator),
        "mask_time_indices": mask,
        "sampled_negative_indices": sample_negatives(mask, NEGATIVES, generator=generator),
    }


def loss_of(model: nn.Module, network: nn.Module, number: int, step: int, *, shared: bool = True) -> Tensor:
    """The loss of one process's clips; what is random in it depends on the step and the process alone."""
    torch.manual_seed(10 * step + number)
    network.base_model.layerdrop_seed = SEEDS[step] if shared else None
    loss: Tensor = model(**clips(number, step)).loss
    return loss


def gradients_of(model: nn.Module) -> State:
    """Whole gradients, also where each process has a share of them."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if isinstance(g, DTensor) else g).detach().clone() for n, g in found.items()}


def descend(parameters: Iterable[Tensor]) -> None:
    torch.optim.SGD(parameters, lr=RATE).step()


def train_alone(
    model: Wav2Vec2ConformerForPreTraining, *, shared: bool = True
) -> tuple[list[list[float]], list[State], list[State]]:
    """One process in place of two: losses and mean gradients of each step, and the state each process would end with.

    Batch norms see one process's clips at a time, as in DDP and FSDP, so each process has its own running statistics.
    """
    twins = [model, copy.deepcopy(model)]
    losses, gradients = [], []
    for step in range(STEPS):
        found = [loss_of(twin, twin, number, step, shared=shared) for number, twin in enumerate(twins)]
        for loss, twin in zip(found, twins, strict=True):
            twin.zero_grad()
            loss.backward()
        losses.append([float(loss.detach()) for loss in found])
        gradients.append({})
        for (name, p), (_, other) in zip(*(twin.named_parameters() for twin in twins), strict=True):
            shares = [torch.zeros_like(p) if q.grad is None else q.grad for q in (p, other)]  # a dropped block has none
            p.grad = other.grad = gradients[-1][name] = sum(shares) / PROCESSES
        for twin in twins:
            descend(twin.parameters())
    return losses, gradients, [twin.state_dict() for twin in twins]


def train_together(model: nn.Module, network: nn.Module, rank: int, *, shared: bool = True) -> dict[str, Any]:
    """The same on one of several processes: its losses, and the gradients that all end up with."""
    losses, gradients = [], []
    for step in range(STEPS):
        model.zero_grad()
        loss = loss_of(model, network, rank, step, shared=shared)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(gradients_of(network))
        descend(network.parameters())
    return {"losses": losses, "gradients": gradients}


def shard(model: nn.Module, **policy: Any) -> nn.Module:
    """As docs/scaling.md does it: each block, then the rest."""
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    for module in model.modules():
        if isinstance(module, ConformerBlock):
            fully_shard(module, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def gathered(model: nn.Module) -> State:
    """The whole state dict, on the first process."""
    state: State = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state


def begin(rank: int, work: Callable[..., dict[str, Any]], folder: str, options: dict[str, Any]) -> None:
    """A process: join the others, work, and leave the results in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE),
    )
    torch.save(work(rank, **options), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_all_processes(work: Callable[..., dict[str, Any]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What `work(rank, **options)` returns on each of two processes; their exceptions are raised here."""
    context = mp.spawn(begin, (work, str(folder), options), nprocs=PROCESSES, join=False)
    deadline = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError("the processes wait for each other")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def assert_close(got: State, expected: State) -> None:
    """To 1e-5 of the largest number of all."""
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    assert scale > 1e-2
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((got[name] - tensor).abs().max()) <= 1e-5 * scale, name


def assert_the_same_training(
    ranks: list[dict[str, Any]], losses: list[list[float]], gradients: list[State], names: set[str]
) -> None:
    for step in range(STEPS):
        assert [rank["losses"][step] for rank in ranks] == pytest.approx(losses[step], rel=1e-5)
        for rank in ranks:
            assert rank["gradients"][step].keys() == names  # of dropped blocks, too
            assert_close(rank["gradients"][step], gradients[step])
        first, second = (rank["gradients"][step] for rank in ranks)
        assert all(torch.equal(first[name], second[name]) for name in names)


def test_the_seeds_drop_some_blocks_and_not_others() -> None:
    model = build().wav2vec2_conformer
    draws = []
    for seed in SEEDS:
        model.layerdrop_seed = seed
        draws.append(model._draw_layerdrop())
    assert [any(draw) for draw in draws] == [True, False, True]
    assert not any(all(draw) for draw in draws)
    assert draws[0] != draws[2]


# --- DDP -------------------------------------------------------------------------------------------------------------


def ddp(rank: int, shared: bool) -> dict[str, Any]:
    model = build()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = DistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False)
    result = train_together(wrapped, model, rank, shared=shared)
    return {**result, "state": model.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["alike", "each-its-own"])
def test_ddp_is_one_process_that_takes_turns(tmp_path: Path, shared: bool) -> None:
    """Also where LayerDrop drops other blocks on one process than on the other: no parameter is without a gradient."""
    ranks = on_all_processes(ddp, tmp_path, shared=shared)
    model = build()
    losses, gradients, states = train_alone(model, shared=shared)
    assert_the_same_training(ranks, losses, gradients, set(dict(model.named_parameters())))
    for rank, state in zip(ranks, states, strict=True):
        assert_close(rank["state"], state)


# --- FSDP ------------------------------------------------------------------------------------------------------------


def fsdp(rank: int, checkpointing: bool, positions: str) -> dict[str, Any]:
    model = build(position_embeddings_type=positions)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model)
    sharded = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    result = train_together(model, model, rank)
    state = gathered(model)
    # Back into another sharded model, as when a training is resumed.
    other = shard(build(seed=1, position_embeddings_type=positions))
    whole = [dict(state)]
    dist.broadcast_object_list(whole)
    set_model_state_dict(other, whole[0], options=StateDictOptions(full_state_dict=True))
    return {**result, "sharded": sharded, "local": local, "state": state, "resumed": gathered(other)}


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "positions"), [(True, "relative"), (False, "rotary")])
def test_fsdp_is_one_process_that_takes_turns(tmp_path: Path, checkpointing: bool, positions: str) -> None:
    ranks = on_all_processes(fsdp, tmp_path, checkpointing=checkpointing, positions=positions)
    model = build(position_embeddings_type=positions)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert all(rank["sharded"] for rank in ranks)
    assert sum(rank["local"] for rank in ranks) == total
    assert max(rank["local"] for rank in ranks) < 0.6 * total
    losses, gradients, states = train_alone(model)
    assert_the_same_training(ranks, losses, gradients, set(dict(model.named_parameters())))
    # The first process gathers the weights of all and its own batch norms' statistics.
    state = ranks[0]["state"]
    assert_close(state, states[0])
    unused = [name for name in states[0] if "pos_conv_embed" in name]
    assert all(torch.equal(state[name], states[0][name]) for name in unused)
    fresh = build(seed=1, position_embeddings_type=positions)
    fresh.load_state_dict(state)
    clip = clips(0, 0)["input_values"]
    expected = model.eval()(clip).projected_states
    torch.testing.assert_close(fresh.eval()(clip).projected_states, expected, rtol=0, atol=1e-5)
    assert ranks[0]["resumed"].keys() == state.keys()
    assert all(torch.equal(ranks[0]["resumed"][name], tensor) for name, tensor in state.items())


# --- batch norms that count the frames of all processes --------------------------------------------------------------

DROPOUTS = "layerdrop hidden_dropout attention_dropout activation_dropout conformer_conv_dropout feat_proj_dropout"
WHOLE = dict.fromkeys([*DROPOUTS.split(), "feat_quantizer_dropout", "diversity_loss_weight"], 0.0)


def without_noise() -> Wav2Vec2ConformerForPreTraining:
    """A model whose loss is a sum over clips, but for the batch norms."""
    model = build(**WHOLE)
    model.quantizer.eval()  # no draws
    for module in model.modules():
        if isinstance(module, FrameBatchNorm):
            module.synchronised = True
    return model


def synchronised(rank: int) -> dict[str, Any]:
    model = without_noise()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model)
    model(**clips(rank, 0)).loss.backward()
    return {"gradients": gradients_of(model), "state": gathered(model), "buffers": dict(model.named_buffers())}


@pytest.mark.slow
def test_synchronised_batch_norms_make_two_processes_one(tmp_path: Path) -> None:
    ranks = on_all_processes(synchronised, tmp_path)
    model = without_noise()
    halves = [clips(rank, 0) for rank in range(PROCESSES)]
    batch = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
    batch["sampled_negative_indices"][2:] += 2 * FRAMES  # its rows come later
    model(**batch).loss.backward()
    expected = gradients_of(model)
    for rank in ranks:
        assert_close({name: PROCESSES * g for name, g in rank["gradients"].items()}, expected)
        assert_close(rank["buffers"], dict(model.named_buffers()))
    assert_close(ranks[0]["state"], model.state_dict())


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def bfloat16(rank: int) -> dict[str, Any]:
    # What Accelerate makes of `mixed_precision: bf16`.
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    model = build()
    shard(model, mp_policy=narrow)
    result = train_together(model, model, rank)
    return {**result, "state": gathered(model)}


@pytest.mark.slow
def test_fsdp_in_bfloat16_keeps_wide_weights_and_statistics(tmp_path: Path) -> None:
    ranks = on_all_processes(bfloat16, tmp_path)
    losses, _, states = train_alone(build())
    for step in range(STEPS):
        assert [rank["losses"][step] for rank in ranks] == pytest.approx(losses[step], rel=0.05)
    for name, tensor in ranks[0]["state"].items():
        assert tensor.dtype == states[0][name].dtype, name
        if "running" in name:
            torch.testing.assert_close(tensor, states[0][name], rtol=0.05, atol=0.02)
