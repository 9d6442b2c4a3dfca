#!/usr/bin/env bash
# A whole experiment on a CPU, with your data or the toy task: SFT warm-up, RL in two phases, accuracy by length.
# Any of it may be stopped (Ctrl-C, kill, a crash): the same command goes on where it was, to the same result.
#
#     bash recipes/cpu.sh                                   the toy task, about five minutes
#     RANKS=2 bash recipes/cpu.sh                           the same in two processes, sharded with FSDP2
#     NAME=mine MODEL=DIR SFT=sft.jsonl TRAIN=train.jsonl TEST=heldout.jsonl bash recipes/cpu.sh
#
# Settings are those of the scripts' defaults, which fit the tiny model: larger steps, shorter answers and fewer prompts
# than the paper's (recipes/eight_gpus.sh has those).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} ranks=${RANKS:-1} runs=runs/${NAME:-cpu} model=${MODEL:-assets/nano-base}
export OMP_NUM_THREADS=1                    # two processes that both want all cores get in each other's way
launch=("$python")
[ "$ranks" -gt 1 ] && launch=("$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }

"${launch[@]}" train_sft.py --runs-dir "$runs" --name sft --model "$model" ${SFT:+--data "$SFT"} ${SFT_FLAGS:-}
"${launch[@]}" train_rl.py --runs-dir "$runs" --name rl --model "$(last sft)" ${TRAIN:+--data "$TRAIN"} ${RL_FLAGS:-}
"$python" eval.py --model "$(last sft)" "$(last rl)" ${TEST:+--data "$TEST"} ${EVAL_FLAGS:-}
