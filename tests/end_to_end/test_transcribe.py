"""Recordings in, text out: whatever the batch, the format, the way in and the length."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import jiwer
import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch import Tensor, nn

import speech
from speech import RATE, TONES, Waveform, silence, speak
from wav2vec2_conformer import AudioError, Transcriber, Transcript, Wav2Vec2ConformerConfig, transcription
from wav2vec2_conformer import recordings as windowing
from wav2vec2_conformer.checkpoints import model_folder
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.data import build_processor, build_vocabulary

Capture = pytest.CaptureFixture[str]
TEXTS = ["AB CD", "FADE BED", "C", "ABBA DEAF BE", "EE FF", "DAB"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech.trained_model(tmp_path_factory).folder


@pytest.fixture(scope="module")
def transcriber(model: Path) -> Transcriber:
    return Transcriber.from_pretrained(model, device="cpu")


def say(text: str, seed: int = 0) -> Waveform:
    return speak(text, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    for number, text in enumerate(TEXTS):
        soundfile.write(folder / f"{number}.wav", say(text, number), RATE)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def texts(transcriber: Transcriber, recordings: list[Path]) -> list[str]:
    """What the model hears in each recording alone."""
    heard = [transcriber.transcribe(path).text for path in recordings]
    assert jiwer.cer(TEXTS, heard) < 0.15, heard  # else the tests below would compare noise
    return heard


# --- the same text whatever the batch --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_seconds", [0.01, 3.0, 120.0])
@pytest.mark.parametrize("order", [1, -1])
def test_texts_do_not_depend_on_batches_or_order(
    model: Path, recordings: list[Path], texts: list[str], batch_seconds: float, order: int
) -> None:
    transcriber = Transcriber.from_pretrained(model, device="cpu", batch_seconds=batch_seconds)
    results = list(transcriber.transcribe_many(recordings[::order]))
    assert [result.text for result in results if isinstance(result, Transcript)] == texts[::order]


def test_duration_is_the_recordings(transcriber: Transcriber, recordings: list[Path]) -> None:
    for path in recordings:
        assert transcriber.transcribe(path).duration == pytest.approx(soundfile.info(path).duration, abs=1e-4)


def test_results_do_not_wait_for_the_last_recording(
    model: Path, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def sources() -> Iterator[Path]:
        for path in recordings:
            taken.append(path)
            yield path

    # Short windows wait for others of their length, but only for so many; and a thread reads some ahead.
    monkeypatch.setattr(windowing, "AHEAD", 1)
    monkeypatch.setattr(windowing, "PIECES", 1)
    results = Transcriber.from_pretrained(model, device="cpu", batch_seconds=0.01).transcribe_many(sources())
    next(results)
    assert len(taken) < len(recordings)


def test_progress_adds_up_to_the_audio(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "WINDOW", 2.0)
    monkeypatch.setattr(transcription, "OVERLAP", 1.0)
    done: list[float] = []
    sources = [say(text) for text in TEXTS]
    list(transcriber.transcribe_many(sources, progress=done.append))
    assert sum(done) == pytest.approx(sum(map(len, sources)) / RATE, abs=0.01)


# --- ways in ---------------------------------------------------------------------------------------------------------


def test_paths_bytes_streams_and_arrays_are_the_same(
    transcriber: Transcriber, recordings: list[Path], texts: list[str]
) -> None:
    path, text = recordings[1], texts[1]
    samples, _ = soundfile.read(path, dtype="int16")
    floats = samples.astype(np.float64) / 32768
    assert transcriber.transcribe(str(path)).text == text
    assert transcriber.transcribe(path.read_bytes()).text == text
    assert transcriber.transcribe(io.BytesIO(path.read_bytes())).text == text
    with path.open("rb") as stream:
        assert transcriber.transcribe(stream).text == text
    for array in (samples, floats, floats.astype(np.float32), np.stack([floats, floats])):
        assert transcriber.transcribe(array, sample_rate=RATE).text == text


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_arrays_of_other_rates(transcriber: Transcriber, recordings: list[Path], texts: list[str], rate: int) -> None:
    samples, _ = soundfile.read(recordings[1])
    heard = transcriber.transcribe(soxr.resample(samples, RATE, rate), sample_rate=rate)
    assert jiwer.cer(texts[1], heard.text) <= 0.15
    assert heard.duration == pytest.approx(len(samples) / RATE, abs=0.001)


def test_a_rate_is_for_arrays_and_arrays_need_one(transcriber: Transcriber, recordings: list[Path]) -> None:
    with pytest.raises(ValueError, match="needs its `sample_rate`"):
        transcriber.transcribe(say("A"))
    with pytest.raises(ValueError, match="belongs to arrays"):
        transcriber.transcribe(recordings[0], sample_rate=RATE)
    with pytest.raises(ValueError, match="`batch_seconds` must be above 0"):
        Transcriber(transcriber.model, processor(), batch_seconds=0)


@pytest.mark.parametrize("samples", [0, 1, 159, 399, 401])
def test_very_short_clips(transcriber: Transcriber, texts: list[str], recordings: list[Path], samples: int) -> None:
    clip = say("AB")[:samples]
    alone = transcriber.transcribe(clip, sample_rate=RATE)
    assert alone == Transcript(text="", duration=samples / RATE)
    source, _ = soundfile.read(recordings[1], dtype="float32")
    beside = list(transcriber.transcribe_many([clip, source, clip]))
    assert beside == [alone, Transcript(texts[1], len(source) / RATE), alone]


def test_silence_is_no_text(transcriber: Transcriber) -> None:
    assert transcriber.transcribe(silence(3.0), sample_rate=RATE).text == ""


def write_av(path: Path, samples: Waveform, rate: int, codec: str) -> None:
    """(C, N) samples into a container that libsndfile cannot write."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo" if len(samples) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_sound(path: Path, waveform: Waveform, rate: int, channels: int) -> None:
    samples = soxr.resample(waveform, RATE, rate).astype(np.float32)
    samples = np.stack([samples, 0.5 * samples])[:channels]
    if path.suffix in (".m4a", ".webm"):
        write_av(path, samples, rate, "aac" if path.suffix == ".m4a" else "libopus")
    else:
        subtype = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        soundfile.write(path, samples.T, rate, **subtype)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "m4a", "webm"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 2)])
def test_formats_rates_and_channels(
    transcriber: Transcriber, texts: list[str], tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    if suffix in ("opus", "webm") and rate == 44100:
        rate = 24000  # Opus knows no 44.1 kHz
    path = tmp_path / f"a.{suffix}"
    write_sound(path, say(TEXTS[1], 1), rate, channels)
    assert jiwer.cer(texts[1], transcriber.transcribe(path).text) <= 0.15


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(model: Path, capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["transcribe", "--model", str(model), "--device", "cpu", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Command = Callable[..., tuple[int, str, str]]


def test_one_file_is_its_text(command: Command, recordings: list[Path], texts: list[str]) -> None:
    assert command(recordings[1]) == (0, f"{texts[1]}\n", "")


def test_several_files_are_name_tab_text(command: Command, recordings: list[Path], texts: list[str]) -> None:
    expected = "".join(f"{path}\t{text}\n" for path, text in zip(recordings, texts, strict=True))
    assert command(*recordings) == (0, expected, "")


def test_a_name_with_a_tab_or_a_line_break_stays_one_field(
    command: Command, recordings: list[Path], texts: list[str], tmp_path: Path
) -> None:
    odd = tmp_path / "a\tb\nc.wav"
    shutil.copy(recordings[0], odd)
    code, out, _ = command(odd, recordings[1])
    assert code == 0
    assert out.splitlines()[0] == f"{tmp_path}/a\\tb\\nc.wav\t{texts[0]}"


def test_a_folder_stands_for_the_audio_files_below_it(
    command: Command, recordings: list[Path], texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "notes.txt").write_text("no audio, and not looked at")
    first, second = tmp_path / "a.WAV", tmp_path / "deep" / "b.wav"
    shutil.copy(recordings[0], first)
    shutil.copy(recordings[2], second)
    assert command(tmp_path) == (0, f"{first}\t{texts[0]}\n{second}\t{texts[2]}\n", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, err = command(empty, recordings[0])  # named, and the others are transcribed
    assert (code, out) == (1, f"{recordings[0]}\t{texts[0]}\n")
    assert err.startswith(f"wav2vec2-conformer: {empty}: no recording lies below this folder")
    dangling = tmp_path / "deep" / "c.wav"
    try:
        dangling.symlink_to("nowhere.wav")
    except OSError:  # Windows, without the right to make links
        return
    code, out, err = command(tmp_path)
    assert (code, out) == (1, f"{first}\t{texts[0]}\n{second}\t{texts[2]}\n")
    assert err == f"wav2vec2-conformer: {dangling}: file does not exist\n"


def test_json_lines(command: Command, recordings: list[Path], texts: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    code, out, err = command("--json", recordings[0], missing, recordings[2])
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [record["file"] for record in records] == [str(recordings[0]), str(missing), str(recordings[2])]
    assert [record.get("text") for record in records] == [texts[0], None, texts[2]]
    assert records[0]["duration"] == pytest.approx(soundfile.info(recordings[0]).duration, abs=0.001)
    assert records[1] == {"file": str(missing), "error": "file does not exist"}
    assert err.count("\n") == 1


def test_unreadable_files_are_one_line_each_and_the_others_go_on(
    command: Command, recordings: list[Path], texts: list[str], tmp_path: Path
) -> None:
    whole = recordings[3].read_bytes()
    flac = io.BytesIO()
    soundfile.write(flac, say(TEXTS[3]), RATE, format="FLAC")
    bad = {
        "empty.wav": b"",
        "text.wav": b"these are words, not sounds\n" * 50,
        "cut.wav": whole[: len(whole) // 2],
        "cut.flac": flac.getvalue()[: len(flac.getvalue()) // 2],
        "noise.mp3": np.random.default_rng(0).bytes(5000),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    names = [tmp_path / name for name in [*bad, "missing.wav"]]
    files = [recordings[0], *names[:3], recordings[1], *names[3:], recordings[2]]
    code, out, err = command(*files)
    assert code == 1
    assert out == "".join(f"{recordings[number]}\t{texts[number]}\n" for number in range(3))
    lines = err.splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"wav2vec2-conformer: {name}: ")
        assert line.count(str(name)) == 1
    for number, said in ((0, "empty"), (1, "not audio"), (2, "truncated"), (3, "truncated"), (5, "does not exist")):
        assert said in lines[number]


def test_one_unreadable_file_alone(command: Command, tmp_path: Path) -> None:
    code, out, err = command(tmp_path / "missing.wav")
    assert (code, out) == (1, "")
    assert err == f"wav2vec2-conformer: {tmp_path / 'missing.wav'}: file does not exist\n"


def test_a_model_that_is_none(capsys: Capture, recordings: list[Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["transcribe", "--model", str(tmp_path), str(recordings[0])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(tmp_path) in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "name",
    [
        *("", "./no-such-folder", "/no/such/folder", "~/model", "runs/my/model", "my-model"),
        *("my-model/model.safetensors", "model.PT"),
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id(
    name: str, capsys: Capture, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "cached_file", None)  # the Hub is not asked
    assert main(["transcribe", "--model", name, str(recordings[0])]) == 2
    assert f"{name!r}: no such folder, and no Hub id" in capsys.readouterr().err


def test_a_name_in_a_folder_is_no_hub_id(
    capsys: Capture, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_folder, "cached_file", None)
    assert main(["transcribe", "--model", "runs/model", str(recordings[0])]) == 2
    assert "'runs/model': no such folder: 'runs' is here, without 'model' in it" in capsys.readouterr().err


def test_a_model_without_a_processor_is_refused(
    model: Path, capsys: Capture, recordings: list[Path], tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path)
    assert main(["transcribe", "--model", str(tmp_path), str(recordings[0])]) == 2
    assert "there is no processor (vocab.json" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": None}))
    assert main(["transcribe", "--model", str(tmp_path), str(recordings[0])]) == 2
    assert f"fine-tune it first: `wav2vec2-conformer train ctc --init {tmp_path} ...`" in capsys.readouterr().err


def test_standard_input(
    command: Command, recordings: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(recordings[1].read_bytes())))
    assert command("-") == (0, f"{texts[1]}\n", "")


@pytest.mark.slow
def test_as_a_process_reading_a_pipe(model: Path, recordings: list[Path], texts: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wav2vec2_conformer", "transcribe", "--model", str(model), "-", "nowhere.mp3"],
        input=recordings[1].read_bytes(),
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stdout.decode() == f"-\t{texts[1]}\n"
    assert done.stderr.decode() == "wav2vec2-conformer: nowhere.mp3: file does not exist\n"


# --- long recordings -------------------------------------------------------------------------------------------------
# An oracle in the network's place: it hears the tones of each frame without fail, so that a wrong text is the
# stitching's. It is as untidy as networks are: windows disagree on where in a pause the space is, and a letter that a
# window's edge cuts is heard as another one.


def processor() -> Any:
    return build_processor(build_vocabulary(["".join(TONES)]))


class Oracle(nn.Module):
    dtype = torch.float32
    FRAME = 320

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer = processor().tokenizer
        one_layer = {"conv_dim": [8], "conv_kernel": [self.FRAME], "conv_stride": [self.FRAME]}
        self.config = Wav2Vec2ConformerConfig(**speech.TINY | one_layer, vocab_size=len(self.tokenizer))
        self.lm_head = nn.Linear(1, len(self.tokenizer))
        self.generator = np.random.default_rng(seed)
        time = torch.arange(self.FRAME) / RATE
        phases = torch.tensor(list(TONES.values()))[:, None] * time * 2 * torch.pi  # (letters, FRAME)
        self.waves = torch.exp(1j * phases)
        self.letters = [self.tokenizer.convert_tokens_to_ids(letter) for letter in TONES]
        self.largest = 0  # samples of the largest batch

    def forward(self, values: Tensor, mask: Tensor) -> SimpleNamespace:
        self.largest = max(self.largest, values.numel())
        frames = values.shape[1] // self.FRAME
        logits = torch.zeros(len(values), frames, len(self.tokenizer))
        for row, (samples, real) in enumerate(zip(values, mask.sum(-1), strict=True)):
            for frame, token in enumerate(self.listen(samples[: int(real)])):
                logits[row, frame, token] = 12.0
        return SimpleNamespace(logits=logits)

    def listen(self, samples: Tensor) -> list[int]:
        pieces = samples[: len(samples) // self.FRAME * self.FRAME].view(-1, self.FRAME)
        heard = (pieces.to(self.waves.dtype) @ self.waves.T).abs()  # (T, letters)
        energy = pieces.square().sum(-1)
        loud = (energy > 0.05 * self.FRAME) & (heard.amax(-1).square() > 0.2 * self.FRAME / 2 * energy)
        tokens = [self.letters[int(h.argmax())] if on else 0 for h, on in zip(heard, loud, strict=True)]
        if not tokens:
            return tokens
        tokens = self.misheard(tokens, range(len(tokens)))
        tokens = self.misheard(tokens, range(len(tokens) - 1, -1, -1))
        begin = None
        for frame in range(len(tokens) + 1):
            if frame < len(tokens) and tokens[frame] == 0:
                begin = frame if begin is None else begin
            else:
                if begin is not None and frame - begin > 7:
                    tokens[int(self.generator.integers(begin, frame))] = 4  # a space, anywhere in the pause
                begin = None
        return tokens

    def misheard(self, tokens: list[int], frames: range) -> list[int]:
        first = tokens[frames[0]]
        for frame in frames:
            if tokens[frame] != first or first == 0:
                break
            tokens[frame] = self.letters[(self.letters.index(first) + 1) % len(self.letters)]
        return tokens


def long_recording(count: int, seed: int, lead: float = 0.0) -> tuple[str, Waveform]:
    generator = np.random.default_rng(seed)
    texts = speech.sentences(count, seed)
    pieces = [silence(0.05 + lead)]
    for text in texts:
        pieces += [speak(text, generator, noise=0.0), silence(float(generator.uniform(0.1, 0.5)))]
    return " ".join(texts), np.concatenate(pieces)


def windows_of(monkeypatch: pytest.MonkeyPatch, window: float, overlap: float) -> None:
    monkeypatch.setattr(transcription, "WINDOW", window)
    monkeypatch.setattr(transcription, "OVERLAP", overlap)


@pytest.mark.parametrize("lead", [0.0, 0.013, 0.25, 0.41, 0.77])
@pytest.mark.parametrize(("window", "overlap"), [(4.0, 2.0), (7.0, 3.0), (5.03, 2.51)])
@pytest.mark.parametrize("batch_seconds", [1.0, 100.0])
def test_windows_neither_cut_nor_double_a_word(
    monkeypatch: pytest.MonkeyPatch, lead: float, window: float, overlap: float, batch_seconds: float
) -> None:
    windows_of(monkeypatch, window, overlap)
    text, waveform = long_recording(25, seed=round(100 * lead), lead=lead)
    assert len(waveform) > 10 * (window - overlap) * RATE
    transcriber = Transcriber(Oracle(), processor(), batch_seconds=batch_seconds)  # type: ignore[arg-type]
    result = transcriber.transcribe(waveform, sample_rate=RATE)
    assert result.text == text
    assert result.duration == len(waveform) / RATE


@pytest.mark.parametrize("seed", range(4))
def test_where_there_is_no_pause_no_letter_is_lost_or_doubled(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    windows_of(monkeypatch, 4.0, 2.0)
    (text,) = speech.sentences(1, seed, words=(1, 1), letters=(100, 100))
    transcriber = Transcriber(Oracle(), processor())  # type: ignore[arg-type]
    assert transcriber.transcribe(speak(text), sample_rate=RATE).text == text


def test_windows_as_they_are_shipped() -> None:
    text, waveform = long_recording(70, seed=3)
    assert len(waveform) > 3 * transcription.WINDOW * RATE
    transcriber = Transcriber(Oracle(), processor())  # type: ignore[arg-type]
    assert transcriber.transcribe(waveform, sample_rate=RATE).text == text


def test_the_oracle_is_no_walkover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are merely put end to end give a wrong text: the tests above can fail."""
    windows_of(monkeypatch, 4.0, 2.0)
    monkeypatch.setattr(Transcriber, "_cut", lambda self, before, after: (0, []))
    text, waveform = long_recording(25, seed=0)
    transcriber = Transcriber(Oracle(), processor())  # type: ignore[arg-type]
    assert transcriber.transcribe(waveform, sample_rate=RATE).text != text


@pytest.mark.parametrize("extra", [-320, -1, 0, 1, 319, 320, 321, 32_000])
def test_lengths_around_a_window(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    windows_of(monkeypatch, 7.0, 3.0)
    text, waveform = long_recording(3, seed=8)
    samples = 7 * RATE + extra
    assert len(waveform) < samples - RATE // 2
    waveform = np.concatenate([waveform, silence(20.0)])[:samples]
    transcriber = Transcriber(Oracle(), processor())  # type: ignore[arg-type]
    assert transcriber.transcribe(waveform, sample_rate=RATE) == Transcript(text, samples / RATE)


def test_long_and_short_recordings_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    windows_of(monkeypatch, 4.0, 2.0)
    pairs = [long_recording(count, seed=count) for count in (1, 12, 2, 9, 1)]
    transcriber = Transcriber(Oracle(), processor(), batch_seconds=12.0)  # type: ignore[arg-type]
    results = list(transcriber.transcribe_many([waveform for _, waveform in pairs]))
    assert [result.text for result in results if isinstance(result, Transcript)] == [text for text, _ in pairs]


def test_the_trained_network_on_a_long_file(
    model: Path, transcriber: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is read block by block; its windows are normalised apart, so a letter in fifty may differ."""
    sentences, generator = speech.sentences(30, 11), np.random.default_rng(11)
    waveforms = [speak(text, generator) for text in sentences]
    soundfile.write(tmp_path / "long.flac", np.concatenate(waveforms), RATE)
    assert sum(map(len, waveforms)) > 30 * RATE
    one_by_one = " ".join(transcriber.transcribe(waveform, sample_rate=RATE).text for waveform in waveforms)
    for window, overlap in ((30.0, 6.0), (6.0, 2.0)):
        windows_of(monkeypatch, window, overlap)
        text = transcriber.transcribe(tmp_path / "long.flac").text
        assert jiwer.wer(one_by_one, text) <= 0.05
        assert jiwer.cer(one_by_one, text) <= 0.02


def test_a_file_that_breaks_off_late_is_an_error_and_the_next_one_fine(
    transcriber: Transcriber, recordings: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows_of(monkeypatch, 2.0, 1.0)
    blocks = windowing.iter_audio

    def breaking(source: Any, **options: Any) -> Iterator[Waveform]:
        if source != "broken":
            yield from blocks(source, **options)
            return
        for _ in range(5):
            yield say("ABC DE")
        raise AudioError("broken", "is truncated")

    monkeypatch.setattr(windowing, "iter_audio", breaking)
    first, broken, last = transcriber.transcribe_many([recordings[2], "broken", recordings[0]])
    assert isinstance(broken, AudioError)
    assert str(broken) == "broken: is truncated"
    assert [result.text for result in (first, last) if isinstance(result, Transcript)] == [texts[2], texts[0]]
    with pytest.raises(AudioError, match="truncated"):
        transcriber.transcribe("broken")


def test_memory_does_not_grow_with_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    windows_of(monkeypatch, 2.0, 1.0)
    made: list[weakref.ref[Any]] = []
    most = [0]

    class Counted(windowing.Window):  # without __slots__: it can be referred to weakly
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))
            most[0] = max(most[0], sum(ref() is not None for ref in made))

    def endless(blocks: int) -> Callable[..., Iterator[Waveform]]:
        def read(source: Any, **options: Any) -> Iterator[Waveform]:
            block = say("ABC DE FA B")[: 2 * RATE]
            return (block.copy() for _ in range(blocks))

        return read

    def peak(blocks: int) -> tuple[int, int]:
        made.clear()
        most[0] = 0
        monkeypatch.setattr(windowing, "iter_audio", endless(blocks))
        oracle = Oracle()
        transcriber = Transcriber(oracle, processor(), batch_seconds=8.0)  # type: ignore[arg-type]
        tracemalloc.start()
        try:
            result = transcriber.transcribe("a long one")
            _, highest = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert result.duration == pytest.approx(blocks * len(say("ABC DE FA B")[: 2 * RATE]) / RATE)
        assert len(made) > blocks  # windows of 2 s every second
        assert oracle.largest <= 8 * RATE
        assert (
            most[0] <= 6 + windowing.PIECES
        )  # a batch of 4, the one that is being cut, the loop's, what is read ahead
        return most[0], highest

    monkeypatch.setattr(windowing, "Window", Counted)
    peak(2)  # what is imported and kept once
    _, short = peak(10)
    _, long = peak(100)
    assert long < 1.2 * short + 100_000  # bytes: a hundred frames a block stay, as tokens


def test_a_transcript_is_a_value() -> None:
    assert Transcript("A", 1.0) == Transcript("A", 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Transcript("A", 1.0).text = "B"  # type: ignore[misc]


def test_profile_says_where_the_time_went(
    model: Path, recordings: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", "--model", str(model), "--profile", *map(str, recordings)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(recordings)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", captured.err)]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_a_sound_model_loads_without_a_word(model: Path) -> None:
    code = f"from wav2vec2_conformer import Transcriber; Transcriber.from_pretrained({str(model)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "[transformers]" not in done.stderr
    assert "WARNING" not in done.stderr
