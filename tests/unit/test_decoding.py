"""Greedy decoding: the CTC collapse rule, and the texts of the references' processor."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch

from wav2vec2_conformer.data import build_processor, build_vocabulary
from wav2vec2_conformer.decoding import best_path, greedy_texts

PROCESSOR = build_processor(build_vocabulary(["HELLO WORLD"]))
TOKENIZER = PROCESSOR.tokenizer
BLANK = TOKENIZER.pad_token_id


def one_hot(text: str) -> torch.Tensor:
    """(1, T, V) logits of a best path, written with `_` for the blank."""
    ids = [BLANK if c == "_" else TOKENIZER.convert_tokens_to_ids(c) for c in text]
    return torch.nn.functional.one_hot(torch.tensor([ids]), len(TOKENIZER)).float()


def test_best_path_is_the_collapse_rule_on_every_short_path() -> None:
    for blank in (0, 2):
        for path in product(range(3), repeat=5):
            expected = [t for t, before in zip(path, (None, *path), strict=False) if t not in (before, blank)]
            assert best_path(torch.tensor(path), blank) == expected


def test_best_path_of_nothing() -> None:
    assert best_path(torch.tensor([], dtype=torch.long), 0) == []


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("HHE_LL_LLO", "HELLO"),  # a blank between equal letters keeps both
        ("HELLLLO", "HELO"),
        ("_H_|_W_", "H W"),
        ("|_|H||", "H"),  # no space at the ends
        ("____", ""),
        ("|", ""),
    ],
)
def test_letters(frames: str, text: str) -> None:
    assert greedy_texts(one_hot(frames), [len(frames)], TOKENIZER) == [text]


def test_equals_the_processor_but_for_special_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 30, len(TOKENIZER), generator=generator)
    logits[:, :, BLANK] += 3.0  # as trained models do, so that doubled letters come up
    logits[:, :, TOKENIZER.convert_tokens_to_ids("L")] += 2.0
    texts = greedy_texts(logits, [30] * 200, TOKENIZER)
    expected = PROCESSOR.batch_decode(logits.argmax(-1))
    assert any("<unk>" in text for text in expected)
    assert texts == [re.sub("<s>|</s>|<unk>", "", text).strip() for text in expected]
    assert any("LL" in text for text in texts)
    assert len(set(texts)) > 150


def test_frames_past_a_clips_length_do_not_count() -> None:
    logits = one_hot("H_E_L_L_O_HHH")
    assert greedy_texts(logits.expand(3, -1, -1), torch.tensor([0, 5, 9]), TOKENIZER) == ["", "HEL", "HELLO"]


def test_a_tokenizer_without_a_blank_is_refused() -> None:
    class NoBlank:
        pad_token_id = None

    with pytest.raises(ValueError, match="no padding token"):
        greedy_texts(one_hot("H"), [1], NoBlank())  # type: ignore[arg-type]
