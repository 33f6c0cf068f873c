"""Corpora as folders -> manifests: what the tree says arrives, and what cannot be used is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from wav2vec2_conformer.data import ManifestError, Segment, Utterance, read_manifest, rttm_lines
from wav2vec2_conformer.data.preparation import (
    Prepared,
    prepare_folder,
    prepare_librispeech,
    prepare_rttm,
    write_manifest,
)
from wav2vec2_conformer.data.splitting import speakers_of_utterance, split_by_speaker


def record(path: Path, seconds: float = 0.5) -> Path:
    """Some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 16000))
    soundfile.write(path, samples.astype(np.float32), 16000)
    return path


def librispeech(folder: Path) -> Path:
    """Two speakers, three chapters."""
    for chapter, sentences in {"84/1": ["A B", "C"], "84/2": ["D'E"], "1272/7": ["F  G"]}.items():
        speaker, number = chapter.split("/")
        lines = []
        for index, text in enumerate(sentences):
            name = f"{speaker}-{number}-{index:04d}"
            record(folder / chapter / f"{name}.flac", 0.5 + index)
            lines.append(f"{name} {text}")
        (folder / chapter / f"{speaker}-{number}.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


def by_name(prepared: Prepared) -> dict[str, Utterance]:
    """Utterances by their files' names."""
    return {utterance.audio.name: utterance for utterance in prepared.utterances}


def test_librispeech_gives_text_speaker_and_duration(tmp_path: Path) -> None:
    prepared = prepare_librispeech(librispeech(tmp_path))
    assert prepared.problems == []
    found = {name: (u.text, u.speaker, u.duration) for name, u in by_name(prepared).items()}
    assert found == {
        "84-1-0000.flac": ("A B", "84", 0.5),
        "84-1-0001.flac": ("C", "84", 1.5),
        "84-2-0000.flac": ("D'E", "84", 0.5),
        "1272-7-0000.flac": ("F G", "1272", 0.5),
    }


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_recording_counts_before_a_link_to_nothing_of_its_name(tmp_path: Path) -> None:
    folder = librispeech(tmp_path)
    (folder / "84/1/84-1-0000.wav").symlink_to("nowhere.wav")  # after the flac file in the order of names
    prepared = prepare_librispeech(folder)
    assert prepared.problems == []
    assert "84-1-0000.flac" in by_name(prepared)


def test_librispeech_names_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = librispeech(tmp_path)
    (folder / "84/1/84-1-0001.flac").unlink()
    (folder / "84/2/84-2-0000.flac").write_bytes(b"fLaC and no more")
    record(folder / "1272/7/1272-7-0009.flac")
    (folder / "84/2/84-2.trans.txt").write_bytes(b"84-2-0000 A\r\n\r\n")  # and lines as Windows ends them
    prepared = prepare_librispeech(folder)
    assert sorted(by_name(prepared)) == ["1272-7-0000.flac", "84-1-0000.flac"]
    assert [problem.split(":")[0] for problem in prepared.problems] == [
        "1272/7/1272-7-0009.flac",
        "84/1/84-1.trans.txt",
        "84/2/84-2-0000.flac",
    ]


def test_folders_are_classes_or_speakers_with_transcripts_beside(tmp_path: Path) -> None:
    record(tmp_path / "yes/anna_1.wav")
    record(tmp_path / "no/deep/bob_1.flac")
    (tmp_path / "yes/anna_1.txt").write_text("\ufeff YES \r\n", encoding="utf-8")
    classes = by_name(prepare_folder(tmp_path, kind="label", speaker_pattern="^([^_]+)_"))
    assert {n: (u.label, u.speaker, u.text) for n, u in classes.items()} == {
        "anna_1.wav": ("yes", "anna", "YES"),
        "bob_1.flac": ("no", "bob", None),
    }
    speakers = by_name(prepare_folder(tmp_path, kind="speaker"))
    assert {n: (u.label, u.speaker) for n, u in speakers.items()} == {
        "anna_1.wav": (None, "yes"),
        "bob_1.flac": (None, "no"),
    }


def test_files_of_a_folder_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    record(tmp_path / "yes/a_1.wav")
    record(tmp_path / "stray.wav")
    record(tmp_path / "yes/nobody.wav")
    record(tmp_path / "yes/b_2.wav").with_suffix(".txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "yes/c_3.wav").write_bytes(b"")
    prepared = prepare_folder(tmp_path, kind="label", speaker_pattern="^([^_]+)_")
    assert list(by_name(prepared)) == ["a_1.wav"]
    assert {problem.split(":")[0] for problem in prepared.problems} == {
        "stray.wav",
        "yes/nobody.wav",
        "yes/b_2.txt",
        "yes/c_3.wav",
    }


@pytest.mark.parametrize("pattern", ["(", "no-group"])
def test_patterns_that_cannot_find_a_speaker_are_refused(pattern: str, tmp_path: Path) -> None:
    record(tmp_path / "yes/a.wav")
    with pytest.raises(ManifestError, match="try"):
        prepare_folder(tmp_path, kind="label", speaker_pattern=pattern)


def test_rttm_finds_recordings_and_joins_files(tmp_path: Path) -> None:
    record(tmp_path / "audio/deep/meeting.wav", 3.0)
    record(tmp_path / "audio/other.wav")
    record(tmp_path / "audio/twice.wav")
    record(tmp_path / "audio/twice.flac")
    (tmp_path / "a.rttm").write_text(
        "SPEAKER meeting 1 1.00 0.50 <NA> <NA> bob <NA> <NA>\nSPEAKER lost 1 0 1 <NA> <NA> bob <NA> <NA>\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.rttm").write_text(
        "SPEAKER meeting 1 0.25 1.00 <NA> <NA> anna <NA> <NA>\nSPEAKER twice 1 0 .1 <NA> <NA> anna <NA> <NA>\n"
    )
    prepared = prepare_rttm([tmp_path / "a.rttm", tmp_path / "more"], tmp_path / "audio")
    (found,) = prepared.utterances
    assert found.audio == tmp_path / "audio/deep/meeting.wav"
    assert found.segments == (Segment(0.25, 1.25, "anna"), Segment(1.0, 1.5, "bob"))
    assert [problem.split(":")[0] for problem in prepared.problems] == ["lost", "twice", "other.wav"]


@pytest.mark.parametrize("where", ["corpus", "corpus/lists", "elsewhere", "link/lists"])
def test_what_is_written_is_read_again(where: str, tmp_path: Path) -> None:
    """From any folder, also one that is reached over a link."""
    (tmp_path / "link").symlink_to(tmp_path / "corpus", target_is_directory=True)
    names = ["a.wav", 'q"uote.wav', "ümlaut.wav", "new\nline.wav"]
    utterances = [
        Utterance(
            record(tmp_path / "corpus" / name), "ÄB", 0.5, None, "x", name, (Segment(0.1, 1 / 3, "a"),) if i else None
        )
        for i, name in enumerate(names)
    ]
    manifest = tmp_path / where / "m.jsonl"
    manifest.parent.mkdir(exist_ok=True)
    write_manifest(manifest, utterances)
    for before, after in zip(utterances, read_manifest(manifest), strict=True):
        assert after.audio.samefile(before.audio)
        assert not os.path.isabs(after.name)
        assert (after.text, after.label, after.speaker, after.duration) == ("ÄB", "x", None, 0.5)
        if before.segments is None:
            assert after.segments is None
        else:
            assert after.segments is not None
            assert after.segments[0].end == pytest.approx(1 / 3, abs=1e-6)
    assert "speaker" not in json.loads(manifest.read_text().splitlines()[0])


def test_a_name_that_is_no_utf8_can_be_written_and_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        audio = record(tmp_path / "plain.wav").rename(tmp_path / name)
    except OSError:
        pytest.skip("this system's names are always UTF-8")
    write_manifest(tmp_path / "m.jsonl", [Utterance(audio, None, 0.5, None, None, name)])
    assert read_manifest(tmp_path / "m.jsonl")[0].audio.is_file()


def utterance(name: str, speakers: list[str], seconds: float = 1.0) -> Utterance:
    """One recording of one or several speakers."""
    if len(speakers) == 1:
        return Utterance(Path(name), None, seconds, speakers[0], None, name)
    segments = tuple(Segment(i, i + 1, speaker) for i, speaker in enumerate(speakers))
    return Utterance(Path(name), None, seconds, None, None, name, segments)


recordings = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=2, unique=True), st.floats(0.1, 20)),
    min_size=1,
    max_size=25,
)


@given(recordings, st.floats(0.02, 0.9), st.randoms())
def test_a_split_keeps_every_speaker_on_one_side_and_depends_on_no_order(
    drawn: list[tuple[list[str], float]], share: float, random: object
) -> None:
    utterances = [utterance(str(i), speakers, seconds) for i, (speakers, seconds) in enumerate(drawn)]
    try:
        train, dev = split_by_speaker(utterances, share)
    except ManifestError:
        # Only where recordings connect all speakers: a flood from the first one reaches everybody.
        reached = speakers_of_utterance(utterances[0])
        for _ in utterances:
            reached |= {s for u in utterances if speakers_of_utterance(u) & reached for s in speakers_of_utterance(u)}
        assert reached == {s for u in utterances for s in speakers_of_utterance(u)}
        return
    assert train
    assert dev
    assert sorted(u.name for u in train + dev) == sorted(u.name for u in utterances)
    sides = [{s for u in side for s in speakers_of_utterance(u)} for side in (train, dev)]
    assert not sides[0] & sides[1]
    shuffled = list(utterances)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {u.name for u in split_by_speaker(shuffled, share)[1]} == {u.name for u in dev}


def test_the_dev_share_is_met_as_well_as_whole_speakers_allow() -> None:
    utterances = [utterance(f"{speaker}-{i}", [f"s{speaker}"]) for speaker in range(50) for i in range(4)]
    for share in (0.02, 0.1, 0.5):
        dev = split_by_speaker(utterances, share)[1]
        assert len(dev) == pytest.approx(share * 200, abs=4)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ManifestError, match="share of dev"):
        split_by_speaker([utterance("a", ["x"]), utterance("b", ["y"])], share)


def test_a_split_needs_to_know_who_speaks() -> None:
    unknown = Utterance(Path("a"), None, 1.0, None, "yes", "a")
    with pytest.raises(ManifestError, match="a: who speaks is not known"):
        split_by_speaker([unknown, utterance("b", ["y"])], 0.5)


def test_two_speakers_are_split_as_near_to_the_share_as_can_be() -> None:
    def of(speaker: str, count: int) -> list[Utterance]:
        return [
            Utterance(Path(f"{speaker}{i}.wav"), None, 1.0, speaker, None, f"{speaker}{i}.wav") for i in range(count)
        ]

    for much, little in (("a", "b"), ("b", "a")):  # whichever name's hash comes first
        train, dev = split_by_speaker([*of(much, 20), *of(little, 4)], 0.3)
        assert (len(train), len(dev)) == (20, 4)
        train, dev = split_by_speaker([*of(much, 20), *of(little, 15)], 0.1)  # both are too much
        assert (len(train), len(dev)) == (20, 15)


def test_a_recording_whose_name_has_a_blank_finds_its_rttm(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    soundfile.write(tmp_path / "wav" / "my talk.wav", np.zeros(32000), 16000)
    lines = rttm_lines("my talk", [Segment(0.5, 1.0, "anna")])
    (tmp_path / "talks.rttm").write_text("\n".join(lines))
    prepared = prepare_rttm([tmp_path / "talks.rttm"], tmp_path / "wav")
    assert prepared.problems == []
    assert prepared.utterances[0].segments == (Segment(0.5, 1.0, "anna"),)
