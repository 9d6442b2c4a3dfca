#!/usr/bin/env bash
# The seven document benchmarks of QwenLong-L1 (its Table 4), at its settings: temperature 0.7, top-p 0.95, prompts of
# up to 120,000 tokens, answers of up to 10,000.
#
#     LONGBENCH=data FRAMES=frames.jsonl DOCMATH=docmath_test_200.json bash recipes/benchmarks.sh DIR [DIR ...]
#     RANKS=8 JUDGE=http://localhost:8000/v1 JUDGE_MODEL=NAME SAMPLES=16 ... bash recipes/benchmarks.sh DIR
#
# LONGBENCH  the folder of https://huggingface.co/datasets/THUDM/LongBench's data.zip, unpacked; five of its files
# FRAMES     google/frames-benchmark with the texts of its pages, because it only has links: rows of Prompt, Answer and
#            wiki_items [{title, text}, ...] (JSONL, a JSON array or Parquet)
# DOCMATH    yale-nlp/DocMath-Eval's testmini, a JSON array. For a model trained on DocQA-RL-1.6K, give only the 200
#            questions that are not in its training data (docs/evaluation.md)
#
# Each may be left out. Answers are saved in OUT (runs/benchmarks) as they come. After a stop, the same command resumes.
# With another JUDGE it scores the saved answers again, without sampling. Models with a window of 32,768 need YaRN in
# their config.json for longer prompts (docs/models.md). Not run yet with models of this size: no GPU was available.
set -euo pipefail
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || { sed -n '1s/.*/usage:/p; 2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 78; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} ranks=${RANKS:-1}
files=()
for name in 2wikimqa hotpotqa musique narrativeqa qasper; do
    [ -z "${LONGBENCH:-}" ] || files+=("$LONGBENCH/$name.jsonl")
done
files+=(${FRAMES:+"$FRAMES"} ${DOCMATH:+"$DOCMATH"})
[ ${#files[@]} -gt 0 ] || { echo "name at least one of LONGBENCH, FRAMES and DOCMATH" >&2; exit 78; }
launch=("$python")
[ "$ranks" -gt 1 ] && launch=("$python" -m torch.distributed.run --standalone --nproc_per_node="$ranks")

"${launch[@]}" eval.py --preset paper --device "${DEVICE:-cuda}" --model "$@" --data "${files[@]}" \
    --samples "${SAMPLES:-1}" --kv-blocks "${KV_BLOCKS:-16384}" --out "${OUT:-runs/benchmarks}" \
    ${JUDGE:+--judge "$JUDGE"} ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} ${EVAL_FLAGS:-}
