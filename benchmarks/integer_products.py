"""Products of 8-bit integers in each way that torch has, and the same in bfloat16 and float32.

    python benchmarks/integer_products.py [--threads 2]

Where oneDNN has no kernel for signed rows, that column is some thousand times slower than the one for shifted rows
(1 to 255 with 128 for zero), and measured once, by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from linear import measure
from torch import Tensor

from wav2vec2_conformer.modeling.packed import PackedLinear
from wav2vec2_conformer.modeling.quantized import PackedProduct, PackedShiftedProduct, PlainProduct

# (rows, inputs, outputs)
CASES = [(49, 768, 3072), (49, 3072, 768), (128, 1024, 1024), (749, 1024, 1024)]  # small: a reference kernel is slow
KINDS = {"signed, packed": PackedProduct, "shifted, packed": PackedShiftedProduct, "plain": PlainProduct}


def main() -> None:
    """Print one JSON object a size: GFLOP/s of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    with torch.inference_mode():
        for rows, inputs, outputs in CASES:
            signed, weight = (
                torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((rows, inputs), (outputs, inputs))
            )
            scale = torch.ones(outputs)
            expected = (signed.double() @ weight.double().t()).float()
            ways: dict[str, Callable[[], Tensor]] = {}
            for name, kind in KINDS.items():
                ways[name] = partial(kind(weight), (signed.short() + kind.zero).to(kind.rows), scale)
                torch.testing.assert_close(ways[name](), expected)
            x, wide = signed.float(), weight.float()
            half, narrow = x.bfloat16(), wide.bfloat16()
            ways |= {
                "bfloat16, packed": partial(PackedLinear(wide, None), half),
                "bfloat16": partial(F.linear, half, narrow),
                "float32": partial(F.linear, x, wide),
            }
            work = 2e-6 * rows * inputs * outputs  # GFLOP a second, of milliseconds
            slow = {"signed, packed": ways.pop("signed, packed")}
            taken = measure(ways) | measure(slow, rounds=1)
            rates = {name: round(work / ms, 1) for name, ms in taken.items()}
            print(json.dumps({"case": [rows, inputs, outputs], "GFLOP/s": rates}), flush=True)


if __name__ == "__main__":
    main()
