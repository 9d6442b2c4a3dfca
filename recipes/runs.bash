# Functions of the recipes that train many runs, two at a time. They need $python, $runs (a directory) and $seeds.
# A run is named KIND-SEED. Each writes its output to $runs/NAME.log.

try() {   # try NAME COMMAND...: one command with its own log. If it fails, show the end of the log
    local name=$1 && shift
    "$@" > "$runs/$name.log" 2>&1 || { echo "$name failed:" && tail -n 5 "$runs/$name.log"; exit 255; }
    echo "   $name: $((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))"
}
run() {   # run NAME SCRIPT FLAGS...: train one run
    try "$1" "$python" "$2" --runs-dir "$runs" --name "$1" --seed "${1##*-}" "${@:3}"
}
last() { printf '%s\n' "$runs/$1"/checkpoints/step_* | tail -n 1; }           # the newest checkpoint of a run
both() { xargs -d '\n' -P "${JOBS:-2}" -I{} bash -euo pipefail -c '{}'; }      # two of the commands on stdin at a time
for_seeds() { for seed in $seeds; do printf "%s\n" "${1//SEED/$seed}"; done; }
export -f try run last
