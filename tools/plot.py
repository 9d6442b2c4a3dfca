"""Pictures of runs and of evaluations (needs `pip install ".[plots]"`; else, or with --text, in the terminal):

    python -m tools.plot runs/a                                     a training run, or several in the same panels
    python -m tools.plot runs/a-0 runs/a-1 runs/b --out pictures    a-0 and a-1 are seeds of one line: mean and band
    python -m tools.plot runs/a runs/b --metric reward entropy --out ab.png         a panel for each of these metrics
    python -m tools.plot runs/eval                                  what eval.py --out runs/eval found
    python -m tools.plot runs/demo-0 --out docs/demo.png            a demo: its RL run and its evaluation

Of training runs: dynamics.png (reward, entropy, KL, length: Figure 2 of QwenLong-L1), length.png (reward by length of
the document), health.png, time.png (what it cost), patterns.png (if they were counted). All comes from metrics.jsonl
and results.json; a run may still be going on. Thick lines are moving averages, anew in each phase; a run's own values
are the thin ones. A cross at the foot of a panel is a value that was not finite.
"""

import argparse
import difflib
import shutil
import sys
from pathlib import Path

from tools import bars, figures, series, terminal
from tools.bars import label
from tools.series import read_metrics, seeds

Groups = dict[str, list[list[dict]]]


def read_groups(runs: list[Path]) -> Groups:
    return {name: [read_metrics(run / "metrics.jsonl") for run in some] for name, some in seeds(runs).items()}


def of_runs(groups: Groups, directory: Path) -> list[Path]:
    """The pictures of training runs; of the warm-up's, whose metrics are others, a panel for each."""
    if not any(series.has(group, "reward") for group in groups.values()):
        return [of_metrics(groups, numbers(groups), directory / "metrics.png")]
    made = [figures.dynamics(groups, directory / "dynamics.png"), figures.lengths(groups, directory / "length.png"),
            figures.panels(groups, [spec for spec in figures.HEALTH if spec[2] not in figures.NOT_ALWAYS or any(
                series.has(group, spec[2]) for group in groups.values())], directory / "health.png"),
            figures.time(groups, directory / "time.png")]
    if any(series.has(group, key) for group in groups.values() for _, _, key in figures.PATTERNS):
        made.append(figures.panels(groups, figures.PATTERNS, directory / "patterns.png"))
    return made


def of_metrics(groups: Groups, keys: list[str], path: Path) -> Path:
    return figures.panels(groups, [(key, "", key) for key in keys], path, columns=3)


def numbers(groups: Groups) -> list[str]:
    """All metrics that are numbers; PlotError if there is none."""
    rows = [row for group in groups.values() for rows in group for row in rows]
    found = list(dict.fromkeys(key for row in rows for key, value in row.items() if key not in ("step", "phase")
                               and isinstance(value, int | float) and not isinstance(value, bool)))
    if not found:
        raise series.PlotError("no step has a number to show; it should be the metrics.jsonl of a run")
    return found


def require(groups: Groups, keys: list[str]) -> None:
    """Every metric that was asked for is there, in some run."""
    for key in keys:
        if not any(series.has(group, key) for group in groups.values()):
            near = difflib.get_close_matches(key, numbers(groups), n=1, cutoff=0.0)
            raise LookupError(f"no step of these runs has {key!r}; did you mean {(near or ['reward'])[0]!r}?")


def in_words(groups: Groups, keys: list[str], models: list[dict], stream) -> str:
    """The same in the terminal: sparklines of runs, bars of an evaluation."""
    width = shutil.get_terminal_size((100, 24)).columns
    blocks = terminal.BLOCKS if terminal.fits(terminal.BLOCKS + "│", stream.encoding) else terminal.PLAIN
    parts = []
    if groups:
        parts.append(terminal.chart(groups, keys or terminal.chosen(groups) or numbers(groups), width, blocks))
    if models:
        rows = [(label(model["model"]), name, cell) for part in series.PARTS
                for model in models for name, cell in series.cells(model, part).items()]
        rows += [(label(model["model"]), f"pass@{k}", {"accuracy": value, "low": None, "high": None})
                 for model in models for k, value in series.passes(model)]
        parts.append(terminal.table(rows, width, blocks))
    return "\n\n".join(parts)


def show(runs: list[Path], keys: list[str], out: Path | None, text: bool) -> None:
    """Draws, or prints, what the directories hold."""
    first, groups, models = runs[0], {}, []
    demo = len(runs) == 1 and not keys and not (first / "metrics.jsonl").exists() and (
        first / "rl/metrics.jsonl").exists()
    if demo:
        groups, models = read_groups([first / "rl"]), series.read_results(first / "eval/results.json")
    elif len(runs) == 1 and not keys and (first / "results.json").exists() and not (first / "metrics.jsonl").exists():
        models = series.read_results(first / "results.json")
    else:
        groups = read_groups(runs)
        require(groups, keys)
    if not text:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            print('matplotlib is not installed (pip install ".[plots]"), so it is drawn in text', file=sys.stderr)
            text = True
    if text:
        terminal.say(in_words(groups, keys, models, sys.stdout))
        return
    if not models and not keys:
        if out and out.suffix == ".png":
            raise LookupError(f"--out {out}: a run gives several pictures; name a directory, or choose with --metric")
        made = of_runs(groups, out or first)
    else:
        path = out if out and out.suffix == ".png" else (out or first) / (
            "evaluation.png" if models and not demo else "curve.png")
        made = [bars.demo(next(iter(groups.values()))[0], models, path) if demo else
                bars.evaluation(models, path) if models else of_metrics(groups, keys, path)]
    terminal.say(f"wrote {', '.join(map(str, made))}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="of a run, an evaluation, or a demo")
    parser.add_argument("--metric", nargs="+", default=[], metavar="KEY", help="keys of metrics.jsonl")
    parser.add_argument("--out", type=Path, help="a directory, or where there is one picture its PNG (default: in the "
                                                 "first DIR)")
    parser.add_argument("--text", action="store_true", help="in the terminal")
    args = parser.parse_args(argv)
    try:
        show(args.runs, args.metric, args.out, args.text)
    except (FileNotFoundError, NotADirectoryError) as error:
        print(f"{error.filename} is not there; give the directory of a run, an evaluation or a demo", file=sys.stderr)
        return 66
    except series.PlotError as error:
        print(f"{' '.join(map(str, args.runs))} cannot be drawn: {error}", file=sys.stderr)
        return 65
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 78
    except OSError as error:
        print(f"{error.filename} cannot be read or written: {error.strerror}", file=sys.stderr)
        return 74
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
