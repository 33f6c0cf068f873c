"""WER and CER of a model on manifests, one JSON object each.

python recipes/default-model/evaluate.py --model MODEL A.jsonl [B.jsonl ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wav2vec2_conformer import AudioError, Transcriber
from wav2vec2_conformer.data import read_manifest
from wav2vec2_conformer.evaluation import ErrorRates


def main() -> None:
    """Transcribe, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (default: the package's)")
    parser.add_argument("--worst", type=int, default=0, help="print this many of the worst utterances")
    parser.add_argument("manifests", nargs="+")
    options = parser.parse_args()
    transcriber = Transcriber.from_pretrained(options.model)
    for manifest in options.manifests:
        utterances = read_manifest(manifest, require="text")
        rates, rows = ErrorRates(), []
        results = transcriber.transcribe_many(utterance.audio for utterance in utterances)
        for utterance, result in zip(utterances, results, strict=True):
            if isinstance(result, AudioError):
                raise result
            before = rates.word_errors
            rates.add(utterance.text or "", result.text)
            rows.append((rates.word_errors - before, utterance.text, result.text))
        figures = {
            "manifest": Path(manifest).stem,
            "utterances": rates.utterances,
            "words": rates.words,
            "WER %": round(100 * rates.wer, 2),
            "CER %": round(100 * rates.cer, 2),
        }
        print(json.dumps(figures), flush=True)
        for errors, reference, hypothesis in sorted(rows, reverse=True)[: options.worst]:
            print(f"    {errors} errors\n      {reference}\n      {hypothesis}")


if __name__ == "__main__":
    main()
