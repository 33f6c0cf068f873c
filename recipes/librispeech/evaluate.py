"""A checkpoint's WER on LibriSpeech's test sets, beside the published one.

    python recipes/librispeech/evaluate.py --librispeech LibriSpeech \\
        [--model facebook/wav2vec2-conformer-rope-large-960h-ft]

`LibriSpeech` is the unpacked corpus (https://www.openslr.org/12), of which `test-clean` and `test-other` are read.
Greedy decoding. Prints a table; manifests and the report of each set lie in --output (runs/librispeech) afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path

from wav2vec2_conformer.cli import main as command

# Greedy WER %, test-clean / test-other: Wang et al. 2020, "fairseq S2T", table of the wav2vec 2.0 conformer models.
PUBLISHED = {
    "facebook/wav2vec2-conformer-rel-pos-large-960h-ft": (1.85, 3.83),
    "facebook/wav2vec2-conformer-rope-large-960h-ft": (1.96, 3.98),
}
SETS = ("test-clean", "test-other")


def main() -> None:
    """Prepare, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--librispeech", type=Path, required=True)
    parser.add_argument("--model", default="facebook/wav2vec2-conformer-rope-large-960h-ft")
    parser.add_argument("--output", type=Path, default=Path("runs/librispeech"))
    parser.add_argument("--device")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    device = ["--device", options.device] if options.device else []
    print("| set | utterances | WER % | 95 % interval | published |\n|---|---|---|---|---|")
    for index, name in enumerate(SETS):
        manifest = options.output / f"{name}.jsonl"
        prepare = ["data", "prepare", "librispeech", str(options.librispeech / name), "--output", str(manifest)]
        run([*prepare, "--force"])
        evaluate = ["evaluate", "ctc", "--model", options.model, "--data", str(manifest), "--json", *device]
        found = json.loads(run([*evaluate, "--report", str(options.output / name)]))
        wer, published = found["figures"]["wer"], PUBLISHED.get(options.model)
        low, high = (f"{100 * value:.2f}" for value in wer["interval"])
        beside = f"{published[index]:.2f}" if published else "-"
        print(f"| {name} | {found['utterances']} | {100 * wer['value']:.2f} | {low} to {high} | {beside} |", flush=True)


def run(arguments: list[str]) -> str:
    """Run a command of the package; what it wrote to stdout."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        code = command(arguments)
    if code:
        raise SystemExit(code)
    return written.getvalue()


if __name__ == "__main__":
    main()
