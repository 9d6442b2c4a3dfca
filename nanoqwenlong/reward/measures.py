"""How right is an answer? The measures of GoLongRL's nine kinds of task, each by its textbook definition. No torch.

Each takes what was answered and what is right, both as text, and returns a number from 0 to 1: the right answer itself
earns exactly 1, an empty one 0, and no text makes it fail. A mistake of ours raises; in GoLongRL's released code any
exception is a wrong answer. Thinking and markers ("the answer is") are cut off before (answers.py), which the released
code does in some tasks only.

    one value     em  accuracy  math
    a list        f1  sub_em  ndcg  pairwise      gold: one item a line; what an answer's items are, answers.items says
    a table       iou                             gold: JSON
    a text        rouge_l
"""

import json
import re
import unicodedata
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import count
from math import comb, log2

from . import math_worker
from .answers import choice, items, matches, normalise, number

# One value

def em(answer: str, gold: str) -> float:
    """Exact match (SQuAD, Rajpurkar et al. 2016): equal as numbers, or else as normalised texts. The released code
    compares byte by byte, so that "Oslo." is not "Oslo".

    >>> em("the Oslo.", "oslo"), em("1,000", "1000.0"), em("Oslo or Bern", "Oslo")
    (1.0, 1.0, 0.0)
    """
    return float(matches(answer, gold))


def accuracy(answer: str, gold: str) -> float:
    """Whether the right option was chosen; of a gold answer that is no letter of an option, exact match. The released
    code takes any word behind "The correct answer is" for the option it begins with: "Bananas" for B.

    >>> accuracy("(b)", "B"), accuracy("Bananas", "B"), accuracy("A or B", "B"), accuracy("Oslo", "oslo")
    (1.0, 0.0, 0.0, 1.0)
    """
    return float(choice(answer) == choice(gold) if choice(gold) else matches(answer, gold))


def math(answer: str, gold: str) -> float:
    r"""Whether two values are equal: numbers exactly, words as words, and all else if it is written the same or
    math-verify, where installed, finds it equal (to 6 decimals, units ignored) within 5 seconds. Where the right answer
    is a number, a calculation is none, though its value be right: the question itself would be an answer ("37*41").

    The released code hands math-verify the response's last 500 characters, the thinking included, and reads no bare
    "42"; of two boxed values it takes none. Here the answer as a whole is one expression: "5 or 6" is a set, not 5.

    >>> math("42", "42.0"), math("-5", "5"), math(r"$\frac{3}{4}$", "0.75"), math("x + 1", "$x+1$"), math("40+2", "42")
    (1.0, 0.0, 1.0, 1.0, 0.0)
    """
    if not (number(answer) and number(gold)):
        answer, gold = bare(answer), bare(gold)
    if number(gold):
        answer = ASSIGNED.sub("", answer)
    if number(answer) and number(gold) or gold.replace(" ", "").isalpha():
        return float(matches(answer, gold))
    if number(gold) and CALCULATION.search(answer):
        return 0.0
    return float(answer != "" and (answer == gold or math_worker.installed() and verified(gold, answer)))


ASSIGNED = re.compile(r"^[a-zA-Z](_\w)?\s*=\s*")             # x = 5
CALCULATION = re.compile(r"""
    (?<=[^\s({])\s*[-+*/×·÷] | [!^=]
    | \\(?!(?:[dt]?frac|text|mathrm|left|right|circ|degree)(?![a-z]))[a-z]
    """, re.VERBOSE)
worker = math_worker.Worker()


@lru_cache(maxsize=100_000)
def verified(gold: str, answer: str) -> bool:
    """Whether math-verify found them equal, once and for all: what took too long would take as long again."""
    return worker.ask([gold, answer]) is True


def bare(formula: str) -> str:
    r"""Without what sets it apart from the text around: delimiters, \text{}, spaces that part nothing.

    >>> bare(r"\[ \text{x } + 1 \]."), bare("$ ( 1, 2 ) $")
    ('x+1', '(1,2)')
    """
    formula = re.sub(r"\\?\$|(?<!\\)\\[()\[\]]", " ", formula)
    formula = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r" \1 ", formula).strip().rstrip(".")
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", formula)


# Lists

def lists(answer: str, gold: str) -> tuple[list[str], list[str]]:
    """The items of both, normalised."""
    gold_items = items(gold)
    return items(answer, gold_items), gold_items


def numbered(things: Iterable) -> list[tuple]:
    """Each with how often it came before: as sets, these count what is said twice as two.

    >>> numbered("aba")
    [('a', 0), ('b', 0), ('a', 1)]
    """
    before = defaultdict(count)
    return [(thing, next(before[thing])) for thing in things]


def f1(answer: str, gold: str) -> float:
    r"""F1 of two sets of items (van Rijsbergen 1979): 2 |A & G| / (|A| + |G|). The released code takes a bullet for a
    part of the item and a blank line for a wrong one.

    >>> f1("- tea\n\n- salt", "salt\ntea"), round(f1("tea\nrice", "salt\ntea\noil"), 3)
    (1.0, 0.4)
    """
    a, g = map(set, lists(answer, gold))
    return 2 * len(a & g) / (len(a) + len(g)) if a & g else 0.0


def sub_em(answer: str, gold: str) -> float:
    r"""The share of the gold items that are found as whole items, and where the answer names more than there are, the
    share of its items that are right: |A & G| / max(|A|, |G|), the lesser of recall and precision. The released code
    takes recall alone: whoever copies every candidate out of the document earns 1. What is named twice counts twice.

    >>> sub_em("tea", "tea\nsalt"), sub_em("tea\nrice", "tea\nsalt"), sub_em("tea\nsalt\nrice\noil", "tea\nsalt")
    (0.5, 0.5, 0.5)
    """
    a, g = (set(numbered(side)) for side in lists(answer, gold))
    return len(a & g) / max(len(a), len(g), 1)


def ndcg(answer: str, gold: str) -> float:
    r"""Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) of the first k places, with linear gain, as
    trec_eval's ndcg_cut_k: k items are gold, the first of them worth k and the last 1, and

        NDCG = DCG(answer) / DCG(gold),    DCG = sum over the places i = 1..k of worth(i) / log2(i + 1)

    Every item of the answer takes a place, a wrong or repeated one too, for nothing; what comes after k places neither
    earns nor costs. In the released code a repeated item has its last place, and its others vanish.

    >>> ndcg("a\nb\nc", "a\nb\nc"), round(ndcg("b\na\nc", "a\nb\nc"), 3), round(ndcg("x\na\nb\nc", "a\nb\nc"), 3)
    (1.0, 0.922, 0.607)
    """
    a, g = map(numbered, lists(answer, gold))
    worth = {item: len(g) - place for place, item in enumerate(g)}
    gains = [[worth.get(item, 0) / log2(place + 2) for place, item in enumerate(side[:len(g)])] for side in (a, g)]
    return sum(gains[0]) / sum(gains[1]) if g else 0.0


def pairwise(answer: str, gold: str) -> float:
    r"""The share of pairs in the right order (those Kendall 1938 calls concordant), of all pairs of items on either
    side: C(n, 2) for the n items of the gold answer and those of the answer that are not there, or not so often. A
    missing, wrong or repeated item is thus in no right pair; where an item is repeated, its first place counts. A gold
    answer of one item has no order: 0.

    The released code divides by the pairs of the answer: two items of five, in order, earn 1.

    >>> pairwise("a\nb\nc", "a\nb\nc"), round(pairwise("b\na\nc", "a\nb\nc"), 3), pairwise("a\nb\nc\nx", "a\nb\nc")
    (1.0, 0.667, 0.5)
    """
    a, g = map(numbered, lists(answer, gold))
    place = {item: number for number, item in enumerate(g)}
    right, before = 0, []                                      # places of what was said so far, sorted
    for item in a:
        if item in place:
            right += bisect(before, place[item])
            insort(before, place[item])
    return right / comb(len(set(a) | set(g)), 2) if len(g) > 1 else 0.0


# Tables

def iou(answer: str, gold: str) -> float:
    r"""Intersection over union (Jaccard 1901) of the rows, one that is there twice counted twice: |A & G| / |A | G|.
    Rows are equal if their cells are, in order: as numbers, or else as normalised texts. Two empty tables are equal.

    The released code takes the first <answer> of the whole response, the thinking included, and gives two empty tables
    0, as it does any mistake of its own.

    >>> iou('{"data": [["Oslo", "1,000"], ["Bern", 2]]}', '{"data": [["Bern", 2], ["oslo", 1000]]}')
    1.0
    >>> iou("```json\n[[1], [2], [2]]\n```", "[[2], [2], [3], [4]]"), iou("[]", "[]"), iou("no table", "[]")
    (0.4, 1.0, 0.0)
    """
    a, g = rows(answer), rows(gold)
    if a is None or g is None:
        return 0.0
    a, g = set(numbered(a)), set(numbered(g))
    return len(a & g) / len(a | g) if a | g else 1.0


def rows(text: str) -> list[tuple] | None:
    """The rows of a table: of JSON's {"data": rows} or rows alone, in a markdown fence or not; None if that is not what
    it is. A row is a list of cells, an object (its names count, their order does not), or one cell.

    >>> rows('[[1, "The U.K."], {"b": 2, "a": null}]')
    [('1', 'uk'), (('a', ''), ('b', '2'))]
    """
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    try:
        table = json.loads(fenced[-1] if fenced else text, parse_int=str, parse_float=str, parse_constant=str)
        table = table.get("data") if isinstance(table, dict) else table
        return [row_of(row) for row in table] if isinstance(table, list) else None
    except (ValueError, RecursionError):                       # no JSON; JSON of a thousand brackets
        return None


def row_of(row) -> tuple:
    if isinstance(row, dict):
        return tuple(sorted((normalise(name), cell(value)) for name, value in row.items()))
    return tuple(map(cell, row)) if isinstance(row, list) else (cell(row),)


def cell(value) -> str:
    """What cells are compared by: "1,000" and 1e3 are the same, null and "" too."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, sort_keys=True)
    known = number(text)
    return f"{known.value}{known.unit}" if known else normalise(text)


# Texts

CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"    # Han and kana
WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
SPELT = re.compile(r"\w[\u0300-\u036f]{1,4}|[\uff01-\uff9f]")    # e and its accent apart; full-width forms


def rouge_l(answer: str, gold: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, 2 LCS / (|A| + |G|). Words are runs of letters
    and digits, without case, as in the rouge-score package (no stemming); where no spaces are written, in Chinese and
    Japanese, each character is one. The released code measures the thinking too, and it splits Chinese only if a field
    named "summary" says so.

    >>> rouge_l("The cat sat.", "the cat sat"), round(rouge_l("the dog sat", "the cat sat"), 3), rouge_l("東京都", "京都")
    (1.0, 0.667, 0.8)
    """
    a, g = words(answer), words(gold)
    return 2 * common(a, g) / (len(a) + len(g)) if a and g else 0.0


def words(text: str) -> list[str]:
    """In NFKC where that makes a difference: of a whole text it may take the square of its length.

    >>> words("The well-known cafe\\u0301 (ＮＯ. 5) 東京タワー")
    ['the', 'well', 'known', 'café', 'no', '5', '東', '京', 'タ', 'ワ', 'ー']
    """
    return WORD.findall(SPELT.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text).lower())


def common(a: list[str], b: list[str]) -> int:
    """The length of their longest common subsequence, a row of the table at a time in the bits of one integer (Hyyrö
    2004): 20,000 words against 1,000 take hundredths of a second."""
    places = defaultdict(int)
    for place, word in enumerate(a):
        places[word] |= 1 << place
    full = row = (1 << len(a)) - 1                             # bit i: 0 where a[:i + 1] has one more in common
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(a) - row.bit_count()
