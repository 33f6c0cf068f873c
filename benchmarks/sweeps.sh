#!/usr/bin/env bash
# All sweeps of a CPU, in about an hour where nothing else runs: results as JSON, and tables and pictures of them.
#     bash benchmarks/sweeps.sh [RESULTS_DIR]
# Run from the project's root with the extra `benchmarks` installed. What RESULTS_DIR holds already is not measured again.
set -eu
results=${1:-benchmarks/results/cpu}
measure() { # NAME TASK OPTION...; one that fails leaves the others alone
    name=$1
    shift
    python benchmarks/run.py "$@" --output "$results/$name.json" || echo "$name: not measured" >&2
}
torch="transformers-sdpa ours ours-bfloat16 ours-int8"
every="transformers-sdpa onnxruntime openvino openvino-bfloat16 ours ours-bfloat16 ours-int8"
measure large inference --positions relative rotary --seconds 15 --rounds 3 --peers $torch
measure lengths inference --size base --positions relative rotary --seconds 1 5 15 --rounds 2 --peers $every
# Without the exported models: ONNX Runtime keeps 10 GB after a minute of audio, and nothing else has room beside it.
measure minute inference --size base --positions relative rotary --seconds 60 --rounds 1 --peers $torch
measure minute-large inference --positions relative --seconds 60 --rounds 1 --peers $torch
measure mixed-default mixed --size default --rounds 3 --peers $torch
measure pretraining pretraining --size base --positions relative --seconds 15 --batch 2 --rounds 2 \
    --peers transformers-sdpa ours ours-bfloat16
measure ctc ctc --size base --positions relative rotary --seconds 15 --batch 2 --rounds 2 \
    --peers transformers-sdpa ours ours-bfloat16
measure batches inference --size base --positions rotary --seconds 5 --batch 1 8 32 --rounds 2 --peers $torch
measure threads inference --size base --positions relative rotary none --seconds 15 --threads 1 --rounds 3 --peers $torch
measure compiled inference --size default --positions rotary --seconds 1 15 --rounds 7 \
    --peers transformers-sdpa transformers-compiled ours ours-compiled
measure mixed-base mixed --size base --rounds 1 --peers transformers-sdpa ours
python benchmarks/report.py "$results"/*.json --plots "$results/pictures" > "$results/README.md"
