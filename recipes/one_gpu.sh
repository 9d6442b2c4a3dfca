#!/usr/bin/env bash
# QwenLong-L1 on one GPU of 80 GB, for a model of up to 1.5B parameters. Weights, gradients and optimizer take 16 bytes
# a parameter. With OFFLOAD=1 they are in CPU memory.
#
#     SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/one_gpu.sh
#
# `--preset qwen2.5-1.5b` (nanoqwenlong/ops/presets.py has the source of each setting) is as the paper and its released
# script, with two differences:
# (*) 32 prompts a step and one update, a quarter of the paper's, so that a step takes less than an hour.
# (*) answers of 4,096 tokens, because most of a step is decoding.
# MODEL=DIR replaces models/Qwen2.5-1.5B-Instruct, which needs YaRN in its config.json (docs/models.md).
# Not run yet: no GPU was available. Figures in comments are calculated.
set -euo pipefail
[ "${SFT:-}" ] && [ "${TRAIN:-}" ] && [ "${TEST:-}" ] && [ $# = 0 ] ||
    { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/${NAME:-one_gpu} preset=(--preset qwen2.5-1.5b)
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
memory=(${OFFLOAD:+--offload --threads 8})

$python train_sft.py "${preset[@]}" --runs-dir "$runs" --name sft ${MODEL:+--model "$MODEL"} --data "$SFT" \
    --steps $(( ($(wc -l < "$SFT") * 3 + 127) / 128 )) "${memory[@]}"
[ -e "$runs/difficulty.json" ] || $python eval.py "${preset[@]}" --model "$(last sft)" --data "$TRAIN" --samples 8 \
    --max-new-tokens 4096 --difficulty "$runs/difficulty.json"         # before any RL
$python train_rl.py "${preset[@]}" --runs-dir "$runs" --name rl --model "$(last sft)" --data "$TRAIN" \
    --difficulty "$runs/difficulty.json" "${memory[@]}"
$python eval.py "${preset[@]}" --model "$(last sft)" "$(last rl)" --data "$TEST"
