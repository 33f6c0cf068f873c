#!/usr/bin/env bash
# Does pre-training help? 13 hours without transcripts, then 10 minutes and 1 hour with them, against the same model from
# scratch. On 2 quiet CPU cores about two hours.
#     bash recipes/pretraining/train.sh ../shared/data
# Run from the project's root in its environment.
set -eu
data=${1:-../shared/data}
work=runs/pretraining
here=recipes/pretraining
python $here/prepare.py --data "$data" --output $work/data
wav2vec2-conformer train pretraining --preset tiny --train $work/data/unlabelled.jsonl --dev $work/data/dev.jsonl \
    --output $work/model --no-bf16 --evaluate-every 500 --cache-gb 1.6

# Both sides learn under the same masks and dropouts, and all of the network does: only where they start differs.
python $here/start.py --model $work/model --config recipes/default-model/config.json --output $work/start
for labels in 10min:30 1h:5; do
    name=${labels%:*} epochs=${labels#*:}
    common=(--train $work/data/labelled-$name.jsonl --dev $work/data/dev.jsonl --batch-seconds 40 --epochs "$epochs"
        --learning-rate 1e-3 --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5 --evaluate-every 150)
    wav2vec2-conformer train ctc "${common[@]}" --init $work/start --output $work/pretrained-$name
    wav2vec2-conformer train ctc "${common[@]}" --config recipes/default-model/config.json --output $work/scratch-$name
done
cp $work/model/report.png $here/pretraining.png
for name in 10min 1h; do
    python recipes/plot.py --over-one-another --output $here/curves-$name.png $work/pretrained-$name $work/scratch-$name
done
