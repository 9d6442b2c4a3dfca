#!/usr/bin/env bash
# RL on real documents: a small model learns to answer questions about Wikipedia passages. First it prints how many
# hours this takes. If it is stopped, the same command resumes it. The results are runs/real/table.md and real.png.
#
#     bash recipes/real.sh MODEL DATA      a Hugging Face directory or hub id, and the folder of recipes/real_data.py
#
# Variables: SEEDS="0 1", WARMUP_STEPS=50, PHASE_STEPS="26 14", QUESTIONS="200 150 30 60 30" (how many of each held-out
# file, in the order below, or "all"), RUNS=runs/real, JOBS=2 (runs at a time), RESUME=changed (after an edit of the
# code), and FLAGS for all scripts, for example "--threads 2". The controls of section 5 have the first seed only.
set -euo pipefail
[ $# = 2 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
if [ -d "$1" ]; then model=$(realpath "$1"); else model=$1; fi
data=$(realpath "$2")
cd "$(dirname "$0")/.."
export model data python=${PYTHON:-python} runs=${RUNS:-runs/real} flags=${FLAGS:-} JOBS=${JOBS:-2}
export resume=${RESUME:-auto} warmup_steps=${WARMUP_STEPS:-50} phase_steps=${PHASE_STEPS:-26 14}
seeds=${SEEDS:-0 1} first=${seeds%% *}
mkdir -p "$runs/eval"
. recipes/runs.bash

export held=$data
questions=${QUESTIONS:-200 150 30 60 30}
if [ "$questions" != all ]; then
    export held=$runs/held
    mkdir -p "$held"
    read -ra numbers <<< "$questions"
    for part in nq_one nq_three nq_long xquad_one xquad_three; do
        head -n "${numbers[0]:?QUESTIONS needs five numbers}" "$data/held_$part.jsonl" > "$held/held_$part.jsonl"
        numbers=("${numbers[@]:1}")
    done
fi

sft() {   # sft NAME MODEL FILE FLAGS...
    run "$1" train_sft.py --model "$2" --data "$data/$3.jsonl" --batch-size 16 --learning-rate 1e-4 --warmup-steps 5 \
        --eval-every 0 --patience 0 --print-every 5 --save-every 20 --keep 1 --resume "$resume" "${@:4}" $flags
}
rl() {   # rl NAME FLAGS...: from the warm-up of the same seed
    run "$1" train_rl.py --model "$(last "warm-${1##*-}")" --data "$data/rl_one.jsonl" "$data/rl_three.jsonl" \
        --prompts-per-step 8 --group-size 8 --updates-per-step 1 --temperature 0.7 --max-new-tokens 44 \
        --learning-rate 3e-5 --save-every 5 --keep 1 --resume "$resume" "${@:2}" $flags
}
phased() { rl "$@" --phase-lengths 200 520 --phase-steps $phase_steps; }
sft_instead() {   # sft_instead NAME FILE: SFT for as many minutes as RL took
    local minutes && minutes=$("$python" -m recipes.real "$runs" --minutes "rl-${1##*-}")
    sft "$1" "$(last "warm-${1##*-}")" "$2" --steps 100000 --minutes "$minutes"
}
one_stage() {   # one_stage NAME: documents of all lengths from the start, until the tokens of the phased run are used
    local steps
    while true; do
        steps=$("$python" -m recipes.real "$runs" --equal-tokens "$1" "rl-${1##*-}")
        [ "$steps" ] || break
        rl "$1" --phase-lengths 520 --lengths 200 520 --phase-steps 100000 --steps "$steps"
    done
}
evaluate() {   # evaluate NAME CHECKPOINT: greedy answers to the held-out questions
    try "eval/$1" "$python" eval.py --out "$runs/eval/$1" --model "$2" \
        --data "$held"/held_{nq_one,nq_three,nq_long,xquad_one,xquad_three}.jsonl \
        --temperature 0 --max-new-tokens 64 --lengths 200 520 $flags
}
phase_one() { printf '%s/rl-%s/checkpoints/step_%06d' "$runs" "$1" "${phase_steps%% *}"; }     # its last checkpoint
export -f sft rl phased sft_instead one_stage evaluate phase_one

$python -m recipes.real "$runs" --expect "$data" "$held" --steps $warmup_steps $phase_steps --seeds $seeds --jobs $JOBS

echo "== 1. Warm-up: SFT on worked answers"
for_seeds 'sft warm-SEED "$model" sft --steps $warmup_steps' | both

echo "== 2. RL: phase I on documents of up to 200 tokens, phase II on those of up to 520 and the hard ones of phase I"
for_seeds 'phased rl-SEED' | both

echo "== 3. Control: SFT instead of RL, for as many minutes"
for_seeds 'sft_instead sft-SEED sft' | both

echo "== 4. Held-out questions, and a first table"
{ for_seeds 'evaluate rl-SEED "$(last rl-SEED)"
             evaluate sft-SEED "$(last sft-SEED)"
             evaluate warm-SEED "$(last warm-SEED)"'
  echo 'evaluate base "$model"'
  for_seeds 'evaluate phase_one-SEED "$(phase_one SEED)"'; } | both
$python -m recipes.real "$runs"

controls=(no_retro single)
if [ -e "$data/control.jsonl" ]; then controls+=(worked); fi
echo "== 5. Other controls: no retrospective sampling, one stage with equal tokens, SFT on the questions of RL"
printf '%s\n' "phased no_retro-$first --retro-fraction 0" "one_stage single-$first" \
    ${controls[2]:+"sft_instead worked-$first control"} | both
for name in "${controls[@]}"; do echo "evaluate $name-$first \"\$(last $name-$first)\""; done | both
$python -m recipes.real "$runs"
