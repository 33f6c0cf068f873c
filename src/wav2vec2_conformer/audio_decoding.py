"""What `audio.py` hands an open file to: the decoders, and the containers' own bytes where they know more."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

# N samples, C channels

SAMPLE_RATE = 16_000  # Hz, what every model of this package hears
Waveform: TypeAlias = NDArray[np.float32]

MAX_RATE = 768_000  # Hz; above every sound card, so a greater one is a damaged header
_MAX_CHANNELS = 64
_READ_SAMPLES = 1 << 16  # samples over all channels that one read decodes
_EXACT_SLACK = 0.02  # s; headers that are off by their own size are common and harmless
_CODEC_SLACK = 4608  # samples of encoder delay and padding (HE-AAC, LAME) that a header may count
_AGAIN = "copy or download it again"
# FFmpeg demuxers that read one file and nothing else: no playlists, no network, no devices, no lists of files.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,mp3,aac,flac,wav,w64,aiff,au,caf,amr,asf,avi,flv,mpegts,ac3,ape,wv,tta"
)
_FFMPEG_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
_TIMED_BY_HEADER = {"mov,mp4,m4a,3gp,3g2,mj2", "flac", "caf", "wv", "tta", "ape"}  # elsewhere FFmpeg may guess


class AudioError(ValueError):
    """Audio that cannot be used; the text is `source: problem`, both kept as attributes of those names."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(source, problem)  # both in args, so that the error survives pickling between processes
        self.source = source
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}"


def mix_down(samples: NDArray[Any], name: str) -> Waveform:
    """(C, N) of any sample type -> (N,) float32, a new array."""
    kind = samples.dtype
    if kind in (np.int8, np.int16, np.int32):
        samples = (samples / 2.0 ** (8 * kind.itemsize - 1)).astype(np.float32)
    elif kind == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif kind.kind != "f":  # int64 too: such arrays mostly hold int16 values, and their full scale would silence them
        raise AudioError(name, f"must hold float, int8, int16, int32 or uint8 samples, got {kind}; convert it first")
    with np.errstate(over="ignore"):  # what overflows float32 is reported two lines on
        mono = samples.mean(axis=0, dtype=np.float64 if kind.itemsize > 4 else np.float32).astype(np.float32)
    if not np.isfinite(mono).all():
        raise AudioError(name, "holds samples that are not finite (NaN or infinity); repair or re-export it")
    return cast(Waveform, mono)


class _Relay:
    """A file for the decoders' callbacks: an exception there ends the file and is kept for `reraise`.

    libsndfile's callbacks would print it and go on, FFmpeg's mov reader would ask again for ever.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._error: BaseException | None = None

    def read(self, size: int) -> bytes:
        if self._error is not None:
            return b""
        try:
            return self._handle.read(size)
        except BaseException as error:  # KeyboardInterrupt too
            self._error = error
            return b""

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error


# --- what a container's own bytes say, and libsndfile keeps to itself ------------------------------------------------


class _Layout(NamedTuple):
    promised_per_present: float = 1.0  # bytes of samples in the header per byte in the file; > 1 in a cut file
    problem: str | None = None
    for_ffmpeg: bool = False  # libsndfile would silently leave samples out


def container_layout(handle: BinaryIO) -> _Layout:
    head = _bytes_at(handle, 0, 12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        return _chunked_layout(handle, head)
    if head[:4] == b".snd" and len(head) == 12:
        start, promised = struct.unpack(">II", head[4:])
        return _Layout(_promise_ratio(promised, handle.seek(0, os.SEEK_END) - start))
    if head[:4] == b"OggS":
        return _ogg_layout(handle)
    # libsndfile estimates the length of an mp3 without a Xing frame, stops there, and its mpg123 writes to stderr.
    is_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return _Layout(for_ffmpeg=is_mp3)


def _bytes_at(handle: BinaryIO, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


def _promise_ratio(promised: int, present: int) -> float:
    # A writer into a pipe cannot come back to fill the size in: it leaves 0 or the integer's greatest value, less a
    # header or rounded down to a sample.
    unknown = promised == 0 or 2**31 - 4224 <= promised <= 2**31 + 128 or 2**32 - 4224 <= promised < 2**32
    return 1.0 if unknown or promised <= present else promised / max(present, 1)


def _chunked_layout(handle: BinaryIO, head: bytes) -> _Layout:
    """WAV (RIFF, RIFX, RF64) and AIFF (FORM): chunks of a 4-byte name, a 4-byte size and a body padded to even."""
    size_format = ">I" if head[:4] in (b"RIFX", b"FORM") else "<I"
    size = handle.seek(0, os.SEEK_END)
    position, wide_size = 12, None
    for _ in range(1000):
        chunk = _bytes_at(handle, position, 24)
        if len(chunk) < 8:
            break
        (promised,) = struct.unpack(size_format, chunk[4:8])
        if chunk[:4] == b"ds64" and len(chunk) == 24:  # RF64: sizes past 4 GiB, of the file and of the samples
            wide_size = struct.unpack("<Q", chunk[16:24])[0]
        if chunk[:4] in (b"data", b"SSND"):
            present = size - position - 8
            if present <= 0 and _promise_ratio(promised, 0) > 1:  # no ratio to nothing
                return _Layout(problem=f"is truncated: it ends before its first sample; {_AGAIN}")
            if wide_size is not None and promised == 2**32 - 1:
                return _Layout(max(1.0, wide_size / max(present, 1)))
            (whole,) = struct.unpack(size_format, head[4:8])
            left_open = promised == 0 and present > 0 and abs(whole + 8 - size) > 1
            return _Layout(_promise_ratio(promised, present), for_ffmpeg=left_open)
        position += 8 + promised + promised % 2
    return _Layout()


def _ogg_layout(handle: BinaryIO) -> _Layout:
    """Walks the page headers (RFC 3533, section 6): a cut file lacks the last, libsndfile stops at a second link."""
    size, position = handle.seek(0, os.SEEK_END), 0
    ended = seen_data = chained = False
    while position < size:
        page = _bytes_at(handle, position, 27 + 255)
        if len(page) < 27 or page[:4] != b"OggS":
            break  # after the stream's end: a tag or padding; before it: damage
        ended, begins = bool(page[5] & 4), bool(page[5] & 2)
        chained |= begins and seen_data
        seen_data |= not begins
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if ended and position <= size:
        return _Layout(for_ffmpeg=chained)
    remedy = "a live recording can be closed with `ffmpeg -i in.ogg -c copy out.ogg`"
    return _Layout(problem=f"is truncated: the Ogg stream stops before its end-of-stream page; {_AGAIN}; {remedy}")


# --- decoders ------------------------------------------------------------------------------------------------------


def decode(handle: BinaryIO, name: str) -> Iterator[tuple[Waveform, int]]:
    """Mono pieces with their rates, in order; raises at the end when less came than the header promises."""
    layout = container_layout(handle)
    if layout.problem is not None:
        raise AudioError(name, layout.problem)
    sound = open_soundfile(handle, layout, name)
    if sound is None:
        yield from _decode_ffmpeg(handle, name)
        return
    with sound.file as file:
        promised = file.frames / file.samplerate * layout.promised_per_present
        _check_complete(name, promised, file.frames / file.samplerate, _EXACT_SLACK)
        yield from _decode_soundfile(sound, name)


def _check_format(name: str, rate: int, channels: int) -> None:
    if not 0 < rate <= MAX_RATE:
        raise AudioError(name, f"has a header with {rate} Hz; expected 1 to {MAX_RATE}; the file is damaged")
    if not 0 < channels <= _MAX_CHANNELS:
        raise AudioError(name, f"has a header with {channels} channels; expected 1 to {_MAX_CHANNELS}")


def _check_complete(name: str, promised: float, got: float, slack: float, what: str = "truncated") -> None:
    if promised - got > slack:
        read = f"header promises {promised:.1f} s, only {got:.1f} s could be read"
        raise AudioError(name, f"is {what}: {read}; {_AGAIN}")


class _Sound(NamedTuple):
    file: Any  # soundfile.SoundFile
    relay: _Relay


def open_soundfile(handle: BinaryIO, layout: _Layout, name: str) -> _Sound | None:
    """The file in libsndfile, or None where it cannot read all of it."""
    if layout.for_ffmpeg:
        return None
    relay = _Relay(handle)
    handle.seek(0)
    # A descriptor of our own needs no Python callbacks: faster, and no interrupt can be lost in one. Not on Windows,
    # where libsndfile's C runtime does not know Python's descriptors.
    own = isinstance(handle, io.FileIO) and os.name == "posix"
    try:
        file = soundfile.SoundFile(handle.fileno(), closefd=False) if own else soundfile.SoundFile(relay)
    except soundfile.LibsndfileError:
        relay.reraise()
        return None
    relay.reraise()
    # A FLAC written to a pipe has no length, which libsndfile turns into an error; MPEG inside WAV is mpg123 again.
    if file.frames >= 2**62 or file.subtype.startswith("MPEG"):
        file.close()
        return None
    _check_format(name, file.samplerate, file.channels)
    return _Sound(file, relay)


def _decode_soundfile(sound: _Sound, name: str) -> Iterator[tuple[Waveform, int]]:
    file, relay = sound
    promised = file.frames / file.samplerate
    buffer = np.empty((max(1, _READ_SAMPLES // file.channels), file.channels), np.float32)
    got = 0
    while True:
        try:
            block = file.read(out=buffer)
        except soundfile.LibsndfileError as error:
            relay.reraise()
            _check_complete(name, promised, got / file.samplerate, 0.0, what="truncated or damaged")
            raise AudioError(name, f"is damaged ({error})") from error
        relay.reraise()
        if not len(block):
            break
        got += len(block)
        yield mix_down(block.T, name), file.samplerate
    _check_complete(name, promised, got / file.samplerate, _EXACT_SLACK)


@contextlib.contextmanager
def open_ffmpeg(handle: BinaryIO, name: str) -> Iterator[tuple[av.container.InputContainer, _Relay]]:
    """An open file as an FFmpeg container with an audio track, and the relay that keeps what its reads raised."""
    relay = _Relay(handle)
    handle.seek(0)
    try:
        container = av.open(relay, mode="r", container_options=_FFMPEG_OPTIONS, metadata_errors="ignore")
    except av.FFmpegError as error:
        relay.reraise()
        problem = f"is not audio that can be decoded ({error.strerror or error})"
        raise AudioError(name, f"{problem}; expected wav, flac, mp3, ogg/opus, m4a or webm") from error
    with container:
        relay.reraise()
        if not container.streams.audio:
            problem = f"is not audio that can be decoded ({container.format.name} without an audio track)"
            raise AudioError(name, problem)
        yield container, relay


def ffmpeg_promise(container: av.container.InputContainer, handle: BinaryIO) -> float | None:
    """Seconds that the header itself states; FFmpeg also reports guesses from the bit rate, which are left out."""
    kind, stream = container.format.name, container.streams.audio[0]
    if kind in _TIMED_BY_HEADER and stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base) or None
    position = handle.tell()  # FFmpeg's, which goes on reading from there
    try:
        if kind == "mp3":
            return _xing_seconds(handle, stream.rate)
        if kind == "matroska,webm" and len(container.streams) == 1 and container.duration:  # a film's may be longer
            info = _bytes_at(handle, 0, 1 << 14).split(b"\x1f\x43\xb6\x75")[0]  # up to the first cluster of sound
            stated = b"\x44\x89\x84" in info or b"\x44\x89\x88" in info  # the Duration element, 4 or 8 bytes
            return container.duration / 1e6 if stated else None
        return None
    finally:
        handle.seek(position)


def _xing_seconds(handle: BinaryIO, rate: int) -> float | None:
    """An mp3's length from the Xing or Info frame that its encoder may have put first."""
    head = _bytes_at(handle, 0, 10)
    tag = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))  # ID3v2's own size
    frame = _bytes_at(handle, tag if head[:3] == b"ID3" else 0, 200)
    mark = max(frame.find(b"Xing"), frame.find(b"Info"))
    if mark < 2 or len(frame) < mark + 144 or not frame[mark + 7] & 1 or rate <= 0:
        return None
    (frames,) = struct.unpack_from(">I", frame, mark + 8)
    samples = frames * (1152 if frame[1] & 0x18 == 0x18 else 576)  # MPEG 1; MPEG 2 and 2.5 have half frames
    if frame[mark + 7] & 15 == 15 and frame[mark + 120 : mark + 124] in (b"LAME", b"Lavc", b"Lavf"):
        trim = int.from_bytes(frame[mark + 141 : mark + 144], "big")  # 12 bits of delay, 12 of padding
        samples -= (trim >> 12) + (trim & 0xFFF)
    return float(max(0, samples) / rate)


def _ffmpeg_frames(
    container: av.container.InputContainer, relay: _Relay
) -> Iterator[tuple[list[av.AudioFrame], Exception | None]]:
    packets = container.demux(container.streams.audio[0])
    while True:
        frames, failure = [], None
        try:
            packet = next(packets, None)  # after an error of the demuxer's own this ends
            if packet is None:
                return
            frames = packet.decode()
        except av.FFmpegError as error:
            failure = error
        relay.reraise()
        yield frames, failure


def _decode_ffmpeg(handle: BinaryIO, name: str) -> Iterator[tuple[Waveform, int]]:
    with open_ffmpeg(handle, name) as (container, relay):
        stream = container.streams.audio[0]
        promised = ffmpeg_promise(container, handle)
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        rate, seconds, reached = SAMPLE_RATE, 0.0, 0.0
        failure: Exception | None = None
        for frames, error in _ffmpeg_frames(container, relay):
            for frame in frames:
                if failure is not None and seconds > 0:
                    raise AudioError(name, f"is damaged after {seconds:.1f} s ({failure}); {_AGAIN}") from failure
                rate, failure = frame.sample_rate, None  # what fails before the first sound is a stream joined midway
                channels = frame.layout.nb_channels
                _check_format(name, rate, channels)
                samples = frame.to_ndarray()  # planar (C, N); packed (1, N * C)
                yield mix_down(samples if frame.format.is_planar else samples.reshape(-1, channels).T, name), rate
                seconds += frame.samples / rate
                # Pauses are gaps between timestamps, not missing sound, so progress is measured on the clock too.
                reached = max(reached, seconds, (frame.time or 0.0) - start + frame.samples / rate)
            failure = error or failure
        if failure is not None and seconds == 0:
            raise AudioError(name, f"is not audio that can be decoded ({failure})") from failure
        if promised is not None:
            _check_complete(name, promised, reached, 0.1 + _CODEC_SLACK / rate)
        # After the last frame of an mp3 come tags and padding of many kinds; elsewhere half a frame means a cut.
        if failure is not None and container.format.name != "mp3":
            problem = f"is truncated or damaged: it cannot be decoded past {seconds:.1f} s"
            raise AudioError(name, f"{problem} ({failure}); {_AGAIN}") from failure
