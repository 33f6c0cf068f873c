"""CTC vocabularies: what transformers loads encodes and decodes as our own encoder does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer, Wav2Vec2Processor

from wav2vec2_conformer.data import (
    TextEncoder,
    build_processor,
    build_vocabulary,
    check_coverage,
    normalize_text,
)

VOCABULARY = build_vocabulary(["HELLO WORLD", "DON'T", "caf\u00e9"])
PROCESSOR = build_processor(VOCABULARY)


def test_special_tokens_then_characters_by_frequency_then_code_point() -> None:
    vocabulary = build_vocabulary(["BCA ", "B\tC", "B"])
    assert list(vocabulary) == ["<pad>", "<s>", "</s>", "<unk>", "|", "B", "C", "A"]
    assert list(vocabulary.values()) == list(range(8))


def test_decomposed_letters_become_one_token() -> None:
    assert "\u00e9" in build_vocabulary(["e\u0301"])


def test_refuses_the_word_delimiter_and_empty_transcripts() -> None:
    with pytest.raises(ValueError, match=r"'A\|B' contains '\|'.*remove it"):
        build_vocabulary(["OK", "A|B"])
    with pytest.raises(ValueError, match="no characters"):
        build_vocabulary(["", " "])


@pytest.mark.parametrize("text", ["HELLO WORLD", "DON'T", "caf\u00e9 HELLO", "TOO LOW"])
def test_saved_processor_encodes_and_decodes(tmp_path: Path, text: str) -> None:
    build_processor(VOCABULARY).save_pretrained(tmp_path)
    processor = Wav2Vec2Processor.from_pretrained(tmp_path)
    ids = TextEncoder(VOCABULARY).encode(text)
    assert processor.tokenizer(text).input_ids == ids
    assert processor.tokenizer.get_vocab() == VOCABULARY
    assert processor.tokenizer.pad_token_id == 0
    assert processor.decode(ids, group_tokens=False) == text
    assert processor.decode(ids, group_tokens=False, skip_special_tokens=True) == text
    # A CTC path: each token twice, a blank after it.
    path = [token for index in ids for token in (index, index, 0)]
    assert processor.decode(path) == text
    assert processor.feature_extractor.return_attention_mask
    assert processor.feature_extractor.do_normalize


def test_auto_classes_find_the_processor(tmp_path: Path) -> None:
    build_processor(VOCABULARY, do_normalize=False).save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), Wav2Vec2Processor)
    assert AutoTokenizer.from_pretrained(tmp_path)("HELLO").input_ids == TextEncoder(VOCABULARY).encode("HELLO")
    assert not Wav2Vec2Processor.from_pretrained(tmp_path).feature_extractor.do_normalize


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="HELOWRDNT'caf\u00e9xz 7\u0301\u4e2d"))
def test_encoder_equals_the_tokenizer(text: str) -> None:
    assert TextEncoder(VOCABULARY).encode(text) == PROCESSOR.tokenizer(normalize_text(text)).input_ids


def test_case_is_kept_and_unknown_characters_are_unknown() -> None:
    assert TextEncoder(VOCABULARY).encode("h H") == [VOCABULARY["<unk>"], VOCABULARY["|"], VOCABULARY["H"]]
    with pytest.raises(ValueError, match="no '<unk>'"):
        TextEncoder({"|": 0, "A": 1})


def test_unknown_characters_are_counted() -> None:
    assert check_coverage(["HELLO 7", "77!", "A|B"], VOCABULARY, limit=1.0, what="dev") == Counter(
        {"7": 3, "!": 1, "A": 1, "|": 1, "B": 1}
    )


def test_coverage_within_the_limit_returns_the_counts() -> None:
    assert check_coverage(["HELLO" * 40, "7"], VOCABULARY, what="dev") == Counter({"7": 1})
    assert check_coverage([], VOCABULARY, what="dev") == Counter()


def test_coverage_names_counts_characters_and_remedy() -> None:
    with pytest.raises(ValueError, match="limit") as caught:
        check_coverage(["HELLO 77!"], VOCABULARY, what="dev.jsonl")
    message = str(caught.value)
    assert "dev.jsonl: 3 of 8 characters (37.5%, limit 1.0%)" in message
    assert "'7' (2), '!' (1)" in message
    assert "Remove or respell" in message


@pytest.mark.parametrize(("known", "text", "case"), [("HELLO", "hello", "upper"), ("hello", "HELLO", "lower")])
def test_coverage_sees_a_difference_in_case(known: str, text: str, case: str) -> None:
    with pytest.raises(ValueError, match=f"turning the transcripts to {case} case settles 5 of 6"):
        check_coverage([text + "!"], build_vocabulary([known]), what="dev")
