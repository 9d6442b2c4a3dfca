#!/usr/bin/env bash
# Trains the tiny models of assets/ again, with train_sft.py: the base from random weights, its warm-up, then RL.
# Each gets its config (made_by.json, seed included). assets/README.md gets the commands, the times and the results.
#
#     bash recipes/assets.sh                                it takes about five minutes, and overwrites assets/
set -euo pipefail
[ $# = 0 ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/assets
rm -rf "$runs"

last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }
keep() {   # keep RUN ASSET: the last checkpoint of a run becomes an asset
    rm -rf "assets/$2" && mkdir -p "assets/$2"
    local run; run=$(last "$1")
    cp "$run"/{config,generation_config,tokenizer,tokenizer_config}.json "$run/model.safetensors" \
        "$run/chat_template.jinja" "assets/$2/"
    cp "$runs/$1/config.json" "assets/$2/made_by.json"
}
seconds() { grep -o '"seconds": [0-9]*' "$(last "$1")/state.json" | grep -o '[0-9]*'; }

$python train_sft.py --preset nano-base --runs-dir "$runs" --name base && keep base nano-base
$python train_sft.py --runs-dir "$runs" --name sft && keep sft nano-sft
$python train_rl.py --runs-dir "$runs" --name rl && keep rl nano-rl

cat > assets/README.md <<END
# The tiny models

Made by \`make assets\` ([recipes/assets.sh](../recipes/assets.sh)) on one CPU core,
seed 0; toy scale, 0.18M parameters.

* \`nano-base\`: \`train_sft.py --preset nano-base\`, $(seconds base) seconds: language modelling on short pages,
  from random weights, except for one head that starts by looking one token back (\`looks_back\` of \`toy.new_model\`).
  It has never seen a question. Share of right look-ups after a repeated key, in documents of 8, 12, 24 and
  36 records: $($python -m recipes.look_ups assets/nano-base 8 12 24 36).
* \`nano-sft\`: \`train_sft.py\` on the base, $(seconds sft) seconds: worked answers on short documents. It stops early,
  so that RL has something to teach.
* \`nano-rl\`: \`train_rl.py\` on \`nano-sft\`, $(seconds rl) seconds: RL in two phases of document length.

Held-out accuracy, sampled at temperature 1 (\`eval.py\`):

$($python eval.py)
END
cat assets/README.md
