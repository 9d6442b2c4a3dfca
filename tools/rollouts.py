"""Read the answers of a training run: the question, the answer, what it earned and why.

    python -m tools.rollouts runs/a                         the 5 worst of the last step
    python -m tools.rollouts runs/a --step 40 --best 3      the 3 best of step 40
    python -m tools.rollouts runs/a --id q17 --full         all answers to one question, the last time it was asked
    python -m tools.rollouts runs/a --task f1 --worst 10    of one task only

The worst answer has the lowest reward. Among equals it has the lowest advantage: others of its group were right.
Unscorable answers come last. Quotes of the document are bold on a terminal, and «marked» elsewhere. Of long thinking
only the end is shown. --full shows all of it.
"""

import argparse
import re
import sys
from pathlib import Path

from tools import series
from tools.terminal import can_show, clean, run_tool, say

from nanoqwenlong.errors import ConfigError, DataError

STEP = re.compile(rb'\{"step": (\d+),')                          # the start of a line as log.py writes it
TAIL, HEAD = 700, 1500          # characters shown of the end of the thinking, and of the text after it
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
NUMBER = int | float | None
FIELDS = {"step": int, "id": str, "text": str, "finish_reason": str | None, "reward": NUMBER, "advantage": NUMBER,
          "rule": NUMBER, "judge": NUMBER, "penalty": NUMBER}


def read(path: Path, step: int | None, id: str | None, task: str | None) -> tuple[list[dict], int]:
    """Return the answers of a step, and the step. Default: the last step that has such answers.

    Raises ConfigError if there are none. Lines of other steps are not parsed, and only one step is kept in memory.
    """
    steps: set[int] = set()
    answers, at = [], step

    def wanted(number: int) -> bool:
        steps.add(number)
        return number == step if step is not None else at is None or number >= at

    def skip(line: bytes) -> bool:
        start = STEP.match(line)
        return start is not None and line.endswith(b"\n") and not wanted(int(start[1]))

    for number, row in series.read_rows(path, skip):
        for name, kind in FIELDS.items():
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, kind) or type(value) is int and abs(value) > 1e308:
                raise DataError(f"{path}:{number}: {name!r} is {str(row.get(name, 'missing'))[:60]!r}; it should be a "
                                "line of a run's rollouts.jsonl")
            if value != value:                                   # NaN: unscorable
                row[name] = None
        if not wanted(row["step"]) or id not in (None, row["id"]) or task not in (None, row.get("task")):
            continue
        if row["step"] != at:
            answers, at = [], row["step"]
        answers.append(row)
    if step is not None and step not in steps:
        raise ConfigError(f"there is no step {step} in {path}; there are {ranges(steps)}")
    if not answers:
        asked = " and ".join(f"{name} {value}" for name, value in (("id", id), ("task", task)) if value is not None)
        where = f"step {step} of {path}" if step is not None else f"{path}"
        raise ConfigError(f"no answer in {where}" + (f" has {asked}; leave that out to see what there is" if asked else
                                                     ": it is empty; wait for the run's first step"))
    return answers, at


def ranges(numbers: set[int]) -> str:
    """{1, 2, 3, 7} -> 1-3, 7"""
    starts = [number for number in sorted(numbers) if number - 1 not in numbers]
    ends = [number for number in sorted(numbers) if number + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends)) or "none"


def shown(row: dict, full: bool, style: str) -> str:
    """Return one answer with everything known about it. style: "terminal", "signs" or "ascii"."""
    question = clean(str(row.get("question") or "not kept")).strip()
    if len(question) > 600 and not full:                         # the question of a chat is at its end
        question = f"[{len(question) - 600} characters] ... {question[-600:]}"
    gold = row.get("gold")
    golds = " | ".join(map(str, gold if isinstance(gold, list) else [gold]))
    extracted = "nothing" if row.get("answer") in (None, "") else clean(repr(row["answer"]))
    lines = {"question": question, "gold": clean(golds), "extracted": extracted, "reward": earned(row),
             "ended": ended(row)}
    if isinstance(row.get("patterns"), dict):
        lines["patterns"] = clean(", ".join(f"{name} {count}" for name, count in row["patterns"].items()))
    head = clean(f"{row['id']}, answer {row.get('sample', '?')}, task {row.get('task', '?')}")
    if style == "terminal":
        head = f"{BOLD}{head}{PLAIN}"
    facts = "\n".join(f"  {name:10} {text}" for name, text in lines.items())
    return f"{head}\n{facts}\n\n{body(row, full, style)}\n"


def earned(row: dict) -> str:
    """Return the reward and its parts."""
    reward, advantage, rule, judge = (row.get(name) for name in ("reward", "advantage", "rule", "judge"))
    judged = f"judge {judge:.3g}" if judge is not None else "no verdict" if reward is None else "judge not asked"
    parts = ["rule ?" if rule is None else f"rule {rule:.3g}", judged]
    if row.get("penalty"):
        parts.append(f"penalty {row['penalty']:.3g}")
    text = f"{'none' if reward is None else f'{reward:.3g}'} ({', '.join(parts)})"
    return text if advantage is None else f"{text}; advantage {advantage:+.2f}"


def ended(row: dict) -> str:
    """Return how the answer ended, and after how many tokens."""
    how = {"stop": "by itself", "length": "truncated at --max-new-tokens"}.get(row.get("finish_reason"), "?")
    return f"{how}, {row['length']} tokens" if isinstance(row.get("length"), int) else how


def body(row: dict, full: bool, style: str) -> str:
    """Return the text, cleaned. Quotes are marked, and the thinking is dim on a terminal."""
    text, marks = row["text"], quotes(row)
    turn = text.rfind("</think>")
    turn = len(text) if turn < 0 else turn + len("</think>")     # the thinking ends here
    start = 0 if full or turn <= TAIL + 100 else turn - TAIL
    end = len(text) if full or len(text) - turn <= HEAD + 100 else turn + HEAD
    marks = [(max(low, start), min(high, end)) for low, high in marks if low < end and high > start]
    edges = sorted({start, min(turn, end), end, *(edge for mark in marks for edge in mark)})
    parts = [f"[{start:,} characters of thinking before this; --full shows them] ..."] if start else []
    left, right = ("<<", ">>") if style == "ascii" else ("«", "»")
    for a, b in zip(edges, edges[1:]):
        part, quoted = clean(text[a:b]), any(low <= a and b <= high for low, high in marks)
        if style == "terminal":
            look = BOLD if quoted else DIM if b <= turn else ""
            parts.append(f"{look}{part}{PLAIN}" if look else part)
        else:
            opens, closes = any(low == a for low, _ in marks), any(high == b for _, high in marks)
            parts.append(left * opens + part + right * closes)
    if end < len(text):
        parts.append(f"... [{len(text) - end:,} characters more; --full shows them]")
    return "".join(parts)


def quotes(row: dict) -> list[tuple[int, int]]:
    """Return the (start, end) of each valid quote. Old runs have none."""
    pairs = row["quotes"] if isinstance(row.get("quotes"), list) else []
    return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2
            and all(type(edge) is int for edge in pair) and 0 <= pair[0] < pair[1] <= len(row["text"])]


def show(run: Path, step: int | None, id: str | None, task: str | None, best: int | None, worst: int | None,
         full: bool) -> None:
    answers, step = read(run / "rollouts.jsonl", step, id, task)
    if id is not None:
        title = f"all {len(answers)} answers to {clean(id)}"
    else:
        unscorable = [row for row in answers if row["reward"] is None]
        scored = [row for row in answers if row["reward"] is not None]
        scored.sort(key=lambda row: (row["reward"], row["advantage"] or 0.0), reverse=bool(best))
        title = f"{'best' if best else 'worst'} of {len(answers)} answers"
        answers = (scored + unscorable)[:best or worst or 5]
        title = f"the {len(answers)} {title}"
    style = "terminal" if sys.stdout.isatty() else "signs" if can_show("«»") else "ascii"
    texts = [f"step {step}: {title}", *(f"-- {shown(row, full, style)}" for row in answers)]
    all(map(say, texts))                                         # stops if the reader, such as `head`, is gone


def at_least_one(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} should be a number of 1 or more")
    return int(word)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.rollouts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="DIR", help="a training run")
    parser.add_argument("--step", type=int, help="default: the last")
    choice = parser.add_mutually_exclusive_group()
    for order in ("worst", "best"):
        choice.add_argument(f"--{order}", type=at_least_one, metavar="N", help="show so many answers")
    choice.add_argument("--id", help="show all answers to this example")
    parser.add_argument("--task", help="only answers to examples of this task")
    parser.add_argument("--full", action="store_true", help="do not shorten anything")
    args = parser.parse_args(argv)
    return run_tool(lambda: show(**vars(args)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
