"""What README.md and docs/ say is true: their commands, links and lists of files.

Every line of a bash block is a command. Each is checked here: its script, flags and files exist. Cheap ones are run.
A command that cannot be checked says "needs a GPU" in its comment or in the line before it.
"""

import ast
import importlib
import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest

import eval as eval_script
import sample
import train_rl
import train_sft
from nanoqwenlong.ops import flags

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train_sft.py": train_sft, "train_rl.py": train_rl, "eval.py": eval_script, "sample.py": sample}
NEEDS_GPU = "needs a GPU"
ENDINGS = ("py", "json", "jsonl", "png", "md")
PLAIN_COMMANDS = ("git", "cd", "hf", "cp", "rm", "mkdir", "ls", "export", "touch")      # not ours to check
# These take a few seconds on a fresh clone, so they are run. The value is the exit code.
CHEAP = {
    "python tests/test_imports.py": 0,
    'python sample.py --document examples/notes.txt --question "What went to the town that we showed Kim?"': 0,
    "python train_rl.py --data examples/licence_qa.jsonl --dry-run": 0,
    "python -m tools.plan --help": 0,
    "python -m tools.plan --preset r1-distill-qwen-14b --gpus 8 --gpu-memory 80": 1,    # it does not fit
}


def commands_of(text: str) -> list[str]:
    """The commands in the bash blocks of a page, comments and continuations resolved."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        before = ""
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"(?:^|\s)#", line)[0].strip()
            if command and NEEDS_GPU not in line and not (before.startswith("#") and NEEDS_GPU in before):
                commands.append(" ".join(command.split()))
            before = line.strip()
    return commands


def usages_of(docstring: str) -> list[str]:
    """The commands in a script's docstring. A comment follows after three spaces."""
    lines = docstring.replace("\\\n", " ").splitlines()
    return [line.strip().split("   ")[0].split("#")[0].strip() for line in lines
            if re.match(r"\s*(python|torchrun( --\S+)+) (\w+\.py)", line)]


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands_of(page.read_text("utf-8"))} |
                  {(name, command) for name, module in SCRIPTS.items() for command in usages_of(module.__doc__)})


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def check_flags(config_owner, argv: list[str]) -> None:
    """The flags exist and their values are accepted."""
    if "--help" not in argv:
        flags.parse(config_owner.Config, argv, getattr(config_owner, "PRESETS", {}))


@cache
def help_of(module: str) -> str:
    """What a tool prints for --help."""
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return shown.getvalue()


def check_module(name: str, argv: list[str]) -> None:
    """`python -m tools.x`, `python -m bench.x` or `python -m course x`: the module exists, and so do its flags."""
    name = "course.__main__" if name == "course" else name
    path = ROOT / (name.replace(".", "/") + ".py")
    assert path.is_file(), f"there is no {name}"
    if re.search(r"^class Config", source(path), re.MULTILINE):
        check_flags(importlib.import_module(name), argv)
        return
    if name == "course.__main__":
        assert f"python -m course {argv[0]} " in help_of(name), argv
    for flag in re.findall(r"--[\w-]+", " ".join(argv)):
        assert re.search(rf"{flag}\b", help_of(name)), f"{name} has no {flag}"


def check_pytest(words: list[str]) -> None:
    """The files and the tests named with :: or -k exist."""
    paths = [word for word in words if word.endswith(".py") or ".py::" in word]
    assert paths or not any("/" in word for word in words), words
    for word in paths:
        path, _, test = word.partition("::")
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test.split('[')[0]}(" in source(ROOT / path), word
    if "-k" in words:
        names = " ".join(source(ROOT / word.partition("::")[0]) for word in paths)
        for part in re.findall(r"[\w-]+", words[words.index("-k") + 1]):
            assert part in ("or", "and", "not") or part in names, f"-k {part}"


def check_install(words: list[str]) -> None:
    optional = source(ROOT / "pyproject.toml").split("optional-dependencies]")[1]
    extras = re.findall(r"^(\w+) = \[", optional, re.MULTILINE)
    for group in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(group.split(",")) <= set(extras), group


def check(command: str) -> None:
    """Raises or fails if the command names something that does not exist."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    for word in words:
        if word.startswith(("examples/", "assets/", "recipes/", "tests/", "docs/")):
            assert (ROOT / word.partition("::")[0]).exists(), word
    program = Path(words[0]).name
    if program == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", source(ROOT / "Makefile"), re.MULTILINE), f"no target {target}"
    elif program in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file(), words[1]
        subprocess.run(["bash", "-n", words[1]], cwd=ROOT, check=True)
    elif program == "pip":
        check_install(words)
    elif program == "torchrun" or program.startswith("python") and words[1].endswith(".py"):
        place = next(place for place, word in enumerate(words) if word.endswith(".py"))
        script = words[place]
        assert (ROOT / script).is_file(), script
        if script in SCRIPTS:
            check_flags(SCRIPTS[script], words[place + 1:])
    elif program.startswith("python") and words[1] == "-m":
        module, argv = words[2], words[3:]
        if module == "pytest":
            check_pytest(argv)
        elif module == "pip":
            check_install(argv)
        else:
            assert module.startswith(("tools.", "bench.", "recipes.")) or module == "course", f"what is {module}?"
            check_module(module, argv)
    else:
        assert program in PLAIN_COMMANDS, f"{program} is no program of ours; say {NEEDS_GPU!r} if it does"


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_names_scripts_flags_and_files_that_exist(page, command):
    check(command)


@pytest.mark.parametrize(("command", "code"), CHEAP.items(), ids=lambda value: str(value)[:60])
def test_cheap_commands_run(command, code):
    assert command in {written for _, written in COMMANDS}, "the command is gone from the pages"
    words = shlex.split(command)
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    if "sample.py" in command:
        assert f"# {done.stdout.strip()}" in README.read_text(encoding="utf-8")         # the README shows the answer


@pytest.mark.parametrize("command", [
    "python train_rl.py --no-such-flag 1", "python train_rl.py --learning-rate fast", "python trane.py",
    "python -m tools.nothing", "python -m course nothing", "python -m tools.plot runs/a --colour", "make nothing",
    "bash recipes/nothing.sh",
    "python -m pytest tests/test_nothing.py", "python -m pytest tests/test_grpo.py -k no_such_test",
    "python -m pytest tests/test_grpo.py::test_nothing", 'pip install ".[nothing]"', "node server.js",
    "python sample.py --document examples/nothing.txt"])
def test_a_command_that_names_something_missing_is_noticed(command):
    with pytest.raises((AssertionError, ValueError, OSError, LookupError)):
        check(command)


def test_commands_are_found_in_blocks():
    text = "```bash\n# needs a GPU\nmake x\nmake y  # needs a GPU\nmake \\\n  z   # a comment\n```\n```\nmake w\n```\n"
    assert commands_of(text) == ["make z"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Files exist, and so do the headings behind a #."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading and linked.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target


def test_the_readme_is_short_and_links_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 9000
    linked = re.findall(r"\]\((docs/[\w./]+)\)", text)
    assert {f"docs/{page.name}" for page in PAGES[1:]} - set(linked) == set()


def test_files_named_in_backticks_exist():
    """`train_rl.py`, `engine/kvcache.py`, `recipes/demo.sh`: relative to the root, the page, or a folder of ours."""
    homes = ["", "nanoqwenlong/", *(f"nanoqwenlong/{path.name}/" for path in (ROOT / "nanoqwenlong").iterdir()
                                    if path.is_dir()), "kernels/", "tests/", "tools/", "recipes/", "bench/"]
    for page in PAGES:
        for name in re.findall(r"`([\w./]+\.(?:py|sh|sbatch))`", page.read_text(encoding="utf-8")):
            assert any((ROOT / home / name).is_file() for home in homes), (page.name, name)


def names_in(tree) -> set[str]:
    """Functions, classes, methods, fields and variables that a file defines or uses."""
    nodes = list(ast.walk(tree))
    return {getattr(node, "name", None) for node in nodes} | {node.id for node in nodes if isinstance(node, ast.Name)}


def test_names_in_backticks_exist():
    """`toy.new_model`, `parallel.whole`: if the first part is a file of ours, it has the second."""
    files = {path.stem: path for folder in ("nanoqwenlong", "kernels") for path in (ROOT / folder).rglob("*.py")}
    missing = []
    for page in PAGES:
        for module, name in re.findall(r"`(\w+)\.(\w+)(?:\(\))?`", page.read_text(encoding="utf-8")):
            if module in files and name not in ENDINGS and name not in names_in(ast.parse(source(files[module]))):
                missing.append(f"{page.name}: {module}.{name}")
    assert not missing


def test_read_it_names_the_method_and_every_wing():
    section = README.read_text(encoding="utf-8").split("\n## Read it\n")[1].split("\n## ")[0]
    listed = re.findall(r"[\w/]+\.py", section.split("```")[0])
    assert listed and all((ROOT / name).is_file() or (ROOT / "nanoqwenlong" / name).is_file() for name in listed)
    package = ROOT / "nanoqwenlong"
    for path in package.glob("*.py"):
        assert path.stem == "__init__" or f"`{path.name}`" in section or f"`{path.stem}`" in section, path.name
    wings = {path.parent.name for path in package.glob("*/*.py")}
    assert all(f"`nanoqwenlong/{wing}/`" in section for wing in wings), wings


def test_change_it_names_functions_and_tables_that_exist():
    """In docs/change_it.md, `name` in `file.py` is a function, class, method or table of that file."""
    page = (ROOT / "docs/change_it.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w.]+)`(?: and `([\w.]+)`)? in\s+`([\w/]+\.py)`", page)
    assert named
    for *names, file in named:
        known = names_in(ast.parse(source(ROOT / file)))
        for name in filter(None, names):
            assert set(name.split(".")) <= known, (name, file)
