"""The sixteen exercises: what to write, and how it is checked.

docs/course/01_group_advantages.md explains exercise 1, and tests/exercises/e01_group_advantages.py checks it. Such a
file has a title as its docstring, and these names:

    FILE    the file of the project, WRITE: the functions and methods of it that the student writes
    CASES   a hypothesis strategy for random inputs: dictionaries of plain data
    answer(m, ...)   the result of the functions in module m for a case: nested lists, numbers, tensors. Its parameters
            are named like the case's keys. It need not have all of them
    LAWS    functions law(m, ...), likewise, which raise AssertionError. The docstring is the law in one sentence
    WRONG   typical wrong solutions: (what is wrong, old text, new text) changes the old text of FILE
    TESTS   arguments of pytest: the project's own tests of these functions
    TRAIN   more arguments of train_rl.py for check.SHORT_RUN with the functions. None: there is no such run

It must not import the project at its top: m is another copy of it.
"""

import importlib.util
import re
from functools import cache
from types import ModuleType
from typing import NamedTuple

from nanoqwenlong.errors import DataError

from .sandbox import ROOT

CORE = 10                               # the first exercises are the core of the course


class Exercise(NamedTuple):
    number: int
    name: str                           # group_advantages
    checks: ModuleType                  # tests/exercises/e01_group_advantages.py

    @property
    def title(self) -> str:
        return self.checks.__doc__.strip()

    @property
    def file(self) -> str:
        """The student's file."""
        return f"{self.number:02}_{self.name}.py"

    @property
    def source(self) -> str:
        """Our file, which holds the solution."""
        return (ROOT / self.checks.FILE).read_text(encoding="utf-8")

    @property
    def page(self) -> tuple[str, list[str]]:
        """The text that explains the exercise, and its hints."""
        text = (ROOT / f"docs/course/{self.number:02}_{self.name}.md").read_text(encoding="utf-8")
        page, _, hints = text.partition("\n## Hints\n")
        return page.strip() + "\n", [hint.strip() for hint in re.split(r"^\d+\. ", hints, flags=re.MULTILINE)[1:]]


@cache
def exercises() -> dict[int, Exercise]:
    """All of them, by number."""
    result = {}
    for path in sorted((ROOT / "tests/exercises").glob("e[0-9][0-9]_*.py")):
        number, name = int(path.stem[1:3]), path.stem[4:]
        spec = importlib.util.spec_from_file_location(path.stem, path)
        checks = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(checks)
        result[number] = Exercise(number, name, checks)
    return result


def exercise(number: int) -> Exercise:
    if number not in exercises():
        raise DataError(f"there is no exercise {number}: `python -m course status` lists them")
    return exercises()[number]
