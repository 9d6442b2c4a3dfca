"""Draw runs and evaluations as pictures, or as text in the terminal. docs/watching.md says what is drawn.

    python -m tools.plot runs/a                                     a training run, also while it trains
    python -m tools.plot runs/a-0 runs/a-1 runs/b --out pictures    a-0 and a-1 are seeds of one line: mean and range
    python -m tools.plot runs/a runs/b --metric reward entropy --out ab.png         a panel for each of these metrics
    python -m tools.plot runs/eval                                  an evaluation: what eval.py --out runs/eval wrote
    python -m tools.plot runs/demo-0 --out docs/demo.png            a demo: its RL run and its evaluation"""

import math
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tools import series
from tools.series import Evaluated, Group
from tools.terminal import charts, table

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops.console import say, tell, with_exit_code

COLOURS = ("#004488", "#DDAA33", "#BB5566", "#5FA8A0", "#B9D8F0", "#7A3F98", "#000000")     # differ in lightness, too
DASHES = ("-", "--", ":", "-.", (0, (8, 3)))
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
         "axes.axisbelow": True, "grid.color": "#E4E4E4", "legend.frameon": False}


class Panel(NamedTuple):
    title: str
    unit: str
    key: str
    scale: str = ""             # "share": the axis shows at least 0 to 1
    x: str = "step"


REWARD = "mean reward of the answers"
PICTURES = {                    # panels of metrics that no run has are left out
    "sft": (
        Panel("loss", "nats per token", "loss"),
        Panel("accuracy on held-out documents", "share of answers", "eval/acc", "share"),
        Panel("gradient before it is clipped", "norm", "grad_norm"),
        Panel("learning rate", "", "learning_rate"),
        Panel("time of a step", "seconds", "step_time"),
        Panel("speed", "tokens per second", "tokens_per_s")),
    "dynamics": (                                               # the four panels of QwenLong-L1's Figure 2
        Panel("reward", REWARD, "reward", "share"),
        Panel("entropy", "nats per token", "entropy"),
        Panel("KL to the start", "nats per token (k3)", "kl"),
        Panel("response length", "tokens per answer", "completions/mean_length")),
    "health": (
        Panel("groups that agree: they teach nothing", "share of groups", "frac_reward_zero_std", "share"),
        Panel("answers cut off before their end", "share of answers", "completions/clipped_ratio", "share"),
        Panel("made less likely than the clip allows", "share of tokens", "clip_ratio/low_mean"),
        Panel("made more likely than the clip allows", "share of tokens", "clip_ratio/high_mean"),
        Panel("gradient before it is clipped", "norm", "grad_norm"),
        Panel("hard examples of earlier phases", "share of the batch", "retro/frac", "share"),
        Panel("sampler against trainer", "largest log-prob difference", "rollout_gap"),
        Panel("left open by the judge", "share of its questions", "judge/error_rate", "share"),
        Panel("busiest expert of a layer", "times the even share", "experts/max_load")),
    "time": (
        Panel("reward against wall time", REWARD, "reward", "share", "minutes"),
        Panel("reward against tokens, prompts and answers", REWARD, "reward", "share", "million tokens"),
        *(Panel(f"time to {part}", "seconds of a step", f"timing_s/{part}") for part in ("sample", "reward", "update")),
        Panel("speed", "tokens per second", "tokens_per_s")),
    "patterns": (
        Panel("grounding", "quotes per answer", "patterns/grounding"),
        *(Panel(name, "times per answer", f"patterns/{name}") for name in ("subgoal", "backtracking", "verification")),
        Panel("longest quote of the document", "words", "patterns/longest_quote"))}
ACCURACY = {"by_length": "accuracy by document length (tokens)", "by_task": "accuracy by task",
            "by_source": "accuracy by source", "pass@k": "at least one of k answers is right"}


def plain(name: str) -> str:
    """Return the name such that matplotlib reads no formula in it. (Log axes need formulas, so they stay on.)"""
    return name.replace("$", r"\$")


def look(place: int) -> dict:
    """Return colour and dashes of line number `place`. When all colours are used, they come again with other dashes."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[(place + place // len(COLOURS)) % len(DASHES)]}


def draw_lines(axes, panel: Panel, groups: dict[str, Group]) -> None:
    """Draw a metric of each group as a line. Several seeds are their mean, and a band from lowest to highest."""
    for place, (label, group) in enumerate(groups.items()):
        style = look(place)
        values = series.by_step(group, panel.key, smooth=True)
        xs = [mean(xs) for step, xs in series.by_step(group, panel.x).items() if step in values]
        means, lows, highs = (list(map(of, values.values())) for of in (mean, min, max))
        sparse = len(xs) < max(12, 0.5 * (max(values, default=0) - min(values, default=0)))
        axes.plot(xs, means, label=plain(label), marker="." if sparse else "", **style)
        if len(group) > 1:
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.18, linewidth=0)
        else:                                                   # faint: the values, not averaged over steps
            axes.plot(xs, [*series.by_step(group, panel.key).values()], color=style["color"], alpha=0.3, linewidth=0.8)
    if panel.x == "step":
        axes.set_xlim(0, 1 + max(row["step"] for group in groups.values() for rows in group for row in rows))
        axes.xaxis.get_major_locator().set_params(integer=True)
        for step in set().union(*map(series.borders, groups.values())):
            axes.axvline(step - 0.5, color="#777777", linestyle="--", linewidth=0.9)
    else:
        axes.xaxis.get_major_locator().set_params(nbins=6)      # room for labels such as 0.0025
    all_zero = axes.dataLim.ymin == 0 == axes.dataLim.ymax      # no digits after the point, no negative axis
    if all_zero or panel.scale == "share":
        low, high = (0, 1) if all_zero else axes.get_ylim()
        axes.set_ylim(min(low, -0.03), max(high, 1.03))
    axes.set(title=plain(panel.title), ylabel=panel.unit, xlabel=panel.x)


def draw_bars(axes, part: str, models: list[Evaluated], first_look: int) -> None:
    """Draw the accuracies of each model as bars with their 95 % intervals."""
    names = list(dict.fromkeys(name for _, parts in models for name in parts[part]))
    width = 0.84 / len(models)
    for place, (model, parts) in enumerate(models):
        xs = [names.index(name) + (place - (len(models) - 1) / 2) * width for name in parts[part]]
        rates = [rate for rate, _, _ in parts[part].values()]
        errors = [[max(0, rate - low), max(0, high - rate)] for rate, low, high in parts[part].values()]
        bars = axes.bar(xs, rates, 0.9 * width, yerr=list(zip(*errors)) or None, capsize=2.5, label=plain(model),
                        color=look(place + first_look)["color"])
        axes.bar_label(bars, fmt="%.0f", padding=1, fontsize=7)
    axes.set(ylim=(0, 112), yticks=range(0, 101, 20), ylabel="%, with 95 % interval", title=ACCURACY[part])
    axes.set_xticks(range(len(names)), map(plain, names), rotation=20 if len(names) > 7 else 0)


def picture(path: Path, panels: Sequence[Panel | str], groups: dict[str, Group], models: list[Evaluated]) -> None:
    """Draw the panels, and save them as a PNG file. A panel is one of runs, or one of ACCURACY."""
    from matplotlib import figure as figures, rcParams
    rcParams.update(STYLE)
    columns = 2 if groups and len(panels) > 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure = figures.Figure(figsize=(10, 3 * rows + 0.8), layout="constrained")
    handles = {}
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        if isinstance(panel, Panel):
            draw_lines(axes, panel, groups)
        else:
            draw_bars(axes, panel, models, first_look=len(groups))
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def panels_of(groups: dict[str, Group], models: list[Evaluated], keys: list[str]) -> dict[str, list[Panel | str]]:
    """Return {name of a picture: its panels}. Raises ConfigError if no run has one of the keys."""
    if models and groups:
        return {"curve": [Panel("RL: reward by document length", REWARD, "reward", "share"), "by_length"]}
    if models:
        return {"evaluation": [part for part in ACCURACY if any(parts[part] for _, parts in models)]}
    measured = series.metrics(groups)
    if unknown := [key for key in keys if key not in measured]:
        raise ConfigError(f"no step of these runs has {unknown[0]!r}; there are {', '.join(measured)}")
    of_rl = "reward" in measured
    if keys or not of_rl and "loss" not in measured:
        return {"curve" if keys else "metrics": [Panel(key, "", key) for key in keys or measured]}
    pictures = {name: [panel for panel in panels if panel.key in measured] for name, panels in PICTURES.items()
                if of_rl == (name != "sft")}
    pictures["length"] = [Panel(f"documents of {bucket} tokens", REWARD, series.BY_LENGTH + bucket, "share")
                          for bucket in series.buckets(measured)]
    return {name: panels for name, panels in pictures.items() if panels}


def read(directories: list[Path]) -> tuple[dict[str, Group], list[Evaluated]]:
    """Return the groups of runs and the evaluated models. A demo has both, and a group for each document length."""
    first = directories[0]
    if len(directories) == 1 and not (first / "metrics.jsonl").exists():
        if (first / "rl/metrics.jsonl").exists():
            rows = series.read_metrics(first / "rl/metrics.jsonl")
            groups = {f"{bucket} tokens": [[{**row, "reward": row.get(series.BY_LENGTH + bucket)} for row in rows]]
                      for bucket in series.buckets(series.metrics({"rl": [rows]}))}
            return groups, series.read_results(first / "eval/results.json")
        if (first / "results.json").exists():
            return {}, series.read_results(first / "results.json")
    groups = {}
    for name, runs in series.seeds(directories).items():
        label = name if len(runs) == 1 else f"{name} ({len(runs)} seeds: mean and range)"
        groups[label] = [series.cumulated(series.read_metrics(run / "metrics.jsonl")) for run in runs]
    return groups, []


@with_exit_code
def main(argv: list[str]) -> None:
    parser = ArgumentParser("python -m tools.plot", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run, an evaluation, or a demo")
    parser.add_argument("--metric", nargs="+", default=[], metavar="KEY", help="keys of metrics.jsonl")
    parser.add_argument("--out", type=Path, help="a directory, or a PNG file for one picture (default: the first DIR)")
    parser.add_argument("--text", action="store_true", help="draw in the terminal")
    args = parser.parse_args(argv)
    out = args.out or args.runs[0]
    groups, models = read(args.runs)
    pictures = panels_of(groups, models, args.metric)
    can_draw = find_spec("matplotlib")
    if not (args.text or can_draw):
        tell('matplotlib is not installed (pip install ".[plots]"), so this is drawn as text', sys.stderr)
    if args.text or not can_draw:
        width = shutil.get_terminal_size((100, 24)).columns
        keys = [panel.key for panels in pictures.values() for panel in panels if isinstance(panel, Panel)]
        texts = (charts(groups, keys, width) if groups else "", table(models, width) if models else "")
        say("\n\n".join(filter(None, texts)))
    elif out.suffix == ".png" and len(pictures) > 1:
        raise ConfigError(f"--out {out}: a run gives several pictures; name a directory, or choose with --metric")
    else:
        for name, panels in pictures.items():
            path = out if out.suffix == ".png" else out / f"{name}.png"
            picture(path, panels, groups, models)
            say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
