"""A whole pre-training step, ours against transformers: masks, forward, backward and AdamW, interleaved.

    python benchmarks/pretraining_step.py [--preset base] [--clips 5] [--seconds 15] [--rounds 3] [--threads 2]
        [--bf16 ours|both]
    python benchmarks/pretraining_step.py --largest 16
    python benchmarks/pretraining_step.py --device cuda --bf16 both --preset large --clips 24 --peak-tflops 989

Both sides have the model of a preset, the same initial weights (whose losses are compared first, in evaluation mode),
the same clips, and fused AdamW. Each draws its own masks and negatives as its users do: transformers with numpy and a
Python loop, ours with `sample_spans`, `thin_to_equal_counts` and `sample_negatives`. LayerDrop is off on both, so that
every step does the same work; dropout is as in the preset. `--bf16 ours` is what both do by default on a CPU that
computes in bfloat16: `train pretraining` uses it there, and a loop around the transformers classes float32.

The sides take turns, and each is made anew for its turn, so that each has all of the machine's memory. Printed are
medians over the rounds, each side's peak of memory (weights, gradients, optimizer and activations), the share of a
step that drawing masks and negatives takes (training draws them in worker processes), and the floor: the floating-point
operations of our step, those that it does twice included, over the machine's matrix-product rate. `--largest` says
instead how many clips each side's step can hold in so many GB. `--peak-tflops` is what the hardware's maker says, for
the model FLOP utilisation. With the default sizes the other side takes more than a minute a step and 20 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from measuring import machine, matrix_rate, measure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from transformers.models.wav2vec2 import modeling_wav2vec2

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining
from wav2vec2_conformer.training import PretrainingSettings
from wav2vec2_conformer.training.pretraining import draw_masks, draw_negatives

Draw = Callable[[int, int], tuple[Tensor, Tensor]]  # clips, frames -> (B, T) mask, (B, T, K) negatives
MODELS = {"theirs": transformers.Wav2Vec2ConformerForPreTraining, "ours": Wav2Vec2ConformerForPreTraining}
CONFIGS = {"theirs": transformers.Wav2Vec2ConformerConfig, "ours": Wav2Vec2ConformerConfig}


class Side:
    """One side: its model, its optimizer and how it draws masks and negatives."""

    def __init__(self, name: str, fields: dict[str, Any], device: str, bf16: bool) -> None:
        config = CONFIGS[name](**fields)
        self.model: Any = MODELS[name](config).to(device)
        self.draw = {"theirs": their_draw, "ours": our_draw}[name](config)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
        )
        self.device, self.bf16 = device, bf16
        self.drawing: list[float] = []  # seconds of each step

    def step(self, input_values: Tensor) -> None:
        """Draw masks, forward, backward, update."""
        begun = time.perf_counter()
        mask, negatives = self.draw(input_values.shape[0], frames_of(input_values.shape[1], self.model.config))
        self.drawing.append(time.perf_counter() - begun)
        masked = int(mask.sum())
        with self.precision():
            outputs = self.model(
                input_values,
                mask_time_indices=mask.to(self.device),
                sampled_negative_indices=negatives.to(self.device),
            )
        (outputs.loss / masked).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, where it is wanted."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16) if self.bf16 else nullcontext()

    def kept(self) -> float:
        """Megabytes of weights, buffers and optimizer state, which stay between steps."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors) / 2**20


def their_draw(config: Any) -> Draw:
    """Masks and negatives as `run_wav2vec2_pretraining_no_trainer.py` draws them."""

    def draw(clips: int, frames: int) -> tuple[Tensor, Tensor]:
        mask = modeling_wav2vec2._compute_mask_indices(
            (clips, frames), config.mask_time_prob, config.mask_time_length, min_masks=config.mask_time_min_masks
        )
        negatives = modeling_wav2vec2._sample_negative_indices((clips, frames), config.num_negatives, mask)
        return torch.from_numpy(mask), torch.from_numpy(negatives)

    return draw


def our_draw(config: Wav2Vec2ConformerConfig) -> Draw:
    """Masks and negatives as the collator of `train pretraining` draws them."""
    generator = torch.Generator().manual_seed(0)

    def draw(clips: int, frames: int) -> tuple[Tensor, Tensor]:
        mask = draw_masks(torch.full((clips,), frames), frames, generator, config=config)
        return mask, draw_negatives(mask, generator, count=config.num_negatives)

    return draw


def waveforms(clips: int, seconds: float, device: str) -> Tensor:
    """(clips, samples) of noise."""
    return torch.randn(clips, round(seconds * 16_000), device=device)


@torch.no_grad()
def loss_difference(sides: dict[str, Side], device: str) -> float:
    """Relative difference of both losses on 2 s with the same weights, mask and negatives."""
    clip = waveforms(1, 2.0, device)
    mask, negatives = sides["ours"].draw(1, frames_of(clip.shape[1], sides["ours"].model.config))
    given = {"mask_time_indices": mask.to(device), "sampled_negative_indices": negatives.to(device)}
    losses = {name: float(side.model.eval()(clip, **given).loss) for name, side in sides.items()}
    return abs(losses["ours"] / losses["theirs"] - 1)


def counted_flops(side: Side, input_values: Tensor) -> int:
    """Floating-point operations of the products of one step, forward and backward."""

    def convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
        # The gradients of input and weight each cost what the forward pass does; torch's own formula takes a
        # depthwise convolution for a full one.
        return conv_flop_count(x, weight, grad) * sum(rest[-1][:2])

    mapping = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        side.step(input_values)
    return int(counter.get_total_flops())


def warm_side(name: str, fields: dict[str, Any], options: argparse.Namespace) -> Side:
    """A side in training whose optimizer has its state."""
    side = Side(name, fields, options.device, options.bf16 in (name, "both"))
    side.model.train()
    side.step(waveforms(1, 2.0, options.device))
    return side


def compare(options: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    """Medians of time and memory of both sides, their ratios, and the floor."""
    device = options.device
    torch.manual_seed(0)
    sides = {name: Side(name, fields, device, False) for name in MODELS}
    sides["ours"].model.load_state_dict(sides["theirs"].model.state_dict())
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in sides["ours"].model.parameters())}
    found["relative difference of the loss"] = loss_difference(sides, device)
    sides.clear()
    clips = waveforms(options.clips, options.seconds, device)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    for _ in range(options.rounds):
        for name in MODELS:
            side = warm_side(name, fields, options)
            if device != "cpu":
                side.step(clips)
            side.drawing.clear()
            measured = measure(lambda s=side: s.step(clips), device)
            measured["megabytes in all"] = measured["megabytes"] + side.kept()
            taken[name].append({**measured, "drawing": side.drawing[0]})
            del side
    medians = {
        what: {name: statistics.median(value[what] for value in values) for name, values in taken.items()}
        for what in ("seconds", "processor seconds", "megabytes", "megabytes in all", "drawing")
    }
    audio = options.clips * options.seconds
    drawing = medians.pop("drawing")
    for what, values in medians.items():
        found[what] = {name: round(value, 3) for name, value in values.items()}
        found[what]["theirs / ours"] = round(values["theirs"] / values["ours"], 2)
    seconds = medians["seconds"]
    found["seconds of audio a second"] = {name: round(audio / value, 2) for name, value in seconds.items()}
    found["share of the step that draws masks and negatives"] = {
        name: round(value / seconds[name], 5) for name, value in drawing.items()
    }
    flops = counted_flops(warm_side("ours", fields, options), clips)
    found["TFLOP a step, ours"] = round(flops / 1e12, 3)
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(device, dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"{name}: matrix GFLOP/s of the machine"] = round(rate / 1e9)
        found[f"{name}: seconds of these products at this rate"] = round(flops / rate, 3)
    if options.peak_tflops:
        peak = options.peak_tflops * 1e12
        found["model FLOP utilisation"] = {name: round(flops / value / peak, 3) for name, value in seconds.items()}
    return found


def largest(options: argparse.Namespace, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How many clips a step of each side can hold in `--largest` GB, tried one by one."""
    limit = options.largest * 1000**3 / 2**20
    for name in MODELS:
        side = warm_side(name, fields, options)
        used: list[float] = []
        while not used or used[-1] <= limit:
            clips = waveforms(len(used) + 1, options.seconds, options.device)
            try:
                needed = measure(lambda s=side, c=clips: s.step(c), options.device)["megabytes"] + side.kept()
            except torch.OutOfMemoryError:
                needed = float("inf")
            used.append(needed)
        yield {"side": name, "clips": len(used) - 1, "megabytes by clips": [round(value) for value in used[:-1]]}
        del side, clips
        gc.collect()


def main() -> None:
    """Print the machine and JSON objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", help="tiny, base, large or a TOML file")
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", choices=("ours", "both"), help="which side runs under autocast")
    parser.add_argument("--peak-tflops", type=float, metavar="T", help="of the hardware, for the utilisation")
    parser.add_argument("--largest", type=float, metavar="GB", help="find the largest number of clips instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = PretrainingSettings.from_preset(options.preset, train=[], output="")
    fields = {**settings.model, "layerdrop": 0.0}
    print(json.dumps({**machine(options.threads, options.device), "preset": options.preset, "bf16": options.bf16}))
    if options.largest:
        for found in largest(options, fields):
            print(json.dumps(found), flush=True)
    else:
        print(json.dumps(compare(options, fields), indent=1), flush=True)


if __name__ == "__main__":
    main()
