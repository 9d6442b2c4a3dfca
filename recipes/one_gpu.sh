#!/usr/bin/env bash
# QwenLong-L1 on one GPU, for a model of up to 1.5B parameters on 80 GB (its weights, gradients and optimizer take 16
# bytes a parameter, or nothing of the GPU with OFFLOAD=1).
#
#     MODEL=DIR SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/one_gpu.sh
#
# Paper (arXiv 2505.17667, section 3.2) and released script: 128 prompts x 8 answers, minibatches of 32 prompts,
# learning rate 2e-6 constant, weight decay 0.01, clip 0.2, temperature 0.7, answers of 10,000 tokens, phases to 20K and
# 60K tokens; SFT 3 epochs of batches of 128 at 5e-6 on inputs up to 20K. `--preset paper` is the RL part of that.
# Departures, marked (*):
# (*) 32 prompts a step and one update, a quarter of the paper's, so that a step ends within the hour.
# (*) Answers of 4,096 tokens: most of a step is decoding.
# Not run yet: no GPU has been at hand. Figures in comments are calculated.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/${NAME:-one_gpu}
: "${MODEL:?a Hugging Face directory}" "${SFT:?JSONL with responses}" "${TRAIN:?JSONL}" "${TEST:?JSONL}"
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
memory=(--device cuda --checkpointing ${OFFLOAD:+--offload --threads 8})

$python train_sft.py --runs-dir "$runs" --name sft --model "$MODEL" --data "$SFT" --batch-size 128 \
    --steps $(( ($(wc -l < "$SFT") * 3 + 127) / 128 )) --learning-rate 5e-6 --warmup-steps 0 --max-prompt-tokens 20000 \
    --eval-every 0 --save-every 20 "${memory[@]}"
[ -e "$runs/difficulty.json" ] || $python eval.py --device cuda --model "$(last sft)" --data "$TRAIN" --samples 8 \
    --temperature 0.7 --top-p 0.95 --max-new-tokens 4096 --difficulty "$runs/difficulty.json"     # before any RL
$python train_rl.py --preset paper --runs-dir "$runs" --name rl --model "$(last sft)" --data "$TRAIN" \
    --difficulty "$runs/difficulty.json" --prompts-per-step 32 --updates-per-step 1 --max-new-tokens 4096 \
    --kv-blocks 40000 --save-every 5 "${memory[@]}"                    # 640,000 tokens of cache: 18 GB for 1.5B
$python eval.py --device cuda --model "$(last sft)" "$(last rl)" --data "$TEST" --lengths 20000 60000 \
    --temperature 0.7 --top-p 0.95 --max-new-tokens 10000
