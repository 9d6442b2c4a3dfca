"""The measures of a list: f1, sub_em, ndcg and pairwise. A gold answer has one item a line. No torch."""

import re
from bisect import bisect, insort
from collections import Counter
from collections.abc import Sequence
from math import comb, log2

from .numbers import number
from .text import normalise, plain

BULLET = re.compile(r"^\s*(?:[-*+•·–—]|\(?\d{1,3}[.)])\s")


def items(answer: str, gold_items: Sequence[str] = ()) -> list[str]:
    """The items, normalised: the answer's lines without bullets and numbers.

    With `gold_items`, a single line that is none of them is cut at ";", at arrows, or else at "," and the last "and".

    >>> items("1. Tea\\n\\n2) the salt"), items("tea, salt and pepper", ["rope"]), items("Doe, Jane", ["doe jane"])
    (['tea', 'salt'], ['tea', 'salt', 'pepper'], ['doe jane'])
    """
    known = set(map(normalise, gold_items))

    def item(line: str) -> str:
        whole = normalise(line)                                # "7. Symphony" stays whole if it is a gold item
        return whole if whole in known else normalise(BULLET.sub("", line))

    lines = list(filter(None, map(item, answer.split("\n"))))
    if len(lines) != 1 or not known or lines[0] in known:
        return lines
    line = plain(answer)
    commas = r"(?<!\d),|,(?!\d)|、"
    if not number(line) and re.fullmatch(r"[\d,]+", line):                     # 3,1,2
        commas = ","
    separator = next((mark for mark in (";", "→", " > ") if mark in line), commas)
    *first, last = re.split(separator, line)
    last = [last] if normalise(last) in known else re.split(r"(?:^|\s)and\s", last)
    return list(filter(None, map(item, first + last)))


def both(answer: str, gold: str) -> tuple[list[tuple], list[tuple]]:
    """The items of the answer and of the gold answer, each with how often it came before: ("tea", 0), ("tea", 1).

    So a repeated item counts as often as it is there, also in a set."""
    gold_items, sides = items(gold), []
    for side in (items(answer, gold_items), gold_items):
        before = Counter()
        sides.append([])
        for item in side:
            sides[-1].append((item, before[item]))
            before[item] += 1
    return tuple(sides)


def f1(answer: str, gold: str) -> float:
    r"""F1 of two sets of items (van Rijsbergen 1979): 2 |A & G| / (|A| + |G|).

    >>> f1("- tea\n\n- salt", "salt\ntea"), round(f1("tea\nrice", "salt\ntea\noil"), 3)
    (1.0, 0.4)
    """
    a, g = ({item for item, _ in side} for side in both(answer, gold))
    return 2 * len(a & g) / max(len(a) + len(g), 1)


def sub_em(answer: str, gold: str) -> float:
    r"""The smaller of recall and precision of the items: |A & G| / max(|A|, |G|). A repeated item counts repeatedly.

    >>> sub_em("tea", "tea\nsalt"), sub_em("tea\nsalt\nrice\noil", "tea\nsalt")
    (0.5, 0.5)
    """
    a, g = map(set, both(answer, gold))
    return len(a & g) / max(len(a), len(g), 1)


def ndcg(answer: str, gold: str) -> float:
    r"""Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) of the first k places, for k gold items.

        NDCG = DCG(answer) / DCG(gold),    DCG = sum over the places i = 1..k of worth(i) / log2(i + 1)

    The gain is linear, as in trec_eval's ndcg_cut_k: the first gold item is worth k, the last one 1. A wrong or
    repeated item takes a place and is worth nothing.

    >>> ndcg("a\nb\nc", "a\nb\nc"), round(ndcg("b\na\nc", "a\nb\nc"), 3), round(ndcg("x\na\nb\nc", "a\nb\nc"), 3)
    (1.0, 0.922, 0.607)
    """
    a, g = both(answer, gold)
    worth = {item: len(g) - place for place, item in enumerate(g)}

    def dcg(side: list[tuple]) -> float:
        return sum(worth.get(item, 0) / log2(place + 2) for place, item in enumerate(side[:len(g)]))
    return dcg(a) / dcg(g) if g else 0.0


def pairwise(answer: str, gold: str) -> float:
    r"""The share of pairs in the right order (those that Kendall 1938 calls concordant), of all pairs of items.

    All n items are the gold items and those of the answer that are not among them, or not so often: C(n, 2) pairs. So a
    missing, wrong or repeated item is in no right pair. A gold answer of one item has no order and gives 0.

    >>> pairwise("a\nb\nc", "a\nb\nc"), round(pairwise("b\na\nc", "a\nb\nc"), 3), pairwise("a\nb\nc\nx", "a\nb\nc")
    (1.0, 0.667, 0.5)
    """
    a, g = both(answer, gold)
    if len(g) < 2:
        return 0.0
    place = {item: number for number, item in enumerate(g)}
    num_right, before = 0, []                                  # before: gold places of the items so far, sorted
    for item in a:
        if item in place:
            num_right += bisect(before, place[item])
            insort(before, place[item])
    return num_right / comb(len(set(a) | set(g)), 2)
