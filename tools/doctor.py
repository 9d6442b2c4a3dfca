"""What was wrong with runs of train_rl.py, judged from their metrics.jsonl. The rules are in analysis/doctor.py.

    python -m tools.doctor runs/my-rl [runs/other ...]      a line for each fault: its name, its steps, what to change
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from tools.series import read_metrics

from nanoqwenlong.analysis.doctor import Doctor
from nanoqwenlong.ops.console import say, with_exit_code


@with_exit_code
def check(run: Path) -> int:
    """Print the faults of a run, in the order in which they began. Returns 1 if there are any."""
    rows = read_metrics(run / "metrics.jsonl")
    doctor, times, worst = Doctor(), {}, {}
    for row in rows:
        doctor.look(row)
        for finding in doctor.findings:
            times.setdefault(finding.name, []).append(row["step"])
            worst[finding.name] = max(worst.get(finding.name, finding), finding, key=lambda f: f.badness)
    for name, steps in times.items():
        when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        say(f"{run}: {name} ({when}: {len(steps)} of {len(rows)}): {worst[name].sentence}")
    if not times:
        say(f"{run}: no complaint in {len(rows)} steps")
    return int(bool(times))


@with_exit_code
def main(argv: list[str]) -> int:
    parser = ArgumentParser("python -m tools.doctor", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="directories of runs")
    return max(map(check, parser.parse_args(argv).runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
