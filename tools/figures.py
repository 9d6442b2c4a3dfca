"""Pictures of training runs, drawn with matplotlib. A group is one line of a picture: the rows of one run, or of
several that differ in their seed; its band goes from the lowest to the highest of them.

The colours can be told apart by colour-blind readers and in greyscale (their lightness differs); line styles, markers
and hatches say the same again.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from tools import series

PALETTE = ("#004488", "#DDAA33", "#BB5566", "#000000", "#5FA8A0", "#B9D8F0", "#7A3F98")    # three of Paul Tol's
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 2)))
HATCHES = ("", "//", "..", "", "xx", "\\\\", "--")
Group = Sequence[Sequence[dict]]
SHARE = re.compile("accuracy|reward|frac_|retro/frac|completions/clipped|judge/error")          # that go from 0 to 1

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
NOT_ALWAYS = ("judge/error_rate", "experts/max_load")          # panels for runs that have one
PATTERNS = (("grounding", "quotes per answer", "patterns/grounding"),
            ("subgoals", "times per answer", "patterns/subgoal"),
            ("backtracking", "times per answer", "patterns/backtracking"),
            ("verification", "times per answer", "patterns/verification"),
            ("longest quote of the document", "words", "patterns/longest_quote"))
SECONDS = ("timing_s/sample", "timing_s/reward", "timing_s/update")


def canvas(rows: int, columns: int, size: tuple[float, float], **options):
    """A figure and its (rows, columns) of axes, in the house's style."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    pyplot.rcParams.update({"axes.titlesize": 10.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
                            "hatch.linewidth": 0.8, "text.parse_math": False})    # a "$" in a name is a "$"
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axes in panels.flat:
        style(axes)
    return figure, panels


def style(axes) -> None:
    """No frame above and on the right, a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def save(figure, path: Path) -> Path:
    from matplotlib import pyplot
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def look(place: int) -> dict:
    """Colour and dashes of the line that is number `place`; after all colours others together."""
    return {"color": PALETTE[place % len(PALETTE)],
            "linestyle": DASHES[(place + place // len(PALETTE)) % len(DASHES)]}


def hatch(place: int) -> str:
    """The same for bars."""
    return HATCHES[(place + place // len(PALETTE)) % len(HATCHES)]


def curve(axes, group: Group, key: str, place: int, label: str | None = None, x: str = "step") -> bool:
    """One metric of a group: the smoothed mean, its band if there are several runs, else the values themselves, thin;
    crosses at the foot where a value was not finite. Where some of the runs have ended the mean of the others is thin:
    it is another one. Says whether there was anything to draw."""
    line, along = series.line(group, key), None
    if x != "step":                                                             # the same steps, elsewhere along x
        along = dict(zip(*series.line(group, x, smooth=False)[:2]))
    across = [along[step] for step in line.steps] if along else line.steps
    num = sum(step <= min(rows[-1]["step"] for rows in group if rows) for step in line.steps)        # of all runs
    if line.steps:
        axes.plot(across[:num], line.mean[:num], linewidth=1.8, label=label, marker="o" if num < 12 else None,
                  markersize=4, **look(place))
        axes.plot(across[num:], line.mean[num:], linewidth=0.9, **look(place))
    if len(group) > 1:
        axes.fill_between(across, line.low, line.high, color=look(place)["color"], alpha=0.18, linewidth=0)
    elif line.steps:
        axes.plot(across, series.line(group, key, smooth=False).mean, color=look(place)["color"], alpha=0.3,
                  linewidth=0.8)
    broken = sorted({step for rows in group for step in series.not_finite(rows, key)})
    if broken:
        axes.plot([along[step] for step in broken] if along else broken, [0.03] * len(broken), "x", color="#BB5566",
                  transform=axes.get_xaxis_transform(), label=None if line.steps else label)
    return bool(line.steps or broken)


def mark_phases(axes, groups: dict[str, Group]) -> None:
    """A dashed line with a small name where a phase begins; in the colour of its group where groups differ in this."""
    found = {name: {step: told for rows in group for step, told in series.borders(rows).items()}
             for name, group in groups.items()}
    same = len({tuple(marks.items()) for marks in found.values()}) == 1
    for place, marks in enumerate(found.values()):
        if same and place:
            break
        for step, told in marks.items():
            colour = "#777777" if same else look(place)["color"]
            axes.axvline(step - 0.5, color=colour, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0.5)
            axes.annotate(told, (step - 0.5, 1), xycoords=axes.get_xaxis_transform(), xytext=(3, -9 * place), va="top",
                          textcoords="offset points", fontsize=8, color=colour,
                          bbox=dict(facecolor="white", edgecolor="none", pad=0.8, alpha=0.8))


def finish(axes, groups: dict[str, Group], key: str, drawn: bool, x: str = "step", why: str = "not measured"
           ) -> None:
    """Limits and labels of a panel, the borders between the phases; where nothing was drawn, why not."""
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
    """Shares and rewards from 0 to 1; what ranges over several powers of ten on a logarithmic axis; all else from 0
    where that is near. Above there is room for the names of the phases."""
    ends = [axes.dataLim.y0, axes.dataLim.y1]
    if not all(map(math.isfinite, ends)):                                        # nothing but crosses at the foot
        axes.set_yticks([])
        return
    low, high = ends
    positive = [y for line in axes.lines for y in line.get_ydata() if y > 0 and line.get_transform() == axes.transData]
    if SHARE.match(key) and 0 <= low and high <= 1:
        axes.set(ylim=(-0.03, 1.14), yticks=(0, 0.2, 0.4, 0.6, 0.8, 1))
    elif key in ("grad_norm", "rollout_gap") and positive and max(positive) > 100 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(min(positive) / 1.5, max(positive) * (max(positive) / min(positive))**0.15)
    else:
        low = 0.0 if 0 <= low < high / 2 or 0 <= low == high else low
        high = high if high > low else low + (abs(low) or 1.0)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.15 * (high - low))


def panels(groups: dict[str, Group], specs, path: Path, columns: int = 2, height: float = 2.9) -> Path:
    """A panel for each (title, y label, metric) of specs, a line for each group."""
    columns = min(columns, len(specs))
    rows = -(-len(specs) // columns)
    figure, grid = canvas(rows, columns, (10 if columns > 1 else 7, height * rows + 0.3))
    for axes in grid.flat[len(specs):]:
        axes.remove()
    for axes, (title, unit, key) in zip(grid.flat, specs):
        drawn = [curve(axes, group, key, place) for place, group in enumerate(groups.values())]
        axes.set(title=title, ylabel=unit)
        finish(axes, groups, key, any(drawn))
    name_groups(figure, groups)
    return save(figure, path)


def name_groups(figure, groups: dict[str, Group]) -> None:
    """One legend above all panels, if there are several groups or seeds."""
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], linewidth=1.8, label=name if len(group) == 1 else f"{name} ({len(group)} seeds: mean, "
                      "lowest to highest)", **look(place)) for place, (name, group) in enumerate(groups.items())]
    if len(groups) > 1 or any(len(group) > 1 for group in groups.values()):
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), frameon=False,
                      fontsize=9)


def short(key: str) -> str:
    """clip_ratio/low_mean -> low."""
    return key.rpartition("/")[2].removesuffix("_mean").replace("_", " ")


def dynamics(groups: dict[str, Group], path: Path) -> Path:
    """The four panels of QwenLong-L1's Figure 2, in its order; of KL and length also how much they move."""
    figure, grid = canvas(2, 2, (10, 6.4))
    for axes, (title, unit, key) in zip(grid.flat, DYNAMICS):
        moves = key in ("kl", "completions/mean_length")
        drawn, measured = False, {name: group if key != "kl" or measured_kl(group) else []
                                  for name, group in groups.items()}
        for place, (name, group) in enumerate(measured.items()):
            std = series.rolling_std(group, key) if moves else None
            told = f"{f'{name}: ' if len(groups) > 1 else ''}{std:.2g}" if std is not None else None
            drawn |= curve(axes, group, key, place, told)
        axes.set(title=title, ylabel=unit)
        finish(axes, measured, key, drawn, why="not measured:\nno reference model (--measure-kl keeps one)"
               if key == "kl" else "not measured")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(edgecolor="none", framealpha=0.85, fontsize=8, title_fontsize=8,
                        title=f"mean std within {series.ROLL} steps")
    name_groups(figure, groups)
    return save(figure, path)


def measured_kl(group: Group) -> bool:
    """Older runs say 0 where no reference was kept."""
    return any(series.not_finite(rows, "kl") or any(value for _, value in series.points(rows, "kl")) for rows in group)


def draw_lengths(axes, group: Group) -> None:
    """The reward of each length bucket; dots: what came back in a later phase than the bucket's first."""
    for place, (name, first) in enumerate(series.buckets(row for rows in group for row in rows).items()):
        key, parts = series.BY_LENGTH + name, {True: [], False: []}
        for rows in group:
            for own, part in parts.items():
                part.append([row for row in rows if (row.get("phase") == first) == own])
        curve(axes, parts[True], key, place, f"{name} tokens")
        back = [point for rows in parts[False] for point in series.points(rows, key)]
        if back:
            axes.plot(*zip(*back), "o", color=look(place)["color"], markersize=3.5, markerfacecolor="white", alpha=0.8,
                      label=f"{name} tokens: hard ones that came back")
    if axes.lines:
        below(axes, 2)


def below(axes, columns: int) -> None:
    """A legend under the axis, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def lengths(groups: dict[str, Group], path: Path) -> Path:
    """A panel for each group."""
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
    """What the reward costs, in time and in tokens, and where a step's time goes."""
    groups = {name: [series.cumulated(rows) for rows in group] for name, group in groups.items()}
    figure, grid = canvas(2, 2, (10, 6.2))
    for axes, title, x, unit in zip(grid[0], ("wall time", "tokens"), ("minutes", "million tokens"),
                                    ("", ", prompts and answers")):
        drawn = [curve(axes, group, "reward", place, x=x) for place, group in enumerate(groups.values())]
        axes.set(title=f"reward against {title}", ylabel=REWARD)
        finish(axes, groups, "reward", any(drawn), f"{x} since the start{unit}")
    name, group = next(iter(groups.items()))
    grid[1][0].set(title=f"seconds of each step{f': {name}' if len(groups) > 1 else ''}"
                         f"{', its first seed' if len(group) > 1 else ''}", ylabel="seconds")
    finish(grid[1][0], {name: group[:1]}, "seconds", stack_steps(grid[1][0], group[0]))
    grid[1][1].set(title="seconds of a step, mean of the run")
    if not stack_means(grid[1][1], groups):
        finish(grid[1][1], groups, "seconds", False, "seconds")
    name_groups(figure, groups)
    return save(figure, path)


def stack_steps(axes, rows: Sequence[dict]) -> bool:
    """Sampling, rewarding, updating, one on top of the other; says whether anything was measured."""
    columns = [dict(series.points(rows, key)) for key in SECONDS]
    steps = [row["step"] for row in rows]
    foot = [0.0] * len(steps)
    for place, (key, column) in enumerate(zip(SECONDS, columns)):
        axes.bar(steps, [column.get(step, 0.0) for step in steps], 1.0, bottom=foot, label=short(key),
                 color=PALETTE[place], edgecolor=PALETTE[place], linewidth=0.3)
        foot = [low + column.get(step, 0.0) for low, step in zip(foot, steps)]
    below(axes, 3)
    return any(columns)


def stack_means(axes, groups: dict[str, Group]) -> bool:
    """A bar for each group, of its runs' mean seconds; says whether anything was measured."""
    names, left = list(groups), [0.0] * len(groups)
    for place, key in enumerate(SECONDS):
        found = [[value for rows in group for _, value in series.points(rows, key)] for group in groups.values()]
        means = [sum(values) / len(values) if values else 0.0 for values in found]
        axes.barh(names, means, 0.55, left=left, label=short(key), color=PALETTE[place], hatch=HATCHES[place],
                  edgecolor="white", linewidth=0.5)
        left = [low + mean for low, mean in zip(left, means)]
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    below(axes, 3)
    return any(left)
