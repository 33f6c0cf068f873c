#!/usr/bin/env bash
# Does pre-training help? 13 hours without transcripts, then 10 minutes and 1 hour with them, against the same model from
# scratch. On 2 quiet CPU cores about an hour and a half.
#     bash recipes/pretraining/train.sh ../shared/data
# Run from the project's root in its environment.
set -eu
data=${1:-../shared/data}
work=runs/pretraining
here=recipes/pretraining
python $here/prepare.py --data "$data" --output $work/data
python recipes/default-model/initial_model.py --config $work/data/config.json --manifest $work/data/labelled-1h.jsonl \
    --output $work/initial
wav2vec2-conformer train pretraining --preset $here/preset.toml --init $work/initial --train $work/data/unlabelled.jsonl \
    --dev $work/data/dev.jsonl --output $work/model --evaluate-every 400 --cache-gb 1.6

# Both sides begin with the same filterbank and learn under the same masks and dropouts; only the pre-training differs.
python $here/start.py --model $work/model --config recipes/default-model/config.json --output $work/start
for labels in 1h:13 10min:50; do
    name=${labels%:*} epochs=${labels#*:}
    for side in pretrained:start scratch:initial; do
        wav2vec2-conformer train ctc --init $work/${side#*:} --output $work/${side%:*}-$name --epochs "$epochs" \
            --train $work/data/labelled-$name.jsonl --dev $work/data/dev.jsonl --batch-seconds 30 --learning-rate 8e-4 \
            --warmup 0.1 --clip 2 --bf16 --cache-gb 0.5 --evaluate-every 300
    done
done
cp $work/model/report.png $here/pretraining.png
for name in 10min 1h; do
    python recipes/plot.py --over-one-another --output $here/curves-$name.png $work/pretrained-$name $work/scratch-$name
done
