"""How right is an answer? The measures of GoLongRL's nine kinds of task, each by its textbook definition. No torch.

Each takes an answer and a gold answer as texts, and returns a number from 0 to 1, or a bool. The gold answer itself
earns exactly 1, an empty answer 0. No text makes a measure fail, so an exception is a bug and is raised.

    one value     em  accuracy  math              a list        f1  sub_em  ndcg  pairwise      (lists.py)
    a text        rouge_l                         a table       iou                             gold: JSON
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache

from . import math_worker
from .answers import choice, matches as em
from .lists import f1, ndcg, pairwise, sub_em
from .numbers import number
from .text import normalise

__all__ = ["em", "accuracy", "math", "f1", "sub_em", "ndcg", "pairwise", "iou", "rouge_l"]


# One value

def accuracy(answer: str, gold: str) -> bool:
    """Whether the right option was chosen. If the gold answer is not an option's letter: exact match.

    >>> accuracy("(b)", "B"), accuracy("Bananas", "B"), accuracy("A or B", "B"), accuracy("Oslo", "oslo")
    (True, False, False, True)
    """
    return choice(answer) == choice(gold) if choice(gold) else em(answer, gold)


def math(answer: str, gold: str) -> bool:
    r"""Whether two values are equal: numbers exactly, words as words.

    Everything else is equal if it is written the same, or if math-verify (where installed) finds it equal within 5
    seconds, to 6 decimals, units ignored. If the gold answer is a number, a calculation is wrong even if its value is
    right: otherwise the question itself would be an answer ("37*41"). "5 or 6" is a set, not 5.

    >>> math("42", "42.0"), math("-5", "5"), math(r"$\frac{3}{4}$", "0.75"), math("x + 1", "$x+1$"), math("40+2", "42")
    (True, False, True, True, False)
    """
    if not (number(answer) and number(gold)):
        answer, gold = bare(answer), bare(gold)
    if number(gold):
        answer = ASSIGNED.sub("", answer)
    if number(answer) and number(gold) or gold.replace(" ", "").isalpha():
        return em(answer, gold)
    if answer == "" or number(gold) and CALCULATION.search(answer):
        return False
    return answer == gold or math_worker.installed() and verified(gold, answer)


ASSIGNED = re.compile(r"^[a-zA-Z](_\w)?\s*=\s*")             # x = 5
CALCULATION = re.compile(r"""
    (?<=[^\s({])\s*[-+*/×·÷] | [!^=]
    | \\(?!(?:[dt]?frac|text|mathrm|left|right|circ|degree)(?![a-z]))[a-z]
    """, re.VERBOSE)
worker = math_worker.Worker()


@lru_cache(maxsize=100_000)
def verified(gold: str, answer: str) -> bool:
    """Whether math-verify found them equal. Asked once: a pair that took too long would take as long again."""
    return worker.ask([gold, answer]) is True


def bare(formula: str) -> str:
    r"""The formula without delimiters, \text{} and spaces that separate nothing."""
    formula = re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", " ", formula)
    formula = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r" \1 ", formula).strip().rstrip(".")
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", formula)


# A table

def iou(answer: str, gold: str) -> float:
    r"""Intersection over union (Jaccard 1901) of the rows: |A & G| / |A | G|. A repeated row counts repeatedly.

    Rows are equal if their cells are, in order: as numbers, or else as normalised texts. Two empty tables are equal.

    >>> iou('{"data": [["Oslo", "1,000"]]}', '[["oslo", 1000]]'), iou("[[1], [2], [2]]", "[[2], [2], [3], [4]]")
    (1.0, 0.4)
    """
    a, g = rows(answer), rows(gold)
    if a is None or g is None:
        return 0.0
    return (a & g).total() / (a | g).total() if a or g else 1.0


def rows(text: str) -> Counter | None:
    """How often each row is in a JSON table: {"data": rows} or rows alone, in a markdown fence or not. None if invalid.

    A row is a list of cells, an object (its names count, their order does not), or one cell."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    try:
        table = json.loads(fenced[-1] if fenced else text, parse_int=str, parse_float=str, parse_constant=str)
        if isinstance(table, dict):
            table = table.get("data")
        return Counter(map(row_of, table)) if isinstance(table, list) else None
    except (ValueError, RecursionError):                       # not JSON, or JSON of a thousand brackets
        return None


def row_of(row) -> tuple:
    if isinstance(row, dict):
        return tuple(sorted((normalise(name), cell(value)) for name, value in row.items()))
    return tuple(map(cell, row if isinstance(row, list) else [row]))


def cell(value) -> str:
    """What cells are compared by. "1,000" and 1e3 are the same, and so are null and ""."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    parsed = number(text)
    return f"{parsed.value}{parsed.unit}" if parsed else normalise(text)


# A text

CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"    # Han and kana
WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
SPELT = re.compile(r"\w[\u0300-\u036f]{1,4}|[\uff01-\uff9f]")    # a letter and its accent apart, full-width forms


def rouge_l(answer: str, gold: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, 2 LCS / (|A| + |G|).

    >>> rouge_l("The cat sat.", "the cat sat"), round(rouge_l("the dog sat", "the cat sat"), 3), rouge_l("東京都", "京都")
    (1.0, 0.667, 0.8)
    """
    a, g = words(answer), words(gold)
    return 2 * common(a, g) / (len(a) + len(g)) if a and g else 0.0


def words(text: str) -> list[str]:
    """The runs of letters and digits, without case or stemming, as in the rouge-score package.

    In Chinese and Japanese, where no spaces are written, each character is a word. Only parts that need it are put in
    NFKC: a whole text may take the square of its length."""
    return WORD.findall(SPELT.sub(lambda part: unicodedata.normalize("NFKC", part[0]), text).lower())


def common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence: a row of the table at a time, as an integer (Hyyrö 2004)."""
    places = defaultdict(int)
    for place, word in enumerate(a):
        places[word] |= 1 << place
    full = row = (1 << len(a)) - 1                             # bit i is 0 where a[:i + 1] has one more in common
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(a) - row.bit_count()
