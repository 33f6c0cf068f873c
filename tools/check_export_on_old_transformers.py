"""Check exported models with another version of transformers, in an environment of its own: 4.34.0 above all.

    python3 -m venv old && old/bin/pip install torch 'transformers==4.34.0' 'numpy<2' safetensors
    .venv/bin/python tools/check_export_on_old_transformers.py write folder
    old/bin/python tools/check_export_on_old_transformers.py check folder

`write`, run where this package is installed, exports the models of `tests/parity/export_cases.py` and the one that the
package carries; beside each exported folder lies an .npz with a waveform and what our model computes of it, in the
waveform's precision. `check` loads each folder by transformers' class and compares. Its exit code is 1 if a key is
missing or unexpected, if config.json has a field that this version does not know, or if an output differs by more than
1e-10 of its scale (1e-5 in float32, for the model that the package carries).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

TOLERANCES = {"float32": 1e-5, "float64": 1e-10}  # of the largest number
ONLY_IN_5 = {"tie_last_hidden_states"}  # without effect in 4.x, which computes what it says
TEXT = "ENTER SEVEN FOUR"


def write(folder: Path) -> int:
    """Export, and store what ours computes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from parity.export_cases import CASES, WAVEFORM, build, outputs
    from wav2vec2_conformer import Transcriber
    from wav2vec2_conformer.checkpoints.transformers_export import export_transformers
    from wav2vec2_conformer.processing import DEFAULT_MODEL

    folder.mkdir(parents=True)
    for name, case in CASES.items():
        model = build(case)
        model.save_pretrained(folder / "ours")
        export_transformers(folder / "ours", folder / name)
        np.savez(folder / f"{name}.npz", waveform=WAVEFORM, **outputs(model.double(), WAVEFORM))
    export_transformers(DEFAULT_MODEL, folder / "default")
    default = Transcriber.from_pretrained(device="cpu")
    waveform = torch.randn((1, 20_000), generator=torch.Generator().manual_seed(0))
    ids = default.tokenizer(TEXT).input_ids
    np.savez(folder / "default.npz", waveform=waveform, **outputs(default.model, waveform), ids=ids)
    return 0


def check(folder: Path) -> int:
    """Load each folder and compare with what is stored beside it."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        sys.exit(f"{folder}: no .npz files; `write` makes them")
    problems, largest = 0, dict.fromkeys(TOLERANCES, 0.0)
    for file in files:
        stored = dict(np.load(file))
        precision = stored["waveform"].dtype.name
        found, difference = compare(file.with_suffix(""), stored)
        largest[precision] = max(largest[precision], difference)
        problems += len(found)
        for problem in found:
            print(f"{file.stem}: {problem}")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    differences = ", ".join(f"{value:.1e} in {precision}" for precision, value in largest.items())
    print(f"{len(files)} models, {problems} problems, largest differences {differences}; {versions}")
    return 1 if problems else 0


def compare(folder: Path, stored: dict[str, Any]) -> tuple[list[str], float]:
    """What is wrong with an exported folder, and the largest difference to the stored outputs."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    peer = getattr(transformers, settings["architectures"][0])
    model, info = peer.from_pretrained(str(folder), output_loading_info=True)
    problems = [f"{kind}: {sorted(map(str, keys))}" for kind, keys in info.items() if keys]
    known = {*transformers.Wav2Vec2ConformerConfig().to_dict(), "torch_dtype"} | ONLY_IN_5
    problems += [f"config.json: {field} is no field" for field in sorted(settings.keys() - known)]
    tolerance = TOLERANCES[stored["waveform"].dtype.name]
    waveform = torch.from_numpy(stored.pop("waveform"))
    with torch.no_grad():
        output = model.eval().to(waveform.dtype)(waveform, output_hidden_states=True)
    ids, largest = stored.pop("ids", None), 0.0
    if ids is not None:
        processor = transformers.Wav2Vec2Processor.from_pretrained(str(folder))
        if processor.tokenizer(TEXT).input_ids != ids.tolist() or processor.decode(ids) != TEXT:
            problems.append("the tokenizer has other letters")
    for name, expected in stored.items():
        field, _, index = name.partition(".")
        found = (output[field][int(index)] if index else output[field]).numpy()
        difference = float(abs(found - expected).max() / abs(expected).max())
        largest = max(largest, difference)
        if not difference <= tolerance:  # nor NaN
            problems.append(f"{name} differs by {difference:.1e} of scale")
    return problems, largest


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["write", "check"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return {"write": write, "check": check}[options.step](options.folder)


if __name__ == "__main__":
    sys.exit(main())
