"""Classes and speakers of recordings: what the network says of a clip, and its mean over the windows of a long one."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import speech
import tiny_heads
from speech import RATE, Waveform
from wav2vec2_conformer import (
    AudioClassifier,
    AudioError,
    Classification,
    Diarizer,
    SpeakerEncoder,
    classification,
    diarization,
    recordings,
    verification,
)
from wav2vec2_conformer.verification import similarity

WINDOW = 2.0  # seconds, in the tests of long recordings


def say(text: str, seed: int = 0) -> Waveform:
    return speech.speak(text, np.random.default_rng(seed), noise=0.02)


CLIPS = [say(text, seed) for seed, text in enumerate(["AB", "FADE BED CAB", "C", "ABBA DEAF BE A CAB FACE"])]
LONG = np.concatenate([say(text, 9) for text in ("ABC DE FAD", "EE FF EE FF", "BAD CAB BADE", "A B")])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "classify": tiny_heads.classifier(folder / "classifier"),
        "embed": tiny_heads.speaker_encoder(folder / "speakers", threshold=0.25),
        "diarize": tiny_heads.diarizer(folder / "diarizer"),
    }


CLASSES: dict[str, Any] = {"classify": AudioClassifier, "embed": SpeakerEncoder, "diarize": Diarizer}
EACH = pytest.mark.parametrize("task", CLASSES)


def load(models: dict[str, Path], task: str, **options: Any) -> Any:
    return CLASSES[task].from_pretrained(models[task], device="cpu", **options)


def normalized(waveform: Waveform) -> torch.Tensor:
    return torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None]


def numbers(result: Any) -> Any:
    """What a result says, as comparable numbers."""
    if isinstance(result, Classification):
        return result.scores
    if isinstance(result, list):
        return [(segment.start, segment.end, ord(segment.speaker[-1])) for segment in result]
    return result


# --- one clip is what the network says --------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_clip_is_classified_as_the_network_does(problem: str | None, normalize: bool) -> None:
    model = tiny_heads.build(
        classification.Wav2Vec2ConformerForSequenceClassification, id2label=tiny_heads.WORDS, problem_type=problem
    )
    result = AudioClassifier(model, normalize=normalize).classify(CLIPS[1], sample_rate=RATE)
    with torch.no_grad():
        logits = model(normalized(CLIPS[1]) if normalize else torch.from_numpy(CLIPS[1])[None]).logits[0]
    expected = logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert result.scores.dtype == np.float32
    assert result.labels == ("yes", "no", "stop")
    assert result.label == tiny_heads.WORDS[int(expected.argmax())]
    assert result.duration == len(CLIPS[1]) / RATE


def test_the_best_come_first() -> None:
    result = Classification(("a", "b", "c", "d"), np.array([0.1, 0.5, 0.1, 0.3], np.float32), 1.0)
    assert result.label == "b"
    assert [label for label, _ in result.top(3)] == ["b", "d", "a"]
    assert [label for label, _ in result.top(9)] == ["b", "d", "a", "c"]


def test_a_clips_vector_is_the_networks_embedding_at_length_one(models: dict[str, Path]) -> None:
    encoder = load(models, "embed")
    vector = encoder.embed(CLIPS[1], sample_rate=RATE)
    with torch.no_grad():
        expected = encoder.model(normalized(CLIPS[1])).embeddings[0].numpy()
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_a_clips_segments_are_the_networks_frames(models: dict[str, Path]) -> None:
    diarizer = load(models, "diarize", median=1, threshold=0.6)
    segments = diarizer.diarize(CLIPS[3], sample_rate=RATE)
    with torch.no_grad():
        active = (diarizer.model(normalized(CLIPS[3])).logits[0].sigmoid() > 0.6).numpy()  # (T, 2)
    centres = (np.arange(len(active)) * 320 + 199.5) / RATE
    speakers = {segment.speaker for segment in segments}
    heard = {
        name: sum(((centres > s.start) & (centres < s.end)).astype(int) for s in segments if s.speaker == name)
        for name in speakers
    }
    assert len(speakers) == 2
    found = sorted(column.tolist() for column in heard.values())
    assert found == sorted(column.astype(int).tolist() for column in active.T)


# --- long recordings ---------------------------------------------------------------------------------


def windows(waveform: Waveform) -> list[Waveform]:
    size = round(WINDOW * RATE)
    return [waveform[start : start + size] for start in range(0, len(waveform), size)]


def frames(waveform: Waveform) -> int:
    return max(0, (len(waveform) - 400) // 320 + 1)


@pytest.mark.parametrize("extra", [0, 1, 399, 5000])
def test_long_recordings_are_the_mean_of_their_windows_by_frames(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    recording = LONG[: 3 * round(WINDOW * RATE) + extra]
    classifier, encoder = load(models, "classify"), load(models, "embed")
    pieces = [piece for piece in windows(recording) if frames(piece)]
    shares = np.array([frames(piece) for piece in pieces]) / sum(frames(piece) for piece in pieces)
    scores = np.stack([classifier.classify(piece, sample_rate=RATE).scores for piece in pieces])
    with torch.no_grad():
        embeddings = np.stack([encoder.model(normalized(piece)).embeddings[0] for piece in pieces])
    monkeypatch.setattr(classification, "WINDOW", WINDOW)
    monkeypatch.setattr(verification, "WINDOW", WINDOW)
    result = classifier.classify(recording, sample_rate=RATE)
    np.testing.assert_allclose(result.scores, shares @ scores, atol=1e-5)
    assert result.scores.sum() == pytest.approx(1, abs=1e-6)
    assert np.ptp(scores, axis=0).max() > 1e-3  # else any mean would do
    mean = shares @ embeddings
    np.testing.assert_allclose(encoder.embed(recording, sample_rate=RATE), mean / np.linalg.norm(mean), atol=1e-5)


@EACH
@pytest.mark.parametrize("batch_seconds", [0.01, 3.0, 120.0])
def test_results_do_not_depend_on_batches(
    models: dict[str, Path], task: str, batch_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (classification, verification, diarization):
        monkeypatch.setattr(module, "WINDOW", WINDOW)
    monkeypatch.setattr(diarization, "OVERLAP", 1.0)
    sources = [*CLIPS, LONG, CLIPS[0]]
    alone = [getattr(load(models, task), task)(source, sample_rate=RATE) for source in sources]
    beside = list(getattr(load(models, task, batch_seconds=batch_seconds), f"{task}_many")(sources))
    assert len(beside) == len(sources)
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), atol=1e-5)


@EACH
def test_memory_does_not_grow_with_the_recording(
    models: dict[str, Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (classification, verification, diarization):
        monkeypatch.setattr(module, "WINDOW", WINDOW)
    monkeypatch.setattr(diarization, "OVERLAP", 1.0)
    block = np.resize(LONG, 2 * RATE)

    def endless(blocks: int) -> Callable[..., Iterator[Waveform]]:
        return lambda source, **options: (block.copy() for _ in range(blocks))

    def peak(blocks: int) -> int:
        monkeypatch.setattr(recordings, "iter_audio", endless(blocks))
        model = load(models, task, batch_seconds=4.0)
        tracemalloc.start()
        try:
            getattr(model, task)("a long one")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported and kept once
    short, long = peak(15), peak(60)  # both longer than what is read ahead
    assert long < 1.2 * short + 45 * 2 * 50 * 100  # bytes: a frame may leave a hundred; its samples are 1280


# --- errors ---------------------------------------------------------------------------------


@EACH
def test_unreadable_recordings_give_their_errors_in_place(models: dict[str, Path], task: str) -> None:
    model = load(models, task)
    sources = [CLIPS[0], b"no sound", CLIPS[1], "nowhere.wav", np.array([[[1.0]]]), CLIPS[0]]
    results = list(getattr(model, f"{task}_many")(sources))
    assert [isinstance(result, AudioError) for result in results] == [False, True, False, True, True, False]
    np.testing.assert_allclose(numbers(results[0]), numbers(results[5]), atol=1e-5)
    assert str(results[3]) == "nowhere.wav: file does not exist"
    with pytest.raises(AudioError, match="does not exist"):
        getattr(model, task)("nowhere.wav")


@EACH
def test_a_rate_is_for_arrays_and_arrays_need_one(models: dict[str, Path], task: str) -> None:
    one = getattr(load(models, task), task)
    with pytest.raises(ValueError, match="needs its `sample_rate`"):
        one(CLIPS[0])
    with pytest.raises(ValueError, match="belongs to arrays"):
        one("clip.wav", sample_rate=RATE)
    with pytest.raises(ValueError, match=f"cannot {task} list; expected"):
        one([0.0, 1.0], sample_rate=RATE)
    with pytest.raises(ValueError, match="`batch_seconds` must be above 0, got 0"):
        load(models, task, batch_seconds=0)


@pytest.mark.parametrize("task", ["classify", "embed"])
@pytest.mark.parametrize("samples", [0, 1, 399])
def test_clips_without_a_frame_are_an_error(models: dict[str, Path], task: str, samples: int) -> None:
    """Not a guess from the biases alone."""
    model = load(models, task)
    short, fine = getattr(model, f"{task}_many")([CLIPS[1][:samples], CLIPS[1][:400]])
    assert isinstance(short, AudioError)
    assert "is too short" in str(short)
    assert np.isfinite(numbers(fine)).all()


@EACH
def test_heads_that_were_never_trained_are_refused(models: dict[str, Path], task: str, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(models[task], broken)
    weights = load_file(broken / "model.safetensors")
    head = "tdnn.0.kernel.weight" if task == "embed" else "classifier.weight"
    del weights[head]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{head} are missing, so its answers would be random"):
        CLASSES[task].from_pretrained(broken)


def test_what_only_training_needs_may_be_missing(models: dict[str, Path], tmp_path: Path) -> None:
    smaller = tmp_path / "model"
    shutil.copytree(models["embed"], smaller)
    weights = load_file(smaller / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith(("objective", "classifier"))}
    assert len(kept) < len(weights)
    save_file(kept, smaller / "model.safetensors", {"format": "pt"})
    vector = SpeakerEncoder.from_pretrained(smaller).embed(CLIPS[1], sample_rate=RATE)
    np.testing.assert_array_equal(vector, load(models, "embed").embed(CLIPS[1], sample_rate=RATE))


@EACH
def test_models_of_another_task_are_refused(models: dict[str, Path], task: str) -> None:
    for other in models.keys() - {task}:
        with pytest.raises(ValueError, match="expected a Wav2Vec2ConformerFor"):
            CLASSES[task].from_pretrained(models[other])


@EACH
def test_a_model_without_a_feature_extractor_is_refused(models: dict[str, Path], task: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(models[task] / name, tmp_path)
    with pytest.raises(ValueError, match=r"there is no preprocessor_config\.json"):
        CLASSES[task].from_pretrained(tmp_path)


def test_classes_without_names_are_refused() -> None:
    model = tiny_heads.build(classification.Wav2Vec2ConformerForSequenceClassification, id2label={0: "a", 2: "b"})
    with pytest.raises(ValueError, match="`id2label` must name the classes 0, 1"):
        AudioClassifier(model, normalize=True)


# --- speakers ---------------------------------------------------------------------------------


def test_similarity_is_the_cosine() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.standard_normal((2, 5)).astype(np.float32)
        cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert similarity(a, b) == pytest.approx(cosine, abs=1e-6)
        assert similarity(3e30 * a, 1e-30 * a) == pytest.approx(1, abs=1e-6)
        assert -1 <= similarity(a, -a) <= -1 + 1e-6
    assert similarity(np.zeros(5), np.ones(5)) == 0.0
    assert similarity(np.zeros(5), np.zeros(5)) == 0.0
    with pytest.raises(ValueError, match=r"got shapes \(5,\) and \(4,\)"):
        similarity(np.ones(5), np.ones(4))


@EACH
def test_outputs_that_are_not_finite_are_an_error(models: dict[str, Path], task: str) -> None:
    """And no answer; of that recording alone."""
    model = load(models, task)
    run = {"classify": "classify_many", "embed": "embed_many", "diarize": "diarize_many"}[task]
    loud = 1e38 * np.ones(RATE, np.float32) * np.sign(np.arange(RATE) % 7 - 3)
    model.normalize = False
    error, fine = getattr(model, run)([loud.astype(np.float32), CLIPS[1]])
    assert isinstance(error, AudioError)
    assert "the network computes inf or NaN of it in float32: its samples are too large, the weights" in str(error)
    assert not isinstance(fine, Exception)


def test_a_model_that_gives_zeros_and_silence_give_no_nan(models: dict[str, Path]) -> None:
    encoder = load(models, "embed")
    silence = encoder.embed(np.zeros(RATE, np.float32), sample_rate=RATE)
    assert np.isfinite(silence).all()
    torch.nn.init.zeros_(encoder.model.feature_extractor.weight)
    torch.nn.init.zeros_(encoder.model.feature_extractor.bias)
    vector = encoder.embed(CLIPS[0], sample_rate=RATE)
    assert (vector == 0).all()
    assert similarity(vector, silence) == 0.0


def test_the_threshold_lies_beside_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    assert load(models, "embed").threshold == 0.25
    assert SpeakerEncoder.from_pretrained(tiny_heads.speaker_encoder(tmp_path / "plain")).threshold is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[0.5]", "{}", '{"threshold": "0.5"}', '{"threshold": true}', '{"threshold": 2}', '{"threshold": NaN}'],
)
def test_a_threshold_that_is_none_is_an_error(models: dict[str, Path], tmp_path: Path, content: str) -> None:
    broken = tmp_path / "model"
    shutil.copytree(models["embed"], broken)
    (broken / "verification.json").write_text(content)
    with pytest.raises(ValueError, match=r'verification\.json: .*expected \{"threshold"') as raised:
        SpeakerEncoder.from_pretrained(broken)
    assert "\n" not in str(raised.value)
