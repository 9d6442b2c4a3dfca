"""How an answer to each task is rewarded: the table TASKS. A new task: a row, maybe with a function in measures.py."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .. import parallel
from ..errors import DataError
from ..records import Example
from . import answers, formulas, math_worker, measures, options


class Task(NamedTuple):
    measure: Callable[[str, str], float]                       # (answer, gold) -> 0 to 1, or a bool
    extract: Callable[[str], str]                              # what follows </think> -> the answer
    judged: bool                                               # whether a judge may be asked
    gold: str                                                  # what a gold answer looks like, for error messages


def choice(answer: str, gold: str) -> bool:
    return options.choice(answer) == options.choice(gold) != ""


def value(said: str) -> str:
    """The statement, or else everything. For prompts that ask for nothing but a value."""
    return answers.statement(said) or answers.final(said)


WORDS = "one line of text, with a letter or digit and without a marker of an answer"
ITEMS = "a list, one item a line"
TASKS = {
    # QwenLong-L1: the answer has to be stated
    "qa": Task(measures.em, answers.statement, True, WORDS),
    "number": Task(answers.near, answers.statement, True, "a number, or yes or no"),
    "choice": Task(choice, answers.statement, False, "a letter from A to J"),
    # GoLongRL: it may be bare
    "em": Task(measures.em, value, True, WORDS),
    "accuracy": Task(measures.accuracy, value, False, "a letter from A to J, or a short text"),
    "f1": Task(measures.f1, answers.final, False, ITEMS),
    "math": Task(measures.math, value, False, "a number or a formula"),
    "iou": Task(measures.iou, answers.final, False, 'JSON, {"data": [row, ...]} or [row, ...]'),
    "sub_em": Task(measures.sub_em, answers.final, False, ITEMS),
    "ndcg": Task(measures.ndcg, answers.final, False, ITEMS + ", the most relevant first"),
    "pairwise": Task(measures.pairwise, answers.final, False, ITEMS + ", in order, at least two"),
    "rouge_l": Task(measures.rouge_l, answers.final, False, "a text"),
}
LISTS = tuple(name for name, task in TASKS.items() if task.gold.startswith(ITEMS))
SINGLE = tuple(name for name, task in TASKS.items() if task.extract is not answers.final)      # the answer is one value


def task_named(name: str) -> Task:
    """The row of TASKS. Raises DataError for an unknown name."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}: the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def extract(text: str, task: str = "qa") -> str:
    """The answer that a response gives, "" if it gives none."""
    said = answers.said(text)
    return "" if said is None else task_named(task).extract(said)


def gold_problem(task: str, gold: str) -> str:
    """Why this gold answer is invalid, or "". It is valid if, given as an answer, it earns exactly 1."""
    row = task_named(task)
    if row.measure(extract(f"</think>The answer is {gold}", task), gold) == 1:
        return ""
    shown = gold if len(gold) <= 60 else gold[:57] + "..."
    return f"{shown!r} does not match itself; a gold answer of task {task} is {row.gold}"


def verify(answers: Sequence[Sequence[str]], examples: Sequence[Example]) -> None:
    """Have rank 0 ask math-verify about all formulas of these groups of answers. All ranks learn the same verdicts."""
    pairs = [formulas.compared(answer, gold) for group, example in zip(answers, examples) if example.task == "math"
             for gold in example.accepted for answer in group]
    verdicts = formulas.verifier.ask(pair for pair in pairs if isinstance(pair, tuple)) if parallel.rank() == 0 else {}
    formulas.verifier.verdicts.update(parallel.gather(verdicts)[0])


def missing_package(tasks: Iterable[str]) -> str:
    """A note about a package that is not installed and would reward more answers to these tasks, or ""."""
    if "math" in tasks and not math_worker.installed():
        return ('task "math": math-verify is not installed (pip install ".[math]"), so a formula is right only if it '
                "is written like the gold answer; numbers are compared as usual")
    return ""
