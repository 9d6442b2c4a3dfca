"""The course. Every exercise: the stub fails, two correct solutions pass, each wrong one is rejected by a law and
named, and nothing gives a solution away. Also what careless or hostile students do, and what teachers need."""

import ast
import json
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from course import check, sandbox, stubs
from course.__main__ import main
from course.exercise import CORE, exercises
from course.workspace import Workspace, digest, stub
from tqdm import tqdm

from nanoqwenlong.errors import DataError

ALL = list(exercises().values())
by_name = pytest.mark.parametrize("exercise", ALL, ids=[each.file for each in ALL])


def ours(exercise) -> str:
    """Our solution, in the form of a student's file."""
    checks = exercise.checks
    return stubs.cut(exercise.source, checks.FILE, checks.WRITE, exercise.number, exercise.title, keep_bodies=True)


def other(exercise) -> str:
    """A second correct solution, written differently."""
    return (ROOT / "tests/exercises/other" / exercise.file).read_text(encoding="utf-8")


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


# The full suite tries as many cases as the check of a student's file, also for the exercises beyond the core
few_or_all_cases = pytest.mark.parametrize("exercise, cases", [
    *(pytest.param(each, 20, id=each.file) for each in ALL[:CORE]),
    *(pytest.param(each, 60, id=f"{each.file}-all", marks=pytest.mark.full) for each in ALL)])


# Every exercise

@by_name
def test_the_stub_breaks_a_law_and_our_solution_does_not(exercise, monkeypatch):
    monkeypatch.setattr(check, "CASES_PER_LAW", 20)
    assert "NotImplementedError" in broken_law(exercise, *module_with(exercise, stub(exercise)))
    assert broken_law(exercise, *module_with(exercise, ours(exercise))) == ""


@few_or_all_cases
def test_every_wrong_solution_is_rejected_by_the_laws_and_named(exercise, cases, monkeypatch):
    assert check.CASES_PER_LAW == 60
    monkeypatch.setattr(check, "CASES_PER_LAW", cases)
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
    """The lines of our bodies that say something, without those that the rest of the file shows anyway."""
    source, bodies = exercise.source.splitlines(), set()
    for name in exercise.checks.WRITE:
        node = stubs.find(ast.parse(exercise.source), name).node
        bodies |= set(range(stubs.body_start(node) - 1, node.end_lineno))
    shown = {line.strip() for number, line in enumerate(source) if number not in bodies}
    lines = [" ".join(source[number].partition("  #")[0].split()) for number in sorted(bodies)]
    return [line for line in lines if len(line) > 25 and line not in shown]


@by_name
def test_the_page_of_an_exercise_has_its_parts(exercise):
    page, hints = exercise.page
    assert page.startswith(f"# {exercise.number}. {exercise.title}\n") and len(hints) == 3
    for heading in ("## The idea", "## Where", "## Think about it"):
        assert heading in page
    assert all(name in page for name in exercise.checks.WRITE) and exercise.checks.FILE in page


@pytest.mark.full
@by_name
def test_the_short_training_run_trains(exercise, tmp_path):
    """With all rewards 0 it could not fail."""
    if exercise.checks.TRAIN is not None:
        copy = sandbox.copy_project(tmp_path)
        outcome = sandbox.run(lambda send: send(check.train(exercise.checks.TRAIN)), copy, 60)
        assert not outcome.ended, outcome.printed
        assert any(grad_norm > 1e-3 for _, _, grad_norm in outcome.events[0]), outcome.events


@pytest.mark.full
@by_name
def test_the_whole_check_passes_correct_solutions_and_is_quick(exercise):
    for text in (ours(exercise), other(exercise)):
        report = check.check(exercise, text)
        assert report.passed, "\n".join(report.lines)
        assert report.calls > 50 and report.seconds < 60                       # 20 s on a quiet core


# Careless and hostile students

FIRST = exercises()[1]
BODY = "        rewards = torch.as_tensor(rewards, dtype=torch.float64)\n"       # the first line of our solution
HOSTILE = {
    "a syntax error": ("def of(", "def of((", "line 33: this is not valid Python"),
    "a function that is gone": ("def group_advantages", "def group_advantage", "there is no function group_advantages"),
    "sys.exit": (BODY, "        import sys; sys.exit(0)\n", "ended the process with code"),
    "os._exit": (BODY, "        import os; os._exit(0)\n", "ended the process with code 0"),
    "an endless loop": (BODY, "        while True: pass\n", "did not finish in 4 seconds"),
    "ten gigabytes": (BODY, "        x = torch.zeros(10 * 2 ** 30, dtype=torch.uint8)\n", "line 34: "),
    "a recursion": (BODY, "        return cls.of(rewards)\n", "RecursionError"),
    "garbage": (BODY, "        import os; os.write(1, b'\\xff\\x00{}'); return 'passed'\n", "AttributeError"),
    "garbage in every pipe": (BODY, "        import os; [os.write(n, b'\"passed\"\\n') for n in range(3, 30) if not "
                              "os.system('true') and os.path.exists(f'/proc/self/fd/{n}')]\n", ""),
    "ours by import": (BODY, "        import nanoqwenlong.advantages as ours; return ours.GroupStats.of(rewards)\n",
                       "RecursionError"),
    "an error on import": ("import torch\n", "import torch\nraise OSError('no')\n", "OSError"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_code_does_not_pass_and_the_reason_is_given(kind, monkeypatch):
    old, new, said = HOSTILE[kind]
    text = ours(FIRST)
    assert text.count(old) == 1
    monkeypatch.setattr(check, "SECONDS", 4)
    report = check.check(FIRST, text.replace(old, new))
    assert not report.passed and report.reason, report
    assert said in "\n".join(report.lines)


def test_a_child_that_is_killed_cannot_keep_the_lock_of_the_console(tmp_path):
    locks = tqdm.get_lock().locks                          # the console prints with tqdm, which takes them

    def job(send):
        tqdm.get_lock().acquire()
        send("it has the lock")
        time.sleep(60)

    outcome = sandbox.run(job, tmp_path, 2)
    assert outcome.events == ["it has the lock"] and outcome.ended.startswith("it did not finish in 2 seconds")
    for lock in locks:
        assert lock.acquire(timeout=1)
        lock.release()


def test_edited_tests_and_edited_sources_in_the_students_folder_change_nothing(tmp_path, monkeypatch):
    """The student's folder is never imported, although it is the current one."""
    workspace, _ = Workspace.start(tmp_path)
    (tmp_path / "nanoqwenlong").mkdir()
    (tmp_path / "nanoqwenlong/__init__.py").write_text("raise SystemExit(0)")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_grpo.py").write_text("def test_all(): pass")
    (tmp_path / "torch.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    assert not check.check(FIRST, workspace.text(FIRST)).passed


# The folder

def test_a_second_start_loses_nothing(tmp_path, capsys):
    folder = tmp_path / "Übung 1"
    assert main(["start", str(folder)]) == 0
    mine = folder / FIRST.file
    mine.write_text("# mine\n", encoding="utf-8")
    (folder / ALL[-1].file).unlink()
    assert main(["start", str(folder)]) == 0
    assert mine.read_text(encoding="utf-8") == "# mine\n"
    assert (folder / ALL[-1].file).read_text(encoding="utf-8") == stub(ALL[-1])
    assert main(["start", str(ROOT / "runs")]) == 78 and "lies in the project" in capsys.readouterr().err
    assert main(["status", "--dir", str(tmp_path)]) == 78 and "is not a folder of the course" in capsys.readouterr().err


def test_from_the_first_stub_to_the_solution(tmp_path, capsys):
    """The commands in the order of a student who fails, asks for hints, and passes, with Windows line endings."""
    words = ["--dir", str(tmp_path)]

    def course(*more) -> tuple[int, str]:
        code = main([more[0], *words, *more[1:]])
        return code, capsys.readouterr().out

    main(["start", str(tmp_path)])
    capsys.readouterr()
    assert course("status")[1].count("not started") == len(ALL)
    assert course("check")[0] == 1                                             # nothing was started
    assert course("show", "1")[1].startswith("# 1. Group advantages")
    assert course("hint", "1")[1].count("\n1. ") == 0 and "2. " in course("hint", "1")[1]
    code, text = course("check", "1")
    assert code == 1 and f"{FIRST.file}, line" in text and "NotImplementedError" in text
    assert course("solution", "1")[0] == 1
    solved = other(FIRST).replace("another solution", "Lösung").replace("\n", "\r\n")
    (tmp_path / FIRST.file).write_bytes(b"\xef\xbb\xbf" + solved.encode())
    code, text = course("check")
    assert code == 0 and "passed. Your functions were called" in text
    assert "+        scored = ~rewards.isnan()" in course("solution", "1")[1]
    assert re.search(r"1  core +Group advantages +passed, hints: 2", course("status")[1])
    (tmp_path / FIRST.file).write_text(solved + "\n# more\n")
    assert "changed since it passed" in course("status")[1]
    assert course("solution", "1", "--give-up")[0] == 0 and "gave up" in course("status")[1]


def test_the_launcher_runs_the_course_from_the_students_folder(tmp_path):
    main(["start", str(tmp_path / "a b")])
    done = subprocess.run([sys.executable, "-m", "course", "status"], cwd=tmp_path / "a b", capture_output=True,
                          text=True)
    assert done.returncode == 0 and "Group advantages" in done.stdout, done.stderr


def test_the_demo_runs_what_has_passed_and_other_functions_have_other_runs(tmp_path, monkeypatch, capsys):
    words, seen = ["demo", "--dir", str(tmp_path)], []

    def run(command, cwd, env):
        source = (cwd / FIRST.checks.FILE).read_text(encoding="utf-8")
        seen.append((source, (cwd / "runs").resolve(), env["PYTHONPATH"] == str(cwd)))
        return subprocess.CompletedProcess(command, 0)

    workspace, _ = Workspace.start(tmp_path)
    assert main(words) == 78 and "no exercise has passed yet" in capsys.readouterr().err
    monkeypatch.setattr(subprocess, "run", run)
    for text in (ours(FIRST), other(FIRST), ours(FIRST)):
        (tmp_path / FIRST.file).write_text(text, encoding="utf-8")
        workspace.record(FIRST, passed=digest(text))
        assert main(words) == 0
    (tmp_path / ALL[1].file).write_text(ours(ALL[1]) + "\n# not checked\n", encoding="utf-8")
    assert main([*words, "--unchecked"]) == 0
    sources, runs, imported = zip(*seen)
    assert sources[0] == sources[2] != sources[1] and all("CALLS" in text for text in sources) and all(imported)
    assert runs[0] == runs[2] and len(set(runs)) == 3 and all(path.parent == tmp_path / "demo" for path in runs)


def test_a_teacher_grades_folders_in_every_state(tmp_path, capsys):
    ranked = ALL[4]                                            # its check is quick
    folders = {"passed": ours(ranked), "not passed": ours(ranked).replace("side[:len(g)]", "side"),
               "not started": stub(ranked), "missing": None}
    for name, text in folders.items():
        Workspace.start(tmp_path / name)
        (tmp_path / name / ranked.file).unlink()
        if text is not None:
            (tmp_path / name / ranked.file).write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert main(["grade", "--json", *(str(tmp_path / name) for name in folders)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [row for row in rows if row["exercise"] == ranked.number]
    assert [row["result"] for row in found] == list(folders) and len(rows) == len(folders) * len(ALL)
    assert found[1]["reason"] == "For k gold items, NDCG does not look beyond the first k places of the answer"


# The notebook

def run_notebook(directory, chosen) -> str:
    """Write the notebook of some exercises and run it. Returns what its cells printed."""
    import nbformat
    from course.notebook import write_notebook
    from nbclient import NotebookClient
    path = directory / "course.ipynb"
    write_notebook(path, chosen)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
                   ).execute()
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_notebook_checks_what_is_in_its_cells_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    printed = run_notebook(tmp_path, [FIRST])
    assert "== 1. Group advantages" in printed and "NotImplementedError: exercise 1" in printed
    assert main(["notebook", str(tmp_path / "course.ipynb")]) == 78 and "exists" in capsys.readouterr().err
    from course.notebook import save_and_check
    monkeypatch.chdir(tmp_path)
    (tmp_path / FIRST.file).write_text("# written in an editor\n")
    with pytest.raises(DataError, match="changed outside"):
        save_and_check("1", stub(FIRST))
    assert (tmp_path / FIRST.file).read_text() == "# written in an editor\n"


@pytest.mark.full
def test_the_whole_notebook_runs(tmp_path):
    printed = run_notebook(tmp_path, ALL)
    assert printed.count("not passed yet") == len(ALL)
