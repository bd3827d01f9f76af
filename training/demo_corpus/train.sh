#!/bin/sh
# Trains the demo's model and adapter from nothing: sh training/demo_corpus/train.sh [folder of strata] [work folder]
# About half an hour on two cores. `make demo-model` runs it and puts what comes out into scripts/demo_data.
set -eu
bin=${1:-.venv/bin}
work=${2:-runs/demo-model}

corpus="$bin/python -m strata.training.demo_corpus.build"
train="$bin/strata train --devices cpu --dtype float32 --tensorboard no --save-every 0 --warmup-share 0.05"
whole="$train --full --task choice --weight-decay 0.01 --batch-questions 64 --eval-every 100"

rm -rf "$work"
$corpus --out "$work/easy" --synthetic 16000 --in-context 0
$corpus --out "$work/corpus" --synthetic 48000 --in-context 0.7
$bin/python -m strata.training.demo_corpus.first_model --out "$work/first"

# Contexts for the real questions: those of training are searched among training passages alone.
$bin/strata index --corpus "$work/corpus/train_passages.jsonl" --out "$work/index-train"
$bin/strata index --corpus "$work/corpus/passages.jsonl" --out "$work/index"
for split in train valid test; do
    index="$work/index"
    if [ $split = train ]; then index="$work/index-train"; fi
    $bin/strata search --index "$index" --questions "$work/corpus/$split.csv" --out "$work/$split.csv" \
        --tokenizer "$work/first" --context-chunks 1
done

# First which option stands in the context at all, then which of those that do, then the real questions.
$whole --model "$work/first" --questions "$work/easy/synthetic.csv" --valid "$work/valid.csv" \
    --learning-rate 1.5e-3 --head-lr-scale 0.5 --out "$work/stage-1"
$whole --model "$work/stage-1/model" --questions "$work/corpus/synthetic.csv" --valid "$work/valid.csv" \
    --learning-rate 1e-3 --head-lr-scale 0.5 --out "$work/stage-2"
$bin/strata pack --model "$work/stage-2/model" --format fp16 --out "$work/model"
$train --model "$work/model" --task binary --questions "$work/train.csv" --valid "$work/valid.csv" \
    --epochs 2 --lora-r 8 --lora-alpha 16 --learning-rate 5e-4 --batch-questions 32 --eval-every 50 --out "$work/stage-3"
$bin/strata score --model "$work/model" --adapter "$work/stage-3/adapter" --questions "$work/test.csv" \
    --out "$work/test" --dtype float32
