"""fairseq's dictionaries of letters, in its checkpoints or in `dict.ltr.txt`, and the vocabulary they become."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data.vocabulary import PAD_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER
from .inert import Inert

__all__ = ["read_dictionary", "stored_dictionary", "vocabulary"]

# fairseq's dictionaries begin with <s>, <pad>, </s>, <unk>, and its CTC blank is <s>. Here the blank is <pad>: the
# first two change their names, and no row of the head moves.
SPECIAL_THERE = ["<s>", "<pad>", "</s>", "<unk>"]
SPECIAL_HERE = [PAD_TOKEN, "<s>", "</s>", UNKNOWN_TOKEN]


def stored_dictionary(content: dict[Any, Any]) -> list[str] | None:
    """The symbols of the target dictionary, where the checkpoint has it."""
    task = content.get("task_state")
    record = task.get("target_dictionary") if isinstance(task, dict) else None
    state = record.state if isinstance(record, Inert) and isinstance(record.state, dict) else {}
    symbols = state.get("symbols")
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        return None
    return symbols


def read_dictionary(path: str | os.PathLike[str]) -> list[str]:
    """The symbols of fairseq's `dict.ltr.txt` (one `symbol count` a line), after the four special ones.

    Raises:
        ValueError: with the file and the line.
    """
    symbols = list(SPECIAL_THERE)
    if not Path(path).is_file():
        problem = "is no file" if Path(path).exists() else "no such file"
        raise ValueError(f"{path}: {problem}; expected a dictionary of letters, one `symbol count` a line")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    for number, line in enumerate(lines, 1):
        symbol, space, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not space or not count.isdigit():
            raise ValueError(f"{path}, line {number}: expected a symbol, a space and a count, got {line[:80]!r}")
        if symbol in symbols:
            raise ValueError(f"{path}, line {number}: {symbol[:80]!r} is there twice")
        symbols.append(symbol)
    return symbols


def vocabulary(size: int, symbols: list[str], source: str, stored: list[str] | None) -> dict[str, int]:
    """Token -> column of the head, with our names of the special tokens.

    Args:
        size: outputs of the head.
        symbols: the dictionary's, the special ones included.
        source: where they are from, for messages.
        stored: those that the checkpoint has itself, if any.

    Raises:
        ValueError: the dictionary does not belong to the checkpoint.
    """
    if len(symbols) != size or symbols[:4] != SPECIAL_THERE or len(set(symbols)) != size:
        raise ValueError(
            f"{source}: this dictionary is not the model's: expected {size} different symbols for as many outputs, the "
            f"first of them <s>, <pad>, </s> and <unk>, got {len(symbols)}"
        )
    if stored is not None and symbols != stored:
        place = next(i for i, pair in enumerate(zip(symbols, stored, strict=False)) if pair[0] != pair[1])
        raise ValueError(
            f"{source}: this dictionary is not the model's: symbol {place} is {symbols[place]!r}, but the checkpoint's "
            f"own dictionary has {stored[place]!r}; leave --dict out to use that"
        )
    if WORD_DELIMITER not in symbols:
        raise ValueError(
            f"{source}: expected the symbol {WORD_DELIMITER!r} between words, as in dictionaries of letters"
        )
    return {token: index for index, token in enumerate([*SPECIAL_HERE, *symbols[4:]])}
