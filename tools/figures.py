"""Pictures of training runs, drawn with matplotlib. A group is one line: a run, or the mean and range of several seeds.

Colour-blind readers and greyscale prints can tell the colours apart: their lightness differs. Line styles, markers and
hatches differ too.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from tools import series
from tools.series import Group

PALETTE = ("#004488", "#DDAA33", "#BB5566", "#000000", "#5FA8A0", "#B9D8F0", "#7A3F98")    # three of Paul Tol's
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 2)))
HATCHES = ("", "//", "..", "", "xx", "\\\\", "--")
STYLE = {"axes.titlesize": 10.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
         "grid.color": "#E4E4E4", "grid.linewidth": 0.7, "axes.axisbelow": True, "hatch.linewidth": 0.8,
         "text.parse_math": False}                              # a "$" in a name is a "$"
SHARES = re.compile("accuracy|reward|frac_|retro/frac|completions/clipped|judge/error")          # from 0 to 1

REWARD = "mean reward of the answers"
DYNAMICS = (("(a) reward", REWARD, "reward"), ("(b) entropy", "entropy, nats per token", "entropy"),
            ("(c) KL to the start", "KL (k3), nats per token", "kl"),
            ("(d) response length", "tokens per answer", "completions/mean_length"))
HEALTH = (("groups that agree: they teach nothing", "share of groups", "frac_reward_zero_std"),
          ("answers cut off before their end", "share of answers", "completions/clipped_ratio"),
          ("made less likely than the clip allows", "share of tokens", "clip_ratio/low_mean"),
          ("made more likely than the clip allows", "share of tokens", "clip_ratio/high_mean"),
          ("gradient before it is clipped", "norm", "grad_norm"),
          ("entropy", "nats per token", "entropy"),
          ("hard examples of earlier phases", "share of the batch", "retro/frac"),
          ("sampler against trainer", "largest log-prob difference", "rollout_gap"),
          ("left open by the judge", "share of its questions", "judge/error_rate"),
          ("busiest expert of a layer", "times the even share", "experts/max_load"))
OPTIONAL = ("judge/error_rate", "experts/max_load")             # no panel if no run has it
PATTERNS = (("grounding", "quotes per answer", "patterns/grounding"),
            ("subgoals", "times per answer", "patterns/subgoal"),
            ("backtracking", "times per answer", "patterns/backtracking"),
            ("verification", "times per answer", "patterns/verification"),
            ("longest quote of the document", "words", "patterns/longest_quote"))
SECONDS = {"sample": "timing_s/sample", "reward": "timing_s/reward", "update": "timing_s/update"}


def canvas(rows: int, columns: int, size: tuple[float, float], **options):
    """Return a figure and its (rows, columns) of axes."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    pyplot.rcParams.update(STYLE)
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def save(figure, path: Path) -> Path:
    from matplotlib import pyplot
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def look(place: int) -> dict:
    """Return colour and dashes of line number `place`. When all colours are used, they come again with other dashes."""
    return {"color": PALETTE[place % len(PALETTE)], "linestyle": DASHES[(place + place // len(PALETTE)) % len(DASHES)]}


def hatch(place: int) -> str:
    """Return the hatch of bar number `place`."""
    return HATCHES[(place + place // len(PALETTE)) % len(HATCHES)]


def curve(axes, group: Group, key: str, place: int, label: str | None = None, x: str = "step") -> bool:
    """Draw one metric of a group. Returns whether there was anything to draw.

    The thick line is the smoothed mean. It becomes thin where some of the runs have ended: it is another mean then.
    Several runs get a band, one run its own values as a thin line. Crosses at the foot: values that are not finite.
    """
    line, raw = series.line(group, key), series.line(group, key, smooth=False)
    along = series.line(group, x, smooth=False)
    x_of = dict(zip(along.steps, along.mean))
    xs = [x_of[step] for step in line.steps]
    first_end = min((rows[-1]["step"] for rows in group if rows), default=0)
    num = sum(step <= first_end for step in line.steps)
    colour = look(place)["color"]
    if line.steps:
        axes.plot(xs[:num], line.mean[:num], linewidth=1.8, label=label, marker="o" if num < 12 else None,
                  markersize=4, **look(place))
        axes.plot(xs[num:], line.mean[num:], linewidth=0.9, **look(place))
    if len(group) > 1:
        axes.fill_between(xs, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    elif line.steps:
        axes.plot(xs, raw.mean, color=colour, alpha=0.3, linewidth=0.8)
    broken = series.not_finite(group, key)
    if broken:
        axes.plot([x_of[step] for step in broken], [0.03] * len(broken), "x", color="#BB5566",
                  transform=axes.get_xaxis_transform(), label=None if line.steps else label)
    return bool(line.steps or broken)


def mark_phases(axes, groups: dict[str, Group]) -> None:
    """Draw a dashed line with a name where a phase begins. If groups differ in this, each has its own colour."""
    borders = [series.borders(group) for group in groups.values()]
    same = all(marks == borders[0] for marks in borders)
    for place, marks in enumerate(borders[:1] if same else borders):
        colour = "#777777" if same else look(place)["color"]
        for step, name in marks.items():
            axes.axvline(step - 0.5, color=colour, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0.5)
            axes.annotate(name, (step - 0.5, 1), xycoords=axes.get_xaxis_transform(), xytext=(3, -9 * place), va="top",
                          textcoords="offset points", fontsize=8, color=colour,
                          bbox=dict(facecolor="white", edgecolor="none", pad=0.8, alpha=0.8))


def finish(axes, groups: dict[str, Group], key: str, drawn: bool, x: str = "step", why: str = "not measured") -> None:
    """Set limits and labels of a panel, and mark the phases. If nothing was drawn, write why."""
    from matplotlib.ticker import MaxNLocator
    axes.set_xlabel(x)
    if not drawn:
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color="#777777", fontsize=9)
        axes.set(xticks=[], yticks=[])
        return
    limit(axes, key)
    if x == "step":
        mark_phases(axes, groups)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10], min_n_ticks=1))
        if axes.dataLim.width < 3:
            axes.set_xlim(axes.dataLim.x0 - 0.5, axes.dataLim.x1 + 0.5)


def limit(axes, key: str) -> None:
    """Set the y limits. There is room above for the names of the phases."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not math.isfinite(low) or not math.isfinite(high):                        # nothing but crosses at the foot
        axes.set_yticks([])
        return
    positive = [y for line in axes.lines for y in line.get_ydata() if y > 0 and line.get_transform() == axes.transData]
    if SHARES.match(key) and 0 <= low and high <= 1:
        axes.set(ylim=(-0.03, 1.14), yticks=(0, 0.2, 0.4, 0.6, 0.8, 1))
    elif key in ("grad_norm", "rollout_gap") and positive and max(positive) > 100 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(min(positive) / 1.5, max(positive) * (max(positive) / min(positive))**0.15)
    else:
        if 0 <= low < high / 2 or 0 <= low == high:
            low = 0.0
        if high <= low:
            high = low + (abs(low) or 1.0)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.15 * (high - low))


def panels(groups: dict[str, Group], specs: Sequence[tuple[str, str, str]], path: Path, columns: int = 2) -> Path:
    """Draw a panel for each (title, y label, metric), with a line for each group."""
    columns = min(columns, len(specs))
    rows = -(-len(specs) // columns)
    figure, grid = canvas(rows, columns, (10 if columns > 1 else 7, 2.9 * rows + 0.3))
    for axes in grid.flat[len(specs):]:
        axes.remove()
    for axes, (title, unit, key) in zip(grid.flat, specs):
        drawn = [curve(axes, group, key, place) for place, group in enumerate(groups.values())]
        axes.set(title=title, ylabel=unit)
        finish(axes, groups, key, any(drawn))
    name_groups(figure, groups)
    return save(figure, path)


def name_groups(figure, groups: dict[str, Group]) -> None:
    """Put one legend above all panels, if there are several groups or seeds."""
    from matplotlib.lines import Line2D
    handles = []
    for place, (name, group) in enumerate(groups.items()):
        label = f"{name} ({len(group)} seeds: mean, lowest to highest)" if len(group) > 1 else name
        handles.append(Line2D([], [], linewidth=1.8, label=label, **look(place)))
    if len(groups) > 1 or any(len(group) > 1 for group in groups.values()):
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), frameon=False,
                      fontsize=9)


def below(axes, columns: int) -> None:
    """Put the legend under the axis, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def dynamics(groups: dict[str, Group], path: Path) -> Path:
    """Draw the four panels of QwenLong-L1's Figure 2. The legends of KL and length say how much they move."""
    figure, grid = canvas(2, 2, (10, 6.4))
    for axes, (title, unit, key) in zip(grid.flat, DYNAMICS):
        drawn = False
        for place, (name, group) in enumerate(groups.items()):
            std = series.rolling_std(group, key) if key in ("kl", "completions/mean_length") else None
            label = None if std is None else f"{name}: {std:.2g}" if len(groups) > 1 else f"{std:.2g}"
            drawn |= curve(axes, group, key, place, label)
        axes.set(title=title, ylabel=unit)
        why = "not measured:\nno reference model (--measure-kl keeps one)" if key == "kl" else "not measured"
        finish(axes, groups, key, drawn, why=why)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(edgecolor="none", framealpha=0.85, fontsize=8, title_fontsize=8,
                        title=f"mean std within {series.WINDOW} steps")
    name_groups(figure, groups)
    return save(figure, path)


def draw_lengths(axes, group: Group) -> None:
    """Draw the reward of each length bucket. Dots are examples that came back in a later phase than their bucket's."""
    for place, (name, phase) in enumerate(series.buckets(row for rows in group for row in rows).items()):
        key = series.BY_LENGTH + name
        in_phase = [[row for row in rows if row.get("phase") == phase] for rows in group]
        later = [point for rows in group for point in series.points(
            [row for row in rows if row.get("phase") != phase], key)]
        curve(axes, in_phase, key, place, f"{name} tokens")
        if later:
            axes.plot(*zip(*later), "o", color=look(place)["color"], markersize=3.5, markerfacecolor="white", alpha=0.8,
                      label=f"{name} tokens: hard ones that came back")
    if axes.lines:
        below(axes, 2)


def lengths(groups: dict[str, Group], path: Path) -> Path:
    """Draw the reward by length, in a panel for each group."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = canvas(rows, columns, (10, 3.3 * rows + 0.6), sharey=True)
    for axes in grid.flat[len(groups):]:
        axes.remove()
    for axes, (name, group) in zip(grid.flat, groups.items()):
        draw_lengths(axes, group)
        axes.set(title=f"{name}: reward by length of the document", ylabel=REWARD)
        finish(axes, {name: group}, "reward", bool(axes.lines))
    return save(figure, path)


def time(groups: dict[str, Group], path: Path) -> Path:
    """Draw what the reward costs in time and in tokens, and where the time of a step goes."""
    groups = {name: [series.cumulated(rows) for rows in group] for name, group in groups.items()}
    figure, ((minutes, tokens), (steps, means)) = canvas(2, 2, (10, 6.2))
    for axes, title, x, unit in ((minutes, "wall time", "minutes", ""),
                                 (tokens, "tokens", "million tokens", ", prompts and answers")):
        drawn = [curve(axes, group, "reward", place, x=x) for place, group in enumerate(groups.values())]
        axes.set(title=f"reward against {title}", ylabel=REWARD)
        finish(axes, groups, "reward", any(drawn), f"{x} since the start{unit}")
    name, group = next(iter(groups.items()))
    steps.set(title=f"seconds of each step{f': {name}' if len(groups) > 1 else ''}"
                    f"{', its first seed' if len(group) > 1 else ''}", ylabel="seconds")
    finish(steps, {name: group[:1]}, "seconds", stack_steps(steps, group[0]))
    means.set(title="seconds of a step, mean of the run")
    if not stack_means(means, groups):
        finish(means, groups, "seconds", False, "seconds")
    name_groups(figure, groups)
    return save(figure, path)


def stack_steps(axes, rows: Sequence[dict]) -> bool:
    """Stack the seconds of sampling, rewarding and updating at each step. Returns whether any were measured."""
    steps = [row["step"] for row in rows]
    foot = [0.0] * len(steps)
    for place, (name, key) in enumerate(SECONDS.items()):
        seconds = dict(series.points(rows, key))
        heights = [seconds.get(step, 0.0) for step in steps]
        axes.bar(steps, heights, 1.0, bottom=foot, label=name, color=PALETTE[place], edgecolor=PALETTE[place],
                 linewidth=0.3)
        foot = [low + height for low, height in zip(foot, heights)]
    below(axes, 3)
    return any(series.has([rows], key) for key in SECONDS.values())


def stack_means(axes, groups: dict[str, Group]) -> bool:
    """Stack the mean seconds of each group in one bar. Returns whether any were measured."""
    left = [0.0] * len(groups)
    for place, (name, key) in enumerate(SECONDS.items()):
        measured = [[value for rows in group for _, value in series.points(rows, key)] for group in groups.values()]
        means = [sum(values) / len(values) if values else 0.0 for values in measured]
        axes.barh(list(groups), means, 0.55, left=left, label=name, color=PALETTE[place], hatch=HATCHES[place],
                  edgecolor="white", linewidth=0.5)
        left = [low + mean for low, mean in zip(left, means)]
    axes.set_ylim(max(len(groups), 2) - 0.5, -0.5)
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    below(axes, 3)
    return any(left)
