#!/usr/bin/env bash
# The default model, from manifests to weights, on 2 cores in about five hours.
#     bash recipes/default-model/train.sh ../shared/data
# Run from the project's root in its environment; espeak-ng must be installed.
set -eu
data=${1:-../shared/data}
work=runs/default
here=recipes/default-model
last() { ls -d "$1"/checkpoint-* | sort -V | tail -1; }
python $here/prepare.py --data "$data" --output $work/data
python $here/initial_model.py --config $here/config.json --manifest $work/data/an4-train.jsonl --output $work/initial

an4=$work/data/an4-train.jsonl
digits=$work/data/digits-train.jsonl
synthetic=$work/data/synthetic-train.jsonl
common=(--dev $work/data/an4-dev.jsonl --batch-seconds 30 --clip 2 --evaluate-every 200)

# A manifest given several times counts several times.
wav2vec2-conformer train ctc "${common[@]}" --init $work/initial --output $work/phase1 \
    --train $an4 $an4 $an4 $digits $digits $synthetic \
    --epochs 6 --learning-rate 1.2e-3 --warmup 0.08
wav2vec2-conformer train ctc "${common[@]}" --init $work/phase1 --output $work/phase2 \
    --train $an4 $an4 $an4 $an4 $an4 $digits $digits $digits $digits $synthetic $work/data/speechocean762-short.jsonl \
    --epochs 4 --learning-rate 8e-4 --warmup 0.04

# The last checkpoint of a cosine schedule goes on, not the best on the 64 dev utterances.
mkdir -p $work/last
cp "$(last $work/phase2)"/{config.json,model.safetensors} $work/last/
cp $work/phase2/{processor_config.json,tokenizer_config.json,vocab.json} $work/last/
wav2vec2-conformer train ctc "${common[@]}" --init $work/last --output $work/phase3 \
    --train $an4 $an4 $an4 $an4 $digits $digits $digits $digits $digits $digits \
    --epochs 2 --learning-rate 5e-4 --warmup 0.05 --evaluate-every 300

# The mean of the second and the third stage's last weights, and on from there on everything, several utterances in one
# recording included.
python $here/average.py --output $work/mean $work/last "$(last $work/phase3)"
wav2vec2-conformer train ctc "${common[@]}" --init $work/mean --output $work/phase4 \
    --train $an4 $an4 $an4 $digits $digits $digits $digits $work/data/joined-train.jsonl $synthetic \
    $work/data/speechocean762-short.jsonl \
    --epochs 8 --learning-rate 8e-4 --warmup 0.03 --evaluate-every 400 --cache-gb 1

# A last stage with digits in the majority.
mkdir -p $work/last4
cp "$(last $work/phase4)"/{config.json,model.safetensors} $work/last4/
cp $work/phase4/{processor_config.json,tokenizer_config.json,vocab.json} $work/last4/
wav2vec2-conformer train ctc "${common[@]}" --init $work/last4 --output $work/phase5 \
    --train $an4 $an4 $digits $digits $digits $digits $digits $digits $digits $digits $work/data/joined-train.jsonl \
    $synthetic --epochs 2 --learning-rate 4e-4 --warmup 0.04 --evaluate-every 400 --cache-gb 1

# The mean of the last two stages' last weights, and on from there with digits of more speakers, cut out of sentences by
# this model.
python $here/average.py --output $work/mean45 $work/last4 "$(last $work/phase5)"
cp $work/phase5/{processor_config.json,tokenizer_config.json,vocab.json} $work/mean45/
cut=$work/data/cut-digits.jsonl
python $here/cut_digits.py --model $work/mean45 --output $work/data/cut-digits $an4 "$data/speechocean762-train.jsonl"
wav2vec2-conformer train ctc "${common[@]}" --init $work/mean45 --output $work/phase6 \
    --train $an4 $an4 $digits $digits $digits $digits $cut $cut $cut $cut $work/data/joined-train.jsonl $synthetic \
    --epochs 2 --learning-rate 4e-4 --warmup 0.04 --evaluate-every 400 --cache-gb 1 --bf16

# The mean of the models before and after, and on from there with digits cut tightly, as short recordings often are.
python $here/average.py --output $work/mean456 $work/mean45 "$(last $work/phase6)"
cp $work/phase6/{processor_config.json,tokenizer_config.json,vocab.json} $work/mean456/
tight=$work/data/tight-digits.jsonl
python $here/tight_digits.py --output $work/data/tight-digits $digits $cut
wav2vec2-conformer train ctc "${common[@]}" --init $work/mean456 --output $work/phase7 \
    --train $an4 $an4 $digits $digits $cut $cut $tight $tight $tight $work/data/joined-train.jsonl $synthetic \
    --epochs 2 --learning-rate 4e-4 --warmup 0.04 --evaluate-every 400 --cache-gb 1 --bf16

# The mean of the models before and after.
mkdir -p src/wav2vec2_conformer/assets/default
python $here/average.py --output $work/model $work/mean456 "$(last $work/phase7)"
cp $work/model/{config.json,model.safetensors} src/wav2vec2_conformer/assets/default/
cp $work/phase7/{processor_config.json,tokenizer_config.json,vocab.json} src/wav2vec2_conformer/assets/default/
wav2vec2-conformer evaluate ctc --data $work/data/{digits-held-out,an4-held-out,joined-held-out,an4-dev,librispeech-dev}.jsonl
python recipes/plot.py --output $here/curves.png $work/phase[1-7]
