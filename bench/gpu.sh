#!/usr/bin/env bash
# Checks the kernels on this machine's GPU and measures everything. Needs CUDA, torch >= 2.11 and triton >= 3.6.
# Takes at most nine minutes. Writes gpu.md and gpu.json.
#
#   bench/gpu.sh [DIR]        DIR is runs/gpu if not given. PYTHON=... chooses another Python
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
failed=0
timeout 220 "$PYTHON" -m pytest -rf tests/test_triton.py tests/test_attention.py tests/test_generate.py \
    -k "triton and not compiles or gpu or kernel" || failed=1
timeout 315 "$PYTHON" -m bench.gpu --out "${1:-runs/gpu}" || failed=1
exit $failed
