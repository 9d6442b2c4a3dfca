"""Cuts stubs from the project's source, and puts a student's functions into it in place of ours."""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanoqwenlong.errors import DataError

WIDTH = 110
COUNTER = '''CALLS = []


def __counted__(function):
    import functools

    @functools.wraps(function)
    def call(*args, **options):
        CALLS.append(function.__name__)
        return function(*args, **options)
    return call


'''
HEADER = '''"""Exercise {number}: {title}

Read first:  python -m course show {number}
Check with:  python -m course check {number}

The check puts the functions below into {file}, in place of ours.
Everything else in that file is there for you to use. You may add imports, functions and constants.
"""

'''


class Function(NamedTuple):
    """Where a function stands in a file. Lines count from 1."""

    node: ast.FunctionDef
    first: int                          # with decorators
    last: int


class Transplant(NamedTuple):
    text: str
    origin: list[int | None]            # for each line of the text: the line of the student's file that it is from


def parse(text: str, file: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f", line {line}" if line else ""
        raise DataError(f"{file}{place}: this is not valid Python: {getattr(error, 'msg', error)}") from None


def find(tree: ast.Module, name: str) -> Function | None:
    """The function `name`, or the method "Class.name". The last one counts, as in Python."""
    scope, _, function = name.rpartition(".")
    body = tree.body
    if scope:
        body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == scope), [])
    for node in reversed(body):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return Function(node, first_line(node), node.end_lineno)
    return None


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def module_of(file: str) -> str:
    """The name under which a file of the project is imported."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# 1. Cutting

def cut(source: str, file: str, names: Sequence[str], number: int, title: str, keep_bodies: bool = False) -> str:
    """The student's file of an exercise: imports, and each function of `names` without its body.

    Signature, docstring and doctests stay. A class is shown whole, and only its methods in `names` are cut.
    keep_bodies: our own solution in the same form, for the tests."""
    tree, lines = ast.parse(source), source.splitlines()
    stub = f'raise NotImplementedError("exercise {number}")'
    if not keep_bodies:
        functions = [find(tree, name) for name in names]
        for function in sorted(functions, key=lambda each: -each.first):       # from below: line numbers above stay
            lines[body_start(function.node) - 1:function.last] = [" " * (function.node.col_offset + 4) + stub]
    text = "\n".join(lines)
    parts = [HEADER.format(number=number, title=title, file=file) + "\n".join(imports(tree, file, names))]
    for node in ast.parse(text).body:
        if getattr(node, "name", "") in {name.partition(".")[0] for name in names}:
            parts.append("\n".join(text.splitlines()[first_line(node) - 1:node.end_lineno]))
    return "\n\n\n".join(parts) + "\n"


def body_start(node: ast.FunctionDef) -> int:
    """The first line of a function that is neither signature nor docstring."""
    return node.body[0].end_lineno + 1 if ast.get_docstring(node) else node.body[0].lineno


def imports(tree: ast.Module, file: str, names: Sequence[str]) -> Iterator[str]:
    """The import lines of a student's file: those of ours, and everything else that our file defines."""
    package = module_of(file).split(".")[:-1]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[:len(package) - node.level + 1]
            node = ast.ImportFrom(".".join([*above, *filter(None, [node.module])]), node.names, 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield ast.unparse(node)
    written = {name.partition(".")[0] for name in names}
    others = [name for name in defined(tree) if name not in written]
    if others:
        listed = textwrap.fill(", ".join(others), WIDTH, initial_indent="    ", subsequent_indent="    ")
        yield f"from {module_of(file)} import (\n{listed})"


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a file defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for each in getattr(target, "elts", [target]):
                if isinstance(each, ast.Name):
                    yield each.id


# 2. Putting in

def transplant(source: str, student: str, file: str, names: Sequence[str], student_file: str) -> Transplant:
    """Our file with the student's functions in place of ours, and with whatever else the student's file defines.

    Each of the functions counts its calls in CALLS. Raises DataError if the student's file is not valid Python, or if
    a function is missing."""
    ours, theirs = ast.parse(source), parse(student, student_file)
    lines = [(line, None) for line in source.splitlines()]
    their_lines = student.splitlines()
    edits = []                                                                 # (first, last, new lines) of our file
    for name in names:
        old, new = find(ours, name), find(theirs, name)
        if new is None:
            raise DataError(f"{student_file}: there is no function {name}: write it again, or remove the file and "
                            "run `python -m course start` to get a new stub")
        indent = " " * old.node.col_offset
        moved = []
        for line in range(new.first, new.last + 1):
            moved.append((indent + their_lines[line - 1][new.node.col_offset:], line))
        moved.insert(new.node.lineno - new.first, (f"{indent}@__counted__", None))
        for helper in methods_of_their_own(ours, theirs, name):
            moved += [("", None), *((their_lines[line - 1], line) for line in range(first_line(helper),
                                                                                   helper.end_lineno + 1))]
        edits.append((old.first, old.last, moved))
    edits.append(additions(ours, theirs, their_lines, names, file))
    for first, last, new in sorted(edits, key=lambda edit: edit[0], reverse=True):
        lines[first - 1:last] = new
    return Transplant("\n".join(line for line, _ in lines) + "\n", [line for _, line in lines])


def methods_of_their_own(ours: ast.Module, theirs: ast.Module, name: str) -> list[ast.FunctionDef]:
    """The methods that the student added to the class of the method `name`."""
    scope = name.rpartition(".")[0]
    methods = []
    for node in theirs.body:
        if isinstance(node, ast.ClassDef) and node.name == scope:
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    return [each for each in methods if find(ours, f"{scope}.{each.name}") is None]


def additions(ours: ast.Module, theirs: ast.Module, their_lines: list[str], names: Sequence[str], file: str) -> tuple:
    """The edit that inserts the counter, and the student's own imports, functions and constants."""
    written = {name.partition(".")[0] for name in names}
    first = min(first_line(node) for node in ours.body if getattr(node, "name", "") in written)
    new = [(line, None) for line in COUNTER.splitlines()]
    for node in theirs.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_of_ours = isinstance(node, ast.ImportFrom) and node.module == module_of(file)
        is_script = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        if not (is_docstring or is_of_ours or is_script or getattr(node, "name", "") in written):
            new += [(their_lines[line - 1], line) for line in range(first_line(node), node.end_lineno + 1)]
    return first, first - 1, [*new, ("", None), ("", None)]
