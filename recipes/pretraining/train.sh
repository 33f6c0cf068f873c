#!/usr/bin/env bash
# Does pre-training help? 13 hours without transcripts, then 10 minutes, 1 hour and 10.8 hours with them, against the same
# model from scratch. About three hours of one CPU core.
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

# Both sides begin with the same filterbank and learn in the same way; only the pre-training differs.
letters() { # LABELS NAME INIT PRESET OPTION...
    labels=$1
    output=$work/$2-$1
    init=$work/$3
    preset=$here/$4
    shift 4
    wav2vec2-conformer train ctc --preset "$preset" --init "$init" --cache-gb 1.5 --workers 0 \
        --train $work/data/labelled-"$labels".jsonl --dev $work/data/dev.jsonl --output "$output" "$@"
    # The last weights and not those of the best WER, which says little near 100 %.
    mkdir -p "$output-last"
    cp "$output"/*.json "$output-last"
    cp "$(ls -d "$output"/checkpoint-* | sort -V | tail -n 1)/model.safetensors" "$output-last"
}
for side in "pretrained model" "scratch initial"; do
    set -- $side
    letters all "$1" "$2" letters-all.toml
    letters all "$1-more" "$1-all-last" letters-all-more.toml
    letters 1h "$1" "$2" letters.toml
done
# So few labels: each side at the best of the rates that were tried (RESULTS.md), priors to the end, three seeds.
for seed in 0 1 2; do
    for side in "pretrained model 5e-5" "scratch initial 5e-4"; do
        set -- $side
        letters 10min "$1-$seed" "$2" letters.toml --updates 600 --evaluate-every 300 --prior-share 0.99 \
            --learning-rate "$3" --seed $seed
    done
done
cp $work/model/report.png $here/pretraining.png
for labels in 1h all; do
    python recipes/plot.py --over-one-another --output $here/curves-$labels.png $work/pretrained-$labels $work/scratch-$labels
done
for run in {pretrained,scratch}-{0,1,2}-10min {pretrained,scratch}-{1h,all,more-all}; do
    wav2vec2-conformer evaluate ctc --model $work/$run-last --data $work/data/dev.jsonl
done
