"""Words and series of numbers on a terminal: sparklines, bars, and text of models that may hold anything."""

import sys
import unicodedata
from collections.abc import Sequence

from tools import series

from nanoqwenlong.ops.log import tell

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", ".:-=+*#@"                             # lowest to highest
BORDER = {BLOCKS: "│", PLAIN: "|"}
TURNS = "\u061c\u200e\u200f" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))   # of the direction
KEYS = ("reward", series.BY_LENGTH, "entropy", "kl", "completions/mean_length", "frac_reward_zero_std",
        "completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "grad_norm", "rollout_gap",
        "judge/error_rate", "retro/frac", "patterns/", "step_time", "tokens_per_s")


def clean(text: str) -> str:
    """Text that leaves a terminal as it is: control characters (line feeds and tabs apart) and what turns the direction
    of writing are spelled out.

    >>> clean("a\\x1b[31mb\\r\\n")
    'a\\\\x1b[31mb\\\\r\\n'
    """
    return "".join(char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Zl", "Zp")
                   and char not in TURNS else char.encode("unicode_escape").decode() for char in text)


def fits(text: str, encoding: str | None) -> bool:
    """Whether a stream of this encoding can write the text."""
    try:
        text.encode(encoding or "ascii")
        return True
    except (UnicodeError, LookupError):
        return False


def say(text: str) -> bool:
    """To stdout, what it cannot write spelled out; False if its reader, such as `head`, has gone."""
    encoding = sys.stdout.encoding or "ascii"
    return tell(text.encode(encoding, "backslashreplace").decode(encoding), sys.stdout)


def sparkline(points: Sequence[tuple[int, float]], marks: Sequence[int], span: tuple[int, int], low: float, high: float,
              width: int, blocks: str = BLOCKS, broken: Sequence[int] = ()) -> str:
    """The values of steps span[0] to span[1] in at most `width` columns, each the mean of its steps; a border before
    each step of `marks`, "!" where a value was not finite, blank where nothing was measured.

    >>> sparkline([(1, 0.0), (2, 0.5), (3, 1.0), (4, 1.0)], [3], (1, 4), 0.0, 1.0, 40)
    '▁▅│██'
    """
    first, last = span
    num = max(1, min(last - first + 1, width - len(marks)))
    columns: list[list[float]] = [[] for _ in range(num)]

    def place(step: int) -> int:
        return (step - first) * num // (last - first + 1)

    for step, value in points:
        columns[place(step)].append(value)
    bad, edges = {place(step) for step in broken}, [place(step) for step in marks]
    text = ""
    for column, values in enumerate(columns):
        share = 0.0 if high == low or not values else (sum(values) / len(values) - low) / (high - low)
        text += BORDER[blocks] * edges.count(column)
        text += "!" if column in bad else blocks[min(7, int(8 * share))] if values else " "
    return text


def chart(groups: dict[str, list[list[dict]]], keys: Sequence[str], width: int, blocks: str = BLOCKS) -> str:
    """A sparkline of each metric and group, with the first and last value, the lowest and the highest. Lines of one
    metric share their scale. A group of several runs is shown by its mean."""
    found = [(key, name, group, series.line(group, key, smooth=False)) for key in keys
             for name, group in groups.items() if series.has(group, key)]
    steps = [row["step"] for group in groups.values() for rows in group for row in rows]
    span = min(steps), max(steps)
    first = max((len(key) for key, _, _, _ in found), default=0)
    names = [clean(f"{key:{first}}  {name}" if len(groups) > 1 else key) for key, name, _, _ in found]
    margin = max(map(len, names), default=0)
    room = max(10, width - margin - 46)
    lines = [f"steps {span[0]} to {span[1]}; {BORDER[blocks]} a new phase, ! a value that was not finite"]
    for (key, _, group, line), name in zip(found, names):
        scale = [value for other, _, _, same in found if other == key for value in same.mean]
        broken = [step for rows in group for step in series.not_finite(rows, key)]
        marks = sorted({step for rows in group for step in series.borders(rows)})
        spark = sparkline(list(zip(line.steps, line.mean)), marks, span, min(scale, default=0), max(scale, default=0),
                          room, blocks, broken)
        told = (f"{short(line.mean[0])} -> {short(line.mean[-1])}, {short(min(line.mean))} to {short(max(line.mean))}"
                if line.steps else "never finite")
        lines.append(f"{name:{margin}}  {spark:{min(room, span[1] - span[0] + 1 + len(marks))}}  {told}")
    return "\n".join(lines)


def chosen(groups: dict[str, list[list[dict]]], wanted: Sequence[str] = KEYS) -> list[str]:
    """The metrics that there are among `wanted`; a name that ends in "/" stands for all that begin so."""
    there = list(dict.fromkeys(key for group in groups.values() for rows in group for row in rows for key in row))
    order = {name: place for place, name in enumerate(series.buckets({key: 0} for key in there))}
    ranked = sorted(there, key=lambda key: order.get(key.removeprefix(series.BY_LENGTH), 0))
    return [key for name in wanted for key in ranked if key == name or name.endswith("/") and key.startswith(name)]


def short(value: float) -> str:
    """Three digits that tell something."""
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}"


def table(rows: Sequence[tuple[str, str, dict]], width: int, blocks: str = BLOCKS) -> str:
    """A bar for each (name, part, CELL) of an evaluation, its accuracy in per cent and its interval."""
    rows = [(*(clean(text).replace("\n", "\\n") for text in names), cell) for *names, cell in rows]    # one line each
    margins = [max(len(row[column]) for row in rows) for column in (0, 1)]
    room = max(10, min(50, width - sum(margins) - 32))
    lines = []
    for name, part, cell in rows:
        rate = cell["accuracy"]
        bar = blocks[-1] * round((rate or 0) * room)
        told = "not measured" if rate is None else f"{100 * rate:5.1f}" + (
            f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" if None not in (cell["low"], cell["high"]) else "")
        lines.append(f"{name:{margins[0]}}  {part:{margins[1]}}  {bar:{room}}  {told}")
    return "\n".join(lines)
