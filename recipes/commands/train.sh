#!/usr/bin/env bash
# Keyword spotting: 40 command words, judged on six speakers who are in no training data.
#     bash recipes/commands/train.sh ../shared/data
# Run from the project's root in its environment, after recipes/pretraining/train.sh, whose model it starts from.
set -eu
data=${1:-../shared/data}
work=runs/commands
here=recipes/commands
python $here/prepare.py --data "$data" --output $work/data
wav2vec2-conformer train sequence --train $work/data/train.jsonl --dev $work/data/dev.jsonl --init runs/pretraining/start \
    --output $work/model --batch-seconds 40 --epochs 8 --learning-rate 1e-3 --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5
# The same without pre-training, to compare.
wav2vec2-conformer train sequence --train $work/data/train.jsonl --dev $work/data/dev.jsonl --init runs/pretraining/initial \
    --output $work/scratch --batch-seconds 40 --epochs 8 --learning-rate 1e-3 --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5
for name in model scratch; do
    wav2vec2-conformer evaluate sequence --model $work/$name --data $work/data/val.jsonl --report $work/report-$name
done
cp $work/model/report.png $here/curves.png
