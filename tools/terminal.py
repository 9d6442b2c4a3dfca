"""What the tools print: clean text, errors as one sentence, and plots of characters."""

import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import mean
from textwrap import wrap

from tools import series

from nanoqwenlong.errors import ConfigError, UserError, exit_code, reason
from nanoqwenlong.ops.log import tell

MARKERS = "*o+x#@%&=~abcdefghijklmnpqrstuvwyz"                   # one for each group: they need no colours
TO_ASCII = str.maketrans({**dict(zip("─│┌┐└┘├┤┬┴┼┊█", "-|+++++++++:#")), "«": "<<", "»": ">>"})


def run_tool(tool: Callable[[], int | None]) -> int:
    """Call a tool and return its exit code. A user's error is printed as one sentence."""
    try:
        return tool() or 0
    except (UserError, OSError) as error:
        print(reason(error) if isinstance(error, OSError) else error, file=sys.stderr)
        return exit_code(error)


def clean(text: str) -> str:
    """Return text that cannot change a terminal: control characters and changes of direction become their codes."""
    fine = "\n\t\u00a0\u3000"
    return "".join(c if c.isprintable() or c in fine else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> bool:
    """Print text, in ASCII if stdout cannot write it. Returns False if the reader, such as `head`, is gone."""
    encoding = sys.stdout.encoding or "ascii"
    if text.encode(encoding, "ignore").decode(encoding) != text:
        text = text.translate(TO_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return tell(text, sys.stdout)


def charts(groups: dict[str, series.Group], keys: Sequence[str], width: int) -> str:
    """Return a plot of each metric that changes, and a table of all. Several seeds are shown by their mean."""
    try:
        from plotext import figure
    except ImportError:
        raise ConfigError('plotext is not installed: pip install ".[plots]"') from None
    numbers = [("", "", "first", "last", "lowest", "highest")]
    text = wrap("  ".join(f"{marker} {clean(name)}" for marker, name in zip(cycle(MARKERS), groups)), width)
    for key in dict.fromkeys(keys):
        figure.clear()
        figure.plot_size(width, 9)
        figure.title(clean(key)[-width:])
        shown = set()
        for marker, (name, group) in zip(cycle(MARKERS), groups.items()):
            by_step = series.by_step(group, key)
            if values := list(map(mean, by_step.values())):
                figure.draw(figure.signal(list(by_step), values, marker=marker).lines())
                summary = [f"{number:.3g}" for number in (values[0], values[-1], min(values), max(values))]
                numbers.append((clean(key), clean(name) if len(groups) > 1 else "", *summary))
                shown.update(values)
            for step in series.borders(group):                   # a new phase
                figure.line(step - 0.5, "vertical", style="dotted")
        if len(shown) > 1:
            text.append(figure.build().string(colorless=True))   # plotext's colours assume a white background
    return "\n".join([*text, aligned(numbers)])


def table(models: Sequence[series.Evaluated], width: int) -> str:
    """Return a bar for each accuracy and pass@k of an evaluation, in percent, with its interval."""
    full = max(10, width // 2)
    return aligned([[clean(model), clean(name), "█" * round(rate / 100 * full), f"{rate:5.1f} [{low:.1f}, {high:.1f}]"]
                    for part in models[0][1] for model, parts in models
                    for name, (rate, low, high) in parts[part].items()])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[cell.replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
