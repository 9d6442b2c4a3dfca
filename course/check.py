"""Checks a student's functions: laws, equality with ours, the project's own tests, a short training run.

All of it happens in a copy of the project in which the student's functions replace ours. So nobody can call ours by
mistake, and the check cannot test the wrong file.
"""

import importlib
import inspect
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import hypothesis
import torch

from nanoqwenlong.errors import DataError

from . import sandbox, stubs
from .exercise import Exercise

SECONDS = 90                            # for everything
CASES_PER_LAW, FRESH_CASES, PROBES = 60, 40, 60
SHOWN = 1500                            # characters of a test's output
SHORT_RUN = "--toy-examples 8 --phase-steps 1 1 --prompts-per-step 4 --group-size 4 --dtype float64 --name short"
QUIET = dict(database=None, deadline=None, report_multiple_bugs=False, print_blob=False,
             suppress_health_check=list(hypothesis.HealthCheck),
             phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink])


class Report(NamedTuple):
    passed: bool
    lines: list[str]                    # for the console
    reason: str = ""                    # of a failure, in one line
    calls: int = 0                      # how often the student's functions were called
    seconds: float = 0.0


def check(exercise: Exercise, text: str, seed: int | None = None) -> Report:
    """What the check of the student's file says. `seed` decides the fresh cases that are compared with our results."""
    started, checks = time.monotonic(), exercise.checks
    try:
        theirs = stubs.transplant(exercise.source, text, checks.FILE, checks.WRITE, exercise.file)
    except DataError as error:
        return Report(False, [f"  {error}"], str(error))
    fresh = with_answers(checks, importlib.import_module(stubs.module_of(checks.FILE)),
                         FRESH_CASES, time.time_ns() if seed is None else seed)
    with tempfile.TemporaryDirectory(prefix="course-") as directory:
        copy = sandbox.copy_project(Path(directory))
        (copy / checks.FILE).write_text(theirs.text, encoding="utf-8")
        report = summary(sandbox.run(lambda send: job(send, exercise, theirs, fresh), copy, SECONDS))
        if report.passed and checks.TRAIN is not None:
            report = with_training(report, exercise, theirs, copy)
    return report._replace(seconds=time.monotonic() - started)


def with_training(report: Report, exercise: Exercise, theirs: stubs.Transplant, copy: Path) -> Report:
    """The report, with a line about a short training run: with the student's functions it must give our numbers."""
    sentence, runs = "a short training run gives the numbers of ours", []
    for text in (theirs.text, exercise.source):
        (copy / exercise.checks.FILE).write_text(text, encoding="utf-8")
        outcome = sandbox.run(lambda send: send(train(exercise.checks.TRAIN)), copy, SECONDS)
        runs.append(outcome.ended or outcome.events[0])
    yours, ours = runs
    if isinstance(ours, list) and same(yours, ours):                           # a text says why a run failed
        return report._replace(lines=[*report.lines, f"  ok      {sentence}"])
    lines = [f"  FAILED  {sentence}", f"          ours   {shown(ours)}", f"          yours  {shown(yours)}"]
    return report._replace(passed=False, lines=[*report.lines, *lines], reason=sentence)


def summary(outcome: sandbox.Outcome) -> Report:
    """What happened in the child, as lines to print."""
    events = [event for event in outcome.events if isinstance(event, dict)]
    lines, reason, calls = [], "", 0
    for event in events:
        calls = event.get("calls", calls)
        if "done" in event:
            failure = event.get("failure")
            lines.append(f"  {'FAILED' if failure else 'ok    '}  {event['done']}")
            if failure:
                reason = event["done"]
                lines += ["          " + line for line in failure.splitlines()]
    if outcome.ended and not reason:
        doing = next((event["begun"] for event in reversed(events) if "begun" in event), "importing your file")
        reason = f"{outcome.ended}, while checking: {doing}"
        lines.append(f"  FAILED  {reason}")
        lines += ["          " + line for line in outcome.printed.strip().splitlines()[-4:]]
    if not reason and not calls:
        reason = "your functions were never called"
        lines.append(f"  FAILED  {reason}")
    return Report(not reason, lines, reason, calls)


# In the child

def job(send: Callable, exercise: Exercise, theirs: stubs.Transplant, fresh: list) -> None:
    """Check one thing after another, up to the first failure. Sends an event before and after each."""
    checks, place = exercise.checks, Place(exercise, theirs)
    module = importlib.import_module(stubs.module_of(checks.FILE))
    todo = [(sentence_of(law), lambda law=law: try_law(module, checks, law, place)) for law in checks.LAWS]
    todo.append(("the results are ours, on fresh random inputs", lambda: compare(module, checks, fresh)))
    todo.append(("the project's own tests pass", lambda: own_tests(checks.TESTS)))
    for sentence, work in todo:
        send({"begun": sentence, "calls": len(module.CALLS)})
        failure = work()
        if failure and (name := name_of(module, exercise)):
            failure = f"This is what one gets if {name}.\n{failure}"
        send({"done": sentence, "failure": failure, "calls": len(module.CALLS)})
        if failure:
            return


class Place(NamedTuple):
    """Finds the line of the student's file in which something went wrong."""

    exercise: Exercise
    theirs: stubs.Transplant

    def of(self, error: BaseException) -> str:
        where, text = "", str(error).strip()
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.endswith(self.exercise.checks.FILE) and self.theirs.origin[frame.lineno - 1]:
                where = f"{self.exercise.file}, line {self.theirs.origin[frame.lineno - 1]}: "
        if isinstance(error, AssertionError):
            text = text or frame.line.replace("assert ", "this should hold: ", 1)
        else:
            text = f"{type(error).__name__}: {text}"
        return (where + text).partition("\n")[0]


def sentence_of(law: Callable) -> str:
    return " ".join(law.__doc__.split()).removesuffix(".")


def try_law(module: ModuleType, checks: ModuleType, law: Callable, place: Place) -> str:
    """'' if the law holds for random cases. Otherwise the smallest case for which it does not, and why."""
    last, answer = dict(case={}, call={}, result=[]), checks.answer

    def look(case):
        last.update(case=case, call={}, result=[])
        call(law, module, case)

    def noted(*values, **named):
        last.update(call=dict(inspect.signature(answer).bind(*values, **named).arguments), result=[])
        last["result"] = [answer(*values, **named)]
        return last["result"][0]

    try:
        search = hypothesis.settings(max_examples=CASES_PER_LAW, derandomize=True, **QUIET)
        with patch.object(checks, "answer", noted):
            search(hypothesis.given(checks.CASES)(look))()
        return ""
    except Exception as error:
        case = {name: value for name, value in last["case"].items() if name in inspect.signature(law).parameters}
        return explanation(place.of(error), case, last["call"], *last["result"])


def call(function: Callable, module: ModuleType, case: dict):
    """function(module, ...) with those values of the case that it has parameters for."""
    names = inspect.signature(function).parameters
    return function(module, **{name: value for name, value in case.items() if name in names})


def explanation(why: str, case: dict, call: dict, *result) -> str:
    """Why a case failed, and the call at which it was noticed, with the student's result."""
    lines = [f"with {name} = {shown(value)}" for name, value in case.items()]
    lines += [f"called with {name} = {shown(value)}" for name, value in call.items() if name != "m"
              and (name not in case or case[name] is not value)]
    return "\n".join([why, *lines, *(f"your result: {shown(value)}" for value in result)])


def compare(module: ModuleType, checks: ModuleType, cases: list) -> str:
    for case, expected in cases:
        got = outcome_of(module, checks, case)
        if not same(got, expected):
            return explanation(f"ours gives {shown(expected)}", case, {}, got)
    return ""


def own_tests(arguments: list[str]) -> str:
    """'' if pytest passes. Otherwise the end of its output."""
    import pytest
    output = Path("tests.txt")
    with output.open("w", encoding="utf-8") as file:
        stream, sys.stdout = sys.stdout, file
        try:
            code = pytest.main(["-x", "-q", "-c", "pyproject.toml", "-p", "no:cacheprovider", "--tb=short",
                                "--no-header", *arguments])
        finally:
            sys.stdout = stream
    return "" if code == pytest.ExitCode.OK else output.read_text(encoding="utf-8")[-SHOWN:]


def train(arguments: str) -> list:
    """Runs train_rl.py in this process, SHORT_RUN with more arguments. Returns reward, loss, grad_norm of each step."""
    import train_rl
    from nanoqwenlong.ops import flags
    words = [*SHORT_RUN.split(), *arguments.split(), "--runs-dir", tempfile.mkdtemp(dir=".")]
    train_rl.main(flags.parse(train_rl.Config, words))
    rows = [json.loads(line) for line in Path(words[-1], "short/metrics.jsonl").read_text().splitlines()]
    return [[row[key] for key in ("reward", "loss", "grad_norm")] for row in rows]


# Results, and wrong ones with a name

def with_answers(checks: ModuleType, module: ModuleType, number: int, seed: int | None = None) -> list[tuple]:
    """Random cases, each with what the functions of `module` give."""
    pairs = []

    def collect(case):
        pairs.append((case, outcome_of(module, checks, case)))

    settings = hypothesis.settings(max_examples=number, derandomize=seed is None, **QUIET)
    collect = hypothesis.given(checks.CASES)(collect)
    if seed is not None:
        collect = hypothesis.seed(seed)(collect)
    settings(collect)()
    return pairs


def outcome_of(module: ModuleType, checks: ModuleType, case: dict):
    """The result for a case, or which error was raised."""
    try:
        return plain(call(checks.answer, module, case))
    except Exception as error:
        return f"raises {type(error).__name__}: {error}".splitlines()[0]


def name_of(module: ModuleType, exercise: Exercise) -> str:
    """What is wrong, if the module's results are those of a typical wrong solution."""
    checks = exercise.checks
    probes = with_answers(checks, module, PROBES)
    for name, old, new in checks.WRONG:
        wrong = load(exercise.source.replace(old, new), checks.FILE)
        if all(same(outcome_of(wrong, checks, case), got) for case, got in probes):
            return name
    return ""


def load(source: str, file: str) -> ModuleType:
    """A module from changed source of one of the project's files. No other module imports it."""
    name = stubs.module_of(file)
    module = ModuleType(name)
    module.__package__, module.__file__ = name.rpartition(".")[0], file
    usual = importlib.import_module(name)
    sys.modules[name] = module                                                 # dataclasses look it up
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    finally:
        sys.modules[name] = usual
    return module


def plain(value):
    """Tensors as nested lists, tuples as lists."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().tolist() if value.is_floating_point() else value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def same(a, b) -> bool:
    """Whether two results are equal, up to rounding. NaN equals NaN. Of an error only the kind counts."""
    if isinstance(a, str) and isinstance(b, str) and a.startswith("raises ") and b.startswith("raises "):
        return a.partition(":")[0] == b.partition(":")[0]
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, int | float) and isinstance(b, int | float) and (
            a == b or math.isnan(a) and math.isnan(b) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12))
    return type(a) is type(b) and a == b


def shown(value, width: int = 300) -> str:
    text = json.dumps(rounded(plain(value)), ensure_ascii=False, default=str)
    return text if len(text) <= width else text[:width] + " ..."


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value
