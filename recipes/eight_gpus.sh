#!/usr/bin/env bash
# QwenLong-L1 on one node of eight GPUs of 141 GB, with the paper's settings and its smaller model, 14B.
#
#     SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/eight_gpus.sh
#     PRESET=qwen2.5-7b SFT=... TRAIN=... TEST=... bash recipes/eight_gpus.sh            a smaller one, on GPUs of 80 GB
#
# `--preset r1-distill-qwen-14b` (nanoqwenlong/ops/presets.py has the source of each setting): 128 prompts x 8 answers
# of up to 10,000 tokens, 4 updates a step, learning rate 2e-6, phases of 50 steps on (0, 20K] and (20K, 60K] tokens.
# In the second phase, examples without a right answer come back. MODEL=DIR replaces the preset's model. Departures (*):
# (*) The steps of each phase and the share of hard examples in a batch are ours: the paper does not say.
# (*) top_p 1 instead of 0.95 in training: the loss scores what was sampled (docs/departures.md).
# (*) No sequence parallelism: a document runs on one GPU. For 14B, a GPU holds 28 GB of weights, gradients and
#     optimizer. In rollouts it also holds the whole weights (28 GB) and the cache. In updates it holds the layers'
#     inputs for one document of 60K tokens (29 GB), and its keys and values with their gradients (24 GB).
# Not run yet: no GPU was available. Figures in comments are calculated.
set -euo pipefail
[ "${SFT:-}" ] && [ "${TRAIN:-}" ] && [ "${TEST:-}" ] && [ $# = 0 ] ||
    { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/${NAME:-eight_gpus} ranks=${RANKS:-8}
preset=(--preset "${PRESET:-r1-distill-qwen-14b}")
launch=("$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
memory=(${OFFLOAD:+--offload --threads 8})

"${launch[@]}" train_sft.py "${preset[@]}" --runs-dir "$runs" --name sft ${MODEL:+--model "$MODEL"} --data "$SFT" \
    --steps $(( ($(wc -l < "$SFT") * 3 + 127) / 128 )) "${memory[@]}"
[ -e "$runs/difficulty.json" ] || "${launch[@]}" eval.py "${preset[@]}" --model "$(last sft)" --data "$TRAIN" \
    --samples 8 --difficulty "$runs/difficulty.json"
"${launch[@]}" train_rl.py "${preset[@]}" --runs-dir "$runs" --name rl --model "$(last sft)" --data "$TRAIN" \
    --difficulty "$runs/difficulty.json" ${KV_BLOCKS:+--kv-blocks "$KV_BLOCKS"} "${memory[@]}"
"${launch[@]}" eval.py "${preset[@]}" --model "$(last sft)" "$(last rl)" --data "$TEST"
