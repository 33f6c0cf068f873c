"""Finding the processor (feature extractor and tokenizer) that belongs to a model."""

from __future__ import annotations

from transformers import Wav2Vec2Processor

__all__ = ["load_processor"]


def load_processor(model: str) -> Wav2Vec2Processor | None:
    """The processor saved beside a model (a folder or a Hub id), or None where there is none."""
    try:
        processor = Wav2Vec2Processor.from_pretrained(model)
    except (OSError, TypeError, ValueError):
        return None
    return processor if isinstance(processor, Wav2Vec2Processor) else None
