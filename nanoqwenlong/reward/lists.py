"""The items of a list, without bullets and numbering. In English and Chinese. No torch."""

import re
from collections.abc import Sequence

from .text import number, plain, visible
from .words import normalise

COUNTS = [                              # numbering is one of these, in order
    list(map(str, range(1000))),
    list("abcdefghijklmnopqrstuvwxyz"),
    "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split(),
    "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split(),
    "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
    *(list(map(chr, range(one, one + 20))) for one in map(ord, "①⑴⒈❶")),
]
COUNT = r"(\d{1,3}(?=st|nd|rd|th)|\d{1,3}|[ivx]{1,5}|[a-z]|[一二三四五六七八九十]{1,3})(?:st|nd|rd|th)?"
RING = r"[①-⒛❶-❿]"
NUMBERING = re.compile(rf"""
    \s* [*_]{{0,2}} (?:
        ({RING}) [.、)]?
        | [(\[【] \s* {COUNT} \s* [)\]】] [.:、]?                                # (1) [a]
        | 第 {COUNT} [名位项]? [,:、.]                                           # 第一，
        | (?:(?:rank|step|item|no\.?)\s)? {COUNT} \\? (?: [)\]] [.:]? | 、 | [.:](?!(?<=\d.)\d) | \s[-–—]\s )
        | \# (\d{{1,3}}) [.:)]? \s
        | ({"|".join(COUNTS[4])}) (?:ly)? [,:]
    ) [*_]{{0,2}} \s* (?=\S)""", re.I | re.X)
BULLET = re.compile(r"""
    ^\s* (?: [-–—+*]\s+ | [-–—](?=[^\W\d]) | \*(?!.*\*) | [•‣⁃∙·»※■-❵➀-➿🌀-🫿]\s* | \[[ xX]?\]\s
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
    texts = unmarked(lines, known)
    if len(texts) != 1 or not known or texts[0] in known:
        return texts
    line = next(filter(normalise, lines))
    return unmarked(cut(plain(line), known), known)


def unmarked(lines: Sequence[str], known: set[str]) -> list[str]:
    """The lines, normalised, without bullets and numbering. A line that is a gold item (`known`) stays whole."""
    whole = {line: normalise(line) for line in set(lines)}
    lines = [line if whole[line] in known else BULLET.sub("", line) for line in lines if whole[line]]
    texts = []
    for line, start in zip(lines, numbering(lines, in_gold=not known), strict=True):
        text = whole.get(line) or normalise(line)
        texts.append(normalise(line[start:]) if start and text not in known else text)
    return list(filter(None, texts))


def numbering(lines: Sequence[str], in_gold: bool = False) -> list[int]:
    """Where the text of each line starts: after its number if the numbers are consecutive, otherwise at 0.
    Numbers that are not digits start with the first one: a), b), c). In a gold list all lines have to be numbered, from
    1: "7. Symphony" is a name."""
    matches = list(map(NUMBERING.match, lines))
    numbers = [match[match.lastindex].lower() for match in matches if match]
    for counts in COUNTS:
        if not numbers or numbers[0] not in counts:
            continue
        first = counts.index(numbers[0])
        digits = counts is COUNTS[0]
        allowed = digits and first <= 1 and len(numbers) == len(lines) > 1 if in_gold else digits or first == 0
        if allowed and counts[first:first + len(numbers)] == numbers:
            return [match.end() if match else 0 for match in matches]
    return [0] * len(lines)


def cut(line: str, known: set[str]) -> list[str]:
    """The items of a list on one line."""
    most = len(COUNTS[0]) + 1                                  # more cannot be numbered
    parts = list(filter(normalise, INLINE.split(line, most)))
    if len(parts) > 1 and all(numbering(parts)):
        return parts
    separators = [";", ARROW]
    if not number(line) and re.fullmatch(r"[\d,]+", line):
        separators.append(",")                                 # 3,1,2
    separator = next((one for one in separators if re.search(one, line)), COMMA)
    *first, last = re.split(separator, line)
    return first + ([last] if normalise(last) in known else AND.split(last))
