#!/usr/bin/env bash
# Speaker verification, judged on 36 speakers who are in no data with names.
#     bash recipes/verification/train.sh ../shared/data
# Run from the project's root in its environment, after recipes/pretraining/train.sh, whose last checkpoint it starts from.
set -eu
data=${1:-../shared/data}
work=runs/verification
here=recipes/verification
python $here/prepare.py --data "$data" --output $work/data
train() { # preset, start, output
    wav2vec2-conformer train xvector --preset "$here/$1.toml" --init "$2" --output "$3" \
        --train $work/data/train.jsonl --dev $work/data/dev.jsonl --bf16 --cache-gb 1.5
}
last=$(ls -d runs/pretraining/model/checkpoint-* | sort -V | tail -1)
cp runs/pretraining/model/preprocessor_config.json "$last"
python recipes/pretraining/start.py --model "$last" --config recipes/default-model/config.json \
    --output runs/pretraining/start-last
train preset runs/pretraining/start-last $work/first
train second $work/first $work/model
wav2vec2-conformer evaluate xvector --model $work/model --report $work/report \
    --data $work/data/speechocean762-held-out.jsonl $work/data/librispeech-held-out.jsonl
cp $work/model/report.png $here/curves.png
