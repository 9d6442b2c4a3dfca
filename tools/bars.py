"""Pictures of evaluations, from results.json: accuracy by length, task and source with its interval, and pass@k."""

import re
from pathlib import Path

from tools import figures, series


def bars(axes, models: list[dict], part: str, first: int = 0) -> None:
    """Accuracy of each model by length, task or source, with its interval; nothing where it is null. first: colour."""
    from matplotlib.patheffects import withStroke
    names = list(dict.fromkeys(name for model in models for name in series.cells(model, part)))
    width = 0.84 / len(models)
    crowded = len(models) * len(names) > 16
    for place, model in enumerate(models):
        known = [(i, cell) for i, name in enumerate(names)
                 if (cell := series.cells(model, part).get(name)) and cell["accuracy"] is not None]
        x = [i + (place - (len(models) - 1) / 2) * width for i, _ in known]
        y, low, high = ([100 * cell[key] if cell[key] is not None else 100 * cell["accuracy"] for _, cell in known]
                        for key in ("accuracy", "low", "high"))
        axes.bar(x, y, 0.9 * width, label=label(model["model"]), color=figures.look(first + place)["color"],
                 hatch=figures.hatch(first + place), edgecolor="white", linewidth=0.5)
        _, caps, (lines,) = axes.errorbar(x, y, [[max(0, a - b) for a, b in zip(y, low)],
                                                 [max(0, b - a) for a, b in zip(y, high)]],
                                          fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
        for artist in (*caps, lines):                            # to be seen on dark bars as well
            artist.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        for spot, value, top in zip(x, y, high) if not crowded else ():
            axes.annotate(f"{value:.0f}", (spot, top), xytext=(0, 2), textcoords="offset points", ha="center",
                          fontsize=7.5)
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20), xticks=range(len(names)))
    axes.set_xticklabels([f"{name} tokens" if part == "by_length" and name != "all" else name for name in names],
                         rotation=20 if len(names) > 7 else 0)


def pass_curve(axes, models: list[dict]) -> None:
    """The chance that one of k answers is right: what sampling more buys."""
    for place, model in enumerate(models):
        known = series.passes(model)
        if known:
            axes.plot(*zip(*[(k, 100 * value) for k, value in known]), marker="osD^vP"[place % 6], markersize=4.5,
                      linewidth=1.6, label=label(model["model"]), **figures.look(place))
    ticks = sorted({int(tick) for line in axes.lines for tick in line.get_xdata()})
    axes.set_xscale("log", base=2)
    axes.set(xticks=ticks, xticklabels=ticks, ylim=(0, 104), xlabel="k, answers per question",
             ylabel="a right one among k, %")


def evaluation(models: list[dict], path: Path) -> Path:
    """Accuracy by length, task and source, a panel each, and pass@k where it was measured."""
    parts = [part for part in series.PARTS if any(series.cells(model, part) for model in models)]
    sampled = any(map(series.passes, models))
    num = max(1, len(parts) + sampled)
    figure, grid = figures.canvas(num, 1, (10, 3.1 * num + 0.6))
    for axes, part in zip(grid.flat, parts or ["by_length"]):
        bars(axes, models, part)
        names = {"by_length": "length of the document", "by_task": "task", "by_source": "source"}
        axes.set(title=f"accuracy by {names[part]}, with its 95 % interval", ylabel="accuracy, %")
    if sampled:
        pass_curve(grid.flat[-1], models)
        grid.flat[-1].set_title("pass@k: test-time scaling")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(models)),
                  frameon=False, fontsize=9)
    return figures.save(figure, path)


def demo(rows: list[dict], models: list[dict], path: Path) -> Path:
    """Left the RL run's reward by length, right the accuracy of all models."""
    figure, ((left, right),) = figures.canvas(1, 2, (11, 4.2), width_ratios=(3, 2.4))
    figures.draw_lengths(left, [rows])
    left.set(title="reinforcement learning: reward by length of the document", ylabel=figures.REWARD)
    figures.finish(left, {"rl": [rows]}, "reward", bool(left.lines))
    bars(right, models, "by_length", first=2)                    # in other colours than the lengths have on the left
    right.set(title="held-out accuracy, with its 95 % interval", ylabel="accuracy, %")
    figures.below(right, 3)
    return figures.save(figure, path)


def label(model: str) -> str:
    """A short name for a model directory: its run and step, or its own name."""
    path = Path(model)
    if path.parent.name != "checkpoints":
        return path.name
    return f"{path.parents[1].name} {re.sub('^step_0*', 'step ', path.name)}"
