"""How long a model would take for a clip on this CPU: estimated from one of its blocks with random weights."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..audio import SAMPLE_RATE
from ..configuration import Wav2Vec2ConformerConfig
from ..lengths import frames_of

__all__ = ["Speed", "estimate_speed"]

CLIP = 15.0  # seconds
PASSES, PATIENCE = 3, 5.0  # passes to take the fastest of, and seconds after which there is no further one
# What is tried at all. A large model with one block has 749 frames of the clip, 3e7 parameters, and makes 2.5e7 numbers
# at once by 1.4e11 operations.
MOST_FRAMES, MOST_PARAMETERS, MOST_NUMBERS, MOST_OPERATIONS = 5000, 10**8, 10**8, 10**12


@dataclass(frozen=True)
class Speed:
    """An estimate for float32 on the CPU.

    Args:
        clip: seconds of audio.
        seconds: that the network would take for them.
        threads: that it would compute with.
    """

    clip: float
    seconds: float
    threads: int

    @property
    def times_real_time(self) -> float:
        """Seconds of audio a second."""
        return self.clip / self.seconds


def estimate_speed(model: Any, config: Wav2Vec2ConformerConfig) -> Speed | None:
    """Run the model with one block and random weights on a clip of noise, and count the block's time for all blocks.

    Takes a few seconds and some 100 MB for a large model; `None` where it would take much more, or fails. torch's
    random numbers are those of before afterwards.

    Args:
        model: the class of the network.
        config: its configuration.
    """
    small = copy.deepcopy(config)
    small.num_hidden_layers = min(1, config.num_hidden_layers)
    if not is_bounded(model, small):
        return None
    with torch.random.fork_rng(devices=[]):
        network, waveform = model(small).eval(), torch.randn(1, round(CLIP * SAMPLE_RATE))
    block = Stopwatch()
    for module in network.base_model.encoder.layers:
        module.register_forward_pre_hook(block.start)
        module.register_forward_hook(block.stop)
    passes: list[float] = []
    started = time.perf_counter()
    with torch.inference_mode():
        while len(passes) < PASSES and time.perf_counter() - started < PATIENCE:
            begun, before = time.perf_counter(), block.seconds
            network(waveform)
            once = block.seconds - before
            passes.append(time.perf_counter() - begun + once * (config.num_hidden_layers - small.num_hidden_layers))
    return Speed(CLIP, min(passes), torch.get_num_threads())  # other work on the machine only adds


def is_bounded(model: Any, config: Wav2Vec2ConformerConfig) -> bool:
    """Whether the clip can be run, and within the limits; found without memory for it."""
    samples = round(CLIP * SAMPLE_RATE)
    if frames_of(samples, config, add_adapter=False) > MOST_FRAMES:
        return False
    with torch.device("meta"):
        network, waveform = model(config).eval(), torch.empty(1, samples)
        if sum(parameter.numel() for parameter in network.parameters()) > MOST_PARAMETERS:
            return False
        try:
            with torch.inference_mode(), FlopCounterMode(display=False) as operations, LargestTensor() as largest:
                network(waveform)
        except Exception:  # a configuration with which a network can be built and not run
            return False
    return largest.numbers <= MOST_NUMBERS and int(operations.get_total_flops()) <= MOST_OPERATIONS


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers the largest tensor has that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


class Stopwatch:
    """Adds up the seconds of a module's passes; `start` and `stop` are hooks."""

    def __init__(self) -> None:
        self.seconds = self.begun = 0.0

    def start(self, *_: nn.Module | tuple[Any, ...]) -> None:
        """Before a pass."""
        self.begun = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """After it."""
        self.seconds += time.perf_counter() - self.begun
