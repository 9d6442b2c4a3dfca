"""The items of a list, without bullets and numbering. In English and Chinese. No torch."""

import re
import unicodedata
from collections.abc import Sequence

from .text import number, plain, visible
from .words import normalise

COUNTS = [                              # numbering is one of these, in order
    list(map(str, range(1000))),
    list("abcdefghijklmnopqrstuvwxyz"),
    "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split(),
    "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split(),
    "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
]
COUNT = r"(\d{1,3}(?=st|nd|rd|th)|\d{1,3}|[ivx]{1,5}|[a-z]|[一二三四五六七八九十]{1,3})(?:st|nd|rd|th)?"
RING = r"[\u2460-\u249b\u2776-\u277f]"                        # ① ⑴ ⒈ ❶
NUMBERING = re.compile(rf"""
    \s* [*_]{{0,2}} (?:
        ({RING}) [.、)]?
        | [(\[【] \s* {COUNT} \s* [)\]】] [.:、]?                                # (1) [a]
        | 第 {COUNT} [名位项]? [,:、.]                                           # 第一，
        | (?:(?:rank|step|item|no\.?)\s)? {COUNT} \\? (?: [)\]] [.:]? | [.、:](?!\d) | \s[-–—]\s )    # 1. a) ii: 一、
        | \# (\d{{1,3}}) [.:)]? \s
        | ({"|".join(COUNTS[-1])}) (?:ly)? [,:]
    ) [*_]{{0,2}} \s* (?=\S)""", re.I | re.X)
BULLET = re.compile(r"""
    ^\s* (?: [-–—+*]\s+ | [-–—](?=[^\W\d]) | \*(?!.*\*) | [•·●○◦▪▫■□◆◇►▶▸➤✓✔✅☑»]\s* | \[[ xX]?\]\s
        | (?:[-=]{1,2}> | [→⇒➔➜➝⟶])\s* | >(?!\s?[\d.$€£¥=])\s? ){1,2}""", re.X)
INLINE = re.compile(rf"""
    (?: [\s,;、。]{{1,3}} (?:and\s|[和及与])? | ^ ) (?= [(\[]? {COUNT.replace("(", "(?:", 1)} [.)\]、] \s*\S )
    | (?= {RING} | [(]\d{{1,3}}[)] )""", re.I | re.X)
ARROW = re.compile(r"\s*(?:[-=–—]{1,2}>|[→⇒➔➜➝⟶])\s*|\s>{1,3}\s|(?<=[^\W\d])>(?=[^\W\d])")
COMMA = re.compile(r"(?<!\d),|,(?!\d)|、")
AND = re.compile(r"(?:^|\s)(?:and|&)\s|以及|[和及与]")


def items(answer: str, gold_items: Sequence[str] = ()) -> list[str]:
    """The items, normalised: the answer's lines without bullets and numbering. `gold_items` are normalised too. If
    there are any, a single line that is none of them is cut: at numbers, or at ";", at arrows, or at "," and "and"."""
    known = set(gold_items)
    lines = [" ".join(line.split()) for line in visible(answer).split("\n")]
    lines = list(filter(normalise, lines))
    texts = unmarked(lines, known)
    if len(texts) != 1 or not known or texts[0] in known:
        return texts
    return unmarked(cut(plain(lines[0]), known), known)


def unmarked(lines: Sequence[str], known: set[str]) -> list[str]:
    """The lines, normalised, without bullets, and without numbers if these are consecutive. A line that is a gold item
    stays whole, as "7. Symphony". In a gold list itself (nothing is `known` yet), all lines are numbered from 1."""
    lines = [line if normalise(line) in known else BULLET.sub("", line, count=1) for line in lines]
    matches = list(map(NUMBERING.match, lines))
    numbers = [number_of(match) for match in matches if match]
    counted = is_counted(numbers) and (known or len(numbers) == len(lines) > 1 and numbers[0] in ("0", "1"))
    texts = []
    for line, match in zip(lines, matches, strict=True):
        text = normalise(line)
        if match and counted and text not in known:
            text = normalise(line[match.end():])
        texts.append(text)
    return list(filter(None, texts))


def number_of(match: re.Match) -> str:
    """The number before an item, as it stands in COUNTS: "3" for "(3)", "③" and "3rd:"."""
    mark = match[match.lastindex].lower()
    return str(int(unicodedata.numeric(mark))) if re.match(RING, mark) else mark


def is_counted(numbers: list[str]) -> bool:
    """Whether the numbers are consecutive. Those that are not digits start with the first, as in a), b), c)."""
    for counts in COUNTS:
        if numbers and numbers[0] in counts:
            start = counts.index(numbers[0])
            if counts[start:start + len(numbers)] == numbers and (start == 0 or counts is COUNTS[0]):
                return True
    return False


def cut(line: str, known: set[str]) -> list[str]:
    """The items of a list on one line."""
    parts = list(filter(normalise, INLINE.split(line)))
    matches = list(map(NUMBERING.match, parts))
    if len(parts) > 1 and all(matches) and is_counted(list(map(number_of, matches))):
        return parts
    if ";" in line:
        *first, last = line.split(";")
    elif ARROW.search(line):
        *first, last = ARROW.split(line)
    elif not number(line) and re.fullmatch(r"[\d,]+", line):                   # 3,1,2
        *first, last = line.split(",")
    else:
        *first, last = COMMA.split(line)
    return first + ([last] if normalise(last) in known else AND.split(last))
