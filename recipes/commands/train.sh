#!/usr/bin/env bash
# Keyword spotting: 40 command words, judged on six speakers who are in no training data.
#     bash recipes/commands/train.sh ../shared/data
# Run from the project's root in its environment.
set -eu
data=${1:-../shared/data}
work=runs/commands
here=recipes/commands
python $here/prepare.py --data "$data" --output $work/data
wav2vec2-conformer train sequence --train $work/data/train.jsonl --dev $work/data/dev.jsonl --init default \
    --output $work/model --batch-seconds 40 --epochs 16 --learning-rate 1e-3 --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5
wav2vec2-conformer evaluate sequence --model $work/model --data $work/data/val.jsonl --report $work/report-model
cp $work/model/report.png $here/curves.png

# What is the start worth? Half as many epochs from pre-training (after recipes/pretraining/train.sh) and from nothing.
for start in ${STARTS:-}; do
    wav2vec2-conformer train sequence --train $work/data/train.jsonl --dev $work/data/dev.jsonl \
        --init runs/pretraining/$start --output $work/$start --batch-seconds 40 --epochs 8 --learning-rate 1e-3 \
        --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5
    wav2vec2-conformer evaluate sequence --model $work/$start --data $work/data/val.jsonl
done
