"""The student's folder: one file per exercise, and progress.json, which says what was passed."""

import json
from hashlib import sha256
from pathlib import Path

from nanoqwenlong.errors import ConfigError, DataError
from nanoqwenlong.ops import files

from . import stubs
from .exercise import Exercise, exercises
from .sandbox import ROOT

PROGRESS, LAUNCHER = "progress.json", "course.py"


class Workspace:
    """A student's folder. Nothing here overwrites a file of an exercise."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def open(cls, directory: Path) -> "Workspace":
        if not (directory / PROGRESS).is_file():
            raise ConfigError(f"{directory} is not a folder of the course: `python -m course start DIR` makes one, "
                              "then change into it, or name it with --dir")
        return cls(directory)

    @classmethod
    def start(cls, directory: Path) -> tuple["Workspace", list[str]]:
        """The folder, made or completed, and the names of the files that are new."""
        if directory.resolve() == ROOT or ROOT in directory.resolve().parents:
            raise ConfigError(f"{directory} lies in the project: choose a folder outside of it")
        directory.mkdir(parents=True, exist_ok=True)
        texts = {each.file: stub(each) for each in exercises().values()}
        for name, given in ((LAUNCHER, "launcher.py"), ("AGENTS.md", "AGENTS.md")):
            text = (ROOT / "docs/course" / given).read_text(encoding="utf-8")
            texts[name] = text.replace('"where the project is"', repr(str(ROOT)))
        texts[PROGRESS] = "{}\n"
        new = []
        for name, text in texts.items():
            try:
                with (directory / name).open("x", encoding="utf-8") as file:
                    file.write(text)
                new.append(name)
            except FileExistsError:
                pass
        return cls(directory), new

    def path(self, exercise: Exercise) -> Path:
        return self.directory / exercise.file

    def text(self, exercise: Exercise) -> str:
        """The student's file, with Unix line endings."""
        path = self.path(exercise)
        try:
            return path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: `python -m course start {self.directory}` brings the stub back"
                            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: this is not UTF-8 text (byte {error.start}): save it as UTF-8") from None

    def progress(self) -> dict[str, dict]:
        """{number of an exercise: {"passed": digest of the file that passed, "gave up": true}}"""
        path = self.directory / PROGRESS
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(entry, dict) for entry in progress.values()):
                raise ValueError
            return progress
        except (ValueError, AttributeError):
            raise DataError(f"{path}: this is not what the course wrote: repair it, or write {{}} into it to start "
                            "anew (your exercises stay)") from None

    def record(self, exercise: Exercise, **values) -> None:
        progress = self.progress()
        progress.setdefault(str(exercise.number), {}).update(values)
        files.put(self.directory / PROGRESS, json.dumps(progress, indent=1) + "\n")

    def state(self, exercise: Exercise) -> str:
        """One of "passed", "changed since it passed", "not passed", "not started", "missing"."""
        try:
            text = self.text(exercise)
        except DataError:
            return "missing"
        passed = self.progress().get(str(exercise.number), {}).get("passed")
        if passed:
            return "passed" if passed == digest(text) else "changed since it passed"
        return "not started" if text == stub(exercise) else "not passed"


def stub(exercise: Exercise) -> str:
    checks = exercise.checks
    return stubs.cut(exercise.source, checks.FILE, checks.WRITE, exercise.number, exercise.title)


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
