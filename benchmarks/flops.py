"""Floating-point operations of the network's products, by formula, and a counter of what really runs.

The formulas say what the network's definition needs, whoever computes it, so that one number divides everybody's time:
convolutions, linear layers, attention's products and the scores by distance, with a multiply-add counted as two.
Left out are norms, activations, softmax, the rotation of rotary positions, the losses, the similarities and the
look-up of the codebook in pre-training, and what an optimizer does; and whatever is computed twice to save memory.
tests/unit/test_benchmarks.py compares them with torch's counter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from wav2vec2_conformer.lengths import conv_length, frames_of

# B clips, N samples, T frames, D hidden size


def encoder_products(config: Any, samples: int) -> list[int]:
    """Multiply-adds of each convolution of the feature encoder, for one clip."""
    found, frames, inputs = [], samples, 1
    for outputs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = conv_length(frames, kernel, stride)
        found.append(frames * kernel * inputs * outputs)
        inputs = outputs
    return found


def head_products(config: Any, head: str) -> int:
    """Multiply-adds of a head for one frame: "ctc", or "pretraining" with its two projections and the quantizer's."""
    if head == "ctc":
        return config.hidden_size * (config.vocab_size or 0)
    entries = config.num_codevector_groups * config.num_codevectors_per_group
    projections = (config.hidden_size + config.codevector_dim) * config.proj_codevector_dim
    return projections + config.conv_dim[-1] * entries


def table_products(config: Any, rows: int) -> int:
    """Multiply-adds that project the relative positions, in all blocks, for a batch."""
    return config.num_hidden_layers * rows * config.hidden_size**2 if is_relative(config) else 0


def is_relative(config: Any) -> bool:
    """Whether there are scores by distance."""
    return config.position_embeddings_type == "relative"


def forward_flops(config: Any, clips: int, samples: int, *, head: str = "ctc", distances: int | None = None) -> int:
    """Operations of a forward pass.

    Args:
        config: of either package.
        clips: B.
        samples: N of each.
        head: see `head_products`.
        distances: for how many distances each query's scores are computed, and the table's rows. A query needs T of
            the 2T-1 rows (`None`); transformers computes 2T-1, and this package in training 2T.
    """
    frames, width = frames_of(samples, config), config.hidden_size
    linear = 4 * width * config.intermediate_size + 4 * width**2  # two feed-forward modules; q, k, v, out
    convolution = 3 * width**2 + width * config.conv_depthwise_kernel_size
    attention = 2 * frames * width
    if is_relative(config):
        attention += (distances or frames) * width
    blocks = config.num_hidden_layers * frames * (linear + convolution + attention)
    projection = frames * config.conv_dim[-1] * width
    clip = sum(encoder_products(config, samples)) + projection + blocks + frames * head_products(config, head)
    return 2 * (clips * clip + table_products(config, distances or 2 * frames - 1))


def training_flops(
    config: Any, clips: int, samples: int, *, head: str, frozen: bool, distances: int | None = None
) -> int:
    """Operations of a forward and a backward pass: each product has two gradients of its own size.

    The waveform and the table of positions need no gradient, and a frozen feature encoder has none at all.

    Args:
        config: as in `forward_flops`, as are the other arguments.
        clips: B.
        samples: N of each.
        head: "ctc" or "pretraining".
        frozen: whether the feature encoder is not trained.
        distances: as in `forward_flops`.
    """
    encoder = encoder_products(config, samples)
    without = clips * (2 * sum(encoder) if frozen else encoder[0])
    without += table_products(config, distances or 2 * frames_of(samples, config) - 1)
    return 3 * forward_flops(config, clips, samples, head=head, distances=distances) - 2 * without


def flop_counter() -> FlopCounterMode:
    """torch's counter of the products that run, with three formulas that it lacks or has wrong."""
    aten: Any = torch.ops.aten

    def convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
        # The gradients of input and weight each cost what the forward pass does; torch's own formula takes a
        # depthwise convolution for a full one.
        return conv_flop_count(x, weight, grad) * sum(rest[-1][:2])

    def attention(query: Any, key: Any, value: Any, *rest: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **kwargs: Any) -> int:
        return 2 * sdpa_flop_count(query, key, value)  # and the scores again, which are left out like all that is twice

    mapping = {
        aten.convolution_backward: convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)
