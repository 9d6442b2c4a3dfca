"""Texts made plain, and numbers read exactly, as fractions. No torch, and no text is ever evaluated."""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

WIDE_CODES = (*range(0xFF01, 0xFF5F), *range(0xFFE0, 0xFFE7), *range(0xFB00, 0xFB07), 0x3000, 0xB5, 0x2103, 0x2109)
WIDE = {code: unicodedata.normalize("NFKC", chr(code)) for code in WIDE_CODES}     # full-width forms, ligatures, µ, ℃
SIGNS = str.maketrans("−‐‑‒–—―’‘′“”″", "-------'''\"\"\"")
PAIRS = (("***", "***"), ("**", "**"), ("*", "*"), ("__", "__"), ('"', '"'), ("'", "'"), ("`", "`"), ("$$", "$$"),
         ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("<b>", "</b>"), ("<strong>", "</strong>"),
         "“”", "‘’", "「」", "『』", "【】")
EMPHASIS = re.compile(r"(?<![\w*){}^\\])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?![\w*(])")        # **bold**, but not 5*3
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\\[,;: ]|\{,\}|[~\u00a0\u2007\u2009\u202f])\d{3})+(?!\d)")
LATEX = [                               # is written plainly where that means the same: not \frac{x+1}{2}
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}", r"\1"),
    (r"\\(?:left|right|displaystyle)(?![a-z])", ""), (r"\\[dt]?frac\s?(\d)\s?(\d)", r"\\frac{\1}{\2}"),
    (r"(?<=\d)\\([dt]?frac)", r" \\\1"),
    (r"(?<![\w)\]}])\\[dt]?frac\s?\{(-?[\d.,]+)\}\s?\{(\d+)\}(?![\w\\({^])", r"\1/\2"),
    (r"\^(?:\\circ|\{\\circ\})", "°"),
    (r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r"(\1)/(\2)"), (r"\^\{(-?(?:\d+|\w))\}(?!\w)", r"^\1"),
    (r"\^\{([^{}]*)\}", r"^(\1)"), (r"\\(?:times|cdot)(?![a-z])", "×"), (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;: ]", " "), (r"(?<!\\)\\[()\[\]]", ""), (r"\\([%$#&_{}])", r"\1"),
]


def visible(text: str) -> str:
    """The text without full-width forms and invisible characters."""
    return "".join(char for char in text.translate(WIDE) if char.isprintable() or char.isspace())


def plain(text: str) -> str:
    """The text without full-width forms, invisible characters and simple LaTeX. Its lines are kept."""
    text = THOUSANDS.sub(lambda number: re.sub(r"\D+", ",", number[0]), visible(text))
    if "\\" in text or "{" in text:
        for pattern, replacement in LATEX:
            text = re.sub(pattern, replacement, text)
    return re.sub(r"^\s*\$\$?([^$]*)\$\$?(?=\.?\s*$)", r"\1", text)


def unquoted(text: str, before: str = "") -> str:
    """The text without quotes, emphasis and formula delimiters around it, and without the final full stop.
    ' and * at the end are a prime and a star, unless `before`, which precedes the text on its line, opens them."""
    ends = "\"”`" + "".join(mark for mark in "'’*" if mark in before)
    for _ in range(9):                                         # they may be nested: **"42."**
        text = text.strip().rstrip(".。｡").strip()
        text += "." * text.endswith(r"\right")                 # \right. closes \left\{
        for opening, closing in PAIRS:
            inner = text[len(opening):-len(closing)]
            if text == opening + inner + closing and opening not in inner:
                text = inner
        text = text.lstrip("\"'`“‘").rstrip(ends)
        if text.count("**") == 1:
            text = text.removesuffix("**").removeprefix("**")
    return text.strip()


LONGEST = 100                           # characters of a number; a longer text is not one
CURRENCIES = {"us$": "$", "$": "$", "usd": "$", "us dollars": "$", "dollars": "$", "dollar": "$", "€": "€", "eur": "€",
              "euros": "€", "euro": "€", "£": "£", "gbp": "£", "pounds": "£", "pound": "£", "¥": "¥元", "jpy": "¥",
              "yen": "¥", "円": "¥", "cny": "元", "rmb": "元", "yuan": "元", "元": "元"}   # ¥: both
UNITS = {**CURRENCIES, "%": "%", "percent": "%", "per cent": "%"}
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "bn": 9, "mn": 6, "tn": 12, "k": 3, "m": 6, "b": 9,
          "万亿": 12, "百万": 6, "千万": 7, "十亿": 9, "千": 3, "万": 4, "亿": 8}
RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
NUMBER = re.compile(rf"""
    [=≈~]?[ ]? (?P<sign>[+-]?) (?P<before>{"|".join(map(re.escape, CURRENCIES))})?[ ]? (?P<inner>[+-]?)
    (?P<digits>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)?(?:\.(?P<decimals>\d*))?)                       # 1,000.50
    (?:e(?P<exponent>[+-]?\d{{1,3}}) | [ ]?[x×*][ ]?10\^(?P<power>[+-]?\d{{1,3}}))?           # e3, x 10^3
    (?:/(?P<below>\d+))?                                                                      # 3/4
    [ ]?(?P<scale>(?:thousand|million|billion|trillion)s?|(?<=\d)(?:[mbt]n|[kmb])|百万|千万|十亿|万亿|[千万亿])?
    [ ]?(?P<after>{"|".join(map(re.escape, UNITS))})?
    """, re.VERBOSE | re.IGNORECASE | re.ASCII)


class Number(NamedTuple):
    value: Fraction                     # of what stands before the unit: 26/5 for 5.20%
    unit: str                           # "%", a currency, or ""
    step: Fraction                      # one unit of the last written digit: 1/100 for 5.20%, 0 for 3/4
    below: int                          # the denominator of a fraction as written, 0 without one
    scale: int                          # the power of ten that is written as a word: 6 for 24.5 million


def number(text: str, any_fraction: bool = False) -> Number | None:
    """The number that a text is, None if it is anything more than a number ("5 km", "4-5"). Nothing is rounded.
    A fraction has at most two digits above and a denominator up to 10, and is not whole, as 3/4 and 7/2. Others may be
    a date (12/25), odds (3/1) or a calculation that nobody made (1204500/350). Only `any_fraction` reads them."""
    if len(text) > LONGEST:
        return None
    text = re.sub("(?<=10)[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda raised: "^" + raised[0].translate(RAISED), plain(text))
    text = " ".join(text.translate(SIGNS).split())
    match = NUMBER.fullmatch(re.sub(r"^\((.*)\)$", r"\1", text).strip())
    if not match or not re.search(r"\d", match["digits"], re.ASCII) or match["sign"] and match["inner"]:
        return None
    units = {UNITS[unit.lower()] for unit in (match["before"], match["after"]) if unit}
    below = Fraction(match["below"] or 1)
    if len(units) > 1 or not below:
        return None
    if match["below"] and not any_fraction:
        above = match["digits"].lstrip("0")
        if not (above.isdigit() and len(above) <= 2 and below <= 10 and int(above) % below):
            return None
    scale = SCALES.get((match["scale"] or "").lower().rstrip("s"), 0)
    power = Fraction(10) ** (int(match["exponent"] or match["power"] or 0) + scale)
    value = Fraction(match["sign"] + match["inner"] + match["digits"].replace(",", "").rstrip(".")) * power / below
    step = 0 if match["below"] else power / 10 ** len(match["decimals"] or "")
    return Number(value, "".join(units), Fraction(step), int(match["below"] or 0), scale)


def same(a: Number, b: Number, slack: Fraction = Fraction(0)) -> bool:
    """Whether a is within `slack` of b. If only one of them has a percent sign, it may also mean a hundredth."""
    if a.unit and b.unit and not set(a.unit) & set(b.unit):
        return False
    difference = abs(a.value - b.value)
    if (a.unit == "%") != (b.unit == "%"):
        other_value = a.value / 100 if a.unit == "%" else 100 * a.value
        difference = min(difference, abs(other_value - b.value))
    return difference <= slack


def differ_in_scale(a: Number, b: Number) -> bool:
    """Whether only one of them has a scale word, and the numbers before it agree to 1 %: 24.5 and $24.5 million."""
    a_before, b_before = (each._replace(value=each.value / 10**each.scale) for each in (a, b))
    return bool(a.scale) != bool(b.scale) and same(a_before, b_before, abs(b_before.value) / 100)
