"""What all tasks share: trying peers one by one, letting them take turns, and the figures that follow from times."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from measuring import Sample, Say, interleave, matrix_rate, medians, reason
from networks import Case
from peers import Absent, Peer

Found = dict[str, dict[str, Any]]  # what is known of each peer
Turn = Callable[[], Sample]
T = TypeVar("T")
MATRIX = "matrix product, "


@dataclass(frozen=True)
class Settings:
    """What holds for a whole sweep.

    Args:
        peers: their names.
        rounds: in which they take turns.
        peak_tflops: of the hardware, as its maker says; for the model FLOP utilisation.
        largest: GB that a training step may take; the largest batch is looked for instead of the time.
        clips: of mixed lengths.
        batch_seconds: of audio in our batches of mixed lengths.
    """

    peers: tuple[str, ...]
    rounds: int
    peak_tflops: float | None = None
    largest: float | None = None
    clips: int = 64
    batch_seconds: float = 120.0


@dataclass(frozen=True)
class Work:
    """What all peers do alike: operations that the network needs, seconds of audio, and the machine's matrix rates."""

    flops: int
    audio: float
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One case under way.

    Args:
        case: what is measured.
        peers: those that are wanted.
        settings: of the sweep.
        excluded: peers that ended an earlier try of this case, with the reason.
        say: told what is running.
    """

    case: Case
    peers: list[Peer]
    settings: Settings
    excluded: Mapping[str, str]
    say: Say

    def try_all(self, prepare: Callable[[Any], dict[str, Any]]) -> Found:
        """What `prepare` finds of each peer, or why there is nothing; one that fails leaves the others alone."""
        found: Found = {}
        for peer in self.peers:
            if peer.name in self.excluded:
                found[peer.name] = {"failed": self.excluded[peer.name]}
                continue
            self.say(f"{peer.name}, first call")
            try:
                found[peer.name] = prepare(peer)
            except Absent as why:
                found[peer.name] = {"absent": str(why)}
            except Exception as error:
                found[peer.name] = {"failed": reason(error)}
            gc.collect()  # what a failed peer leaves behind
        return found

    def attempt(self, name: str, function: Callable[[], T]) -> T | str:
        """What something beside the peers gives, or why it gives nothing."""
        if name in self.excluded:
            return self.excluded[name]
        self.say(name)
        try:
            return function()
        except Exception as error:
            return reason(error)
        finally:
            gc.collect()

    def take_turns(self, turns: Mapping[str, Turn], types: Mapping[str, str], found: Found) -> dict[str, float]:
        """Add each one's medians to `found`; return the machine's matrix rates, measured in between, by type.

        Args:
            turns: what is measured, by name.
            types: in which each computes its products.
            found: what is known of each so far.
        """
        rates = {MATRIX + kind: rate_turn(kind, self.case.device) for kind in sorted({*types.values(), "float32"})}
        taken, failed = interleave({**turns, **rates}, self.settings.rounds, self.say)
        for name in turns:
            found[name] |= {"failed": failed[name]} if name in failed else medians(taken[name])
        return {name.removeprefix(MATRIX): medians(taken[name])["operations"] for name in rates if name in taken}

    def add_figures(self, found: Found, types: Mapping[str, str], work: Work) -> None:
        """Add what follows from the seconds: ratios to the best mode of transformers, speed, shares of the rates."""
        measured = {name: one for name, one in found.items() if "seconds" in one}
        best = best_of_transformers(measured)
        for name, one in measured.items():
            if best is not None:
                one |= ratios(one, measured[best])
            one["times_real_time"] = work.audio / one["seconds"]
            if types[name] in work.rates:
                one["share_of_matrix_rate"] = work.flops / one["seconds"] / work.rates[types[name]]
            if self.settings.peak_tflops:
                one["model_flop_utilisation"] = work.flops / one["seconds"] / (self.settings.peak_tflops * 1e12)


def best_of_transformers(measured: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The fastest of its modes that ran."""
    theirs = [name for name in measured if name.startswith("transformers-")]
    return min(theirs, key=lambda name: measured[name]["seconds"], default=None)


def ratios(one: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, float]:
    """How many times as much the best of the others takes, of everything that both measured."""
    quantities = ("seconds", "processor_seconds", "megabytes", "megabytes_in_all")
    return {f"ratio_of_{what}": best[what] / one[what] for what in quantities if one.get(what) and what in best}


def rate_turn(kind: str, device: str) -> Turn:
    """A measurement of the machine's matrix rate."""

    def turn() -> Sample:
        rate = matrix_rate(device, getattr(torch, kind), repeats=3)
        return {"seconds": 0.0, "operations": rate}

    return turn
