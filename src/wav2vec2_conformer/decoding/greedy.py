"""Greedy CTC decoding: the best path, repeats merged, blanks removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# B batch, T frames, V vocabulary

__all__ = ["best_path", "greedy_texts"]


def best_path(tokens: Tensor, blank: int) -> list[int]:
    """(T,) most likely token of each frame -> labels: repeats merged, blanks removed."""
    merged = torch.unique_consecutive(tokens)
    return [int(token) for token in merged[merged != blank]]


def greedy_texts(logits: Tensor, lengths: Tensor | Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode a batch.

    Args:
        logits: (B, T, V).
        lengths: (B,) valid frames of each clip.
        tokenizer: a CTC tokenizer; its padding token is the blank.

    Returns:
        B texts, without special tokens such as `<s>` and `<unk>`.
    """
    blank = tokenizer.pad_token_id
    if not isinstance(blank, int):
        raise ValueError("the tokenizer has no padding token, which CTC uses as the blank; expected a CTC tokenizer")
    tokens = logits.argmax(-1).cpu()
    paths = [best_path(row[: int(length)], blank) for row, length in zip(tokens, lengths, strict=True)]
    # The paths are merged already: grouping again would undo the blanks between equal letters.
    return [str(tokenizer.decode(path, group_tokens=False, skip_special_tokens=True)).strip() for path in paths]
