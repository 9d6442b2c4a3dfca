#!/usr/bin/env bash
# The whole method in miniature, on two CPU cores: base -> SFT -> RL phase I -> RL phase II -> table.
# SEED=1 bash recipes/demo.sh repeats it with other randomness. Everything is kept in runs/demo-SEED/.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} seed=${SEED:-0}
runs=runs/demo-$seed
rm -rf "$runs"
last() { ls -d "$runs/$1"/checkpoints/step_* | tail -n 1; }

echo "== 1. SFT warm-up of assets/nano-base, short documents only, until held-out accuracy stops rising"
$python train_sft.py --runs-dir "$runs" --name sft --seed "$seed"

echo "== 2. RL: phase I on short documents, phase II on long ones and the hard examples of phase I"
echo "      and beside it, on the second core, the control: SFT that goes on for as long"
$python train_sft.py --runs-dir "$runs" --name control --seed "$seed" --model "$(last sft)" --steps 1000000 \
    --patience 0 --eval-every 200 --stop-file "$runs/rl-is-done" > "$runs/control.log" &
$python train_rl.py --runs-dir "$runs" --name rl --seed "$seed" --model "$(last sft)"
touch "$runs/rl-is-done"
wait

echo "== 3. Held-out accuracy, sampled at the training temperature, by document length"
phases=("$runs"/rl/checkpoints/step_*)
$python eval.py --samples 1 --toy-examples 400 --metrics "$runs/table.json" \
    --model assets/nano-base "$(last sft)" "${phases[@]}" "$(last control)"
