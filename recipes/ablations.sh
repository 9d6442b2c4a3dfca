#!/usr/bin/env bash
# The claims of the papers at toy scale: 5 seeds of what is about the curriculum, 3 seeds of everything else, two runs
# at a time. It takes about an hour on two CPU cores. If it is stopped, the same command resumes it. The results are
# runs/ablations/table.md and ablations.png.
#
#     bash recipes/ablations.sh                  SEEDS="0 1 2" CURRICULUM_SEEDS="0 1 2 3 4" are the seeds
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
export python=${PYTHON:-python} runs=runs/ablations
some=${SEEDS:-0 1 2} many=${CURRICULUM_SEEDS:-${SEEDS:-0 1 2 3 4}}
mkdir -p "$runs"
. recipes/runs.bash

sft() { run "$1" train_sft.py --model "$2" --data "$runs/data-${1##*-}/$3.jsonl" --steps "$4" --eval-every 0; }
rl() { run "$1" train_rl.py --model "$2" --data "$runs/data-${1##*-}/rl.jsonl" --measure-kl "${@:3}"; }
phased() { rl "$@" --phase-lengths 80 200 --phase-steps 40 80; }
judge_model() {
    run judge_model-0 train_sft.py --model "$runs/judge-0/new" --data "$runs/judge-0/rows.jsonl" --steps 600 \
        --learning-rate 5e-3 --final-fraction 0.1 --eval-every 0
}
judged() { run "$1" train_rl.py --model "$(last "other_words-${1##*-}")" --phase-steps 20 60 "${@:2}"; }
tasks() { run "$1" "$2" --task qa f1 pairwise "${@:3}"; }
mixed() {
    tasks "$1" train_rl.py --model "$(last "three_tasks-${1##*-}")" --phase-steps 1 100 --updates-per-step 1 "${@:2}"
}
evaluate() {   # evaluate NAME STUDY FLAGS...: all checkpoints of a study, of one seed
    local models && models=$("$python" -m recipes.ablations "$runs" --models "$2" "${1##*-}")
    try "eval_$1" "$python" eval.py --out "$runs/eval_$1" --model $models "${@:3}"
}
export -f sft rl phased judge_model judged tasks mixed evaluate

echo "== 1. A judge for later. Warm-ups: first facts that are in no document, then some look-ups in short documents"
seeds=$many
for_seeds '$python -m recipes.toy_files $runs/data-SEED --seed SEED' | both
$python -m recipes.toy_judge "$runs/judge-0" 8000
{ echo 'judge_model'
  for_seeds 'sft facts-SEED assets/nano-base closed_book 120'; } | both
for_seeds 'sft base-SEED $(last facts-SEED) base 140' | both
seeds=$some
for_seeds 'sft short-SEED $(last base-SEED) sft_short 60
           sft long-SEED $(last base-SEED) sft_long 60' | both

echo "== 2. RL from each warm-up and with dynamic sampling. RL without the retrospective sampler, and in one stage"
for_seeds 'phased rl_short-SEED $(last short-SEED)
           phased rl_long-SEED $(last long-SEED)
           phased refills-SEED $(last short-SEED) --max-refills 2' | both
seeds=$many
for_seeds 'phased rl_base-SEED $(last base-SEED)
           phased no_retro-SEED $(last base-SEED) --retro-fraction 0
           rl single-SEED $(last base-SEED) --phase-lengths 200 --lengths 80 200 --phase-steps 200 --keep 100' | both
seeds=$some

echo "== 3. Rule, or rule and judge: half of the worked answers name a thing by its other word"
for_seeds 'run other_words-SEED train_sft.py --toy-paraphrased 0.5 --steps 400 --eval-every 0' | both
for_seeds 'judged rule-SEED
           judged hybrid-SEED --judge $(last judge_model-0)' | both

echo "== 4. Three tasks, two of them with graded rewards: GRPO against TMN-Reweight"
for_seeds 'tasks three_tasks-SEED train_sft.py --toy-examples 6000 --steps 400 --eval-every 0' | both
for_seeds 'mixed grpo-SEED
           mixed tmn-SEED --advantages tmn_reweight' | both

echo "== 5. Held-out accuracy of all checkpoints, and the tables"
seeds=$many
for_seeds 'evaluate curriculum-SEED curriculum --samples 8
           evaluate curriculum_closed_book-SEED curriculum --samples 4 --data $runs/data-SEED/closed_book.jsonl' | both
seeds=$some
for_seeds 'evaluate lookups-SEED lookups --samples 8
           evaluate closed_book-SEED lookups --samples 4 --data $runs/data-SEED/closed_book.jsonl
           evaluate by_rule-SEED judge
           evaluate by_judge-SEED judge --judge $(last judge_model-0)
           evaluate by_either-SEED judge --data $runs/data-SEED/either_word.jsonl --lengths 80 200
           evaluate tasks-SEED tasks --task qa f1 pairwise' | both
$python -m recipes.ablations "$runs"
