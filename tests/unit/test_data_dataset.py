"""Items and batches: the same whatever the workers, the cache or an interruption; bad files are left out and named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor

from wav2vec2_conformer.audio import load_audio
from wav2vec2_conformer.data import (
    Augmentation,
    CTCBatch,
    CTCCollator,
    SkippedItem,
    SpeechDataset,
    SpeechItem,
    TextEncoder,
    Utterance,
    build_vocabulary,
    frames_needed,
)
from wav2vec2_conformer.data.collation import few_lengths

RATE = 16000
TEXTS = ["HELLO", "WORLD", "A B", "HELLO WORLD", "OLD", "DOLL"]
ENCODER = TextEncoder(build_vocabulary(TEXTS))
AUGMENTATION = Augmentation(noise_probability=1.0)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    generator = np.random.default_rng(0)
    result = []
    for index, text in enumerate(TEXTS):
        samples = RATE // 4 + 997 * index
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(samples) + 0.05, RATE)
        result.append(Utterance(path, text, samples / RATE, None, None, path.name))
    return result


def item(dataset: SpeechDataset, index: int) -> SpeechItem:
    result = dataset[index]
    assert not isinstance(result, SkippedItem)
    return result


def batches(dataset: SpeechDataset, workers: int) -> list[CTCBatch]:
    return list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=CTCCollator()))


def assert_same(left: list[CTCBatch], right: list[CTCBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for key in ("input_values", "attention_mask", "labels"):
            assert torch.equal(a[key], b[key])
        assert a["skipped_names"] == b["skipped_names"]


def test_item_equals_the_feature_extractor(utterances: list[Utterance]) -> None:
    result = item(SpeechDataset(utterances, ENCODER), 3)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(load_audio(utterances[3].audio), sampling_rate=RATE).input_values[0]
    assert result["input_values"].dtype == np.float32
    np.testing.assert_allclose(result["input_values"], expected, atol=1e-5)
    assert result["labels"] == ENCODER.encode("HELLO WORLD")
    assert (result["index"], result["name"]) == (3, "3.wav")


def test_augmentation_is_a_function_of_seed_epoch_and_index(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, seed=1)
    first = [item(dataset, i)["input_values"] for i in range(len(dataset))]
    dataset.set_epoch(1)
    second = [item(dataset, i)["input_values"] for i in range(len(dataset))]
    assert all(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    resumed = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, seed=1)
    resumed.set_epoch(1)
    for i in reversed(range(len(dataset))):
        np.testing.assert_array_equal(item(resumed, i)["input_values"], second[i])
    other = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, seed=2)
    assert not np.array_equal(item(other, 0)["input_values"], first[0])


@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_workers_change_nothing(utterances: list[Utterance], cache_bytes: int) -> None:
    alone = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION)
    shared = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, cache_bytes=cache_bytes)
    if cache_bytes:
        alone = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, cache_bytes=1)  # rounds, but keeps nothing
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        assert_same(batches(alone, 0), batches(shared, 2))


def test_epoch_reaches_persistent_workers(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=1, collate_fn=CTCCollator(), persistent_workers=True, prefetch_factor=1
    )
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert_same(list(loader), batches(dataset, 0))


def test_cache_filled_by_workers_outlives_them(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances, ENCODER, cache_bytes=10**6)
    first = batches(dataset, 2)
    for utterance in utterances:
        utterance.audio.unlink()
    assert_same(first, batches(dataset, 2))
    assert_same(first, batches(dataset, 0))


def test_cache_keeps_to_its_limit(utterances: list[Utterance]) -> None:
    room = 2 * (RATE // 4 + 997 + RATE // 20 + 4)  # of the second utterance, with margin and table
    dataset = SpeechDataset(utterances, ENCODER, cache_bytes=2 * room)
    first = batches(dataset, 0)
    assert not first[0]["skipped_names"]
    for utterance in utterances:
        utterance.audio.unlink()
    second = batches(dataset, 0)
    assert torch.equal(first[0]["input_values"], second[0]["input_values"])
    assert [len(batch["skipped_names"]) for batch in second] == [0, 2, 2]


def test_cache_passes_over_waveforms_longer_than_their_manifest_says(utterances: list[Utterance]) -> None:
    wrong = [Utterance(u.audio, u.text, 0.01, None, None, u.name) for u in utterances]
    cached, plain = SpeechDataset(wrong, ENCODER, cache_bytes=10**6), SpeechDataset(utterances, ENCODER, cache_bytes=1)
    for _ in range(2):
        assert_same(batches(cached, 0), batches(plain, 0))


def test_pickled_dataset_gives_the_same_without_its_cache(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances, ENCODER, augment=AUGMENTATION, cache_bytes=10**6)
    dataset.set_epoch(2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 10**5
    assert_same(batches(copy, 0), batches(dataset, 0))


def test_unusable_recordings_are_left_out_and_named(utterances: list[Utterance]) -> None:
    utterances[0].audio.write_bytes(b"no audio")
    utterances[1].audio.unlink()
    soundfile.write(utterances[2].audio, np.full(4000, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    for cache_bytes in (0, 10**6):
        dataset = SpeechDataset(utterances, ENCODER, cache_bytes=cache_bytes)
        first, second, third = batches(dataset, 0)
        assert [name.split(":")[0] for name in first["skipped_names"]] == ["0.wav", "1.wav"]
        assert first["input_values"].shape == first["attention_mask"].shape == first["labels"].shape == (0, 0)
        assert [name.split(":")[0] for name in second["skipped_names"]] == ["2.wav"]
        assert len(second["input_values"]) == 1
        assert not third["skipped_names"]


def test_needs_text_for_an_encoder_only(utterances: list[Utterance]) -> None:
    untranscribed = [Utterance(u.audio, None, u.duration, None, None, u.name) for u in utterances]
    with pytest.raises(ValueError, match=r"6 of 6 utterances have no text, the first is 0\.wav"):
        SpeechDataset(untranscribed, ENCODER)
    dataset = SpeechDataset(untranscribed, None)
    assert item(dataset, 0)["labels"] == []
    assert batches(dataset, 0)[0]["labels"].shape == (2, 0)


def test_arguments_are_checked(utterances: list[Utterance]) -> None:
    with pytest.raises(ValueError, match="`seed`"):
        SpeechDataset(utterances, ENCODER, seed=-1)
    with pytest.raises(ValueError, match="`cache_bytes`"):
        SpeechDataset(utterances, ENCODER, cache_bytes=-1)
    with pytest.raises(ValueError, match="`epoch`"):
        SpeechDataset(utterances, ENCODER).set_epoch(-1)
    with pytest.raises(IndexError):
        SpeechDataset(utterances, ENCODER)[6]


def speech(samples: int, labels: list[int], name: str = "a") -> SpeechItem:
    return SpeechItem(
        input_values=np.ones(samples, dtype=np.float32), labels=labels, text=name.upper(), draw=0, index=0, name=name
    )


def test_collator_pads_and_marks() -> None:
    batch = CTCCollator()([speech(3, [5]), speech(5, [6, 7, 7]), speech(1, [])])
    assert batch["input_values"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[5, -100, -100], [6, 7, 7], [-100] * 3]
    assert batch["input_values"].dtype == torch.float32
    assert batch["attention_mask"].dtype == batch["labels"].dtype == torch.int64
    assert batch["texts"] == ["A"] * 3
    assert batch["skipped_names"] == []


def test_lengths_that_come_again_are_few_and_close() -> None:
    for down in (False, True):
        lengths = {samples: few_lengths(samples, down=down) for samples in range(16_000, 256_001, 7)}
        assert len(set(lengths.values())) <= 34
        for samples, length in lengths.items():
            assert (7 / 8 * samples < length <= samples) if down else (samples <= length < 9 / 8 * samples)
            assert few_lengths(length, down=down) == length
    assert [few_lengths(samples) for samples in (0, 1, 15, 17)] == [0, 1, 15, 18]


def test_collator_pads_to_a_length_that_comes_again() -> None:
    batch = CTCCollator(rounded=True)([speech(17, [5]), speech(16, [6, 7])])
    assert batch["input_values"].tolist() == [[1] * 17 + [0], [1] * 16 + [0, 0]]
    assert batch["attention_mask"].tolist() == batch["input_values"].tolist()
    assert CTCCollator(rounded=True)([])["input_values"].shape == (0, 0)


def test_collator_leaves_out_labels_without_frames_for_them() -> None:
    collator = CTCCollator(frames_of=lambda samples: samples // 10)
    items = [speech(40, [5, 6, 6]), speech(39, [5, 6, 6], "short"), speech(30, [5, 6, 7]), speech(9, [], "none")]
    batch = collator(items)
    assert len(batch["input_values"]) == 2
    assert batch["input_values"].shape[1] == 40
    assert batch["texts"] == ["A", "A"]
    assert batch["skipped_names"] == [
        "short: 3 frames, but its 3 labels need 4",
        "none: 0 frames, but its 0 labels need 1",
    ]


@pytest.mark.parametrize("labels", [[1, 2], [1, 1], [1, 2, 2, 2, 1], [3, 3, 3]])
def test_frames_needed_is_the_border_of_a_finite_loss(labels: list[int]) -> None:
    needed = frames_needed(labels)
    for frames, finite in ((needed, True), (needed - 1, False)):
        log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(
            log_probs, torch.tensor([labels]), torch.tensor([frames]), torch.tensor([len(labels)])
        )
        assert torch.isfinite(loss).item() is finite
