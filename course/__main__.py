"""The course of nanoqwenlong: you write its core, and the checks explain what is wrong.

    python -m course start DIR      makes a folder with one file per exercise, or adds what is missing
    cd DIR                          the other commands work on this folder, or on --dir DIR
    python -m course show 1         what to write in exercise 1, and why
    python -m course hint 1         the first hint, then the second, then the third
    python -m course check 1        checks your solution. Without a number: all that you have started
    python -m course watch 1        checks it whenever you save it
    python -m course solution 1     compares your code with ours, after it has passed or with --give-up
    python -m course status         what you have done
    python -m course demo           trains the demo with all your functions that have passed
    python -m course grade DIR...   for teachers: checks the folders of students. --json: a JSON object per line
    python -m course notebook FILE  for teachers: the course as a Jupyter notebook

docs/course.md is the syllabus. Exit code 0 means passed.
"""

import argparse
import difflib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops.console import say, with_exit_code

from . import check as checker
from . import sandbox, stubs
from .exercise import CORE, Exercise, exercise, exercises
from .workspace import Workspace, digest

FAILED = 1


def start(args) -> None:
    workspace, new = Workspace.start(args.folder)
    say(f"{workspace.directory}: {len(new)} new files" if new else f"{workspace.directory} has everything already")
    say(f"next:  cd {shlex.quote(str(workspace.directory))}\n       {sys.executable} -m course show 1")


def show(args) -> None:
    say(exercise(args.number).page[0])


def hint(args) -> None:
    chosen, workspace = exercise(args.number), Workspace.open(args.dir)
    hints = chosen.page[1]
    shown = min(len(hints), workspace.progress().get(str(args.number), {}).get("hints", 0) + 1)
    for number, text in enumerate(hints[:shown], start=1):
        say(f"{number}. {text}")
    workspace.record(chosen, hints=shown)
    say(f"(hint {shown} of {len(hints)}{': the same command shows one more' if shown < len(hints) else ''})")


def check(args) -> int:
    workspace = Workspace.open(args.dir)
    if args.number:
        chosen = [exercise(args.number)]
    else:
        chosen = [each for each in exercises().values() if workspace.state(each) not in ("not started", "missing")]
        if not chosen:
            say("You have not started an exercise yet: `python -m course show 1` explains the first one.")
    passed = [run_check(workspace, each) for each in chosen]
    return 0 if chosen and all(passed) else FAILED


def run_check(workspace: Workspace, chosen: Exercise) -> bool:
    say(f"== {chosen.number}. {chosen.title} (up to 20 seconds)")
    text = workspace.text(chosen)
    report = checker.check(chosen, text)
    say("\n".join(report.lines))
    if report.passed:
        workspace.record(chosen, passed=digest(text))
        say(f"  passed. Your functions were called {report.calls:,} times in {report.seconds:.0f} s. "
            f"`python -m course solution {chosen.number}` compares them with ours.")
    else:
        say(f"  not passed yet. `python -m course hint {chosen.number}` helps.")
    return report.passed


def watch(args) -> None:
    workspace, chosen = Workspace.open(args.dir), exercise(args.number)
    say(f"checking {chosen.file} whenever it changes. Ctrl-C ends this.")
    seen = None
    while True:
        text = workspace.text(chosen)
        if text != seen:
            run_check(workspace, chosen)
            seen = text
        time.sleep(0.5)


def solution(args) -> int | None:
    workspace, chosen = Workspace.open(args.dir), exercise(args.number)
    if args.give_up:
        workspace.record(chosen, gave_up=True)
    elif workspace.state(chosen) != "passed" and not workspace.progress().get(str(args.number), {}).get("gave_up"):
        say(f"Exercise {args.number} has not passed yet. --give-up shows the solution, and that is recorded.")
        return FAILED
    checks = chosen.checks
    ours = stubs.cut(chosen.source, checks.FILE, checks.WRITE, chosen.number, chosen.title, keep_bodies=True)
    lines = difflib.unified_diff(workspace.text(chosen).splitlines(), ours.splitlines(), "yours", "ours", lineterm="")
    say("\n".join(lines))
    return None


def status(args) -> None:
    workspace = Workspace.open(args.dir)
    progress = workspace.progress()
    for each in exercises().values():
        entry = progress.get(str(each.number), {})
        notes = [workspace.state(each)]
        if entry.get("hints"):
            notes.append(f"hints: {entry['hints']}")
        if entry.get("gave_up"):
            notes.append("gave up")
        core = "core     " if each.number <= CORE else "extension"
        say(f"{each.number:3}  {core}  {each.title:40}  {', '.join(notes)}")


def demo(args) -> int:
    """The demo, in a copy of the project with the student's functions. Other functions have their own runs."""
    workspace = Workspace.open(args.dir)
    wanted = ("passed", "changed since it passed", "not passed") if args.unchecked else ("passed",)
    chosen = [each for each in exercises().values() if workspace.state(each) in wanted]
    if not chosen:
        raise ConfigError("no exercise has passed yet: `python -m course status` lists them")
    project = workspace.directory / "demo" / "project"
    runs = workspace.directory / "demo" / ("runs-" + digest("".join(map(workspace.text, chosen))))
    shutil.rmtree(project, ignore_errors=True)
    sandbox.copy_project(project)
    for each in chosen:
        checks, path = each.checks, project / each.checks.FILE
        swapped = stubs.transplant(path.read_text(encoding="utf-8"), workspace.text(each), checks.FILE, checks.WRITE,
                                   each.file)
        path.write_text(swapped.text, encoding="utf-8")
    runs.mkdir(exist_ok=True)
    (project / "runs").symlink_to(runs.resolve())
    say("your code trains this model: " + ", ".join(f"{each.number} ({each.title})" for each in chosen))
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(project)}
    script = 'bash recipes/demo.sh && "$PYTHON" -m tools.plot runs/demo-0 && "$PYTHON" -m tools.doctor runs/demo-0/rl'
    return subprocess.run(["bash", "-c", script], cwd=project, env=environment).returncode


def grade(args) -> int:
    """One line for each student and exercise. Exit code 0 says that all could be graded, not that all passed."""
    for directory in args.folders:
        workspace = Workspace(directory)
        for each in exercises().values():
            state = workspace.state(each)
            line = {"folder": str(directory), "exercise": each.number, "title": each.title, "result": state,
                    "reason": "", "seconds": 0}
            if state not in ("missing", "not started"):
                report = checker.check(each, workspace.text(each))
                line |= {"result": "passed" if report.passed else "not passed", "reason": report.reason,
                         "seconds": round(report.seconds, 1)}
            if args.json:
                say(json.dumps(line, ensure_ascii=False))
            else:
                say(f"{directory}  {each.number:3}  {line['result']:11}  {line['reason']}")
    return 0


def notebook(args) -> None:
    from .notebook import write_notebook
    write_notebook(args.file)
    say(f"wrote {args.file}")


@with_exit_code
def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m course", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(work, **positional):
        one = commands.add_parser(work.__name__)
        one.set_defaults(work=work)
        one.add_argument("--dir", type=Path, default=Path("."), help="the student's folder. Default: this one")
        for name, options in positional.items():
            one.add_argument(name, **options)
        return one

    number = {"type": int, "metavar": "NUMBER"}
    command(start, folder={"type": Path, "metavar": "DIR"})
    command(show, number=number)
    command(hint, number=number)
    command(check, number={**number, "nargs": "?"})
    command(watch, number=number)
    command(solution, number=number).add_argument("--give-up", action="store_true")
    command(status)
    command(demo).add_argument("--unchecked", action="store_true", help="also functions that have not passed")
    command(grade, folders={"type": Path, "nargs": "+", "metavar": "DIR"}).add_argument("--json", action="store_true")
    command(notebook, file={"type": Path, "metavar": "FILE"})
    args = parser.parse_args(argv)
    return args.work(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
