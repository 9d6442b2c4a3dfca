#!/usr/bin/env bash
# The claims of the papers at toy scale: 3 seeds of every run, two runs at a time, about an hour on two CPU cores. Begun
# again after whatever stopped it, it goes on where it was. Then: runs/ablations/table.md and ablations.png.
#
#     bash recipes/ablations.sh                                      SEEDS="0 1 2 3 4" for more of them
set -euo pipefail
cd "$(dirname "$0")/.."
export python=${PYTHON:-python} runs=runs/ablations
seeds=${SEEDS:-0 1 2}
mkdir -p "$runs"

run() {   # run NAME SCRIPT FLAGS...: one run; of what it says the end, if it fails
    local name=$1 script=$2 && shift 2
    "$python" "$script" --runs-dir "$runs" --name "$name" --seed "${name##*-}" "$@" > "$runs/$name.log" 2>&1 ||
        { echo "$name failed:" && tail -n 5 "$runs/$name.log"; exit 255; }
    echo "   $name: $((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))"
}
sft() { run "$1" train_sft.py --model "$2" --data "$runs/data-${1##*-}/$3.jsonl" --steps "$4" --eval-every 0; }
rl() { run "$1" train_rl.py --model "$2" --data "$runs/data-${1##*-}/rl.jsonl" --measure-kl "${@:3}"; }
phased() { rl "$@" --phase-lengths 80 200 --phase-steps 40 110; }
evaluate() { "$python" eval.py --out "$runs/$1" "${@:2}" > "$runs/$1.log" 2>&1 || { tail -n 5 "$runs/$1.log"; exit 255; }; }
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
both() { xargs -d '\n' -P 2 -I{} bash -euo pipefail -c '{}'; }                # two of the commands on stdin at a time
for_seeds() { for seed in $seeds; do printf "%s\n" "${1//SEED/$seed}"; done; }
export -f run sft rl phased evaluate last

echo "== 1. Warm-ups: facts that stand in no document; then base: a little of look-ups in short documents"
for_seeds '$python -m tools.toy_files $runs/data-SEED --seed SEED' | both
for_seeds 'sft facts-SEED assets/nano-base closed_book 120' | both
for_seeds 'sft base-SEED $(last facts-SEED) base 200' | both
for_seeds 'sft short-SEED $(last base-SEED) sft_short 60
           sft long-SEED $(last base-SEED) sft_long 60' | both

echo "== 2. RL from each of the three; from base also without the sampler, and all lengths at once"
for_seeds 'phased rl_base-SEED $(last base-SEED)
           phased rl_short-SEED $(last short-SEED)
           phased rl_long-SEED $(last long-SEED)
           phased no_retro-SEED $(last base-SEED) --retro-fraction 0
           rl single-SEED $(last base-SEED) --phase-lengths 200 --phase-steps 200 --save-every 10 --keep 100' | both

echo "== 3. Rule or rule and judge: a judge of our own, answers of which half name a thing by its other word"
$python -m tools.toy_judge "$runs/judge-0" 8000
{ echo 'run judge_model-0 train_sft.py --model $runs/judge-0/new --data $runs/judge-0/rows.jsonl --learning-rate 5e-3 --steps 1000 --final-fraction 0.1 --eval-every 0'
  for_seeds 'run other_words-SEED train_sft.py --toy-paraphrased 0.5 --steps 400 --eval-every 0'; } | both
for_seeds 'run rule-SEED train_rl.py --model $(last other_words-SEED) --phase-steps 20 60
           run hybrid-SEED train_rl.py --model $(last other_words-SEED) --phase-steps 20 60 --judge $(last judge_model-0)' | both

echo "== 4. Three tasks, two of them with graded rewards: GRPO or TMN-Reweight"
for_seeds 'run three_tasks-SEED train_sft.py --task qa f1 pairwise --toy-examples 6000 --steps 400 --eval-every 0' | both
for_seeds 'run grpo-SEED train_rl.py --model $(last three_tasks-SEED) --phase-steps 1 100 --task qa f1 pairwise
           run tmn-SEED train_rl.py --model $(last three_tasks-SEED) --phase-steps 1 100 --task qa f1 pairwise --advantages tmn_reweight' | both
