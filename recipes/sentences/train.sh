#!/usr/bin/env bash
# Sentences from the default model, which knows letters, numbers and short sentences: all 10.8 hours with transcripts.
# On one CPU core about three hours.
#     bash recipes/sentences/train.sh ../shared/data
# Run from the project's root in its environment.
set -eu
data=${1:-../shared/data}
work=runs/sentences
here=recipes/sentences
export OMP_NUM_THREADS=1
python recipes/pretraining/prepare.py --data "$data" --output $work/data
train() { # PRESET INIT OUTPUT
    wav2vec2-conformer train ctc --preset "$1" --init "$2" --cache-gb 1.5 --workers 0 \
        --train $work/data/labelled-all.jsonl --dev $work/data/dev.jsonl --output "$3"
}
train $here/preset.toml default $work/first
train $here/longer.toml $work/first $work/second
train $here/further.toml $work/second $work/third
python recipes/default-model/average.py --output $work/model $work/third $work/third/checkpoint-5000
python recipes/plot.py --output $here/curves.png $work/first $work/second
python recipes/plot.py --output $here/further.png $work/third
wav2vec2-conformer evaluate ctc --model $work/model --data $work/data/dev.jsonl
