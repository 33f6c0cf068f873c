#!/usr/bin/env bash
# Speaker verification, judged on 36 speakers who are in no data with names.
#     bash recipes/verification/train.sh ../shared/data
# Run from the project's root in its environment, after recipes/pretraining/train.sh, whose model it starts from.
set -eu
data=${1:-../shared/data}
work=runs/verification
here=recipes/verification
python $here/prepare.py --data "$data" --output $work/data
wav2vec2-conformer train xvector --preset $here/preset.toml --init runs/pretraining/start --output $work/model \
    --train $work/data/train.jsonl --dev $work/data/dev.jsonl --bf16 --cache-gb 1.5
wav2vec2-conformer evaluate xvector --model $work/model --report $work/report \
    --data $work/data/speechocean762-held-out.jsonl $work/data/librispeech-held-out.jsonl
cp $work/model/report.png $here/curves.png
