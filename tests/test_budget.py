"""The project stays small enough to read: python -m tools.budget prints these figures."""

import pytest
from tools import budget


@pytest.mark.parametrize("what, figure, limit", budget.budgets(), ids=lambda value: value if type(value) is str else "")
def test_every_budget_is_kept(what, figure, limit):
    assert figure <= limit, f"{what}: {figure:,.1f}, the limit is {limit:,}"


def test_the_reading_list_is_long_enough_to_be_the_method():
    assert len(budget.reading_list((budget.ROOT / "README.md").read_text(encoding="utf-8"))) >= 8


def test_what_is_counted(tmp_path):
    """Tokens without comments, docstrings and layout; lines that hold one; comprehensions of all four kinds."""
    path = tmp_path / "a.py"
    path.write_text('"""Doc; one."""\n\n# a comment\nx = [i for i in "ab"]     # 10 tokens\n\n\ndef f(a):\n'
                    '    """Two; three; four."""\n    return {b: 1\n            for b in a}\n', encoding="utf-8")
    assert budget.size_of(path) == budget.Size(lines=10, tokens=9 + 6 + 10, code_lines=4, comprehensions=2)
    assert budget.semicolons([path]) == 1000 * 3 / 5


def test_the_reading_list_ends_at_the_first_code_block():
    text = ("# A\ntrain_sft.py\n## Read it\n`train_rl.py`, records.py, engine/kvcache.py, no_such.py\n"
            "```\neval.py\n```\n## B\n")
    names = [path.name for path in budget.reading_list(text)]
    assert names == ["train_rl.py", "records.py", "kvcache.py"]
    assert budget.reading_list("# no such section: eval.py") == []
