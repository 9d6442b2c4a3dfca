"""How right is an answer? The measures of GoLongRL's nine kinds of task, each by its textbook definition. No torch.

Each takes an answer and a gold answer as texts, and returns a number from 0 to 1, or a bool. The gold answer itself
earns exactly 1, an empty answer 0. No text makes a measure fail, so an exception is a bug and is raised.
"""

import json
import re
import unicodedata
from bisect import bisect, insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import comb, log2, nan

from .answers import matches as em
from .formulas import compared, verifier
from .lists import items
from .options import choice, gold_choice
from .text import number
from .words import CJK, normalise

JSON_START = re.compile(r'\[(?=\s*[-\[{"\]\dtfnNI])|\{(?=\s*["}])')
WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
SPELT = re.compile(r"\w[\u0300-\u036f]{1,4}|[\uff01-\uff9f]")    # a letter and its accent apart, full-width forms


def accuracy(answer: str, gold: str) -> bool:
    """Whether the right option was chosen. If the gold answer is not an option's letter: exact match."""
    letter = gold_choice(gold)
    return choice(answer) == letter if letter else em(answer, gold)


def math(answer: str, gold: str) -> float:
    """Whether two values are equal: numbers exactly, words as words, all else as written or by math-verify, if it is
    installed, to 6 decimals. If the gold answer is a number, a calculation is wrong even if its value is right:
    otherwise the question itself would be an answer ("37*41"). NaN if math-verify could not decide in its time."""
    verdict = compared(answer, gold)
    if isinstance(verdict, tuple):
        verdict = verifier.verdict(verdict)
    return nan if verdict is None else float(verdict)


def both(answer: str, gold: str) -> tuple[list[tuple], list[tuple]]:
    """The items of the answer and of the gold answer, each with how often it came before: ("tea", 0), ("tea", 1)."""
    gold_items, sides = items(gold), []
    for side in (items(answer, gold_items), gold_items):
        before = Counter()
        sides.append([])
        for item in side:
            sides[-1].append((item, before[item]))
            before[item] += 1
    return tuple(sides)


def f1(answer: str, gold: str) -> float:
    """F1 of two sets of items (van Rijsbergen 1979): 2 |A & G| / (|A| + |G|)."""
    a, g = ({item for item, _ in side} for side in both(answer, gold))
    return 2 * len(a & g) / max(len(a) + len(g), 1)


def sub_em(answer: str, gold: str) -> float:
    """The smaller of recall and precision of the items: |A & G| / max(|A|, |G|). A repeated item counts repeatedly."""
    a, g = map(set, both(answer, gold))
    return len(a & g) / max(len(a), len(g), 1)


def ndcg(answer: str, gold: str) -> float:
    """Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) of the first k places, for k gold items.
    NDCG = DCG(answer) / DCG(gold),    DCG = sum over the places i = 1..k of worth(i) / log2(i + 1)
    The gain is linear, as in trec_eval's ndcg_cut_k: the first gold item is worth k, the last one 1. A wrong or
    repeated item takes a place and is worth nothing."""
    a, g = both(answer, gold)
    worth = {item: len(g) - place for place, item in enumerate(g)}

    def dcg(side: list[tuple]) -> float:
        return sum(worth.get(item, 0) / log2(place + 2) for place, item in enumerate(side[:len(g)]))
    return dcg(a) / dcg(g) if g else 0.0


def pairwise(answer: str, gold: str) -> float:
    """The share of pairs in the right order (Kendall 1938: concordant), of the C(n, 2) pairs of all n items: the gold
    items and those of the answer that are not among them, or not so often. Fewer than two gold items give 0."""
    a, g = both(answer, gold)
    if len(g) < 2:
        return 0.0
    place = {item: i for i, item in enumerate(g)}
    num_right, before = 0, []                                  # before: gold places of the items so far, sorted
    for item in a:
        if item in place:
            num_right += bisect(before, place[item])
            insort(before, place[item])
    return num_right / comb(len(set(a) | set(g)), 2)


def iou(answer: str, gold: str) -> float:
    """Intersection over union (Jaccard 1901) of the rows: |A & G| / |A | G|. A repeated row counts repeatedly.
    Rows are equal if their cells are, in order: as numbers, or else as normalised texts. Two empty tables are equal."""
    a, g = rows(answer), rows(gold)
    if a is None or g is None:
        return 0.0
    return (a & g).total() / (a | g).total() if a or g else 1.0


def rows(text: str) -> Counter | None:
    """How often each row is in the last complete JSON table of a text, None without a table. The text around it, as a
    markdown fence, does not count. A table is {"data": rows}, or rows alone: a list in prose, like [1], may be a
    reference, so it is a table only if there is no list of lists or objects.
    A row is a list of cells, an object (its names count, their order does not), or one cell."""
    tables, lists = [], []
    try:
        for value in json_values(text):
            data = value.get("data") if isinstance(value, dict) else value
            if isinstance(data, list):
                is_table = isinstance(value, dict) or any(isinstance(row, list | dict) for row in data)
                (tables if is_table else lists).append(data)
        return Counter(map(cells, (tables or lists)[-1])) if tables or lists else None
    except RecursionError:                                     # JSON of a thousand brackets
        return None


def json_values(text: str) -> Iterator[dict | list]:
    """The JSON objects and lists in a text. What begins like one and is not complete is skipped as a whole."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    end = 0
    while start := JSON_START.search(text, end):
        try:
            value, end = decoder.raw_decode(text, start.start())
            yield value
        except json.JSONDecodeError as error:
            end = max(error.pos, start.end())


def cells(row) -> tuple:
    if isinstance(row, dict):
        return tuple(sorted((normalise(name), cell(value)) for name, value in row.items()))
    return tuple(map(cell, row if isinstance(row, list) else [row]))


def cell(value) -> str:
    """What cells are compared by. "1,000" and 1e3 are the same, and so are null and ""."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    parsed = number(text)
    return f"{parsed.value}{parsed.unit}" if parsed else normalise(text)


def rouge_l(answer: str, gold: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, 2 LCS / (|A| + |G|)."""
    a, g = words(answer), words(gold)
    return 2 * common(a, g) / (len(a) + len(g)) if a and g else 0.0


def words(text: str) -> list[str]:
    """The runs of letters and digits, without case or stemming, as in the rouge-score package. A Chinese or Japanese
    character is a word. Only parts that need it are put in NFKC: a whole text may take the square of its length."""
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
