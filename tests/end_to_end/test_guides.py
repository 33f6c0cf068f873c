"""The guides: every command and every line of Python in them runs, in their order, on a toy corpus."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech
from wav2vec2_conformer import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel
from wav2vec2_conformer.cli import main
from wav2vec2_conformer.data import build_feature_extractor

ROOT = Path(__file__).parents[2]
PRETRAINED = "facebook/wav2vec2-conformer-rel-pos-large"  # stands for a tiny one here
# What makes the guides' trainings short: the words that a command holds, and what is appended to it.
SHORTER = {
    "--overfit": [
        "--config",
        "tiny.json",
        "--learning-rate",
        "1e-2",
        "--epochs",
        "60",
        "--batch-seconds",
        "3",
        "--evaluate-every",
        "60",
    ],
    "--preset ctc-large-100h": ["--updates", "3", "--accumulate", "1", "--evaluate-every", "3"],
    "train sequence": ["--epochs", "1"],
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny pre-trained model and two corpora."""
    monkeypatch.chdir(tmp_path)
    fields = speech.TINY | {"classifier_proj_size": 16}
    (tmp_path / "tiny.json").write_text(json.dumps(fields))
    Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**fields)).save_pretrained(tmp_path / PRETRAINED)
    build_feature_extractor(do_normalize=True).save_pretrained(tmp_path / PRETRAINED)
    generator = np.random.default_rng(0)
    for speaker in range(1, 9):
        chapter = tmp_path / "LibriSpeech" / "train-clean-100" / str(speaker) / "100"
        chapter.mkdir(parents=True)
        lines = []
        for number, text in enumerate(speech.sentences(4, speaker, words=(1, 2), letters=(2, 3))):
            name = f"{speaker}-100-{number:04}"
            soundfile.write(chapter / f"{name}.flac", speech.speak(text, generator), speech.RATE)
            lines.append(f"{name} {text}\n")
        (chapter / f"{speaker}-100.trans.txt").write_text("".join(lines))
        for letter in "AE":
            folder = tmp_path / "commands" / letter
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                waveform = speech.speak(letter, generator)
                soundfile.write(folder / f"s{speaker}_{number}.wav", waveform, speech.RATE)
    for suffix in ("flac", "wav"):
        soundfile.write(tmp_path / f"recording.{suffix}", speech.speak("AB EC"), speech.RATE)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["speech-recognition", "audio-classification"])
def test_the_guide_works_from_top_to_bottom(guide: str, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for language, code in blocks:
        if language == "python":
            exec(compile(code, guide, "exec"), {})
            hears = any(word in code for word in ("transcrib", "recognise"))
            assert capsys.readouterr().out.strip() or hears  # a model of three steps may write nothing
            continue
        for line in code.strip().splitlines():
            words = shlex.split(line)
            assert words[0] == "wav2vec2-conformer"
            more = [part for key, parts in SHORTER.items() if key in line for part in parts]
            assert main([*words[1:], *more]) == 0, capsys.readouterr().err
            capsys.readouterr()
    assert "<svg" in (html := (toy / "report" / "index.html").read_text()) or "data:image/png" in html


@pytest.mark.slow
def test_librispeech_in_one_command(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = toy / "LibriSpeech"
    for name in ("test-clean", "test-other"):
        (sets / name).symlink_to(sets / "train-clean-100", target_is_directory=True)
    script = ROOT / "recipes" / "librispeech" / "evaluate.py"
    model = str(ROOT / "src" / "wav2vec2_conformer" / "assets" / "default")
    monkeypatch.setattr(sys, "argv", [str(script), "--librispeech", "LibriSpeech", "--model", model])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["test-clean", "test-other"]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["32", "32"]
    assert (toy / "runs" / "librispeech" / "test-other" / "index.html").is_file()
