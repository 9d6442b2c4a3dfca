"""Plots and tables of characters."""

from collections.abc import Sequence
from itertools import cycle
from statistics import mean
from textwrap import wrap

from tools import series

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops.console import printable

MARKERS = "*o+x#@%&=~abcdefghijklmnpqrstuvwyz"                   # one for each group: they need no colours


def charts(groups: dict[str, series.Group], keys: Sequence[str], width: int) -> str:
    """Return a plot of each metric that changes, and a table of all. Several seeds are shown by their mean."""
    try:
        from plotext import figure
    except ImportError:
        raise ConfigError('plotext is not installed: pip install ".[plots]"') from None
    numbers = [("", "", "first", "last", "lowest", "highest")]
    text = wrap("  ".join(f"{marker} {printable(name)}" for marker, name in zip(cycle(MARKERS), groups)), width)
    for key in dict.fromkeys(keys):
        figure.clear()
        figure.plot_size(width, 9)
        figure.title(printable(key)[-width:])
        shown = set()
        for marker, (name, group) in zip(cycle(MARKERS), groups.items()):
            by_step = series.by_step(group, key)
            if values := list(map(mean, by_step.values())):
                figure.draw(figure.signal(list(by_step), values, marker=marker).lines())
                summary = [f"{number:.3g}" for number in (values[0], values[-1], min(values), max(values))]
                numbers.append((printable(key), printable(name) if len(groups) > 1 else "", *summary))
                shown.update(values)
            for step in series.borders(group):                   # a new phase
                figure.line(step - 0.5, "vertical", style="dotted")
        if len(shown) > 1:
            text.append(figure.build().string(colorless=True))   # plotext's colours assume a white background
    return "\n".join([*text, aligned(numbers)])


def table(models: Sequence[series.Evaluated], width: int) -> str:
    """Return a bar for each accuracy and pass@k of an evaluation, in percent, with its interval."""
    full = max(10, width // 2)
    return aligned([[printable(model), printable(name), "█" * round(rate / 100 * full),
                     f"{rate:5.1f} [{low:.1f}, {high:.1f}]"]
                    for part in models[0][1] for model, parts in models
                    for name, (rate, low, high) in parts[part].items()])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[cell.replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
