#!/usr/bin/env bash
# A whole experiment on a CPU, with your data or the toy task: SFT warm-up, RL in two phases, accuracy by length.
# Stop it at any point (Ctrl-C, kill, a crash): the same command resumes it, and the result is the same.
#
#     bash recipes/cpu.sh                                   the toy task, about five minutes
#     RANKS=2 bash recipes/cpu.sh                           the same in two processes, sharded with FSDP2
#     NAME=mine MODEL=DIR SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/cpu.sh
#
# The settings are the scripts' defaults, which fit the tiny model: larger steps, shorter answers and fewer prompts than
# in the paper (recipes/eight_gpus.sh has the paper's).
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} ranks=${RANKS:-1} runs=runs/${NAME:-cpu} model=${MODEL:-assets/nano-base}
export OMP_NUM_THREADS=1                    # otherwise each process takes all cores
launch=("$python")
[ "$ranks" -gt 1 ] && launch=("$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }

"${launch[@]}" train_sft.py --runs-dir "$runs" --name sft --model "$model" ${SFT:+--data "$SFT"} ${SFT_FLAGS:-}
"${launch[@]}" train_rl.py --runs-dir "$runs" --name rl --model "$(last sft)" ${TRAIN:+--data "$TRAIN"} ${RL_FLAGS:-}
"$python" eval.py --model "$(last sft)" "$(last rl)" ${TEST:+--data "$TEST"} ${EVAL_FLAGS:-}
