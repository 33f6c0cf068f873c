"""Recordings of any length -> who speaks when.

The network says for each frame of a window which of its few outputs speak. Which speaker an output stands for is the
network's choice, anew in each window; the windows overlap, and what both hear there tells which output of one continues
which of the other. Or the network only says how many speak, and a speaker model tells who they are (`voices`).
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import networkx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audio import SAMPLE_RATE, AudioError
from .data import Segment, find_segments
from .lengths import frame_edges
from .loading import label_names, load_head, usable_device
from .modeling import Wav2Vec2ConformerForAudioFrameClassification
from .recordings import (
    BATCH_SECONDS,
    Progress,
    Recording,
    Source,
    Window,
    WindowedModel,
    checked_source,
    only_result,
)
from .verification import SpeakerEncoder
from .voices import Activity, Part, Voices

# B batch, N samples, T frames, C outputs of the network, S speakers among them

__all__ = ["Diarizer", "match_speakers", "median_filter"]

logger = logging.getLogger(__name__)

WINDOW = 30.0  # seconds
OVERLAP = 15.0  # seconds that neighbouring windows share: long enough for both sides of a conversation to speak
SILENCE = {"silence", "sil", "nonspeech", "nospeech"}  # names of a class in which nobody speaks, letters only


@dataclass(slots=True)
class _Recording(Recording):
    """With who speaks in the frames so far, and the last window, whose end the next one shares.

    With a speaker model: with how many speak, and the parts in which one does.
    """

    activity: list[Activity] = field(default_factory=list)  # (T, S) each
    open: NDArray[np.float32] | None = None  # (T, C) probabilities from `open_frame` on
    open_frame: int = 0
    counts: list[NDArray[np.int64]] = field(default_factory=list)  # (T,) each
    parts: list[Part] = field(default_factory=list)
    counted: int = 0  # frames


class Diarizer(WindowedModel[_Recording, list[Segment]]):
    """Says who speaks when.

    Under `problem_type="multi_label_classification"` each output of the network is a speaker, and several can speak at
    once: an output speaks where its probability is above `threshold`. Otherwise a frame has one class, the most
    probable one, and a class called "silence" or "non-speech" is nobody.

    Recordings longer than 30 s are cut into windows that share 15 s with their neighbours. There the outputs of the two
    windows are matched one to one, so that they agree in as many frames as possible, and their probabilities are
    averaged; outputs that nothing tells apart keep their order. So speakers keep their names as long as they are heard
    in the shared part, or all others are. Someone who is silent there may come back under another's name, and there
    are never more speakers in a recording than the network has outputs, however many people speak.

    Args:
        model: a frame classification model.
        normalize: whether waveforms are normalised, as its feature extractor says; each window alone.
        device: where to compute.
        batch_seconds: seconds of audio, padding included, that the network sees at once; at least one window of up to
            30 s.
        compute_type: "float32", "bfloat16", "float16" or "int8", to which the model is converted in place.
        threshold: the probability above which an output of a multi-label model speaks.
        median: frames, an odd number, of the median filter that takes out blips and gaps of up to half its width: 11
            (0.2 s at 20 ms a frame) is usual in the literature; 1 filters nothing.
        min_speech: seconds; shorter segments are dropped.
        min_silence: seconds; shorter gaps between segments of a speaker are closed, before that.
        voices: a speaker model, and how many people speak in a recording.

    Raises:
        ValueError: a setting outside its range, or `id2label` of the model's configuration does not name its outputs.
    """

    nothing_heard = "no segments"

    def __init__(
        self,
        model: Wav2Vec2ConformerForAudioFrameClassification,
        *,
        normalize: bool,
        device: str | torch.device = "cpu",
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
        threshold: float = 0.5,
        median: int = 11,
        min_speech: float = 0.0,
        min_silence: float = 0.0,
        voices: Voices | None = None,
    ) -> None:
        check_settings(threshold, median, min_speech, min_silence)
        super().__init__(
            model, normalize=normalize, device=device, batch_seconds=batch_seconds, compute_type=compute_type
        )
        self.threshold, self.median = threshold, median
        self.min_speech, self.min_silence = min_speech, min_silence
        self.voices = voices
        names = label_names(model.config)
        self.multi_label = model.config.problem_type == "multi_label_classification"
        silent = {} if self.multi_label else {name for name in names if re.sub("[^a-z]", "", name.lower()) in SILENCE}
        self.speakers = [number for number, name in enumerate(names) if name not in silent]
        self.names = [names[number] for number in self.speakers]
        if not self.multi_label and not silent:
            logger.warning(
                "the model's `problem_type` is not multi_label_classification and none of its labels is called "
                "silence, so that somebody speaks in every frame"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        batch_seconds: float = BATCH_SECONDS,
        compute_type: str = "float32",
        speaker_model: str | os.PathLike[str] | None = None,
        speakers: int | None = None,
        **settings: Any,
    ) -> Self:
        """Load a model, and a speaker model where one is to tell the speakers apart.

        Args:
            model: a folder, such as `train frame` leaves, or a Hub id.
            speaker_model: another, such as `train xvector` leaves; needs `speakers`.
            speakers: how many people speak in a recording; only with `speaker_model`.
            device: `None`: a CUDA device if there is one, else the CPU.
            batch_seconds: as in the constructor.
            compute_type: "float32", "bfloat16", "float16" or, on a CPU, "int8"; measured when loaded, see `conversion`.
            settings: `threshold`, `median`, `min_speech` and `min_silence`, as in the constructor.

        Raises:
            ValueError: as the constructor and `load_head` raise it: a setting outside its range, no model, a damaged
                one, or one of another kind.
            OSError: there is no such model on the Hub, or it cannot be reached.
        """
        device = usable_device(device)  # before anything is loaded
        if (speaker_model is None) != (speakers is None):
            raise ValueError(
                "`speaker_model` and `speakers` belong together: what tells voices apart, and how many people speak in "
                f"a recording; got {speaker_model} and {speakers}"
            )
        network, normalize = load_head(model, Wav2Vec2ConformerForAudioFrameClassification, purpose="diarize with")
        if speaker_model is not None and speakers is not None:
            encoder = SpeakerEncoder.from_pretrained(
                speaker_model, device=device, batch_seconds=batch_seconds, compute_type=compute_type
            )
            settings["voices"] = Voices(encoder, speakers)
        return cls(
            network,
            normalize=normalize,
            device=device,
            batch_seconds=batch_seconds,
            compute_type=compute_type,
            **settings,
        )

    def diarize(self, source: Source, *, sample_rate: int | None = None) -> list[Segment]:
        """Who speaks when in one recording: segments in order of time, empty where nobody speaks.

        The outputs of a multi-label model stand for nobody in particular: its speakers are speaker_1, speaker_2 and so
        on, as they come to speak. Otherwise they have the classes' names.

        Args:
            source: a path, the bytes of a file, a binary stream, or an array (N,) or (channels, N) of samples.
            sample_rate: of an array, in Hz; needed there and refused elsewhere.

        Raises:
            AudioError: it is missing, empty, truncated or no audio.
            ValueError: an array without `sample_rate`, or a file with one.
        """
        return only_result(self.diarize_many([checked_source(source, sample_rate, "diarize")]))

    def diarize_many(
        self, sources: Iterable[Source], *, progress: Progress | None = None
    ) -> Iterator[list[Segment] | AudioError]:
        """Segments of recordings, one list each and in their order, as soon as each is done.

        A recording that cannot be read gives its `AudioError` in place of a list; the others go on. Arrays are taken to
        be mono at 16 kHz.

        Args:
            sources: as in `diarize`.
            progress: called with the seconds of audio that have gone through since the last call.
        """
        return self._results(sources, progress, window=WINDOW, overlap=OVERLAP)

    def _begin(self, name: str) -> _Recording:
        return _Recording(name)

    def _outputs(self, values: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(values, mask).logits.float()  # (B, T, C)
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def _add(self, window: Window[_Recording], output: Tensor) -> None:
        """Append a window's (T, C) probabilities to its recording."""
        recording, probabilities = window.recording, output[: window.frames].numpy().copy()
        if self.voices is not None:
            self._count(window, self.voices, self._active(probabilities))
            return
        if recording.open is not None:
            begin = window.first_frame - recording.open_frame
            before = recording.open[begin:]
            recording.activity.append(self._active(recording.open[:begin]))
            shared = min(len(before), len(probabilities))
            order = match_speakers(self._active(before[:shared]), self._active(probabilities[:shared]))
            probabilities[:, self.speakers] = probabilities[:, self.speakers][:, order]
            probabilities[:shared] = (before[:shared] + probabilities[:shared]) / 2
        if window.last:
            recording.activity.append(self._active(probabilities))
            recording.open = None
        else:
            recording.open, recording.open_frame = probabilities, window.first_frame

    def _count(self, window: Window[_Recording], voices: Voices, activity: Activity) -> None:
        """Take from a window how many speak and what they sound like, up to the middle of what the next one shares."""
        recording, config = window.recording, self.model.config
        activity = median_filter(activity, self.median)
        shared = round(OVERLAP * SAMPLE_RATE) // self.stride
        own = slice(recording.counted - window.first_frame, window.frames - (0 if window.last else shared // 2))
        edges = frame_edges(window.frames, len(window.samples), config)
        recording.parts += voices.parts(window.samples, edges, activity, own, window.first_frame)
        recording.counts.append(activity[own].sum(1))
        recording.counted = window.first_frame + own.stop

    def _active(self, probabilities: NDArray[np.float32]) -> Activity:
        """(T, C) probabilities -> (T, S), who speaks."""
        if self.multi_label:
            return probabilities > self.threshold
        chosen: Activity = probabilities.argmax(-1)[:, None] == np.array(self.speakers, np.int64)
        return chosen

    def _result(self, recording: _Recording) -> list[Segment]:
        if self.voices is not None:
            activity = self.voices.activity(recording.parts, np.concatenate(recording.counts))
        else:
            activity = median_filter(np.concatenate(recording.activity), self.median)
        edges = frame_edges(len(activity), recording.samples, self.model.config) / SAMPLE_RATE
        found = find_segments(activity, edges, min_speech=self.min_speech, min_silence=self.min_silence)
        names = dict(enumerate(self.names))
        if self.multi_label or self.voices is not None:
            by_appearance = dict.fromkeys(speaker for _, _, speaker in found)
            names = {speaker: f"speaker_{number}" for number, speaker in enumerate(by_appearance, start=1)}
        return [Segment(start, end, names[speaker]) for start, end, speaker in found]


def match_speakers(before: Activity, after: Activity) -> NDArray[np.int64]:
    """Which columns of a window continue the columns of the window before it.

    Args:
        before: (T, S) who speaks in the frames that both windows have, as the earlier one says.
        after: (T, S) as the later one says.

    Returns:
        (S,) for each column of `before` another one of `after`, so that the two are active together in as many frames
        as possible; among equally good ways, one that leaves as many columns as possible in their places. (That is also
        where they differ in the fewest frames: |a - b| = a + b - 2 a b, whose first two sums are the same for all.)
    """
    speakers = before.shape[1]
    together = before.T.astype(np.int64) @ after.astype(np.int64)  # (S, S) frames
    # One frame outweighs all places; and every weight is positive, so that no column stays alone.
    weights = together * (speakers + 1) + 1 + np.eye(speakers, dtype=np.int64)
    graph = networkx.Graph()
    for row in range(speakers):
        graph.add_weighted_edges_from((row, speakers + column, int(weights[row, column])) for column in range(speakers))
    order = np.arange(speakers)
    for pair in networkx.max_weight_matching(graph):
        order[min(pair)] = max(pair) - speakers
    return order


def median_filter(activity: Activity, width: int) -> Activity:
    """(T, S) the median of `width` (odd) frames around each frame; beyond the ends, the outermost frames go on."""
    if width == 1 or not len(activity):
        return activity
    half = width // 2
    padded = np.pad(activity, ((half + 1, half), (0, 0)), mode="edge")
    counts = padded.cumsum(0)
    median: Activity = counts[width:] - counts[:-width] > half
    return median


def check_settings(threshold: float, median: int, min_speech: float, min_silence: float) -> None:
    """Refuse settings outside their ranges with a `ValueError`."""
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must be a probability between 0 and 1, got {threshold}; 0.5 is usual")
    if median < 1 or median % 2 == 0:
        raise ValueError(f"`median` must be an odd number of frames, got {median}; 11 is usual, 1 filters nothing")
    for name, seconds in (("min_speech", min_speech), ("min_silence", min_silence)):
        if not 0 <= seconds < math.inf:
            raise ValueError(f"`{name}` must be a number of seconds from 0 up, got {seconds}; 0 changes nothing")
