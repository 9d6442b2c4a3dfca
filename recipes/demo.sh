#!/usr/bin/env bash
# The whole method in miniature on a laptop CPU: base -> SFT -> RL phase I -> RL phase II -> table.
# It starts from assets/nano-base, which `make assets` trains from random weights with the same train_sft.py.
# SEED=1 bash recipes/demo.sh repeats it with other random numbers. All results are in runs/demo-SEED/.
# After a stop, the same command resumes it.
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} seed=${SEED:-0}
runs=runs/demo-$seed
if [ -e "$runs/eval/table.md" ]; then
    cat "$runs/eval/table.md"
    echo "$runs is complete. To start anew: rm -r $runs"
    exit
fi
if [ -e "$runs" ]; then echo "resuming $runs. To start anew: rm -r $runs"; fi
trap '[ $? = 0 ] || echo "stopped. The same command resumes it. To start anew: rm -r $runs"' EXIT
flags=(--runs-dir "$runs" --seed "$seed")
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }

echo "== 1. SFT warm-up of assets/nano-base: short documents, until about half of the answers are right"
$python train_sft.py --name sft "${flags[@]}"

echo "== 2. RL: phase I on short documents, phase II on long ones and the hard examples of phase I (1 minute)"
$python train_rl.py --name rl --model "$(last sft)" "${flags[@]}" --measure-kl

minutes=$(awk -F'"seconds": ' '{ split($2, words, ","); if ($2) printf "%.2f", words[1] / 60 }' "$(last rl)/state.json")
echo "== 3. Control: SFT instead of RL, for as long as RL took ($minutes minutes)"
$python train_sft.py --name control --model "$(last sft)" "${flags[@]}" --minutes "$minutes" --steps 100000 \
    --patience 0 --eval-every 200 --print-every 200

echo "== 4. Held-out accuracy, sampled at the training temperature, by document length"
$python eval.py --toy-examples 400 --out "$runs/eval" --model assets/nano-base "$(last sft)" \
    "$runs"/rl/checkpoints/step_000040 "$(last rl)" "$(last control)"
echo "to draw it: $python -m tools.plot $runs"
