"""A training step on clips of equal length: forward, backward and AdamW, each peer alone in memory in its turn."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from flops import flop_counter, training_flops
from measuring import Sample, is_out_of_memory, measure
from networks import Case, Network
from peers import Absent, Peer, TorchPeer
from torch import Tensor

from .common import Run, Work

WARM = 2.0  # seconds of the clip that the optimizer gets its state from
COMPILING = 3  # steps until torch has compiled for sizes that vary


class Objective(ABC):
    """What a step computes besides the network; one for each side.

    Args:
        config: the network's, of either package.
        family: of the peer, which draws as its users do.
    """

    frozen: bool  # whether the feature encoder is not trained

    def __init__(self, config: Any, family: str) -> None:
        self.config, self.family = config, family

    @abstractmethod
    def inputs(self, clips: int, samples: int) -> tuple[dict[str, Tensor], int]:
        """What the network is given beside the samples, and by what its loss is divided."""


class Side:
    """One peer's network in training, its optimizer and its objective."""

    def __init__(self, peer: TorchPeer, objective: type[Objective], network: Network, case: Case) -> None:
        self.model: Any = peer.training_module(network, case)
        if objective.frozen:
            self.model.freeze_feature_encoder()
        self.objective = objective(self.model.config, peer.family)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True)
        self.device, self.dtype = case.device, getattr(torch, peer.type_in(case))
        self.drawing = 0.0  # seconds of the last step

    def loss(self, clips: Tensor) -> Tensor:
        """Of what the objective draws."""
        begun = time.perf_counter()
        inputs, divisor = self.objective.inputs(*clips.shape)
        self.drawing = time.perf_counter() - begun
        with self.precision():
            outputs = self.model(clips, **{name: tensor.to(self.device) for name, tensor in inputs.items()})
        return outputs.loss / divisor

    def step(self, clips: Tensor) -> None:
        """Draw, forward, backward, update."""
        self.loss(clips).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, unless in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)

    def kept(self) -> float:
        """Megabytes of weights, buffers and optimizer state, which stay between steps."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors) / 2**20


class TrainingStep:
    """A training task: how its steps are measured, and what batch fits into memory.

    Args:
        run: the case under way.
        network: its network, whose weights each side draws anew from the same seed.
        objective: of the task.
    """

    def __init__(self, run: Run, network: Network, objective: type[Objective]) -> None:
        self.run, self.network, self.objective = run, network, objective
        self.case = run.case

    def waveforms(self, clips: int, seconds: float) -> Tensor:
        """(clips, samples) of noise."""
        return torch.randn(clips, round(seconds * 16_000), device=self.case.device)

    def warm(self, peer: Peer, clips: Tensor) -> Side:
        """A side whose optimizer has its state; on GPUs after a step of full size, and compiled after several."""
        if not isinstance(peer, TorchPeer):
            raise Absent("it does not train")
        torch._dynamo.reset()  # lets go of the modules of earlier turns
        side = Side(peer, self.objective, self.network, self.case)
        steps = COMPILING
        if not peer.compiled:
            side.step(self.waveforms(1, min(WARM, self.case.seconds or WARM)))
            steps = 0 if self.case.device == "cpu" else 1
        for _ in range(steps):
            side.step(clips)
        return side

    def measure(self) -> dict[str, Any]:
        """Medians over the rounds, what the step needs and what it does, and the floor."""
        run, case = self.run, self.case
        clips = self.waveforms(case.batch, case.seconds or 0)
        compared = run.attempt("comparing the losses", self.compare_losses)
        self.network.forget()  # so that each side has all of the memory

        def turn(peer: Peer) -> Sample:
            side = self.warm(peer, clips)
            measured = measure(lambda: side.step(clips), case.device)
            measured["megabytes_in_all"] = measured["megabytes"] + side.kept()
            return {**measured, "drawing": side.drawing} if case.task == "pretraining" else measured

        def available(peer: Peer) -> dict[str, Any]:  # found out without a step
            if not isinstance(peer, TorchPeer):
                raise Absent("it does not train")
            peer.check_training(case)
            return {}

        found = run.try_all(available)
        able = {peer.name: peer for peer in run.peers if not found[peer.name]}
        types = {name: peer.type_in(case) for name, peer in able.items()}
        rates = run.take_turns({name: partial(turn, peer) for name, peer in able.items()}, types, found)
        flops = training_flops(
            self.network.config, case.batch, case.samples, head=case.head, frozen=self.objective.frozen
        )
        run.add_figures(found, types, Work(flops, case.audio, rates))
        for one in found.values():
            if "drawing" in one:
                one["share_of_drawing"] = one.pop("drawing") / one["seconds"]
        result: dict[str, Any] = {"gflop": flops / 1e9, "matrix_rates": rates}
        result |= {"losses_not_compared": compared} if isinstance(compared, str) else compared
        if "seconds" in found.get("ours", {}):
            counted = run.attempt("counting the operations of ours", lambda: self.count(able["ours"], clips))
            if isinstance(counted, str):
                result["operations_not_counted"] = counted
            else:
                floor = {kind: counted / rate for kind, rate in rates.items()}
                result |= {"gflop_counted_of_ours": counted / 1e9, "seconds_of_these_at_the_matrix_rate": floor}
        return {**result, "peers": found}

    def count(self, ours: Peer, clips: Tensor) -> int:
        """The operations of our step, with what it does twice to save memory."""
        side = self.warm(ours, clips)
        with flop_counter() as counter:
            side.step(clips)
        return int(counter.get_total_flops())

    def largest(self, gigabytes: float) -> dict[str, Any]:
        """How many clips a step of each can hold in so many GB (10^9 bytes), tried one by one."""
        limit = gigabytes * 1000**3 / 2**20

        def most(peer: Peer) -> dict[str, Any]:
            used: list[float] = []
            side = self.warm(peer, self.waveforms(1, self.case.seconds or 0))
            while not used or used[-1] <= limit:
                clips = self.waveforms(len(used) + 1, self.case.seconds or 0)
                self.run.say(f"{peer.name}, {len(clips)} clips")
                try:
                    taken = measure(lambda clips=clips: side.step(clips), self.case.device)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    break
                used.append(taken["megabytes"] + side.kept())
            held = [round(value) for value in used if value <= limit]
            return {"clips": len(held), "megabytes_by_clips": held}

        return {"largest": gigabytes, "peers": self.run.try_all(most)}

    @torch.no_grad()
    def compare_losses(self) -> dict[str, float]:
        """Relative difference of our loss from transformers', in evaluation mode, of the same weights and draws."""
        device = self.case.device
        clip = self.waveforms(1, WARM)
        theirs, ours = (
            TorchPeer(name, name).build(self.network).to(device).eval() for name in ("transformers", "ours")
        )
        inputs, _ = self.objective(ours.config, "ours").inputs(*clip.shape)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        losses = [float(model(clip, **inputs).loss) for model in (theirs, ours)]
        return {
            "relative_difference_of_the_loss": abs(losses[1] / losses[0] - 1),
            "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        }
