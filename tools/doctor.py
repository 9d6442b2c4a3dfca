"""What was wrong with a run of train_rl.py, from its metrics.jsonl:

    python -m tools.doctor runs/my-rl [runs/other ...]

One line for each fault: its name, the steps at which it was there (each judged with the nine before it, of the same
phase), and a sentence with the worst figure and the flag to change. nanoqwenlong/analysis/doctor.py has the rules; train_rl.py
says the same while it trains. The file of a run that is still going may be read; a half-written last line is left out.

Exit code: 0 where no run has a fault, 1 where one has, 65 or 66 where a file cannot be read or is missing.
"""

import argparse
import sys
from pathlib import Path

from tools.series import PlotError, read_metrics

from nanoqwenlong.analysis.doctor import Doctor, Finding


def report(rows: list[dict]) -> list[str]:
    """A line for each fault, in the order in which they began; none for a healthy run."""
    doctor, times, worst = Doctor(), {}, {}
    for number, row in enumerate(rows, start=1):
        doctor.look(row)
        for finding in doctor.found:
            times.setdefault(finding.name, []).append(row.get("step", number))
            worst[finding.name] = max(worst.get(finding.name, finding), finding, key=lambda f: f.badness)
    return [describe(worst[name], steps, len(rows)) for name, steps in times.items()]


def describe(finding: Finding, steps: list, num_steps: int) -> str:
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    return f"{finding.name} ({when}: {len(steps)} of {num_steps}): {finding.sentence}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="directories of runs")
    code = 0
    for run in parser.parse_args(argv).runs:
        try:
            rows = read_metrics(run / "metrics.jsonl")
        except (PlotError, OSError) as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            print(f"{error.filename} is not there; give the directory of a run" if missing else
                  f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else error,
                  file=sys.stderr)
            code = max(code, 66 if missing else 65)
            continue
        lines = report(rows)
        code = max(code, int(bool(lines)))
        print("\n".join(f"{run}: {line}" for line in lines or [f"no complaint in {len(rows)} steps"]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
