#!/usr/bin/env bash
# From an instruct model to fables: generate, pre-train, fine-tune, evaluate.
#
#   recipes/synthetic.sh FABLES.txt HELD_OUT.txt
#
# FABLES.txt is what the model is fine-tuned on, HELD_OUT.txt what it is measured on; no sample may quote either.
# Needs pip install -e ".[synthesis]". Each step goes on where it was stopped: start it again after a kill.
# What may be set from outside, with the mission's values:
set -euo pipefail
[ $# = 2 ] || { echo "usage: recipes/synthetic.sh FABLES.txt HELD_OUT.txt" >&2; exit 2; }
fables=$1 held_out=$2
: "${OUT:=synthetic-out}"        # folder of the samples and of the model
: "${SAMPLES:=5000}"             # hours on a GPU
: "${PRETRAIN_ITERS:=10000}" "${FINETUNE_ITERS:=10000}"
: "${GENERATE_FLAGS:=--batch 8}" # such as "--engine openai --base-url http://localhost:8000/v1 --batch 64"
: "${TRAIN_FLAGS:=}"             # such as "--preset laptop"
: "${PYTHON:=python3}"
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
run() { "$PYTHON" -m mini_transformer "$@"; }

# shellcheck disable=SC2086  # the flags are several words
run generate-data --out "$OUT/data_mix.txt" --samples "$SAMPLES" --avoid "$fables" "$held_out" $GENERATE_FLAGS
# shellcheck disable=SC2086
run train --pretrain-data "$OUT/data_mix.txt" --finetune-data "$fables" \
    --max-iters-pretrain "$PRETRAIN_ITERS" --max-iters-finetune "$FINETUNE_ITERS" --out-dir "$OUT/model" $TRAIN_FLAGS
run evaluate --model-dir "$OUT/model" --data "$held_out"
run generate --model-dir "$OUT/model" --max-new-tokens 600 --seed 1
