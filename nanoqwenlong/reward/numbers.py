"""Texts that are a number: read exactly, as fractions, and compared with their units. No text is ever evaluated."""

import re
from fractions import Fraction
from typing import NamedTuple

from .text import SIGNS, plain

LONGEST = 100                           # characters of a number; a longer text is not one
# ¥ is the sign of two currencies, so it means either.
CURRENCIES = {"us$": "$", "$": "$", "usd": "$", "us dollars": "$", "dollars": "$", "dollar": "$", "€": "€", "eur": "€",
              "euros": "€", "euro": "€", "£": "£", "gbp": "£", "pounds": "£", "pound": "£", "¥": "¥元", "jpy": "¥",
              "yen": "¥", "円": "¥", "cny": "元", "rmb": "元", "yuan": "元", "元": "元"}
UNITS = {**CURRENCIES, "%": "%", "percent": "%", "per cent": "%"}
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
NUMBER = re.compile(rf"""
    [=≈~]?[ ]? (?P<sign>[+-]?) (?P<before>{"|".join(map(re.escape, CURRENCIES))})?[ ]? (?P<inner>[+-]?)
    (?P<digits>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)?(?:\.(?P<decimals>\d*))?)                       # 1,000.50
    (?:e(?P<exponent>[+-]?\d{{1,3}}) | [ ]?[x×*][ ]?10\^(?P<power>[+-]?\d{{1,3}}))?           # e3, x 10^3
    (?:/(?P<below>\d+))?                                                                      # 3/4
    [ ]?(?P<scale>{"|".join(SCALES)})? [ ]?(?P<after>{"|".join(map(re.escape, UNITS))})?
    """, re.VERBOSE | re.IGNORECASE | re.ASCII)


class Number(NamedTuple):
    value: Fraction                     # of what stands before the unit: 26/5 for 5.20%
    unit: str                           # "%", a currency, or ""
    step: Fraction                      # one unit of the last written digit: 1/100 for 5.20%, 0 for 3/4


def number(text: str) -> Number | None:
    """The number that a text is, None if it is anything more than a number. Nothing is rounded.

    >>> [str(number(text).value) for text in ("1,000.50", "-$5 million", "1.2 × 10^3", "(3/4)", "12 %", "1e-3")]
    ['2001/2', '-5000000', '1200', '3/4', '12', '1/1000']
    >>> [number(text) for text in ("", "5 km", "12,34", "five", "1/0", "4-5", "1e999999999", "9" * 5000)]
    [None, None, None, None, None, None, None, None]
    """
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
    exponent = int(match["exponent"] or match["power"] or 0) + SCALES.get((match["scale"] or "").lower(), 0)
    power = Fraction(10) ** exponent
    value = Fraction(match["digits"].replace(",", "").rstrip(".")) * power / below
    if "-" in match["sign"] + match["inner"]:
        value = -value
    step = 0 if match["below"] else power / 10 ** len(match["decimals"] or "")
    return Number(value, "".join(units), Fraction(step))


def same(a: Number, b: Number, slack: Fraction = Fraction(0)) -> bool:
    """Whether a is within `slack` of b. If only one of them has a percent sign, it may also mean a hundredth."""
    if a.unit and b.unit and not set(a.unit) & set(b.unit):
        return False
    difference = abs(a.value - b.value)
    if a.unit == "%" and b.unit != "%":
        difference = min(difference, abs(a.value / 100 - b.value))
    if b.unit == "%" and a.unit != "%":
        difference = min(difference, abs(100 * a.value - b.value))
    return difference <= slack
