"""A forward pass of clips of equal length, from samples to logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from flops import forward_flops
from measuring import first_calls, timed
from networks import Case, Network
from peers import Call, Peer, TorchPeer
from torch import Tensor

from .common import Run, Work

DEFAULTS = {"size": "large", "positions": ["relative", "rotary"], "seconds": [15.0], "batch": [1], "rounds": 7}
REFERENCE = "reference in float32"


@torch.inference_mode()
def run(run: Run, network: Network) -> dict[str, Any]:
    """Each peer's outputs are compared with those of transformers in float32; then all take turns."""
    case = run.case
    torch.manual_seed(1)
    clips = torch.randn(case.batch, case.samples, device=case.device)
    expected = run.attempt(REFERENCE, lambda: reference(network, case, clips))
    calls: dict[str, Call] = {}

    def prepare(peer: Peer) -> dict[str, Any]:
        call = peer.inference(network, case)
        outputs: list[Tensor] = []
        found = first_calls(lambda: outputs.append(call(clips)), case.device, pooled=peer.family == "exported")
        if isinstance(expected, Tensor):
            found["difference"] = difference(outputs[0], expected)
        calls[peer.name] = call
        return found

    found = run.try_all(prepare)
    turns = {name: (lambda call=call: timed(lambda: call(clips), case.device)) for name, call in calls.items()}
    types = {peer.name: peer.type_in(case) for peer in run.peers if peer.name in calls}
    rates = run.take_turns(turns, types, found)
    flops = forward_flops(network.config, case.batch, case.samples)
    run.add_figures(found, types, Work(flops, case.audio, rates))
    no_reference = {"no_reference": expected} if isinstance(expected, str) else {}
    return {"gflop": flops / 1e9, "matrix_rates": rates, **no_reference, "peers": found}


def reference(network: Network, case: Case, clips: Tensor) -> Tensor:
    """Logits of transformers in float32."""
    peer = TorchPeer(REFERENCE, "transformers", attention="sdpa")
    return peer.inference(network, replace(case, dtype="float32"))(clips).float().cpu()


def difference(output: Tensor, expected: Tensor) -> float:
    """The largest difference, of scale."""
    return float((output.float().cpu() - expected).abs().max() / expected.abs().max())
