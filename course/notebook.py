"""The course as a Jupyter notebook, for teachers who want one. It is made of the same pages and stubs.

A cell that starts with `%%exercise 1` holds the student's functions. Running it saves them as the file of exercise 1
and checks them. The notebook lies in the student's folder, so all other commands work there too.
"""

from pathlib import Path

from nanoqwenlong.errors import ConfigError, DataError

from . import workspace
from .__main__ import run_check
from .exercise import Exercise, exercise, exercises
from .sandbox import ROOT

FIRST = """import os, sys
sys.path.insert(0, os.environ.get("NANOQWENLONG", {root!r}))     # where nanoqwenlong is
%load_ext course.notebook"""


def write_notebook(path: Path, chosen: list[Exercise] = ()) -> None:
    """Write the notebook of these exercises, or of all. It never replaces a file. Needs nbformat."""
    try:
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    except ImportError:
        raise ConfigError('a notebook needs nbformat: pip install ".[notebook]"') from None
    cells = [new_markdown_cell(f"# Write nanoqwenlong yourself\n\nRun this cell first:"),
             new_code_cell(FIRST.format(root=str(ROOT)))]
    for each in chosen or exercises().values():
        cells += [new_markdown_cell(each.page[0]), new_code_cell(f"%%exercise {each.number}\n{workspace.stub(each)}")]
    try:
        with path.open("x", encoding="utf-8") as file:
            nbformat.write(new_notebook(cells=cells), file)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and a student may have written in it: choose another name") from None


def save_and_check(line: str, cell: str) -> None:
    """The magic %%exercise. It does not replace a file that was changed outside of the notebook."""
    chosen = exercise(int(line))
    space = workspace.Workspace.start(Path("."))[0]
    saved, text = space.text(chosen), cell if cell.endswith("\n") else cell + "\n"
    from_here = space.progress().get(str(chosen.number), {}).get("notebook")
    if workspace.digest(saved) not in (from_here, workspace.digest(workspace.stub(chosen)), workspace.digest(text)):
        raise DataError(f"{chosen.file} was changed outside of this notebook: copy it into this cell, or remove it")
    space.path(chosen).write_text(text, encoding="utf-8")
    space.record(chosen, notebook=workspace.digest(text))
    run_check(space, chosen)


def load_ipython_extension(shell) -> None:
    shell.register_magic_function(save_and_check, "cell", "exercise")
