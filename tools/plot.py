"""Draw runs and evaluations as pictures, or as text in the terminal (both need `pip install ".[plots]"`):

    python -m tools.plot runs/a                                     a training run, or several in the same panels
    python -m tools.plot runs/a-0 runs/a-1 runs/b --out pictures    a-0 and a-1 are seeds of one line: mean and band
    python -m tools.plot runs/a runs/b --metric reward entropy --out ab.png         a panel for each of these metrics
    python -m tools.plot runs/eval                                  an evaluation: what eval.py --out runs/eval wrote
    python -m tools.plot runs/demo-0 --out docs/demo.png            a demo: its RL run and its evaluation

A training run gives dynamics.png (reward, entropy, KL, length: Figure 2 of QwenLong-L1), length.png (reward by length
of the document), health.png, time.png (what it cost), and patterns.png if they were counted. The numbers come from
metrics.jsonl and results.json, also while the run is still training. Thick lines are moving averages that start again
with each phase. Thin lines are the values themselves. A cross at the foot of a panel is a value that was not finite.
"""

import argparse
import difflib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from tools import bars, figures, series
from tools.series import Evaluated, Group
from tools.terminal import charts, run_tool, say, table

from nanoqwenlong.errors import ConfigError, DataError


def read(directories: list[Path], keys: list[str]) -> tuple[dict[str, Group], list[Evaluated]]:
    """Return the groups of runs and the evaluated models. An evaluation has no runs. A demo has both."""
    first = directories[0]
    if len(directories) == 1 and not keys and not (first / "metrics.jsonl").exists():
        if (first / "rl/metrics.jsonl").exists():
            run = series.read_metrics(first / "rl/metrics.jsonl")
            return {"rl": [run]}, series.read_results(first / "eval/results.json")
        if (first / "results.json").exists():
            return {}, series.read_results(first / "results.json")
    groups = {name: [series.read_metrics(run / "metrics.jsonl") for run in runs]
              for name, runs in series.seeds(directories).items()}
    for key in keys:
        if not any(series.has(group, key) for group in groups.values()):
            near = difflib.get_close_matches(key, numbers(groups), n=1, cutoff=0.0)
            raise ConfigError(f"no step of these runs has {key!r}; did you mean {(near or ['reward'])[0]!r}?")
    return groups, []


def numbers(groups: dict[str, Group]) -> list[str]:
    """Return the names of all metrics that are numbers. Raises DataError if there are none."""
    rows = [row for group in groups.values() for rows in group for row in rows]
    names = list(dict.fromkeys(key for row in rows for key, value in row.items() if key not in ("step", "phase")
                               and isinstance(value, int | float) and not isinstance(value, bool)))
    if not names:
        raise DataError("no step has a number to show; it should be the metrics.jsonl of a run")
    return names


def draw(groups: dict[str, Group], models: list[Evaluated], keys: list[str], out: Path) -> list[Path]:
    """Draw pictures and return their paths. `out` is a directory. If there is one picture, it can be a PNG file."""
    one_file = out.suffix == ".png"
    if models and groups:
        return [bars.demo(groups["rl"][0], models, out if one_file else out / "curve.png")]
    if models:
        return [bars.evaluation(models, out if one_file else out / "evaluation.png")]
    measured = numbers(groups)
    if keys or "reward" not in measured:                          # the warm-up has other metrics than RL
        specs = [(key, "", key) for key in keys or measured]
        path = out if one_file else out / ("curve.png" if keys else "metrics.png")
        return [figures.panels(groups, specs, path, columns=3)]
    if one_file:
        raise ConfigError(f"--out {out}: a run gives several pictures; name a directory, or choose with --metric")
    health = [spec for spec in figures.HEALTH if spec[2] not in figures.OPTIONAL or spec[2] in measured]
    made = [figures.dynamics(groups, out / "dynamics.png"), figures.lengths(groups, out / "length.png"),
            figures.panels(groups, health, out / "health.png"), figures.time(groups, out / "time.png")]
    if any(key in measured for _, _, key in figures.PATTERNS):
        made.append(figures.panels(groups, figures.PATTERNS, out / "patterns.png"))
    return made


def default_keys(groups: dict[str, Group]) -> list[str]:
    """Return the metrics of the pictures that these runs have. If they are not RL runs: all metrics."""
    rows = [row for group in groups.values() for rows in group for row in rows]
    lengths = [series.BY_LENGTH + name for name in series.buckets(rows)]
    shown = [key for _, _, key in (*figures.DYNAMICS, *figures.HEALTH, *figures.PATTERNS)]
    keys = dict.fromkeys(["reward", *lengths, *shown, "step_time", "tokens_per_s"])
    return [key for key in keys if any(series.has(group, key) for group in groups.values())] or numbers(groups)


def as_text(groups: dict[str, Group], models: list[Evaluated], keys: list[str]) -> str:
    """Return the same as text: panels of the runs' metrics, and bars of the evaluation."""
    width = shutil.get_terminal_size((100, 24)).columns
    parts = []
    if groups:
        parts.append(charts(groups, keys or default_keys(groups), width))
    if models:
        parts.append(table(models, width))
    return "\n\n".join(parts)


def show(directories: list[Path], keys: list[str], out: Path | None, text: bool) -> None:
    """Draw, or print, what the directories hold."""
    groups, models = read(directories, keys)
    if not text and not find_spec("matplotlib"):
        text = True
        if find_spec("plotext"):                                 # if not, charts says what to install
            print('matplotlib is not installed (pip install ".[plots]"), so this is drawn as text', file=sys.stderr)
    try:
        say(as_text(groups, models, keys) if text else
            f"wrote {', '.join(map(str, draw(groups, models, keys, out or directories[0])))}")
    except DataError as error:
        raise DataError(f"{' '.join(map(str, directories))} cannot be drawn: {error}") from None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run, an evaluation, or a demo")
    parser.add_argument("--metric", nargs="+", default=[], metavar="KEY", help="keys of metrics.jsonl")
    parser.add_argument("--out", type=Path, help="a directory, or a PNG file if there is one picture (default: the "
                                                 "first DIR)")
    parser.add_argument("--text", action="store_true", help="draw in the terminal")
    args = parser.parse_args(argv)
    return run_tool(lambda: show(args.runs, args.metric, args.out, args.text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
