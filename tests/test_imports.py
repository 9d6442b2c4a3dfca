"""The shape of the source: imports point down only, no hidden inputs, no pickle, lines that fit.

`python tests/test_imports.py` prints the map that stands in docs/architecture.md.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("engine", "pretrained", "reward", "data", "ops", "analysis")
BASE = {"errors", "records", "parallel", "kernels"}
ABOVE = ("analysis", "build", "toy")                # these may import everything below nanoqwenlong/
# What a room may import besides itself. "method" is every file at the top of the package that is not named otherwise.
RULES = {
    "kernels": set(),
    "errors": set(),
    "records": {"errors"},
    "parallel": {"errors"},
    "engine": BASE,
    "pretrained": BASE,
    "reward": BASE,
    "data": BASE | {"reward", "pretrained"},
    "ops": BASE | {"pretrained"},
    "method": BASE | {"engine", "pretrained", "reward"},
    **dict.fromkeys(ABOVE, BASE | {"method", *WINGS, *ABOVE}),
}
MODULES = sorted(".".join(path.relative_to(ROOT / "nanoqwenlong").with_suffix("").parts)
                 for path in (ROOT / "nanoqwenlong").rglob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted(ROOT.glob("*.py"))
LIBRARY = sorted([*(ROOT / "nanoqwenlong").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
SOURCE = LIBRARY + SCRIPTS + [path for name in ("tools", "bench", "recipes", "course")
                              for path in sorted((ROOT / name).rglob("*.py"))]
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
    """The modules below nanoqwenlong/ ("engine.kvcache", "records", ...) and "kernels" that a module imports."""
    path = ROOT / "nanoqwenlong" / f"{module.replace('.', '/')}.py"
    found = {"kernels"} if uses(path, "kernels") else set()
    for name in imported(path):
        if name.startswith("nanoqwenlong."):
            parts = name.split(".")[1:]
            found |= {".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in MODULES}
            if parts[0] == "data" and len(parts) == 2 and ".".join(parts) not in MODULES:
                found.add("data.files")                        # what data/__init__.py offers
    return sorted(found - {module})


def room(module: str) -> str:
    name = module.split(".")[0]
    return name if name in RULES else "method"


def uses(path: Path, package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in imported(path))


def draw_map() -> str:
    """Every room, the highest first, each module with what it imports of ours."""
    lines = []
    for name in reversed(RULES):
        for place, module in enumerate(module for module in MODULES if room(module) == name):
            lines.append(f"{name if place == 0 else '':12}{module.split('.')[-1]:15}{', '.join(ours(module))}".rstrip())
    return "\n".join([*lines, "kernels"])


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_its_rule_allows(module):
    own = room(module)
    assert {other for other in ours(module) if room(other) not in RULES[own] | {own}} == set()


def test_no_module_imports_itself_through_others():
    below = {module: set(ours(module)) - {"kernels"} for module in MODULES}
    while below:
        free = [module for module, others in below.items() if not others & below.keys()]
        assert free, f"a circle among {sorted(below)}"
        for module in free:
            del below[module]


def test_kernels_know_nothing_of_the_rest():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not uses(path, "nanoqwenlong") and not uses(path, "transformers"), short(path)


def test_scripts_do_not_import_scripts_and_the_library_imports_none_of_scripts_tools_and_bench():
    for path in SOURCE:
        for other in [script.stem for script in SCRIPTS] + ["tools", "bench", "recipes", "course", "tests"]:
            allowed = path.parent.name == other or (path.parent.name, other) in (
                ("recipes", "tools"), ("course", "train_rl"))                  # the course runs a few steps of it
            assert allowed or not uses(path, other), (short(path), other)


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


def test_the_page_on_the_architecture_shows_the_map():
    page = ROOT / "docs/architecture.md"
    assert draw_map() in page.read_text(encoding="utf-8"), "python tests/test_imports.py prints the map"


if __name__ == "__main__":
    print(draw_map())
