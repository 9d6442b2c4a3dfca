#!/usr/bin/env bash
# Makes the tiny models of assets/ anew, with train_sft.py itself: the base from random weights, then its warm-up.
# Beside each: the resolved config (seed included), the time it took and what came out.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/assets
rm -rf "$runs"

keep() {   # keep RUN_NAME ASSET: the last checkpoint of a run becomes an asset
    rm -rf "assets/$2" && mkdir -p "assets/$2"
    cp "$runs/$1"/checkpoints/step_*/* "assets/$2/"
    cp "$runs/$1/config.json" "assets/$2/made_by.json"
}

$python train_sft.py --preset nano-base --runs-dir "$runs" --name base && keep base nano-base
$python train_sft.py --runs-dir "$runs" --name sft && keep sft nano-sft
$python eval.py --metrics "$runs/table.json" | tee "$runs/table.md"
