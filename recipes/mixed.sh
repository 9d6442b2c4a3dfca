#!/usr/bin/env bash
# Three tasks at once at toy scale, two of them with graded rewards: GRPO divides by the standard deviation of each
# group, TMN-Reweight by that of the task. About ten minutes on one CPU core.
#
#     bash recipes/mixed.sh                                 then look at runs/mixed/curve.png
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} seed=${SEED:-0} runs=runs/mixed
flags=(--runs-dir "$runs" --seed "$seed" --task qa f1 pairwise)
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }

echo "== 1. Warm-up on the three tasks, short documents"
$python train_sft.py "${flags[@]}" --name sft --toy-examples 6000 --steps 500 --patience 0 --eval-every 100

echo "== 2. RL on long documents from this warm-up, once with each"
for advantages in grpo tmn_reweight; do
    $python train_rl.py "${flags[@]}" --name "$advantages" --model "$(last sft)" --advantages "$advantages" \
        --phase-lengths 80 200 --phase-steps 1 120 --updates-per-step 1
done

echo "== 3. Held-out reward by length and by task"
$python eval.py --task qa f1 pairwise --model "$(last sft)" "$(last grpo)" "$(last tmn_reweight)" | tee "$runs/table.md"
$python -m tools.plot "$runs/grpo" "$runs/tmn_reweight" --out "$runs/curve.png" \
    --metric reward reward_by_task/qa reward_by_task/f1 reward_by_task/pairwise
