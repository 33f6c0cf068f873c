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
    --output $work/model --batch-seconds 40 --epochs 12 --learning-rate 1e-3 --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5
wav2vec2-conformer evaluate sequence --model $work/model --data $work/data/val.jsonl --report $work/report
cp $work/model/report.png $here/curves.png
