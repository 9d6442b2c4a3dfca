"""Answers of a training run, to be read: what was asked, what was said, and what it earned and why.

    python -m tools.rollouts runs/a                         the 5 worst of the last step
    python -m tools.rollouts runs/a --step 40 --best 3      the 3 best of step 40
    python -m tools.rollouts runs/a --id q17 --full         all answers to one question, the last time it was asked
    python -m tools.rollouts runs/a --task f1 --worst 10    of one task only

Worst: the lowest reward, among equals the lowest advantage (wrong where others of its group were right). Answers that
could not be scored come last. What an answer quotes of its document is marked: bold on a terminal, else «so». Long
thinking is shown by its end, --full shows all of it.
"""

import argparse
import bisect
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import series
from tools.terminal import clean, fits, say

STEP = re.compile(rb'\{"step": (\d+),')                          # how log.py begins a line: no need to read the rest
TAIL, HEAD = 700, 1500                                           # characters of the thinking's end, of what follows it
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
SIGNS = ("«", "»"), ("<<", ">>")
NUMBER = int | float | None
FIELDS = {"step": int, "id": str, "text": str, "finish_reason": str | None, "reward": NUMBER, "advantage": NUMBER,
          "rule": NUMBER, "judge": NUMBER, "penalty": NUMBER}


def read(path: Path, steps: set[int], wanted: Callable[[int], bool]) -> Iterator[dict]:
    """The rows of the steps that are wanted, one after the other; all steps' numbers are put into `steps`."""
    for number, line, whole in series.read_lines(path):
        begins = STEP.match(line)
        if begins and whole:
            steps.add(int(begins[1]))
            if not wanted(int(begins[1])):
                continue
        row = series.parse(path, number, line, whole)
        if row is None:
            continue
        for name, kind in FIELDS.items():
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, kind) or type(value) is int and abs(value) > 1e308:
                raise series.PlotError(f"{path}:{number}: {name!r} is {str(row.get(name, 'not there'))[:60]!r}; "
                                       "it should be a line of a run's rollouts.jsonl")
        steps.add(row["step"])
        if wanted(row["step"]):
            yield row


def pick(path: Path, step: int | None, key: str | None, task: str | None, order: str, num: int
         ) -> tuple[list[dict], int, int]:
    """The answers to show, in order, the step they are of, and how many there are to choose from. step None: the last
    one that has any. LookupError where there are none. Only what will be shown is kept in memory."""
    steps: set[int] = set()
    found: list[tuple[tuple, dict]] = []
    at, count = step, 0
    for row in read(path, steps, lambda n: n == step if step is not None else at is None or n >= at):
        if key not in (None, row["id"]) or task not in (None, row.get("task")):
            continue
        if row["step"] != at:                                    # a later one: forget what came before
            at, count, found = row["step"], 0, []
        bisect.insort(found, (place(row, order, count), row), key=lambda pair: pair[0])
        del found[num if order else len(found):]
        count += 1
    if step is not None and step not in steps:
        raise LookupError(f"there is no step {step} in {path}; there are {ranges(steps)}")
    if not count:
        asked = " and ".join(f"{name} {value}" for name, value in (("id", key), ("task", task)) if value is not None)
        where = f"step {step} of {path}" if step is not None else f"{path}"
        raise LookupError(f"no answer in {where}" + (f" has {asked}; leave that out to see what there is" if asked else
                                                     ": it is empty; wait for the run's first step"))
    return [row for _, row in found], at, count


def place(row: dict, order: str, count: int) -> tuple:
    """What answers are sorted by; "": as they stand in the file."""
    reward, advantage = (known(row[name]) for name in ("reward", "advantage"))
    if not order:
        return (count,)
    if reward is None:
        return (1, 0.0, 0.0, count)
    sign = 1 if order == "worst" else -1
    return (0, sign * reward, sign * (advantage or 0.0), count)


def known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def ranges(numbers: set[int]) -> str:
    """{1, 2, 3, 7} -> 1-3, 7"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def shown(row: dict, full: bool, style: str) -> str:
    """One answer with all that is known of it. style: "terminal", "signs" or "ascii"."""
    lines = [("question", short(row.get("question"), full)), ("gold", clean(" | ".join(golds(row)))),
             ("extracted", "nothing" if row.get("answer") in (None, "") else clean(repr(row["answer"]))),
             ("reward", earned(row)), ("ended", ended(row))]
    if isinstance(row.get("patterns"), dict):
        lines.append(("patterns", clean(", ".join(f"{k} {v}" for k, v in row["patterns"].items()))))
    head = clean(f"{row['id']}, answer {row.get('sample', '?')}, task {row.get('task', '?')}")
    told = "\n".join(f"  {name:10} {text}" for name, text in lines)
    return f"{BOLD + head + PLAIN if style == 'terminal' else head}\n{told}\n\n{body(row, full, style)}\n"


def short(text, full: bool) -> str:
    """A question: if it is long, its end, where the question of a chat stands."""
    text = clean(str(text or "not kept")).strip()
    return text if full or len(text) <= 600 else f"[{len(text) - 600} characters] ... {text[-600:]}"


def golds(row: dict) -> list[str]:
    gold = row.get("gold")
    return [str(one) for one in gold] if isinstance(gold, list) else [str(gold)]


def earned(row: dict) -> str:
    """The reward and what it is made of."""
    reward, advantage, rule, judge = (known(row.get(name)) for name in ("reward", "advantage", "rule", "judge"))
    parts = [f"rule {number(rule)}", f"judge {number(judge)}" if judge is not None else
             "judge left it open" if reward is None else "judge not asked"]
    parts += [f"penalty {number(row['penalty'])}"] if row.get("penalty") else []
    signed = "" if advantage is None else f"; advantage {advantage:+.2f}"
    return f"{'none' if reward is None else number(reward)} ({', '.join(parts)}){signed}"


def number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def ended(row: dict) -> str:
    """By itself or cut, and after how many tokens."""
    how = {"stop": "by itself", "length": "cut at --max-new-tokens"}.get(row.get("finish_reason"), "?")
    return f"{how}, {row['length']} tokens" if isinstance(row.get("length"), int) else how


def body(row: dict, full: bool, style: str) -> str:
    """The text: of long thinking the end, quotes of the document marked, thinking dimmed on a terminal."""
    text = row["text"]
    turn = text.rfind("</think>")
    turn = len(text) if turn < 0 else turn + len("</think>")     # what is no thinking begins here
    start = 0 if full or turn <= TAIL + 100 else turn - TAIL
    end = len(text) if full or len(text) - turn <= HEAD + 100 else turn + HEAD
    edges = sorted({min(max(edge, start), end) for edge in (start, turn, end, *sum(quotes(row), ()))})
    parts = [f"[{start:,} characters of thinking before this; --full shows them] ..."] if start else []
    for a, b in zip(edges, edges[1:]):
        quoted = any(low <= a and b <= high for low, high in quotes(row))
        opens = any(low == a or low < a == start for low, _ in quotes(row))
        closes = any(high == b or high > b == end for _, high in quotes(row))
        parts.append(piece(text[a:b], quoted, opens, closes, b <= turn, style))
    parts += [f"... [{len(text) - end:,} characters more; --full shows them]"] if end < len(text) else []
    return "".join(parts)


def piece(text: str, quoted: bool, opens: bool, closes: bool, thinking: bool, style: str) -> str:
    """A part of the text in one look."""
    if style == "terminal":
        looks = DIM * (thinking and not quoted) + BOLD * quoted
        return f"{looks}{clean(text)}{PLAIN}" if looks else clean(text)
    left, right = SIGNS[style == "ascii"]
    return left * (quoted and opens) + clean(text) + right * (quoted and closes)


def quotes(row: dict) -> list[tuple[int, int]]:
    """Those that lie in the text; old runs have none."""
    found = row.get("quotes")
    return [(pair[0], pair[1]) for pair in found if isinstance(pair, list) and len(pair) == 2
            and all(type(edge) is int for edge in pair) and 0 <= pair[0] < pair[1] <= len(row["text"])
            ] if isinstance(found, list) else []


def at_least_one(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} should be a number of 1 or more")
    return int(word)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.rollouts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="DIR", help="of a training run")
    parser.add_argument("--step", type=int, help="default: the last")
    choice = parser.add_mutually_exclusive_group()
    for order in ("worst", "best"):
        choice.add_argument(f"--{order}", type=at_least_one, metavar="N", help="so many answers")
    choice.add_argument("--id", help="all answers to this example")
    parser.add_argument("--task", help="answers to examples of this task only")
    parser.add_argument("--full", action="store_true", help="nothing is shortened")
    args = parser.parse_args(argv)
    order = "" if args.id is not None else "best" if args.best else "worst"
    try:
        rows, step, count = pick(args.run / "rollouts.jsonl", args.step, args.id, args.task, order,
                                 args.best or args.worst or 5)
    except (FileNotFoundError, NotADirectoryError) as error:
        print(f"{error.filename} is not there; give the directory of a run", file=sys.stderr)
        return 66
    except series.PlotError as error:
        print(error, file=sys.stderr)
        return 65
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 78
    except OSError as error:
        print(f"{error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 74
    style = "terminal" if sys.stdout.isatty() else "signs" if fits("«»", sys.stdout.encoding) else "ascii"
    which = f"the {len(rows)} {order} of {count} answers" if order else f"all {count} answers to {clean(args.id)}"
    texts = [f"step {step}: {which}", *(f"-- {shown(row, args.full, style)}" for row in rows)]
    all(map(say, texts))                                                         # until nobody reads any more
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
