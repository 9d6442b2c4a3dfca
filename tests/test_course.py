"""The course. Every exercise: the stub fails, two correct solutions pass, each wrong one is rejected by a law and named,
and nothing gives a solution away. Also what careless or hostile students do, and what teachers need."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from course import check, stubs
from course.__main__ import main
from course.exercise import exercises
from course.workspace import Workspace, stub

ALL = list(exercises().values())
by_name = pytest.mark.parametrize("exercise", ALL, ids=[each.file for each in ALL])


def ours(exercise) -> str:
    """Our solution, in the form of a student's file."""
    checks = exercise.checks
    return stubs.cut(exercise.source, checks.FILE, checks.WRITE, exercise.number, exercise.title, keep_bodies=True)


def other(exercise) -> str:
    """A second correct solution, written differently."""
    return (ROOT / "tests/course_solutions" / exercise.file).read_text(encoding="utf-8")


def module_with(exercise, text):
    """Our file with the functions of a student's file, as a module."""
    checks = exercise.checks
    swapped = stubs.transplant(exercise.source, text, checks.FILE, checks.WRITE, exercise.file)
    return check.load(swapped.text, checks.FILE), check.Place(exercise, swapped)


def broken_law(exercise, module, place) -> str:
    """The first law that does not hold for the module, and why. '' if all hold."""
    for law in exercise.checks.LAWS:
        if failure := check.try_law(module, exercise.checks, law, place):
            return f"{check.sentence_of(law)}: {failure}"
    return ""


# Every exercise

@by_name
def test_the_stub_breaks_a_law_and_correct_solutions_do_not(exercise):
    assert "NotImplementedError" in broken_law(exercise, *module_with(exercise, stub(exercise)))
    for text in (ours(exercise), other(exercise)):
        assert broken_law(exercise, *module_with(exercise, text)) == ""


@by_name
def test_every_wrong_solution_is_rejected_by_the_laws_and_named(exercise):
    names = [name for name, *_ in exercise.checks.WRONG]
    assert len(names) >= 3 and len(set(names)) == len(names)
    for name, old, new in exercise.checks.WRONG:
        assert exercise.source.count(old) == 1, f"{old!r} is not in {exercise.checks.FILE}"
        wrong = check.load(exercise.source.replace(old, new), exercise.checks.FILE)
        place = check.Place(exercise, stubs.Transplant("", [None] * 9999))
        assert broken_law(exercise, wrong, place), name
        assert check.name_of(wrong, exercise) == name
    source = check.load(exercise.source, exercise.checks.FILE)
    assert check.name_of(source, exercise) == ""


@by_name
def test_wrong_solutions_change_what_the_student_writes(exercise):
    text = ours(exercise)
    for name, old, new in exercise.checks.WRONG:
        assert old in text, f"{name}: {old!r} is outside of {exercise.checks.WRITE}"


@by_name
def test_no_line_of_the_solution_is_in_what_the_student_reads(exercise):
    page, hints = exercise.page
    read = " ".join("\n".join([stub(exercise), page, *hints]).split())
    for line in solution_lines(exercise):
        assert line not in read, line


def solution_lines(exercise) -> list[str]:
    """The lines of our bodies that say something, without what the signature and docstring show anyway."""
    lines = []
    for name in exercise.checks.WRITE:
        node = stubs.find(ast.parse(exercise.source), name).node
        body = exercise.source.splitlines()[stubs.body_start(node) - 1:node.end_lineno]
        lines += [" ".join(line.partition("  #")[0].split()) for line in body]
    trivial = re.compile(r"(return|else:|if|for|try:|#|continue|break|pass)?\W*\w*\W*")
    return [line for line in lines if len(line) > 15 and not trivial.fullmatch(line)]


@by_name
def test_the_page_of_an_exercise_has_its_parts(exercise):
    page, hints = exercise.page
    assert page.startswith(f"# {exercise.number}. {exercise.title}\n") and len(hints) == 3
    for heading in ("## The idea", "## Where", "## Think about it"):
        assert heading in page
    assert all(name in page for name in exercise.checks.WRITE) and exercise.checks.FILE in page


@pytest.mark.full
@by_name
def test_the_whole_check_passes_correct_solutions_and_is_quick(exercise):
    for text in (ours(exercise), other(exercise)):
        report = check.check(exercise, text)
        assert report.passed, "\n".join(report.lines)
        assert report.calls > 50 and report.seconds < 60                       # 20 s on a quiet core
