"""What the tools print: clean text, errors as one sentence, and plots of characters."""

import math
import sys
import unicodedata
from collections.abc import Callable, Sequence
from itertools import cycle
from textwrap import wrap

from tools import series
from tools.series import Group

from nanoqwenlong.errors import ConfigError, UserError, exit_code
from nanoqwenlong.ops.log import tell
from nanoqwenlong.parallel import reason

MARKERS = "*o+x#@%&=~abcdefghijklmnpqrstuvwyz"                   # one for each group: they need no colours
TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼┊", "-|+++++++++:")
BIDI = "\u061c\u200e\u200f" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def run_tool(tool: Callable[[], int | None]) -> int:
    """Call a tool and return its exit code. A user's error is printed as one sentence."""
    try:
        return tool() or 0
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "is not there; give the directory of a run or an evaluation"
        code, sentence = 66, f"{error.filename} {advice}" if error.filename else error
    except (UserError, OSError) as error:
        code, sentence = exit_code(error), reason(error) if isinstance(error, OSError) else error
    print(sentence, file=sys.stderr)
    return code


def clean(text: str) -> str:
    """Return text that cannot change a terminal. Control characters and changes of direction are spelled out.

    >>> clean("a\\x1b[31mb\\r\\n")
    'a\\\\x1b[31mb\\\\r\\n'
    """
    return "".join(char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Zl", "Zp") and char not in BIDI
                   else char.encode("unicode_escape").decode() for char in text)


def can_show(text: str) -> bool:
    """Whether stdout can write this text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return True
    except (UnicodeError, LookupError):
        return False


def say(text: str) -> bool:
    """Print text. What stdout cannot write is spelled out. Returns False if the reader, such as `head`, is gone."""
    encoding = sys.stdout.encoding or "ascii"
    return tell(text.encode(encoding, "backslashreplace").decode(encoding), sys.stdout)


def charts(groups: dict[str, Group], keys: Sequence[str], room: int) -> str:
    """Return a panel for each metric, two side by side if there is room, and a table of its numbers.

    A group of several runs is shown by its mean. A metric that never changes is only in the table.
    """
    columns = 2 if room >= 70 else 1
    width = (room - 2 * (columns - 1)) // columns
    steps = [row["step"] for group in groups.values() for rows in group for row in rows]
    several = len(groups) > 1
    numbers = [(f"steps {min(steps)} to {max(steps)}", *[""] * several, "first", "last", "lowest", "highest")]
    panels = []
    for key in keys:
        lines = {name: series.line(group, key, smooth=False) for name, group in groups.items()}
        for name, line in lines.items():
            if series.has(groups[name], key):
                values = [math.nan] * 4
                if line.steps:
                    values = [line.mean[0], line.mean[-1], min(line.low), max(line.high)]
                numbers.append((clean(key), *[clean(name)] * several, *(f"{value:.3g}" for value in values)))
        if len({value for line in lines.values() for value in line.mean}) > 1:
            panels.append(panel(key, lines, groups, (min(steps), max(steps)), width))
    text = []
    if several:
        text += wrap("  ".join(f"{marker} {clean(name)}" for marker, name in zip(cycle(MARKERS), groups)), room)
    for start in range(0, len(panels), columns):
        text += ["  ".join(parts) for parts in zip(*panels[start:start + columns])]
    return "\n".join([*text, *aligned(numbers)])


def panel(key: str, lines: dict[str, series.Line], groups: dict[str, Group], span: tuple[int, int], width: int
          ) -> list[str]:
    """Return the plot of a metric as lines of `width` characters. "!": not finite. A dotted line: a new phase."""
    try:
        from plotext import figure
    except ImportError:
        raise ConfigError('plotext is not installed: pip install ".[plots]"') from None
    first, last = span
    ticks = sorted({round(first + i * (last - first) / 4) for i in range(5)})
    figure.clear()
    figure.plot_size(width, 9)
    figure.title(clean(key)[-width:])
    figure.ruler("x").ticks(ticks, list(map(str, ticks)))
    figure.ruler("x").lim(first, last)
    lowest = min(value for line in lines.values() for value in line.mean)
    markers = cycle(MARKERS) if len(lines) > 1 or not can_show("⠿") else ["braille"]
    for marker, line in zip(markers, lines.values()):
        if line.steps:
            curve = figure.signal(line.steps, line.mean, marker=marker)
            curve.lines(True)
            figure.draw(curve)
    for group in groups.values():
        for step in series.not_finite(group, key):
            figure.draw(figure.signal([step], [lowest], marker="!"))
        for step in series.borders(group):
            figure.line(step - 0.5, "vertical", style="dotted")
    text = figure.build().string(colorless=True)                 # plotext's colours assume a white background
    return (text if can_show(text) else text.translate(TO_ASCII)).splitlines()


def table(models: Sequence[series.Evaluated], width: int) -> str:
    """Return a bar for each accuracy and pass@k of an evaluation, in percent, with its interval."""
    rates = [(model.name, name, rates) for part in series.PARTS for model in models
             for name, rates in model.parts[part].items()]
    rates += [(model.name, f"pass@{k}", rates) for model in models for k, rates in model.passes.items()]
    block = "█" if can_show("█") else "#"
    room = max(10, min(50, width - max(len(clean(model + name)) for model, name, _ in rates) - 32))
    rows = []
    for model, name, (rate, low, high) in rates:
        text = "not measured" if rate is None else f"{rate:5.1f}"
        if None not in (rate, low, high):
            text += f" [{low:.1f}, {high:.1f}]"
        bar = block * round((rate or 0) / 100 * room)
        rows.append([clean(model).replace("\n", "\\n"), clean(name).replace("\n", "\\n"), bar.ljust(room), text])
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
