"""What the pre-training head costs, ours against transformers: a training step with and without it, interleaved.

    python benchmarks/pretraining_head.py [--clips 5] [--seconds 15] [--negatives 100] [--rounds 1] [--threads 2]
        [--training]

Both sides are the same small encoder with codevector and projection dimension 768 and the same masks and negatives;
their losses are compared first, in evaluation mode. A step is forward and backward, in evaluation mode or, with
`--training`, in training mode, where the codes are drawn and the gradient flows through the softmax. What the head
costs is by how much a step exceeds one of the encoder alone. With the default sizes the other side needs 12 GB and a
minute a round; ours runs five times a round. The peak of memory is read where Linux keeps it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
import transformers
from measuring import machine, measure
from torch import Tensor

from wav2vec2_conformer import Wav2Vec2ConformerConfig
from wav2vec2_conformer.lengths import frames_of
from wav2vec2_conformer.modeling.masking import sample_spans
from wav2vec2_conformer.modeling.negatives import sample_negatives
from wav2vec2_conformer.modeling.pretraining import Wav2Vec2ConformerForPreTraining

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "layerdrop": 0.0,
    "mask_time_prob": 0.65,
    "codevector_dim": 768,
    "proj_codevector_dim": 768,
}
PER_ROUND = {"theirs": 1, "ours": 5}


def step(model: Any, batch: dict[str, Tensor]) -> None:
    """Forward and backward with the head."""
    model.zero_grad()
    model(**batch).loss.backward()


def encoder_step(model: Any, batch: dict[str, Tensor]) -> None:
    """Forward and backward of the network below the head."""
    model.zero_grad()
    wanted = {name: batch[name] for name in ("input_values", "mask_time_indices")}
    model.wav2vec2_conformer(**wanted).last_hidden_state.sum().backward()


def compare(clips: int, seconds: float, negatives: int, rounds: int, training: bool) -> dict[str, Any]:
    """Medians of time and memory of both sides, and their ratios."""
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ConformerForPreTraining(transformers.Wav2Vec2ConformerConfig(**SMALL)).eval()
    ours = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SMALL)).eval()
    ours.load_state_dict(theirs.state_dict())
    samples = round(seconds * 16_000)
    frames = frames_of(samples, ours.config)
    mask = sample_spans(torch.full((clips,), frames), frames, probability=0.65, span=10)
    batch = {
        "input_values": torch.randn(clips, samples),
        "mask_time_indices": mask,
        "sampled_negative_indices": sample_negatives(mask, negatives),
    }
    models = {"theirs": theirs, "ours": ours}
    few = {"input_values": batch["input_values"][:1, :32000], "mask_time_indices": mask[:1, :99]}
    few["sampled_negative_indices"] = sample_negatives(few["mask_time_indices"], negatives)
    losses = {side: float(model(**few).loss.detach()) for side, model in models.items()}  # warms up, too

    for model in models.values():
        model.train(training)
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for side, model in models.items():
            for _ in range(PER_ROUND[side]):
                for name, run in (("encoder", encoder_step), ("step", step)):
                    taken.setdefault((name, side), []).append(measure(lambda m=model, r=run: r(m, batch)))
    found: dict[str, Any] = {
        "mode": "training" if training else "evaluation",
        "frames": clips * frames,
        "masked": int(mask.sum()),
        "negatives": negatives,
        "relative difference of the loss": abs(losses["ours"] / losses["theirs"] - 1),
    }
    for what in ("seconds", "processor seconds", "megabytes"):
        median = {key: statistics.median(value[what] for value in values) for key, values in taken.items()}
        head = {side: median["step", side] - median["encoder", side] for side in models}
        found[what] = {f"{name} {side}": round(value, 3) for (name, side), value in median.items()}
        found[what] |= {f"head {side}": round(value, 3) for side, value in head.items()}
        found[what]["step, theirs / ours"] = round(median["step", "theirs"] / median["step", "ours"], 1)
        found[what]["head, theirs / ours"] = round(head["theirs"] / head["ours"], 1)
    return found


def main() -> None:
    """Print the machine and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--negatives", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(machine(options.threads)))
    found = compare(options.clips, options.seconds, options.negatives, options.rounds, options.training)
    print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
