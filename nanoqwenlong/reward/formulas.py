"""Are two formulas the same? Their texts decide, or else math-verify (math_worker.py). No torch."""

import re

from . import math_worker
from .answers import matches
from .text import number, same

verifier = math_worker.Verifier()
LONGEST_FORMULA = 2000                  # characters
ASSIGNED = re.compile(r"^[a-zA-Z](_\w)?\s*=\s*")             # x = 5
CALCULATION = re.compile(r"""
    (?<=[^\s({])\s*[-+*/×·÷] | [!^=]
    | \\(?!(?:frac|circ)(?![a-z]))[a-z]
    """, re.VERBOSE)
HAN = "[\u3400-\u9fff]"
WORDS = re.compile(rf"""                # with a word of three letters, and without a single one, which is a variable
    (?=.*([^\W\d_]{{3}}|{HAN})) (?!.*\b[^\WaI\d_\u3400-\u9fff]\b) [^\W\d_]+([\s,-]+[^\W\d_]+)* | (?i:no)
    """, re.VERBOSE)
UNIT = re.compile(r"""                  # 12 \text{ cm}^2, 90^\circ, 3 hours, 3个
    (?<=[\d})i]) \s* (\^\\circ | (?:\^\\circ\s*)? (?: \\(?:text|mathrm|mbox)\s*\{ (?:[^{}\d,;]|\^-?\d)* \}
    | (?:(?<=\d)|(?<=\d\s)) (?:[cmk]m|[mk]g|m[lL]|(?<=\s)[a-zA-Z]{3,})(?:/\w+)?
    | (?<=\d)[\u3400-\u9fff]{1,4} ) (?:\^\{?-?\d\}?)? ) $
    """, re.VERBOSE)
NO_UNIT = re.compile(r"\b(?:or|and|not?|is|are|if|for|when|else|than|only|wrong|least|most|more|less|about)\b|[或和不非错]")
IGNORED = re.compile(r"""               # what math-verify does not read: it has to be the same in both formulas
    \d+\^\\circ\s*\d+'* | '+ | \^\{?(?:T|\\top|\\ast|\*)\}? | (?<=\d)_\{?\w+ | \\(?:angle|triangle)\s*\w+
    | \\frac\{(?:d|\\partial)[^{}]*\}\{(?:d|\\partial)[^{}]*\} """, re.VERBOSE)
CASES = r"\\left\\\{\s*\\begin\{array\}\{[lcr]*\}(.*?)\\end\{array\}\s*\\right\."
FORMULA = [                             # what is written in many ways
    (CASES, r"\\begin{cases}\1\\end{cases}"), (r"\\?\$|(?<!\\)\\[()\[\],;:! ]|~|\\q?quad(?![a-z])", " "),
    (r"\\(?:displaystyle|(?:left|right)(?!\.))(?![a-z])", ""), (r"\\[dtc]frac", r"\\frac"), (r"\\mathrm\s*\{d\}", "d"),
    (r"\^\{\\circ\}|°|\\degree|\s?\bdegrees?\b", r"^\\circ "), (r"\^\{?\\prime\}?|[’′]", "'"), ("或", " or "),
    ("≤", r"\\le "), ("≥", r"\\ge "), ("≠", r"\\ne "), ("×", r"\\times "), ("·", r"\\cdot "), ("π", r"\\pi "),
    ("∞", r"\\infty "), ("∪", r"\\cup "), ("∩", r"\\cap "), ("−", "-"), ("²", "^2"), ("³", "^3"),
]


def compared(answer: str, gold: str) -> bool | math_worker.Pair:
    """Whether two values are equal, or the two formulas that math-verify has to compare."""
    if number(answer, True) and number(gold, True):
        return same_value(answer, gold)
    if max(len(answer), len(gold)) > LONGEST_FORMULA:
        return answer == gold
    (gold_value, gold_unit), (value, unit) = formula(gold), formula(answer)
    if unit and gold_unit and unit != gold_unit:               # a unit that only one of them has does not count
        return False
    if WORDS.fullmatch(gold_value):
        return matches(answer, gold)
    name, gold_name = ASSIGNED.match(value), ASSIGNED.match(gold_value)
    if number(ASSIGNED.sub("", gold_value), True) and not (name and gold_name and name[0] != gold_name[0]):
        value, gold_value = ASSIGNED.sub("", value), ASSIGNED.sub("", gold_value)
        if number(value, True):
            return same_value(value, gold_value)
        if CALCULATION.search(value):
            return False
    if value == gold_value or not value:
        return value != ""
    return math_worker.installed() and comparable(gold_value, value) and (gold_value, value)


def same_value(answer: str, gold: str) -> bool:
    """Whether two numbers are equal. 84/2 is a calculation, unless the gold answer is a fraction as well."""
    a, b = number(answer, True), number(gold, True)
    reduced = a.below in (0, a.value.denominator)
    return same(a, b) and bool(reduced or b.below or number(answer))


def comparable(gold: str, answer: str) -> bool:
    """Whether math-verify can tell these formulas apart. It takes (1, 2) for {1, 2}, n for N and f' for f."""
    brackets = {side[:1 + side.startswith("\\")] for side in (gold, answer)}           # (, [ or \{
    letters, gold_letters = (set(re.sub(r"\\[a-zA-Z]+", "", side)) for side in (answer, gold))
    other_case = {letter.swapcase() for letter in letters - gold_letters} & (gold_letters - letters)
    marks = [sorted(IGNORED.findall(side)) for side in (gold, answer)]
    return not (r"\{" in brackets and brackets & {"(", "["}) and not other_case and marks[0] == marks[1]


def formula(text: str) -> tuple[str, str]:
    r"""(value, unit) without delimiters, sizes, \text{} and spaces that separate nothing, each sign in one spelling."""
    for pattern, replacement in FORMULA:
        text = re.sub(pattern, replacement, text)
    text = text.strip().removesuffix(".")
    unit = UNIT.search(text)
    if unit is None or NO_UNIT.search(unit[1]):
        return bare(text), ""
    name = re.sub(r"(?<=[a-z]{3})s\b|[\s{}]", "", bare(unit[1]))               # hours: hour
    return bare(text[:unit.start()]), name


def bare(text: str) -> str:
    r"""The formula without \text{} and spaces that separate nothing."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    return re.sub(r" (?!\w)|(?<!\w) ", "", " ".join(text.split()))
