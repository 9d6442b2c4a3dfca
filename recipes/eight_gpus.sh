#!/usr/bin/env bash
# QwenLong-L1 on one node of eight GPUs, with the paper's settings: a 7B model on 80 GB GPUs, 14B on 141 GB.
#
#     MODEL=DIR SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/eight_gpus.sh
#
# `--preset paper`: 128 prompts x 8 answers of up to 10,000 tokens, 4 updates a step, learning rate 2e-6, phases of 50
# steps on (0, 20K] and (20K, 60K] tokens, then examples that nobody answered come back. Departures, marked (*):
# (*) The steps of each phase, and the share of hard examples in a batch, are ours: the paper does not tell them.
# (*) top_p 1 instead of 0.95 in training: the loss scores what was sampled (docs/departures.md).
# (*) No sequence parallelism: a document runs on one GPU. A GPU holds, of 14B: 28 GB of weights, gradients and
#     optimizer; in rollouts the whole weights (28 GB) and the cache; in updates the layers' inputs of one document of
#     60K tokens (29 GB), its keys and values and their gradients (24 GB).
# Not run yet: no GPU has been at hand. Figures in comments are calculated.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/${NAME:-eight_gpus} ranks=${RANKS:-8}
: "${MODEL:?a Hugging Face directory}" "${SFT:?JSONL with responses}" "${TRAIN:?JSONL}" "${TEST:?JSONL}"
launch=("$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
memory=(--device cuda --checkpointing ${OFFLOAD:+--offload --threads 8})

"${launch[@]}" train_sft.py --runs-dir "$runs" --name sft --model "$MODEL" --data "$SFT" --batch-size 128 \
    --steps $(( ($(wc -l < "$SFT") * 3 + 127) / 128 )) --learning-rate 5e-6 --warmup-steps 0 --max-prompt-tokens 20000 \
    --eval-every 0 --save-every 20 "${memory[@]}"
[ -e "$runs/difficulty.json" ] || "${launch[@]}" eval.py --device cuda --model "$(last sft)" --data "$TRAIN" \
    --samples 8 --temperature 0.7 --top-p 0.95 --max-new-tokens 10000 --difficulty "$runs/difficulty.json"
"${launch[@]}" train_rl.py --preset paper --runs-dir "$runs" --name rl --model "$(last sft)" --data "$TRAIN" \
    --difficulty "$runs/difficulty.json" --kv-blocks "${KV_BLOCKS:-20000}" --save-every 5 --timeout-minutes 120 \
    "${memory[@]}"                                                     # 320,000 tokens of cache a GPU: 63 GB for 14B
"${launch[@]}" eval.py --device cuda --model "$(last sft)" "$(last rl)" --data "$TEST" --lengths 20000 60000 \
    --temperature 0.7 --top-p 0.95 --max-new-tokens 10000
