"""The size budgets of this project. `python -m tools.budget` prints them. It returns 1 if one is over its limit."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nanoqwenlong.ops.console import say

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Size(NamedTuple):
    lines: int
    tokens: int                 # Python's, without comments, docstrings and layout
    code_lines: int             # lines with such a token
    comprehensions: int


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, str]]:
    """Yield every docstring: its expression in the tree, and its text."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].value, text


def size_of(path: Path) -> Size:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    prose = {line for text, _ in docstrings(tree) for line in range(text.lineno, text.end_lineno + 1)}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in LAYOUT
              and not (token.type == tokenize.STRING and token.start[0] in prose)]
    code_lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))
    return Size(len(source.splitlines()), len(tokens), len(code_lines), comprehensions)


def reading_list(readme: str) -> list[Path]:
    """Return the files that the README's section "Read it" names before its first code block."""
    section = re.search(r"^## Read it\b.*?(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    names = re.findall(r"[\w/]+\.py", section[0].split("```")[0]) if section else []
    paths = [ROOT / name if (ROOT / name).is_file() else ROOT / "nanoqwenlong" / name for name in dict.fromkeys(names)]
    return [path for path in paths if path.is_file()]


def semicolons(paths: list[Path]) -> float:
    """Return the semicolons per 1,000 words of docstrings, doctests left out."""
    texts = [text for path in paths for _, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))]
    prose = re.sub(r">>>.*", "", "\n".join(texts))
    return 1000 * prose.count(";") / max(1, len(prose.split()))


def budgets() -> list[tuple[str, float, float]]:
    """Return every budget as (what, figure, limit). The figure may be at most the limit."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    library, kernels, tools, scripts = (sorted(ROOT.glob(f"{folder}*.py")) for folder in (
        "nanoqwenlong/**/", "kernels/**/", "tools/**/", ""))
    lines = {path: size_of(path).lines for path in (*library, *kernels, *tools, *scripts)}
    longest = max(library, key=lines.get)
    listed = Size(*map(sum, zip(*map(size_of, reading_list(readme)))))
    return [
        ("README.md, bytes", len(readme.encode()), 9000),
        ("train_rl.py, lines", lines[ROOT / "train_rl.py"], 260),
        (f"longest file ({longest.relative_to(ROOT)}), lines", lines[longest], 350),
        ("reading list, lines", listed.lines, 2200),
        ("reading list, tokens", listed.tokens, 16000),
        ("reading list, tokens per code line", listed.tokens / listed.code_lines, 10),
        ("reading list, comprehensions per 100 code lines", 100 * listed.comprehensions / listed.code_lines, 6),
        ("docstrings, semicolons per 1,000 words", semicolons([*library, *kernels, *scripts]), 3),
        ("nanoqwenlong, kernels, tools and scripts, lines", sum(lines.values()), 11_214),
        ("course, lines", sum(size_of(path).lines for path in ROOT.glob("course/**/*.py")), 1300)]


if __name__ == "__main__":
    for what, figure, limit in budgets():
        say(f"{'   ' if figure <= limit else '!! '}{what:<60}{figure:>9,.1f}   at most {limit:,}")
    sys.exit(any(figure > limit for _, figure, limit in budgets()))
