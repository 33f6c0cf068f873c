#!/usr/bin/env bash
# The default model, from manifests to weights: about 100 minutes on 2 cores.
# Run from the project's root; espeak-ng must be installed.
set -eu
data=${1:-../shared/data}
work=runs/default
python recipes/default-model/prepare.py --data "$data" --output $work/data
python recipes/default-model/initial_model.py --config recipes/default-model/config.json \
    --manifest $work/data/an4-train.jsonl --output $work/initial
an4=$work/data/an4-train.jsonl
digits=$work/data/digits-train.jsonl
wav2vec2-conformer train ctc \
    --train $an4 $an4 $an4 $an4 $digits $digits $work/data/{synthetic-train,speechocean762-train,librispeech-short}.jsonl \
    --dev $work/data/an4-dev.jsonl --init $work/initial --output $work/model \
    --epochs 8 --batch-seconds 45 --learning-rate 1.5e-3 --warmup 0.08 --clip 2 --evaluate-every 250
