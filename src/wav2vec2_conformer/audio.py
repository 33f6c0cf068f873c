"""Any file, bytes or binary stream -> mono float32 waveform at 16 kHz, read in bounded blocks.

The way of a recording: source -> seekable binary file -> decoder (libsndfile, else FFmpeg inside PyAV) -> mean over
channels -> resampler (soxr HQ) -> blocks. Only local bytes are read: the decoders get an open file, never a URL. A
recording that stops early is an error wherever its format can tell (not: mp3 without a Xing frame, webm without a
duration, raw aac cut between two frames, w64).
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from .audio_decoding import (
    MAX_RATE,
    SAMPLE_RATE,
    AudioError,
    Waveform,
    container_layout,
    decode,
    ffmpeg_promise,
    mix_down,
    open_ffmpeg,
    open_soundfile,
)

# N samples, C channels

__all__ = [
    "AUDIO_SUFFIXES",
    "SAMPLE_RATE",
    "AudioError",
    "AudioHeader",
    "AudioSource",
    "audio_duration",
    "audio_files",
    "audio_header",
    "iter_audio",
    "iter_stored",
    "load_audio",
    "prepare_waveform",
    "source_name",
]

# fmt: off
AUDIO_SUFFIXES = frozenset({
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".mp4", ".webm", ".mka", ".aac",
    ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".amr", ".wma",
})
# fmt: on

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
_MAX_ARRAY_CHANNELS = 8  # 7.1 surround; an array with more rows is (samples, channels)
_SPOOL_BYTES = 32 << 20  # of a pipe in memory; the rest goes to a temporary file


def audio_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Audio files in a folder, or, if `deep`, at any depth below it, in the order of their paths.

    A link to nothing is among them, so that it is named as unreadable and not left out in silence.
    """
    paths = folder.rglob("*") if deep else folder.iterdir()
    named = (path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES)
    yield from sorted(path for path in named if path.is_file() or (path.is_symlink() and not path.exists()))


def iter_audio(
    source: AudioSource, *, block_seconds: float = 30.0, sample_rate: int = SAMPLE_RATE
) -> Iterator[Waveform]:
    """Decode a recording of any length block by block, in memory that does not grow with it.

    Yields (N,) float32 arrays at `sample_rate` Hz, each of round(block_seconds * sample_rate) samples, the last one of
    1 to that many; a recording without samples yields nothing. Raises `AudioError` when the source is missing, empty,
    not audio, damaged or truncated: the last two, where only decoding shows them, after the sound blocks.
    """
    _check_rate("sample_rate", sample_rate)
    size = round(block_seconds * sample_rate)
    if size < 1:
        raise AudioError("block_seconds", f"must hold at least one sample, got {block_seconds}; use 30.0")
    return _blocks(_resampled(source, sample_rate), size)


def load_audio(source: AudioSource, *, sample_rate: int = SAMPLE_RATE, max_seconds: float | None = None) -> Waveform:
    """Decode a whole recording.

    Returns a contiguous (N,) float32 array at `sample_rate` Hz. Raises `AudioError` as `iter_audio` does, and as soon
    as more than `max_seconds` seconds were decoded.
    """
    _check_rate("sample_rate", sample_rate)
    pieces, total = [np.zeros(0, np.float32)], 0
    with contextlib.closing(_resampled(source, sample_rate)) as decoded:
        for piece in decoded:
            pieces.append(piece)
            total += len(piece)
            if max_seconds is not None and total > max_seconds * sample_rate:
                problem = f"is longer than max_seconds={max_seconds:g}; cut it, raise the bound or use iter_audio"
                raise AudioError(source_name(source), problem)
    return np.concatenate(pieces)


def iter_stored(source: AudioSource) -> Iterator[tuple[Waveform, int]]:
    """Decode a recording as it is stored: (N,) float32 pieces, mean over channels, each with its rate in Hz.

    For looking at a recording itself: resampling would hide where it is clipped. Raises `AudioError` as `iter_audio`.
    """
    with _opened(source) as (handle, name):
        yield from decode(handle, name)


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What a recording's header says, which need not be true: a truncated file has the length that it promises.

    `duration` is in seconds, or None where the header does not say (mp3 without a Xing frame, raw aac, live webm);
    `sample_rate` in Hz; `format` names container and coding, such as "flac pcm_16" or "mp3".
    """

    duration: float | None
    sample_rate: int
    channels: int
    format: str


def audio_header(source: AudioSource) -> AudioHeader:
    """Read a recording's header, without decoding.

    Raises `AudioError` when the source cannot be opened as audio. A seekable stream is left where it was.
    """
    start = source.tell() if not isinstance(source, str | bytes | os.PathLike) and _seekable(source) else None
    try:
        with _opened(source) as (handle, name):
            layout = container_layout(handle)
            sound = open_soundfile(handle, layout, name)
            if sound is not None:
                with sound.file as file:
                    promised = float(file.frames / file.samplerate * layout.promised_per_present)
                    coding = f"{file.format} {file.subtype}".lower()
                    return AudioHeader(promised, file.samplerate, file.channels, coding)
            with open_ffmpeg(handle, name) as (container, _):
                codec = container.streams.audio[0].codec_context
                seconds = ffmpeg_promise(container, handle)
                return AudioHeader(seconds, codec.sample_rate or 0, codec.channels, codec.codec.canonical_name)
    finally:
        if start is not None:
            cast(BinaryIO, source).seek(start)


def audio_duration(source: AudioSource) -> float | None:
    """Read a recording's length in seconds from its header; None where the header does not say. As `audio_header`."""
    return audio_header(source).duration


def prepare_waveform(waveform: NDArray[Any], sample_rate: int, *, to_rate: int = SAMPLE_RATE) -> Waveform:
    """Turn an array of samples into what the models hear.

    Takes (N,) or (C, N) with C <= 8, floats in about [-1, 1] or int8, int16, int32, uint8 (scaled by their full range),
    at `sample_rate` Hz. Returns a new contiguous (N,) float32 array, mean over channels, at `to_rate` Hz. Raises
    `AudioError` for another shape or dtype, for samples that are not finite, and for rates that are not positive ints.
    """
    _check_rate("sample_rate", sample_rate)
    _check_rate("to_rate", to_rate)
    samples = np.asarray(waveform)
    if samples.ndim not in (1, 2):
        raise AudioError("waveform", f"must be (samples,) or (channels, samples), got shape {samples.shape}")
    if samples.ndim == 2 and not 1 <= samples.shape[0] <= _MAX_ARRAY_CHANNELS:
        remedy = f"transpose it if it is (samples, channels), else pick at most {_MAX_ARRAY_CHANNELS} channels"
        raise AudioError("waveform", f"must be (channels, samples), got shape {samples.shape}; {remedy}")
    mono = mix_down(np.atleast_2d(samples), "waveform")
    if sample_rate == to_rate:
        return np.array(mono)
    return np.ascontiguousarray(soxr.resample(mono, sample_rate, to_rate, "HQ"), np.float32)


# --- samples -------------------------------------------------------------------------------------------------------


def _check_rate(field: str, rate: int) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 0 < rate <= MAX_RATE:
        raise AudioError(field, f"must be an integer of 1 to {MAX_RATE} Hz, got {rate!r}")


def _resampled(source: AudioSource, to_rate: int) -> Generator[Waveform, None, None]:
    resampler, rate = None, to_rate
    with _opened(source) as (handle, name):
        for mono, piece_rate in decode(handle, name):
            if piece_rate != rate:  # at the start, and between the links of a chained stream
                if resampler is not None:
                    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                rate, resampler = piece_rate, None
                if rate != to_rate:
                    resampler = soxr.ResampleStream(rate, to_rate, 1, dtype="float32", quality="HQ")
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _blocks(pieces: Iterator[Waveform], size: int) -> Iterator[Waveform]:
    waiting: list[Waveform] = []
    missing = size
    for piece in pieces:
        while len(piece) >= missing:
            yield np.concatenate([*waiting, piece[:missing]])
            waiting, piece, missing = [], piece[missing:], size
        if len(piece):
            waiting.append(piece)
            missing -= len(piece)
    if waiting:
        yield np.concatenate(waiting)


# --- sources -------------------------------------------------------------------------------------------------------


def source_name(source: AudioSource) -> str:
    """What messages call a source: its path, or that it is bytes or a stream."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<bytes>" if isinstance(source, bytes) else "<stream>"


def _seekable(stream: BinaryIO) -> bool:
    return bool(getattr(stream, "seekable", lambda: False)())


@contextlib.contextmanager
def _opened(source: AudioSource) -> Iterator[tuple[BinaryIO, str]]:
    """The source as a seekable binary file that is not empty, at its start, and its name for messages."""
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(source, str | os.PathLike):
                handle = stack.enter_context(_open_path(name))
            elif isinstance(source, bytes):
                handle = cast(BinaryIO, io.BytesIO(source))
            elif hasattr(source, "read"):
                handle = source
            else:
                got = type(source).__name__
                raise AudioError(
                    name, f"must be a path, bytes or binary stream, got {got}; prepare_waveform takes arrays"
                )
            if not isinstance(handle.read(0), bytes):
                raise AudioError(name, "must be a binary stream, got one that reads text; open it in mode 'rb'")
            if not _seekable(handle) or handle.tell() != 0:  # a pipe, or a stream whose audio starts further on
                handle = _spooled(handle, stack)
            if handle.seek(0, os.SEEK_END) == 0:
                raise AudioError(name, "is empty (0 bytes)")
            handle.seek(0)
            yield handle, name
        except OSError as error:
            raise AudioError(name, f"cannot be read ({error.strerror or error})") from error


def _open_path(name: str) -> BinaryIO:
    try:
        # Unbuffered: the file's descriptor is handed to libsndfile, which must see the same position.
        return cast(BinaryIO, open(name, "rb", buffering=0))
    except FileNotFoundError as error:
        remedy = "; only local files are read, download it first" if "://" in name else ""
        raise AudioError(name, f"file does not exist{remedy}") from error
    except IsADirectoryError as error:
        raise AudioError(name, "is a directory; expected an audio file") from error
    except PermissionError as error:
        raise AudioError(name, "cannot be read: permission denied") from error
    except ValueError as error:  # a NUL in the name
        raise AudioError(name, f"is not a file name ({error})") from error


def _spooled(stream: BinaryIO, stack: contextlib.ExitStack) -> BinaryIO:
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 (the stack closes it)
    stack.enter_context(spool)
    while chunk := stream.read(1 << 16):
        spool.write(chunk)
    return cast(BinaryIO, spool)
