"""Pictures of evaluations, from results.json: accuracy with its interval, and pass@k."""

import re
from pathlib import Path

from tools import figures, series

TITLES = {"by_length": "length of the document", "by_task": "task", "by_source": "source"}


def label(model: str) -> str:
    """Return a short name for a model directory: its run and step, or its last part."""
    path = Path(model)
    if path.parent.name != "checkpoints":
        return path.name
    return f"{path.parents[1].name} {re.sub('^step_0*', 'step ', path.name)}"


def bars(axes, models: list[dict], part: str, first_look: int = 0) -> None:
    """Draw the accuracy of each model by length, task or source. A cell without an accuracy gets no bar."""
    from matplotlib.patheffects import withStroke
    names = list(dict.fromkeys(name for model in models for name in series.cells(model, part)))
    width = 0.84 / len(models)
    for place, model in enumerate(models):
        look = place + first_look
        xs, rates, below, above = [], [], [], []
        for x, name in enumerate(names):
            cell = series.cells(model, part).get(name)
            if cell and cell["accuracy"] is not None:
                low, rate, high = (100 * (cell["accuracy"] if cell[key] is None else cell[key])
                                   for key in ("low", "accuracy", "high"))
                xs.append(x + (place - (len(models) - 1) / 2) * width)
                rates.append(rate)
                below.append(max(0, rate - low))
                above.append(max(0, high - rate))
        axes.bar(xs, rates, 0.9 * width, label=label(model["model"]), color=figures.look(look)["color"],
                 hatch=figures.hatch(look), edgecolor="white", linewidth=0.5)
        _, caps, (lines,) = axes.errorbar(xs, rates, [below, above], fmt="none", ecolor="black", elinewidth=1,
                                          capsize=2.5)
        for artist in (*caps, lines):                                    # visible on dark bars too
            artist.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        if len(models) * len(names) <= 16:
            for x, rate, up in zip(xs, rates, above):
                axes.annotate(f"{rate:.0f}", (x, rate + up), xytext=(0, 2), textcoords="offset points", ha="center",
                              fontsize=7.5)
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20), xticks=range(len(names)), ylabel="accuracy, %")
    axes.set_xticklabels([f"{name} tokens" if part == "by_length" and name != "all" else name for name in names],
                         rotation=20 if len(names) > 7 else 0)


def pass_curve(axes, models: list[dict]) -> None:
    """Draw pass@k over k: what more samples buy."""
    for place, model in enumerate(models):
        if rates := series.passes(model):
            axes.plot([k for k, _ in rates], [100 * rate for _, rate in rates], marker="osD^vP"[place % 6],
                      markersize=4.5, linewidth=1.6, label=label(model["model"]), **figures.look(place))
    ticks = sorted({k for model in models for k, _ in series.passes(model)})
    axes.set_xscale("log", base=2)
    axes.set(xticks=ticks, xticklabels=ticks, ylim=(0, 104), xlabel="k, answers per question",
             ylabel="a right one among k, %", title="pass@k: test-time scaling")


def evaluation(models: list[dict], path: Path) -> Path:
    """Draw a panel each for accuracy by length, task and source, and for pass@k, where they were measured."""
    parts = [part for part in series.PARTS if any(series.cells(model, part) for model in models)]
    sampled = any(map(series.passes, models))
    num = len(parts) + sampled
    figure, grid = figures.canvas(num, 1, (10, 3.1 * num + 0.6))
    for axes, part in zip(grid.flat, parts):
        bars(axes, models, part)
        axes.set_title(f"accuracy by {TITLES[part]}, with its 95 % interval")
    if sampled:
        pass_curve(grid.flat[-1], models)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(models)),
                  frameon=False, fontsize=9)
    return figures.save(figure, path)


def demo(rows: list[dict], models: list[dict], path: Path) -> Path:
    """Draw the RL run's reward by length on the left, and the accuracy of all models on the right."""
    figure, ((left, right),) = figures.canvas(1, 2, (11, 4.2), width_ratios=(3, 2.4))
    figures.draw_lengths(left, [rows])
    left.set(title="reinforcement learning: reward by length of the document", ylabel=figures.REWARD)
    figures.finish(left, {"rl": [rows]}, "reward", bool(left.lines))
    bars(right, models, "by_length", first_look=2)               # not the colours of the lengths on the left
    right.set_title("held-out accuracy, with its 95 % interval")
    figures.below(right, 3)
    return figures.save(figure, path)
