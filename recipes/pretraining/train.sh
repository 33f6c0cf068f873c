#!/usr/bin/env bash
# Does pre-training help? 13 hours without transcripts, then 10 minutes and 1 hour with them, against the same model from
# scratch. About two and a half hours of one CPU core.
#     bash recipes/pretraining/train.sh ../shared/data
# Run from the project's root in its environment.
set -eu
data=${1:-../shared/data}
work=runs/pretraining
here=recipes/pretraining
export OMP_NUM_THREADS=1  # small products gain nothing from a second thread; a second training beside this one does
python $here/prepare.py --data "$data" --output $work/data
python recipes/default-model/initial_model.py --config $work/data/config.json --manifest $work/data/labelled-1h.jsonl \
    --output $work/filterbank
python $here/calibrate.py --model $work/filterbank --manifest $work/data/labelled-1h.jsonl --output $work/initial
wav2vec2-conformer train pretraining --preset $here/preset.toml --init $work/initial --train $work/data/unlabelled.jsonl \
    --dev $work/data/dev.jsonl --output $work/model --evaluate-every 500 --cache-gb 1.7 --workers 0 --log-every 50

# Both sides begin with the same filterbank and learn under the same masks and dropouts; only the pre-training differs.
for labels in 1h 10min; do
    for side in pretrained:model scratch:initial; do
        wav2vec2-conformer train ctc --preset $here/letters.toml --init $work/${side#*:} --cache-gb 1.5 --workers 0 \
            --train $work/data/labelled-$labels.jsonl --dev $work/data/dev.jsonl --output $work/${side%:*}-$labels
    done
done
cp $work/model/report.png $here/pretraining.png
for labels in 10min 1h; do
    python recipes/plot.py --over-one-another --output $here/curves-$labels.png $work/pretrained-$labels $work/scratch-$labels
done
for side in pretrained scratch; do
    for labels in 10min 1h; do
        wav2vec2-conformer evaluate ctc --model $work/$side-$labels --data $work/data/dev.jsonl
    done
done
