"""CTC character vocabularies, in the form that transformers' Wav2Vec2CTCTokenizer loads."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from ..audio import SAMPLE_RATE
from .manifest import normalize_text

PAD_TOKEN = "<pad>"  # also the CTC blank: the convention of Wav2Vec2ForCTC, whose `pad_token_id` is the blank
UNKNOWN_TOKEN = "<unk>"
WORD_DELIMITER = "|"
SPECIAL_TOKENS = (PAD_TOKEN, "<s>", "</s>", UNKNOWN_TOKEN, WORD_DELIMITER)

_CHARACTERS_SHOWN = 10


def build_vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Return token -> id: the special tokens 0-4, then the characters by frequency, ties by code point.

    Texts are normalised as `read_manifest` does; their spaces become the word delimiter `|` (id 4).

    Raises:
        ValueError: a transcript contains a literal `|`, which would be read as a space, or there is no text at all.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = normalize_text(text)
        if WORD_DELIMITER in normalized:
            raise ValueError(
                f"the transcript {normalized[:80]!r} contains {WORD_DELIMITER!r}, which stands for the space in the"
                " vocabulary; remove it from the transcripts"
            )
        counts.update(normalized)
    del counts[" "]  # Counter allows deleting what is not there
    if not counts:
        raise ValueError("the transcripts contain no characters to build a vocabulary of; check their `text` fields")
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *characters))}


def build_processor(vocabulary: Mapping[str, int], *, do_normalize: bool = True) -> Wav2Vec2Processor:
    """Return the processor of `vocabulary`: a CTC tokenizer and a feature extractor for 16 kHz mono waveforms."""
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = Path(folder) / "vocab.json"
        vocab_file.write_text(json.dumps(dict(vocabulary), ensure_ascii=False), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(  # type: ignore[no-untyped-call]
            str(vocab_file),
            bos_token="<s>",
            eos_token="</s>",
            unk_token=UNKNOWN_TOKEN,
            pad_token=PAD_TOKEN,
            word_delimiter_token=WORD_DELIMITER,
            # True would turn texts to UPPER case before looking them up: right for upper-case vocabularies alone.
            do_lower_case=False,
        )
    extractor = build_feature_extractor(do_normalize=do_normalize)
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)  # type: ignore[no-untyped-call]


def build_feature_extractor(*, do_normalize: bool) -> Wav2Vec2FeatureExtractor:
    """Return what says how a model's 16 kHz mono waveforms are prepared, always with an attention mask."""
    return Wav2Vec2FeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=True,
    )


class TextEncoder:
    """Text -> ids of a CTC vocabulary; equals the tokenizer on plain text, at a fraction of its time.

    Texts are normalised as `read_manifest` does, a space becomes the word delimiter, and a character that the
    vocabulary lacks becomes the unknown token (`check_coverage` says how many those are).

    Raises:
        ValueError: the vocabulary has no unknown token or no word delimiter.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        word_delimiter: str = WORD_DELIMITER,
        unknown_token: str = UNKNOWN_TOKEN,
    ) -> None:
        for token in (word_delimiter, unknown_token):
            if token not in vocabulary:
                raise ValueError(
                    f"the vocabulary has no {token!r} (it has {len(vocabulary)} tokens); pass the token that it uses"
                    " as `word_delimiter` or `unknown_token`"
                )
        self.vocabulary = dict(vocabulary)
        self._unknown_id = self.vocabulary[unknown_token]
        self._ids = {token: index for token, index in self.vocabulary.items() if len(token) == 1}
        self._ids[" "] = self.vocabulary[word_delimiter]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, one for each character of the normalised text."""
        ids, unknown_id = self._ids, self._unknown_id
        return [ids.get(character, unknown_id) for character in normalize_text(text)]


def check_coverage(
    texts: Iterable[str], vocabulary: Mapping[str, int], *, limit: float = 0.01, what: str
) -> Counter[str]:
    """Return the characters that `vocabulary` lacks with their counts, if they are at most `limit` of all characters.

    `what` names the texts in the message, e.g. the manifest's path.

    Raises:
        ValueError: more are missing: a model trained on such labels learns to write `<unk>`.
    """
    unknown, total = unknown_characters(texts, vocabulary)
    missing = unknown.total()
    if missing <= limit * total:
        return unknown
    shown = ", ".join(f"{character!r} ({count})" for character, count in unknown.most_common(_CHARACTERS_SHOWN))
    raise ValueError(
        f"{what}: {missing} of {total} characters ({missing / total:.1%}, limit {limit:.1%}) are not in the vocabulary;"
        f" the most frequent: {shown}. {coverage_remedy(unknown, vocabulary)}"
    )


def unknown_characters(texts: Iterable[str], vocabulary: Mapping[str, int]) -> tuple[Counter[str], int]:
    """Return the characters that `vocabulary` lacks with their counts, and the number of all but spaces."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalize_text(text))
    del counts[" "]
    # A literal word delimiter is in the vocabulary, but as the space: as a character it is unknown.
    unknown = Counter({c: n for c, n in counts.items() if c not in vocabulary or c == WORD_DELIMITER})
    return unknown, counts.total()


def coverage_remedy(unknown: Counter[str], vocabulary: Mapping[str, int]) -> str:
    """Return what to do about `unknown`: where changing the case would settle more than half of it, that."""
    for case, change in (("upper", str.upper), ("lower", str.lower)):
        settled = sum(n for c, n in unknown.items() if change(c) != c and all(x in vocabulary for x in change(c)))
        if 2 * settled > unknown.total():
            return (
                f"The vocabulary is {case} case: turning the transcripts to {case} case settles {settled} of"
                f" {unknown.total()}."
            )
    return "Remove or respell these characters in the transcripts, or build a vocabulary from them."
