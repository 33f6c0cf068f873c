#!/usr/bin/env bash
# The sweeps of a GPU, by default of an H200 (989 TFLOP/s in half precision without sparsity): results as JSON, and tables.
#     bash benchmarks/sweeps-gpu.sh RESULTS_DIR [PEAK_TFLOPS]
# Run from the project's root. What RESULTS_DIR holds already is not measured again. Not yet run on a GPU.
set -eu
results=$1
peak=${2:-989}
measure() { # NAME TASK OPTION...; one that fails leaves the others alone
    name=$1
    shift
    python benchmarks/run.py "$@" --device cuda --peak-tflops "$peak" --output "$results/$name.json" ||
        echo "$name: not measured" >&2
}
peers="transformers-eager transformers-sdpa transformers-compiled ours ours-compiled"
for dtype in bfloat16 float16; do
    measure inference-$dtype inference --dtype $dtype --positions relative rotary --seconds 1 5 15 30 --batch 1 8 32 \
        --rounds 5 --peers $peers
done
measure mixed mixed --dtype bfloat16 --size large --positions relative rotary --clips 512 --batch-seconds 480 --rounds 3 \
    --peers $peers
for batch in 8 16 24; do
    measure pretraining-$batch pretraining --dtype bfloat16 --size large --positions relative rotary --batch $batch \
        --rounds 3 --peers transformers-eager transformers-sdpa ours
done
python benchmarks/report.py "$results"/*.json > "$results/README.md"
