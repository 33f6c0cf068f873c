#!/usr/bin/env bash
# Diarization of simulated conversations of two speakers, judged on speakers who are in no training conversation.
#     bash recipes/diarization/train.sh ../shared/data
# Run from the project's root in its environment, after recipes/verification/train.sh, whose models it starts from.
set -eu
data=${1:-../shared/data}
work=runs/diarization
here=recipes/diarization
python $here/simulate.py --data "$data" --output $work/data

# One network for all: who speaks when, as far as its two outputs stand for the speakers.
wav2vec2-conformer train frame --preset $here/preset.toml --init runs/verification/first --output $work/model \
    --train $work/data/train.jsonl --dev $work/data/dev.jsonl --bf16 --cache-gb 1.2
wav2vec2-conformer evaluate frame --model $work/model --data $work/data/val.jsonl

# Two: the first says how many speak, and the speaker model who.
counts=(--preset $here/counts.toml --train $work/data/train-counts.jsonl --dev $work/data/dev-counts.jsonl --bf16 --cache-gb 1.2)
wav2vec2-conformer train frame "${counts[@]}" --init $work/model --output $work/counter-first \
    --updates 800 --evaluate-every 100 --learning-rate 5e-4
wav2vec2-conformer train frame "${counts[@]}" --init $work/counter-first --output $work/counter \
    --updates 1300 --evaluate-every 200 --learning-rate 7e-4
wav2vec2-conformer evaluate frame --model $work/counter --speaker-model runs/verification/model --speakers 2 \
    --data $work/data/val.jsonl --report $work/report
cp $work/counter/report.png $here/curves.png
