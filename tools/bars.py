"""Pictures of evaluations, from results.json: accuracy with its interval, and pass@k."""

from collections.abc import Sequence
from pathlib import Path

from tools import figures
from tools.series import PARTS, Evaluated

TITLES = {"by_length": "length of the document", "by_task": "task", "by_source": "source"}


def bars(axes, models: Sequence[Evaluated], part: str, first_look: int = 0) -> None:
    """Draw the accuracy of each model by length, task or source. What was not measured gets no bar."""
    from matplotlib.patheffects import withStroke
    names = list(dict.fromkeys(name for model in models for name in model.parts[part]))
    width = 0.84 / len(models)
    for place, model in enumerate(models, start=first_look):
        left = (place - first_look - (len(models) - 1) / 2) * width
        measured = {name: rates for name, rates in model.parts[part].items() if rates[0] is not None}
        xs = [names.index(name) + left for name in measured]
        heights = [rate for rate, _, _ in measured.values()]
        below = [0 if low is None else max(0, rate - low) for rate, low, _ in measured.values()]
        above = [0 if high is None else max(0, high - rate) for rate, _, high in measured.values()]
        axes.bar(xs, heights, 0.9 * width, label=model.name, color=figures.look(place)["color"],
                 hatch=figures.hatch(place), edgecolor="white", linewidth=0.5)
        _, caps, (lines,) = axes.errorbar(xs, heights, [below, above], fmt="none", ecolor="black", elinewidth=1,
                                          capsize=2.5)
        for artist in (*caps, lines):                                    # visible on dark bars too
            artist.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        if len(models) * len(names) <= 16:
            for x, height, up in zip(xs, heights, above):
                axes.annotate(f"{height:.0f}", (x, height + up), xytext=(0, 2), textcoords="offset points", ha="center",
                              fontsize=7.5)
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20), xticks=range(len(names)), ylabel="accuracy, %")
    axes.set_xticklabels([f"{name} tokens" if part == "by_length" and name != "all" else name for name in names],
                         rotation=20 if len(names) > 7 else 0)


def pass_curve(axes, models: Sequence[Evaluated]) -> None:
    """Draw pass@k over k: what more samples buy."""
    for place, model in enumerate(models):
        if model.passes:
            axes.plot(list(model.passes), [rate for rate, _, _ in model.passes.values()], marker="osD^vP"[place % 6],
                      markersize=4.5, linewidth=1.6, label=model.name, **figures.look(place))
    ticks = sorted({k for model in models for k in model.passes})
    axes.set_xscale("log", base=2)
    axes.set(xticks=ticks, xticklabels=ticks, ylim=(0, 104), xlabel="k, answers per question",
             ylabel="a right one among k, %", title="pass@k: test-time scaling")


def evaluation(models: Sequence[Evaluated], path: Path) -> Path:
    """Draw a panel each for accuracy by length, task and source, and for pass@k, where they were measured."""
    parts = [part for part in PARTS if any(model.parts[part] for model in models)]
    sampled = any(model.passes for model in models)
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


def demo(rows: list[dict], models: Sequence[Evaluated], path: Path) -> Path:
    """Draw the RL run's reward by length on the left, and the accuracy of all models on the right."""
    figure, ((left, right),) = figures.canvas(1, 2, (11, 4.2), width_ratios=(3, 2.4))
    figures.draw_lengths(left, [rows])
    left.set(title="reinforcement learning: reward by length of the document", ylabel=figures.REWARD)
    figures.finish(left, {"rl": [rows]}, "reward", bool(left.lines))
    bars(right, models, "by_length", first_look=2)               # not the colours of the lengths on the left
    right.set_title("held-out accuracy, with its 95 % interval")
    figures.below(right, 3)
    return figures.save(figure, path)
