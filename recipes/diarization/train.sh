#!/usr/bin/env bash
# Diarization of simulated conversations of two speakers, judged on speakers who are in no training conversation.
#     bash recipes/diarization/train.sh ../shared/data
# Run from the project's root in its environment, after recipes/verification/train.sh, whose first model it starts from.
set -eu
data=${1:-../shared/data}
work=runs/diarization
here=recipes/diarization
python $here/simulate.py --data "$data" --output $work/data
wav2vec2-conformer train frame --preset $here/preset.toml --init runs/verification/first --output $work/model \
    --train $work/data/train.jsonl --dev $work/data/dev.jsonl --bf16 --cache-gb 1.2
wav2vec2-conformer evaluate frame --model $work/model --data $work/data/val.jsonl --report $work/report
cp $work/model/report.png $here/curves.png
