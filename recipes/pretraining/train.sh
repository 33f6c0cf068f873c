#!/usr/bin/env bash
# Does pre-training help? 13 hours without transcripts, then 10 minutes and 1 hour with them, against the same model from
# scratch. About two hours of one CPU core.
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

# Both sides begin with the same filterbank and learn in the same way; only the pre-training differs. (With 10 minutes, each at
# the rate that suits it.)
letters() { # LABELS NAME INIT OPTION...
    labels=$1
    output=$work/$2-$1
    init=$work/$3
    shift 3
    wav2vec2-conformer train ctc --preset $here/letters.toml --init $init --cache-gb 1.5 --workers 0 \
        --train $work/data/labelled-$labels.jsonl --dev $work/data/dev.jsonl --output $output "$@"
}
letters 1h pretrained model
letters 1h scratch initial
letters 10min pretrained model --updates 500 --evaluate-every 250 --learning-rate 1e-4
letters 10min scratch initial --updates 500 --evaluate-every 250 --learning-rate 1e-3 --head-learning-rate 1e-3
cp $work/model/report.png $here/pretraining.png
for labels in 10min 1h; do
    python recipes/plot.py --over-one-another --output $here/curves-$labels.png $work/pretrained-$labels $work/scratch-$labels
done
for side in pretrained scratch; do
    for labels in 10min 1h; do
        wav2vec2-conformer evaluate ctc --model $work/$side-$labels --data $work/data/dev.jsonl
    done
done
