"""Every way in gives the same sound; what is missing, cut, damaged or ambiguous is an error that says so."""

import io
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from wav2vec2_conformer import audio
from wav2vec2_conformer.audio import SAMPLE_RATE, AudioError, audio_duration, iter_audio, load_audio, prepare_waveform

SECONDS = 3.0
TONE = 440.0  # Hz
AMPLITUDE = 0.5
SOUNDFILE_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "u8.wav": ("WAV", "PCM_U8"),
    "24.wav": ("WAV", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
# container format, codec, muxer options
FFMPEG_FORMATS = {
    "m4a": ("mp4", "aac", {}),
    "faststart.m4a": ("mp4", "aac", {"movflags": "faststart"}),
    "aac": ("adts", "aac", {}),
    "webm": ("webm", "libopus", {}),
    "live.webm": ("webm", "libopus", {"live": "1"}),
    "noxing.mp3": ("mp3", "libmp3lame", {"write_xing": "0"}),
}
OPUS_RATES = (8_000, 16_000, 48_000)
CASES = [
    (kind, rate, channels)
    for kind in (*SOUNDFILE_FORMATS, *FFMPEG_FORMATS)
    for rate, channels in ((8_000, 1), (22_050, 2), (44_100, 1), (48_000, 2))
    if rate in OPUS_RATES or not kind.endswith(("opus", "webm"))
] + [("wav", 8_000, 2), ("wav", 22_050, 1), ("wav", 44_100, 2), ("wav", 48_000, 1)]


def sine(rate: int, seconds: float = SECONDS, channels: int = 1) -> np.ndarray:
    """(N, C): the tone in the first channel, its half in the second, so that a mean differs from a pick."""
    tone = AMPLITUDE * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.stack([tone, tone / 2][:channels], axis=1).astype(np.float32)


def write(path: Path, rate: int = SAMPLE_RATE, channels: int = 1, seconds: float = SECONDS) -> Path:
    """A tone in the format that the name's part after the first dot asks for."""
    kind = path.name.split(".", 1)[1]
    samples = sine(rate, seconds, channels)
    if kind in SOUNDFILE_FORMATS:
        container, subtype = SOUNDFILE_FORMATS[kind]
        soundfile.write(path, samples, rate, format=container, subtype=subtype)
        return path
    container, codec, options = FFMPEG_FORMATS[kind]
    layout = "stereo" if channels == 2 else "mono"
    with av.open(str(path), "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 64_000 * channels
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for piece in av.AudioResampler(format=stream.format.name, layout=layout, rate=rate).resample(frame):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def assert_is_tone(waveform: np.ndarray, rate: int = SAMPLE_RATE, amplitude: float = AMPLITUDE) -> None:
    middle = waveform[rate // 2 : -rate // 2].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 17))
    assert np.argmax(spectrum) * rate / (1 << 17) == pytest.approx(TONE, abs=0.5)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(amplitude, rel=0.03)


class Pipe(io.RawIOBase):
    """What stdin is: bytes that can be read once, forwards."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._rest.readinto(buffer)


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rate", "channels"), CASES)
def test_every_format_rate_and_channel_count_gives_the_tone_at_16_khz(tmp_path, kind, rate, channels):
    waveform = load_audio(write(tmp_path / f"x.{kind}", rate, channels))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert waveform.flags.c_contiguous
    # Lossless and Xing-tagged sound is exact; AAC and bare mp3 keep their codec's delay and padding frames.
    padding = 3500 / rate if kind.endswith(("m4a", "aac", "noxing.mp3")) else 0.0
    assert -2 <= len(waveform) - SECONDS * SAMPLE_RATE <= padding * SAMPLE_RATE + 2
    amplitude = AMPLITUDE * (0.75 if channels == 2 else 1.0) * (0.95 if kind == "noxing.mp3" else 1.0)  # LAME's scale
    assert_is_tone(waveform, amplitude=amplitude)


def test_content_decides_not_the_suffix(tmp_path):
    expected = load_audio(write(tmp_path / "x.m4a"))
    disguised = (tmp_path / "x.m4a").rename(tmp_path / "x.wav")
    np.testing.assert_array_equal(load_audio(disguised), expected)


def test_wav_samples_at_16_khz_pass_unchanged(tmp_path):
    samples = sine(SAMPLE_RATE)
    np.testing.assert_array_equal(load_audio(write(tmp_path / "x.float.wav")), samples[:, 0])


def test_other_target_rates(tmp_path):
    waveform = load_audio(write(tmp_path / "x.wav"), sample_rate=8_000)
    assert len(waveform) == SECONDS * 8_000
    assert_is_tone(waveform, rate=8_000)


def test_a_film_without_sound_is_an_error(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"film\.mp4: is not audio .* without an audio track"):
        load_audio(path)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_chained_ogg_is_read_to_its_last_link(tmp_path, kind):
    """libsndfile stops at the first link without a word; chains therefore go to FFmpeg."""
    first, second = write(tmp_path / f"a.{kind}"), write(tmp_path / f"b.{kind}", seconds=2.0)
    chain = first.read_bytes() + second.read_bytes()
    assert len(load_audio(chain)) == pytest.approx(5 * SAMPLE_RATE, abs=0.05 * SAMPLE_RATE)


def test_mp3_of_variable_bit_rate_without_xing_frame_is_read_whole_and_quietly(tmp_path, capfd):
    """libsndfile estimates such a length, stops there, and its mpg123 prints; mp3 therefore goes to FFmpeg."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([np.zeros(80_000), rng.standard_normal(80_000) * 0.2]).astype(np.float32)
    soundfile.write(tmp_path / "x.mp3", samples, 16_000)
    data = (tmp_path / "x.mp3").read_bytes()
    tag = data[:200].index(b"Xing")
    bare = data[data.index(data[:2], tag) :]
    assert len(load_audio(bare)) == pytest.approx(160_000, abs=3_000)
    assert len(load_audio(data)) == 160_000
    assert len(load_audio(data + data)) > 319_000
    assert capfd.readouterr() == ("", "")


def test_a_recording_without_samples_yields_nothing(tmp_path):
    path = write(tmp_path / "x.wav", seconds=0.0)
    assert list(iter_audio(path)) == []
    assert load_audio(path).shape == (0,)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "webm"])
def test_the_shortest_recordings_load(tmp_path, kind):
    assert len(load_audio(write(tmp_path / f"x.{kind}", 48_000, seconds=0.05))) >= 800


# --- ways in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "mp3", "m4a", "webm"])
def test_path_bytes_stream_and_pipe_are_the_same_sound(tmp_path, kind):
    path = write(tmp_path / f"x.{kind}", 48_000, 2)
    data = path.read_bytes()
    expected = load_audio(path)
    np.testing.assert_array_equal(load_audio(str(path)), expected)
    np.testing.assert_array_equal(load_audio(data), expected)
    np.testing.assert_array_equal(load_audio(io.BytesIO(data)), expected)
    np.testing.assert_array_equal(load_audio(Pipe(data)), expected)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(load_audio(stream), expected)
        assert not stream.closed
    behind = io.BytesIO(b"header" + data)
    behind.seek(6)
    np.testing.assert_array_equal(load_audio(behind), expected)


def test_a_pipe_larger_than_the_spool_goes_through_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_SPOOL_BYTES", 1000)
    path = write(tmp_path / "x.wav")
    np.testing.assert_array_equal(load_audio(Pipe(path.read_bytes())), load_audio(path))


@pytest.mark.parametrize("kind", ["wav", "m4a"])
@pytest.mark.parametrize("seconds", [0.25, 1.0, 7.0])
def test_blocks_are_exact_and_their_concatenation_is_the_whole(tmp_path, kind, seconds):
    path = write(tmp_path / f"x.{kind}", 44_100, 2)
    blocks = list(iter_audio(path, block_seconds=seconds))
    size = round(seconds * SAMPLE_RATE)
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(path))


def test_memory_does_not_grow_with_the_recording(tmp_path):
    def peak(minutes: int) -> int:
        path = tmp_path / "long.wav"
        with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as out:
            for _ in range(minutes):
                out.write(np.zeros(8_000 * 60, np.float32))
        tracemalloc.start()
        total = sum(len(block) for block in iter_audio(path, block_seconds=10))
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == minutes * 60 * SAMPLE_RATE
        return high

    short, long = peak(2), peak(20)
    assert long < short * 1.2
    assert long < 8 << 20  # the 20 minutes are 77 MB


def test_a_stopped_reader_closes_its_file(tmp_path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("no /proc")
    path = write(tmp_path / "x.flac")
    blocks = iter_audio(path, block_seconds=0.1)
    next(blocks)
    open_now = len(list(descriptors.iterdir()))
    blocks.close()
    assert len(list(descriptors.iterdir())) == open_now - 1


def test_max_seconds_is_a_bound(tmp_path):
    path = write(tmp_path / "x.wav")
    assert len(load_audio(path, max_seconds=SECONDS)) == SECONDS * SAMPLE_RATE
    with pytest.raises(AudioError, match=r"x\.wav: is longer than max_seconds=2; .*iter_audio"):
        load_audio(path, max_seconds=2)


@pytest.mark.parametrize("kind", ["wav", "rf64", "flac", "ogg", "opus", "mp3", "m4a", "webm"])
def test_duration_comes_from_the_header(tmp_path, kind):
    path = write(tmp_path / f"x.{kind}", 48_000)
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.01)
    with path.open("rb") as stream:
        audio_duration(stream)
        assert stream.tell() == 0


@pytest.mark.parametrize("kind", ["aac", "live.webm", "noxing.mp3"])
def test_duration_is_none_where_the_header_does_not_say(tmp_path, kind):
    assert audio_duration(write(tmp_path / f"x.{kind}", 48_000)) is None


# --- what must not pass --------------------------------------------------------------------------------------------


def test_missing_empty_text_and_directory_say_what_they_are(tmp_path):
    cases = {
        "missing.mp3": "missing.mp3: file does not exist",
        "empty.wav": r"empty.wav: is empty \(0 bytes\)",
        "notes.txt": r"notes.txt: is not audio that can be decoded \(.*\); expected wav, flac, mp3, ogg/opus, m4a or",
        "folder": "folder: is a directory; expected an audio file",
    }
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.txt").write_text("Call me Ishmael.\n" * 100)
    (tmp_path / "folder").mkdir()
    for name, message in cases.items():
        for read in (load_audio, audio_duration, lambda path: list(iter_audio(path))):
            with pytest.raises(AudioError, match=message):
                read(tmp_path / name)
    with pytest.raises(AudioError, match=r"<bytes>: is empty"):
        load_audio(b"")
    with pytest.raises(AudioError, match=r"<stream>: is empty"):
        load_audio(Pipe(b""))
    with pytest.raises(AudioError, match=r"http://x\.org/a\.wav: file does not exist; only local files"):
        load_audio("http://x.org/a.wav")
    with pytest.raises(AudioError, match=r"is not a file name"):
        load_audio("a\0b")
    with pytest.raises(AudioError, match=r"must be a binary stream, got one that reads text; open it in mode 'rb'"):
        load_audio(io.StringIO("text"))
    with pytest.raises(AudioError, match=r"got ndarray; prepare_waveform takes arrays"):
        load_audio(np.zeros(10))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = write(tmp_path / "x.wav")
    path.chmod(0)
    with pytest.raises(AudioError, match="permission denied"):
        load_audio(path)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["hls", "concat", "sdp"],
)
def test_playlists_are_not_followed(tmp_path, text):
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(text.format(path=write(tmp_path / "x.aac")))
    with pytest.raises(AudioError, match=r"list\.m3u8: is not audio that can be decoded"):
        load_audio(playlist)


@pytest.mark.parametrize("kind", ["wav", "24.wav", "rf64", "aiff", "au", "mp3", "webm"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_file_says_what_was_promised_and_read(tmp_path, kind, share):
    path = cut(write(tmp_path / f"x.{kind}", 48_000), share)
    message = rf"x\.{kind}: is truncated: header promises 3\.\d s, only [012]\.\d s could be read"
    with pytest.raises(AudioError, match=message):
        load_audio(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flac", r"is truncated or damaged: header promises 3\.0 s, only \d\.\d s could be read"),
        ("ogg", "is truncated: the Ogg stream stops before its end-of-stream page"),
        ("opus", "is truncated: the Ogg stream stops before its end-of-stream page"),
        ("m4a", "is not audio that can be decoded"),  # its index is at the end
        ("faststart.m4a", r"is truncated: header promises 3\.0 s, only 1\.\d s could be read"),
        ("aac", r"is truncated or damaged: it cannot be decoded past 1\.\d s"),
    ],
)
def test_other_cut_files(tmp_path, kind, message):
    with pytest.raises(AudioError, match=message):
        load_audio(cut(write(tmp_path / f"x.{kind}", 48_000)))


@pytest.mark.parametrize("kind", ["flac", "mp3", "m4a"])
def test_damage_in_the_middle_is_an_error(tmp_path, kind):
    data = bytearray(write(tmp_path / f"x.{kind}").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = np.random.default_rng(0).bytes(1000)
    with pytest.raises(AudioError, match="damaged"):
        load_audio(bytes(data))


def test_an_mp3_with_tags_or_padding_after_its_sound_is_whole(tmp_path):
    data = write(tmp_path / "x.mp3").read_bytes()
    expected = load_audio(data)
    for tail in (b"TAG" + bytes(125), bytes(5000)):
        waveform = load_audio(data + tail)  # FFmpeg doubts the Xing frame of such a file and keeps LAME's padding
        np.testing.assert_array_equal(waveform[: len(expected)], expected)
        assert len(waveform) - len(expected) <= 2 * 1152


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_a_wav_written_to_a_pipe_has_no_size_and_is_whole(tmp_path, size):
    data = write(tmp_path / "x.wav").read_bytes()
    start = data.index(b"data") + 4
    live = data[:4] + struct.pack("<I", size) + data[8:start] + struct.pack("<I", size) + data[start + 4 :]
    np.testing.assert_array_equal(load_audio(live), load_audio(data))


def test_a_flac_written_to_a_pipe_has_no_length_and_is_whole(tmp_path):
    data = bytearray(write(tmp_path / "x.flac").read_bytes())
    expected = load_audio(bytes(data))
    data[21] &= 0xF0  # STREAMINFO's total, 36 bits
    data[22:26] = bytes(4)
    assert audio_duration(bytes(data)) is None
    np.testing.assert_array_equal(load_audio(bytes(data)), expected)


def test_a_finished_wav_of_no_samples_with_a_chunk_behind_is_empty(tmp_path):
    empty = write(tmp_path / "x.wav", seconds=0.0).read_bytes()
    chunk = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
    data = empty[:4] + struct.pack("<I", len(empty) - 8 + len(chunk)) + empty[8:] + chunk
    assert load_audio(data).shape == (0,)


def test_absurd_headers_and_broken_samples(tmp_path):
    data = bytearray(write(tmp_path / "x.wav").read_bytes())
    fast = bytes(data[:24]) + struct.pack("<I", 2_000_000_000) + bytes(data[28:])
    with pytest.raises(AudioError, match="2000000000 Hz; expected 1 to 768000"):
        load_audio(fast)
    soundfile.write(tmp_path / "wide.wav", np.zeros((10, 65)), 16_000)
    with pytest.raises(AudioError, match="65 channels; expected 1 to 64"):
        load_audio(tmp_path / "wide.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: holds samples that are not finite"):
        load_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize("kind", ["wav", "flac", "m4a"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_a_stream_raises_comes_out(tmp_path, kind, error, capfd):
    class Failing(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            if self.reads > 12:
                raise error("the disk is gone")
            return super().read(size)

    data = write(tmp_path / f"x.{kind}", 48_000, 2, seconds=20.0).read_bytes()
    expected = AudioError if error is OSError else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        load_audio(Failing(data))
    if expected is AudioError:
        assert str(caught.value) == "<stream>: cannot be read (the disk is gone)"
    assert capfd.readouterr() == ("", "")


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(AudioError("x.wav", "is empty")))
    assert (str(error), error.source, error.problem) == ("x.wav: is empty", "x.wav", "is empty")


@pytest.mark.parametrize("seconds", [0, -1.0, 1e-6])
def test_block_seconds_must_hold_a_sample(seconds):
    with pytest.raises(AudioError, match="block_seconds: must hold at least one sample"):
        iter_audio(b"x", block_seconds=seconds)


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1.0, 0.5], np.float32),
        ([-1.0, 0.5], np.float64),
        ([-1.0, 0.5], np.float16),
        ([-128, 64], np.int8),
        ([-(2**15), 2**14], np.int16),
        ([-(2**31), 2**30], np.int32),
        ([0, 192], np.uint8),
    ],
)
def test_sample_types_are_scaled_by_their_full_range(values, dtype):
    array = np.array(values, dtype)
    waveform = prepare_waveform(array, SAMPLE_RATE)
    np.testing.assert_array_equal(waveform, np.array([-1.0, 0.5], np.float32))
    assert waveform.dtype == np.float32
    assert not np.shares_memory(waveform, array)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_an_array_becomes_what_its_file_becomes(tmp_path, rate):
    path = write(tmp_path / "x.float.wav", rate, 2)
    np.testing.assert_allclose(prepare_waveform(sine(rate, channels=2).T, rate), load_audio(path), atol=1e-6)


def test_one_row_and_no_samples():
    np.testing.assert_array_equal(prepare_waveform(np.ones((1, 5), np.float32), SAMPLE_RATE), np.ones(5, np.float32))
    assert prepare_waveform(np.zeros(0, np.float32), 8_000).shape == (0,)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((16_000, 2)), r"must be \(channels, samples\), got shape \(16000, 2\); transpose it"),
        (np.zeros((0, 5)), r"must be \(channels, samples\), got shape \(0, 5\)"),
        (np.zeros((1, 2, 3)), r"got shape \(1, 2, 3\)"),
        (np.float32(0), r"got shape \(\)"),
        (np.zeros(4, np.complex64), "got complex64; convert"),
        (np.zeros(4, bool), "got bool; convert"),
        (np.zeros(4, object), "got object; convert"),
        (np.zeros(4, np.int64), "got int64; convert"),
        (np.array([0.0, np.nan]), "not finite"),
        (np.array([0.0, np.inf]), "not finite"),
        (np.array([0.0, 1e300]), "not finite"),
    ],
)
def test_ambiguous_and_broken_arrays_are_refused(array, message):
    with pytest.raises(AudioError, match=message):
        prepare_waveform(array, SAMPLE_RATE)


@pytest.mark.parametrize("rate", [0, -16_000, 16_000.0, True, None, 10**9])
def test_rates_must_be_positive_integers(rate):
    with pytest.raises(AudioError, match="sample_rate: must be an integer"):
        prepare_waveform(np.zeros(4), rate)
    with pytest.raises(AudioError, match="to_rate: must be an integer"):
        prepare_waveform(np.zeros(4), SAMPLE_RATE, to_rate=rate)
    with pytest.raises(AudioError, match="sample_rate: must be an integer"):
        load_audio(b"x", sample_rate=rate)
