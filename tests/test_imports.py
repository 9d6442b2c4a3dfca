"""The shape of the source: imports point down only, no hidden inputs, no pickle, lines that fit.

`python tests/test_imports.py` prints the map that stands in the README.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    ["config", "records", "parallel", "log", "kvcache", "curriculum", "architecture", "answers", "math_worker",
     "doctor", "presets"],
    ["metrics", "weights", "schedule", "attention", "grpo", "optim", "http_judge", "plan"],
    ["rewards", "tokenizer", "model", "paged", "patterns"],
    ["schemas", "toy", "group_pass", "generate", "checkpoint", "evaluate"],
    ["data", "run", "judge", "report", "dynamics"],
]                                                               # kernels/ lies below all of them
MODULES = sorted(path.stem for path in (ROOT / "nanoqwenlong").glob("*.py") if path.stem != "__init__")
SCRIPTS = sorted(ROOT.glob("*.py"))
LIBRARY = sorted([*(ROOT / "nanoqwenlong").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
SOURCE = LIBRARY + SCRIPTS + sorted((ROOT / "tools").rglob("*.py")) + sorted((ROOT / "bench").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
WRITTEN = [*SOURCE, *TESTS, *sorted((ROOT / "recipes").glob("*.sh")), ROOT / "Makefile", ROOT / ".ci/run"]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, anywhere in it: {"torch.nn", "nanoqwenlong.records.Example", ...}."""
    names = set()
    for node in tree(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).parent.parts)[:1 - node.level or None] if node.level else []
            names |= {".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return names


def ours(module: str) -> list[str]:
    """The files of nanoqwenlong/ (by name) and "kernels" that a module of nanoqwenlong/ imports."""
    path = ROOT / "nanoqwenlong" / f"{module}.py"
    names = {name.split(".")[1] for name in imported(path) if name.startswith("nanoqwenlong.")}
    return sorted(names) + ["kernels"] * uses(path, "kernels")


def uses(path: Path, package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in imported(path))


def draw_map() -> str:
    """The floors, top one first, each module with what it imports of ours."""
    lines = []
    for number, floor in reversed(list(enumerate(FLOORS))):
        for place, module in enumerate(floor):
            margin = f"floor {number}" if place == 0 else ""
            lines.append(f"{margin:9}{module:12}{', '.join(ours(module))}".rstrip())
    return "\n".join([*lines, f"{'below':9}{'kernels':12}".rstrip()])


def test_every_module_has_one_floor():
    assert sorted(sum(FLOORS, [])) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names} | {"kernels": -1}
    assert {name: floor[name] for name in ours(module) if floor[name] >= floor[module]} == {}


def test_kernels_know_nothing_of_the_rest():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not uses(path, "nanoqwenlong") and not uses(path, "transformers"), short(path)


def test_scripts_do_not_import_scripts_and_the_library_imports_none_of_scripts_tools_and_bench():
    for path in SOURCE:
        for other in [script.stem for script in SCRIPTS] + ["tools", "bench", "tests"]:
            assert not uses(path, other) or path.parent.name == other, (short(path), other)


def test_only_parallel_imports_torch_distributed():
    assert {short(path) for path in SOURCE if uses(path, "torch.distributed")} == {"nanoqwenlong/parallel.py"}


def test_the_library_reads_neither_arguments_nor_environment():
    for path in LIBRARY:
        read = {node.attr for node in tree(path) if isinstance(node, ast.Attribute)}
        assert not read & {"argv", "orig_argv", "environ", "environb", "getenv", "parse_args"}, short(path)
        assert not imported(path) & {"sys.argv", "os.environ", "os.getenv"} and not uses(path, "argparse"), short(path)


def test_nothing_reads_pickles():
    """No module that unpickles is imported, and nothing that could be torch.load or numpy.load is called (tl.load is
    Triton reading memory)."""
    for path in SOURCE:
        for package in "pickle cPickle dill cloudpickle joblib shelve marshal yaml".split():
            assert not uses(path, package), (short(path), package)
        owners = {node.func.value.id for node in tree(path) if isinstance(node, ast.Call) and isinstance(
            node.func, ast.Attribute) and node.func.attr == "load" and isinstance(node.func.value, ast.Name)}
        assert owners <= {"json", "tl"} and not imported(path) & {"torch.load", "numpy.load"}, (short(path), owners)


def test_lines_fit_in_120_columns():
    long = [f"{short(path)}:{number}" for path in WRITTEN
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if len(line) > 120]
    assert not long, "over 120 columns: " + ", ".join(long)


def test_the_readme_shows_the_map():
    if not (ROOT / "README.md").is_file():
        pytest.skip("there is no README.md yet")
    assert draw_map() in (ROOT / "README.md").read_text(encoding="utf-8"), "python tests/test_imports.py prints the map"


if __name__ == "__main__":
    print(draw_map())
