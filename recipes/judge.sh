#!/usr/bin/env bash
# RL with a judge at toy scale. The rule rejects an answer that names a thing by its other word (chai for tea), and the
# judge accepts it. The judge is a tiny model that is trained here first. About ten minutes on one CPU core.
#
#     bash recipes/judge.sh                                 then look at runs/judge/curve.png
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} seed=${SEED:-0} runs=runs/judge
flags=(--runs-dir "$runs" --seed "$seed")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
mkdir -p "$runs"

echo "== 1. A judge: a new tiny model learns which answers are the same, from the prompts of a judge"
$python -m recipes.toy_judge "$runs" 8000
$python train_sft.py "${flags[@]}" --name judge --model "$runs/new" --data "$runs/rows.jsonl" --learning-rate 5e-3 \
    --steps 1000 --final-fraction 0.1 --eval-every 0

echo "== 2. Warm-up: half of the worked answers name a thing by its other word"
$python train_sft.py "${flags[@]}" --name sft --toy-paraphrased 0.5 --steps 600 --eval-every 0

echo "== 3. RL with the rule alone, and with the judge for what the rule rejects"
$python train_rl.py "${flags[@]}" --name rule --model "$(last sft)" --phase-steps 20 60
$python train_rl.py "${flags[@]}" --name judged --model "$(last sft)" --phase-steps 20 60 --judge "$(last judge)"

echo "== 4. Held-out accuracy, by the rule, then by rule and judge"
$python eval.py --model "$(last sft)" "$(last rule)" "$(last judged)" | tee "$runs/rule.md"
$python eval.py --model "$(last sft)" "$(last rule)" "$(last judged)" --judge "$(last judge)" | tee "$runs/judged.md"
$python -m tools.plot "$runs/rule" "$runs/judged" --metric reward rewards/rule/mean judge/calls --out "$runs/curve.png"
