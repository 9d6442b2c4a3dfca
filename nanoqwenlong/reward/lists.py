"""The measures of a list: f1, sub_em, ndcg and pairwise. A gold answer has one item a line. No torch."""

import re
from bisect import bisect, insort
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import comb, log2

from .numbers import number
from .text import normalise, plain

BULLET = re.compile(r"^\s*(?:[-*+•·–—]|\(?\d{1,3}[.)])\s")


# The items of a list

def items(answer: str, gold_items: Sequence[str] = ()) -> list[str]:
    """The items, normalised: the answer's lines without bullets and numbers.

    With `gold_items`, a single line that is none of them is cut at ";", at arrows, or else at "," and the last "and".

    >>> items("1. Tea\\n\\n2) the salt"), items("* Smith, John")
    (['tea', 'salt'], ['smith john'])
    >>> items("tea, salt and pepper", ["rope"]), items("Doe, Jane", ["doe jane"]), items("Smith, J.; Doe, J.", ["x"])
    (['tea', 'salt', 'pepper'], ['doe jane'], ['smith j', 'doe j'])
    """
    known = {normalise(item) for item in gold_items}
    lines = _unbulleted(answer.split("\n"), known)
    if len(lines) != 1 or not known or lines[0] in known:
        return lines
    line = plain(answer)
    commas = r"(?<!\d),|,(?!\d)|、"
    if not number(line) and re.fullmatch(r"[\d,]+", line):                     # 3,1,2
        commas = ","
    separator = next((mark for mark in (";", "→", " > ") if mark in line), commas)
    *first, last = re.split(separator, line)
    last = [last] if normalise(last) in known else re.split(r"(?:^|\s)and\s", last)
    return _unbulleted([*first, *last], known)


def _unbulleted(lines: Sequence[str], known: Collection[str]) -> list[str]:
    """The non-empty lines, normalised, without bullets and numbers. "7. Symphony" stays whole if it is a known item."""
    normalised = []
    for line in lines:
        item = normalise(line)
        if item not in known and BULLET.match(line):
            item = normalise(BULLET.sub("", line))
        if item:
            normalised.append(item)
    return normalised


def lists(answer: str, gold: str) -> tuple[list[str], list[str]]:
    """The items of both."""
    gold_items = items(gold)
    return items(answer, gold_items), gold_items


def numbered(things: Iterable) -> list[tuple]:
    """Each thing with how often it came before. In a set of these, a repeated thing counts as often as it is there.

    >>> numbered("aba")
    [('a', 0), ('b', 0), ('a', 1)]
    """
    before, pairs = Counter(), []
    for thing in things:
        pairs.append((thing, before[thing]))
        before[thing] += 1
    return pairs


# The measures

def f1(answer: str, gold: str) -> float:
    r"""F1 of two sets of items (van Rijsbergen 1979): 2 |A & G| / (|A| + |G|).

    The released code takes a bullet for a part of the item, and a blank line for a wrong item.

    >>> f1("- tea\n\n- salt", "salt\ntea"), round(f1("tea\nrice", "salt\ntea\noil"), 3)
    (1.0, 0.4)
    """
    a, g = map(set, lists(answer, gold))
    return 2 * len(a & g) / (len(a) + len(g)) if a & g else 0.0


def sub_em(answer: str, gold: str) -> float:
    r"""The smaller of recall and precision of the items: |A & G| / max(|A|, |G|). A repeated item counts repeatedly.

    The released code takes recall alone, so copying every candidate out of the document earns 1.

    >>> sub_em("tea", "tea\nsalt"), sub_em("tea\nrice", "tea\nsalt"), sub_em("tea\nsalt\nrice\noil", "tea\nsalt")
    (0.5, 0.5, 0.5)
    """
    a, g = (set(numbered(side)) for side in lists(answer, gold))
    return len(a & g) / max(len(a), len(g), 1)


def ndcg(answer: str, gold: str) -> float:
    r"""Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) of the first k places, for k gold items.

    The gain is linear, as in trec_eval's ndcg_cut_k: the first gold item is worth k, the last one 1.

        NDCG = DCG(answer) / DCG(gold),    DCG = sum over the places i = 1..k of worth(i) / log2(i + 1)

    Every item of the answer takes a place. A wrong or repeated item is worth nothing. Items after place k neither earn
    nor cost anything. In the released code only the last place of a repeated item counts.

    >>> ndcg("a\nb\nc", "a\nb\nc"), round(ndcg("b\na\nc", "a\nb\nc"), 3), round(ndcg("x\na\nb\nc", "a\nb\nc"), 3)
    (1.0, 0.922, 0.607)
    """
    a, g = map(numbered, lists(answer, gold))
    worth = {item: len(g) - place for place, item in enumerate(g)}

    def dcg(side: list[tuple]) -> float:
        return sum(worth.get(item, 0) / log2(place + 2) for place, item in enumerate(side[:len(g)]))
    return dcg(a) / dcg(g) if g else 0.0


def pairwise(answer: str, gold: str) -> float:
    r"""The share of pairs in the right order (those that Kendall 1938 calls concordant), of all pairs of items.

    All items are the n gold items and those of the answer that are not among them, or not so often: C(n, 2) pairs. So a
    missing, wrong or repeated item is in no right pair. The first place of a repeated item counts. A gold answer of one
    item has no order and gives 0.

    The released code divides by the pairs of the answer: two of five items in the right order earn 1.

    >>> pairwise("a\nb\nc", "a\nb\nc"), round(pairwise("b\na\nc", "a\nb\nc"), 3), pairwise("a\nb\nc\nx", "a\nb\nc")
    (1.0, 0.667, 0.5)
    """
    a, g = map(numbered, lists(answer, gold))
    if len(g) < 2:
        return 0.0
    place = {item: number for number, item in enumerate(g)}
    num_right, before = 0, []                                  # before: gold places of the items so far, sorted
    for item in a:
        if item in place:
            num_right += bisect(before, place[item])
            insort(before, place[item])
    return num_right / comb(len(set(a) | set(g)), 2)
