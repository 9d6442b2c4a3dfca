"""Pictures of runs (needs `pip install ".[plots]"`):

    python -m tools.plot runs/demo-0 [--out docs/demo.png]                          a demo run
    python -m tools.plot runs/a runs/b --metric reward entropy --out ab.png         metrics of one run or several

Of metrics there is one panel each, a line for each run: a moving average over 15 steps. Of a demo, left: the mean
reward of each RL step on its phase's documents (rl/metrics.jsonl), a moving average over it, as dots the hard examples
of earlier phases that came back, and the border between the phases. Right: held-out accuracy by document length for
each model of table.json, with its 95 % interval.
"""

import argparse
import json
import sys
from pathlib import Path

PREFIX = "reward_by_len/"


def read_metrics(path: Path) -> list[dict]:
    """The steps of a run, one dictionary each."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def moving_average(values: list[float], width: int) -> list[float]:
    """Mean of the last `width` values at each place (fewer at the start)."""
    return [sum(values[max(0, i - width + 1):i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def draw(run: Path, out: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    steps, rows = read_metrics(run / "rl/metrics.jsonl"), json.loads((run / "table.json").read_text(encoding="utf-8"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2))

    buckets = list(dict.fromkeys(name for row in rows for name in row if name != "model"))
    for number, (name, colour) in enumerate(zip(buckets, ("tab:blue", "tab:orange", "tab:green")), start=1):
        own = [(s["step"], s[PREFIX + name]) for s in steps if PREFIX + name in s and s["phase"] == number]
        kept = [(s["step"], s[PREFIX + name]) for s in steps if PREFIX + name in s and s["phase"] > number]
        if own:
            x, y = zip(*own)
            left.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            left.plot(x, moving_average(y, 15), color=colour, label=f"documents of {name} tokens")
        if kept:
            left.plot(*zip(*kept), ".", color=colour, markersize=3, label="hard ones of an earlier phase")
    for before, after in zip(steps, steps[1:]):
        if before["phase"] != after["phase"]:
            left.axvline(after["step"], color="grey", linestyle="--", linewidth=0.8)
            left.annotate(f"phase {after['phase']}", (after["step"], 0.5), xytext=(4, 0), textcoords="offset points")
    left.set(xlabel="RL step", ylabel="mean reward of the sampled answers", ylim=(-0.02, 1.02))
    left.legend(frameon=False, loc="lower right")

    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        cells = [row[name] for name in buckets]
        heights = [100 * cell["accuracy"] for cell in cells]
        spread = [[100 * (cell["accuracy"] - cell["low"]) for cell in cells],
                  [100 * (cell["high"] - cell["accuracy"]) for cell in cells]]
        right.bar([place + i * width for place in range(len(buckets))], heights, width * 0.9, yerr=spread, capsize=2,
                  label=label(row["model"]), color=f"C{i + 3}")
    right.set(ylabel="held-out accuracy, %", ylim=(0, 100), xticks=[p + 0.4 - width / 2 for p in range(len(buckets))],
              xticklabels=[f"{name} tokens" for name in buckets])
    right.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


def draw_metrics(runs: list[Path], metrics: list[str], out: Path) -> None:
    """A panel per metric, a line per run; steps without the metric are left out."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.2), squeeze=False)
    for axes, metric in zip(panels[0], metrics):
        for number, run in enumerate(runs):
            points = [(s["step"], s[metric]) for s in read_metrics(run / "metrics.jsonl") if s.get(metric) is not None]
            if points:
                x, y = zip(*points)
                axes.plot(x, y, color=f"C{number}", alpha=0.2, linewidth=0.8)
                axes.plot(x, moving_average(y, 15), color=f"C{number}", label=run.name)
        axes.set(xlabel="RL step", title=metric)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


def label(model: str) -> str:
    """A short name for a model directory: its run and step, or its own name."""
    path = Path(model)
    return f"{path.parents[1].name} {path.name}" if path.parent.name == "checkpoints" else path.name


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run",
                        help="with --metric run directories, else the directory of a demo (recipes/demo.sh)")
    parser.add_argument("--metric", nargs="+", help="keys of metrics.jsonl")
    parser.add_argument("--out", type=Path, help="the PNG (default: RUN/curve.png)")
    args = parser.parse_args(argv)
    out = args.out or args.runs[0] / "curve.png"
    if not args.metric and len(args.runs) > 1:
        print("several runs are drawn metric by metric: give --metric", file=sys.stderr)
        return 78
    try:
        draw_metrics(args.runs, args.metric, out) if args.metric else draw(args.runs[0], out)
    except FileNotFoundError as error:
        print(f"{error.filename} is not there; give the directory of a finished run or demo", file=sys.stderr)
        return 66
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        print(f"{args.runs[0]} cannot be drawn ({type(error).__name__}: {error}); a run should hold a whole "
              "metrics.jsonl, a demo that of an RL run and the table.json of eval.py", file=sys.stderr)
        return 65
    except ImportError:
        print('matplotlib is not installed: pip install ".[plots]"', file=sys.stderr)
        return 78
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
