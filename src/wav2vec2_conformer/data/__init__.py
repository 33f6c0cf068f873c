"""Manifests, vocabularies, datasets, batches: from recordings with transcripts to what the model trains on."""

from .augmentation import Augmentation, add_noise, change_speed, narrow_band
from .batching import LengthBucketSampler
from .collation import (
    LABEL_PADDING,
    ClassBatch,
    ClassCollator,
    CTCBatch,
    CTCCollator,
    FrameBatch,
    FrameCollator,
    PretrainingBatch,
    PretrainingCollator,
    frames_needed,
    speaker_activity,
)
from .dataset import SkippedItem, SpeechDataset, SpeechItem, normalize_waveform
from .manifest import ManifestError, Utterance, normalize_text, read_manifest, read_recordings
from .segments import Segment, SegmentError, find_segments, read_rttm, rttm_lines, speakers_of
from .vocabulary import (
    PAD_TOKEN,
    SPECIAL_TOKENS,
    UNKNOWN_TOKEN,
    WORD_DELIMITER,
    TextEncoder,
    build_feature_extractor,
    build_processor,
    build_vocabulary,
    check_coverage,
)

__all__ = [
    "LABEL_PADDING",
    "PAD_TOKEN",
    "SPECIAL_TOKENS",
    "UNKNOWN_TOKEN",
    "WORD_DELIMITER",
    "Augmentation",
    "CTCBatch",
    "CTCCollator",
    "ClassBatch",
    "ClassCollator",
    "FrameBatch",
    "FrameCollator",
    "LengthBucketSampler",
    "ManifestError",
    "PretrainingBatch",
    "PretrainingCollator",
    "Segment",
    "SegmentError",
    "SkippedItem",
    "SpeechDataset",
    "SpeechItem",
    "TextEncoder",
    "Utterance",
    "add_noise",
    "build_feature_extractor",
    "build_processor",
    "build_vocabulary",
    "change_speed",
    "check_coverage",
    "find_segments",
    "frames_needed",
    "narrow_band",
    "normalize_text",
    "normalize_waveform",
    "read_manifest",
    "read_recordings",
    "read_rttm",
    "rttm_lines",
    "speaker_activity",
    "speakers_of",
]
