"""Read the answers of a training run: the question, the answer, what it earned and why. Quotes are «marked».

    python -m tools.rollouts runs/a                         the 5 worst of the last step
    python -m tools.rollouts runs/a --step 40 --best 3      the 3 best of step 40
    python -m tools.rollouts runs/a --worst 2 --document    with the documents, which are read from the run's data again
    python -m tools.rollouts runs/a --id q17 --full         all answers to one question, the last time it was asked
    python -m tools.rollouts runs/a --task f1 --worst 10    of one task only"""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter as Raw
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from tools import series

from nanoqwenlong.errors import ConfigError, DataError
from nanoqwenlong.ops.console import say, with_exit_code

TAIL, HEAD = 700, 1500          # characters shown of the end of the thinking, and of the text after it
FIELDS = {"step": int, "id": str, "text": str, "finish_reason": str | None,
          **dict.fromkeys(("reward", "advantage", "rule", "judge", "penalty"), int | float | None)}


def read(path: Path, step: int | None, id: str | None, task: str | None) -> list[dict]:
    """Return the answers of a step, by default the last that has such answers. Keeps only one step in memory."""
    answers, steps = [], set()
    for number, row in series.read_rows(path):
        check(row, f"{path}:{number}")
        steps.add(row["step"])
        if step not in (None, row["step"]) or id not in (None, row["id"]) or task not in (None, row.get("task")):
            continue
        if answers and answers[0]["step"] != row["step"]:
            answers = []
        answers.append(row)
    if not steps:
        raise ConfigError(f"{path} is empty; wait for the run's first step")
    if step is not None and step not in steps:
        raise ConfigError(f"there is no step {step} in {path}; there are steps between {min(steps)} and {max(steps)}")
    if not answers:
        asked = [f"{name} {value}" for name, value in (("id", id), ("task", task)) if value is not None]
        raise ConfigError(f"no answer in {path} has {' and '.join(asked)}; leave that out to see what there is")
    return answers


def check(row: dict, where: str) -> None:
    """Raise DataError if a field is missing or has a wrong type. NaN (unscorable) becomes None."""
    for name, kind in FIELDS.items():
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, kind) or type(value) is int and abs(value) > 1e308:
            shown = str(row.get(name, "missing"))[:60]
            raise DataError(f"{where}: {name!r} is {shown!r}; it should be a line of a run's rollouts.jsonl")
        row[name] = value if value == value else None
    quotes = row.get("quotes") if isinstance(row.get("quotes"), list) else []      # old runs have none
    row["quotes"] = [pair for pair in quotes if isinstance(pair, list) and list(map(type, pair)) == [int, int]
                     and 0 <= pair[0] < pair[1] <= len(row["text"])]


def different(answers: list[dict], best: bool) -> list[dict]:
    """Return answers without repeated texts, from the worst (or best) reward on, unscorable ones last. Among answers
    with one reward, each question has a turn before any has its second."""
    sign, turns = -1 if best else 1, Counter()
    texts = {(row["id"], row["text"]): row for row in answers}
    for row in (rows := sorted(texts.values(), key=lambda row: sign * (row["advantage"] or 0.0))):
        turns[row["id"], row["reward"]] += 1
        row["turn"] = turns[row["id"], row["reward"]]
    return sorted(rows, key=lambda row: (row["reward"] is None, sign * (row["reward"] or 0.0), row["turn"]))


def documents(run: Path) -> dict[str, str]:
    """Return {id: document, or the turns of a chat}. The data of the run is read again."""
    from nanoqwenlong import build                             # imported here: it imports torch
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    examples = build.questions(SimpleNamespace(**{"max_paragraphs": 0, **config}), lambda note: None)  # not in old runs
    return {example.id: example.document or "\n".join(text for _, text in example.messages) for example in examples}


def describe(row: dict, full: bool, document: str | None = None) -> str:
    """Return one answer with everything known about it."""
    question, gold = str(row.get("question") or "not kept").strip(), row.get("gold")
    if len(question) > 600 and not full:                         # the question of a chat is at its end
        question = f"[{len(question) - 600} characters] ... {question[-600:]}"
    ended = {"stop": "by itself", "length": "truncated at --max-new-tokens"}.get(row["finish_reason"], "?")
    reward = "none, no verdict" if row["reward"] is None else f"{row['reward']:.3g}"
    parts = [f"{name} {row[name]:.3g}" for name in ("rule", "judge", "penalty", "advantage") if row[name] is not None]
    lines = [f"{row['id']}, answer {row.get('sample', '?')}, task {row.get('task', '?')}",
             f"  question   {question}",
             f"  gold       {' | '.join(map(str, gold if isinstance(gold, list) else [gold]))}",
             f"  extracted  {'nothing' if row.get('answer') in (None, '') else repr(row['answer'])}",
             f"  reward     {reward} ({', '.join(parts)})",
             f"  ended      {ended}, {row.get('length', '?')} tokens"]
    if isinstance(row.get("patterns"), dict):
        lines.append(f"  patterns   {', '.join(f'{name} {count}' for name, count in row['patterns'].items())}")
    if document is not None:
        more = f" ... [{len(document) - HEAD:,} characters more; --full shows them]" if len(document) > HEAD else ""
        lines.append(f"  document   {document if full else document[:HEAD] + more}")
    return "\n".join([*lines, "", body(row, full), ""])


def body(row: dict, full: bool) -> str:
    """Return the text, shortened unless `full`. Quotes are marked."""
    text = row["text"]
    turn = text.rfind("</think>") + len("</think>") if "</think>" in text else len(text)        # the thinking ends here
    start = 0 if full or turn <= TAIL + 100 else turn - TAIL
    end = len(text) if full or len(text) - turn <= HEAD + 100 else turn + HEAD
    parts = [f"[{start:,} characters of thinking before this; --full shows them] ..."] if start else []
    for low, high in row["quotes"]:
        low, high = max(low, start), min(high, end)
        if low < high:
            parts += [text[start:low], "«", text[low:high], "»"]
            start = high
    more = f"... [{len(text) - end:,} characters more; --full shows them]" if end < len(text) else ""
    return "".join([*parts, text[start:end], more])


@with_exit_code
def main(argv: list[str]) -> None:
    parser = ArgumentParser("python -m tools.rollouts", description=__doc__, formatter_class=Raw)
    parser.add_argument("run", type=Path, metavar="DIR", help="a training run")
    parser.add_argument("--step", type=int, help="default: the last")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--worst", type=int, metavar="N", help="show so many answers (default: 5)")
    choice.add_argument("--best", type=int, metavar="N", help="show so many answers")
    choice.add_argument("--id", help="show all answers to this example")
    parser.add_argument("--task", help="only answers to examples of this task")
    parser.add_argument("--document", action="store_true", help="show the documents as well")
    parser.add_argument("--full", action="store_true", help="do not shorten anything")
    args = parser.parse_args(argv)
    if any(number is not None and number < 1 for number in (args.best, args.worst)):
        parser.error("--worst and --best: it should be a number of 1 or more")
    answers = read(args.run / "rollouts.jsonl", args.step, args.id, args.task)
    chosen, title = answers, f"all {len(answers)} answers to {args.id}"
    if args.id is None:
        chosen = different(answers, bool(args.best))[:args.best or args.worst or 5]
        title = f"the {len(chosen)} {'best' if args.best else 'worst'} of {len(answers)} answers"
    of = documents(args.run) if args.document else {}
    shown = [describe(row, args.full, of.get(row["id"], "no longer in the data") if args.document else None)
             for row in chosen]
    all(map(say, [f"step {answers[0]['step']}: {title}", *(f"-- {text}" for text in shown)]))  # until `head` is gone


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
