#!/usr/bin/env bash
# For a machine with a CUDA GPU, torch >= 2.11 and triton >= 3.6: are the kernels right there, and how fast is all of it?
# At most nine minutes. Writes gpu.md and gpu.json.
#
#   bench/gpu.sh [DIR]        DIR: runs/gpu if not given;  PYTHON=... uses a Python of your own
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
failed=0
timeout 220 "$PYTHON" -m pytest -rf tests/test_triton.py tests/test_attention.py tests/test_generate.py \
    -k "triton and not compiles or gpu or kernel" || failed=1
timeout 315 "$PYTHON" -m bench.gpu --out "${1:-runs/gpu}" || failed=1
exit $failed
