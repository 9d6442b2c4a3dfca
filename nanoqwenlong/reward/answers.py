"""What was answered, and is it the same? Pure functions of text. No text makes them fail; 10 MB take a second or two.

    response  --said-->  behind the last </think>  --statement, final-->  the answer  --matches, near, choice, items

A `statement` is one line after a marker, such as "the answer is"; a `final` answer may be bare and have many lines.
Numbers are compared as numbers, exactly; all else is compared after normalisation. No part of a text is ever evaluated.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import NamedTuple

QUOTES = " \t\r\"'`“”‘’"                # around an answer: the prompt itself shows the sentence in quotes
LINE, WHOLE, NUMERAL = 10_000, 100_000, 100              # characters; a longer answer, or number, is none
ARTICLES = ("a", "an", "the")
MARKER = re.compile(r"the\s+(?:(?:correct|final|best)\s+)*answer\s+is|\[(?:answer|答案)\]|<answer>|\\boxed\s?{", re.I)

WIDE = {code: unicodedata.normalize("NFKC", chr(code))                         # full-width forms and ligatures
        for code in (*range(0xFF01, 0xFF5F), *range(0xFFE0, 0xFFE7), *range(0xFB00, 0xFB07), 0x3000)}
RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
SIGNS = str.maketrans("−‐‑‒–—’‘“”", "------''\"\"")
LATEX = [(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}", r"\1"),
         (r"(?<=\d)\\([dt]?frac)", r" \\\1"), (r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r"\1/\2"),
         (r"\\(?:times|cdot)", "×"), (r"\^\{([^{}]*)\}", r"^\1"), (r"\{,\}", ","),
         (r"\\[,;:! ]", " "), (r"\\[()\[\]]", ""), (r"\\([%$#&_{}])", r"\1")]

# What may stand around a number. ¥ is the sign of two currencies, so it means either.
CURRENCIES = {"us$": "$", "$": "$", "usd": "$", "us dollars": "$", "dollars": "$", "dollar": "$", "€": "€", "eur": "€",
              "euros": "€", "euro": "€", "£": "£", "gbp": "£", "pounds": "£", "pound": "£", "¥": "¥元", "jpy": "¥",
              "yen": "¥", "円": "¥", "cny": "元", "rmb": "元", "yuan": "元", "元": "元"}
UNITS = {**CURRENCIES, "%": "%", "percent": "%", "per cent": "%"}
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
NUMBER = re.compile(rf"""
    [=≈~]?[ ]? (?P<sign>[+-]?) (?P<before>{"|".join(map(re.escape, CURRENCIES))})?[ ]? (?P<inner>[+-]?)
    (?P<digits>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)?(?:\.(?P<decimals>\d*))?)                       # 1,000.50
    (?:e(?P<exponent>[+-]?\d{{1,3}}) | [ ]?[x×*][ ]?10\^(?P<power>[+-]?\d{{1,3}}))?           # e3, x 10^3
    (?:/(?P<below>\d+))?                                                                      # 3/4
    [ ]?(?P<scale>{"|".join(SCALES)})? [ ]?(?P<after>{"|".join(map(re.escape, UNITS))})?
    """, re.VERBOSE | re.IGNORECASE | re.ASCII)


# What was said

def said(text: str) -> str | None:
    """What stands behind the last </think>; None if the thinking never ended, or began again.

    >>> said("<think>3? 4!</think> Four."), said("Four."), said("<think>3</think> Four. <think> or five")
    (' Four.', None, None)
    """
    _, ended, behind = text.rpartition("</think>")
    return behind if ended and "<think>" not in behind else None


def statement(said: str) -> str:
    """The stated answer, one line: what follows the last marker, without markdown emphasis, quotes and the final full
    stop. The markers are "the answer is" (also the correct, final or best one), [Answer] or [答案], <answer> and
    \\boxed{}. "" if there is none.

    >>> statement("The answer is 4? No: the answer is **(5)**.\\nThat is on page 3."), statement("four")
    ('(5)', '')
    >>> [statement(text) for text in ("So <answer>Oslo</answer>.", r"Thus \\(\\boxed{\\frac{3}{4}}\\).", "[Answer] B)")]
    ['Oslo', '3/4', 'B)']
    """
    line = (_after_marker(said) or "").lstrip(":： \t\r\n*").split("\n", 1)[0]
    if len(line) > LINE:
        return ""
    line = re.sub(r"(\d\*+(?=\d))|\*+", r"\1", plain(line))                    # **bold**, but not 5*3
    return line.strip(QUOTES).rstrip(".").strip(QUOTES)


def final(said: str) -> str:
    """The answer where it may be bare and have many lines: what follows the last marker if there is one, else
    everything. Lines that only fence code are dropped, and quotes and emphasis around the whole.

    >>> final("Here they are.\\n[Answer]\\n- tea\\n- salt"), final("**42**"), final('```json\\n{"data": []}\\n```')
    ('- tea\\n- salt', '42', '{"data": []}')
    """
    tail = _after_marker(said)
    text = said if tail is None else tail.lstrip(":： \t\r\n")
    if len(text) > WHOLE:
        return ""
    text = re.sub(r"^[ \t]*```\w*[ \t\r]*$", "", text, flags=re.MULTILINE)
    return text.strip(QUOTES + "*\n").rstrip(".").strip(QUOTES + "*\n")


def _after_marker(said: str) -> str | None:
    """What follows the last marker, up to what closes it; None without a marker."""
    last = None
    for last in MARKER.finditer(said):
        pass
    if last is None:
        return None
    tail = said[last.end():]
    if last[0][0] != "\\":
        return re.split(r"</answer>|\[/answer\]", tail, maxsplit=1, flags=re.IGNORECASE)[0]
    depth = 1
    for place, char in enumerate(tail[:WHOLE]):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return tail[:place]
    return ""                                                                  # a box that is never closed


# Is it the same?

def plain(text: str) -> str:
    """The text without full-width forms, invisible characters and simple LaTeX; its lines are kept.

    >>> plain("（１，０００）"), plain(r"$\\frac{1}{2}$"), plain("Os\\u200blo\\x00")
    ('(1,000)', '1/2', 'Oslo')
    """
    text = "".join(char for char in text.translate(WIDE) if char.isprintable() or char.isspace())
    if "\\" in text or "{" in text:
        for pattern, replacement in LATEX:
            text = re.sub(pattern, replacement, text)
    return re.sub(r"^\s*\$\$?([^$]*)\$\$?(?=\.?\s*$)", r"\1", text)


SPOKEN = [(r"(?:≤|<=)(?= ?\$?\d)", " at most "), (r"(?:≥|>=)(?= ?\$?\d)", " at least "),
          (r"<(?= ?\$?\d)", " less than "), (r"(?<![-=])>(?= ?\$?\d)", " more than "),
          (r"(?<=\d) ?%", " percent "), (r"(?<!\w)([a-z]{1,3})\+(?![\w+-])", r"\1 plus "),
          (r"(?<!\w)([a-z]{1,3})-(?![\w+-]| \w)", r"\1 minus "), (r"(?<!\w)c(?=\+\+)", "c plus "),
          (r"(?<!\w)([cf])#", r"\1 sharp ")]           # signs that a normalised text says in words


def normalise(text: str) -> str:
    """SQuAD's normalisation (lower case; no punctuation, no a/an/the; single spaces), but what makes a number is kept:
    a point or minus sign before a digit, so that 20.4 km is not 204 km. So is what tells names apart: < or > before a
    number, percent behind it, the sign of a grade, an A at the end.

    >>> normalise("  The  Quick, 'brown' fox. "), normalise("-20.4 km"), normalise("1,000 km")
    ('quick brown fox', '-20.4 km', '1000 km')
    >>> normalise("AA-"), normalise("> 5% of sales"), normalise("Exhibit A")
    ('aa minus', 'more than 5 percent of sales', 'exhibit a')
    """
    text = plain(text).translate(SIGNS).lower()
    for pattern, words in SPOKEN:
        text = re.sub(pattern, words, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)                        # thousands
    text = re.sub(r"(?<=\d)[^\w\s.-]+(?=\d)|(?<=\w)-|-(?!\.?\d)", " ", text)
    text = re.sub(r"[.](?!\d)", "", text)
    text = re.sub(r"[!\"#$%&'()*+,/:;<=>?@\[\\\]^_`{|}~。、・「」『』《》〈〉【】]", "", text)
    words = text.split()
    text = " ".join([word for i, word in enumerate(words, 1) if word not in ARTICLES or word == "a" and i == len(words)]
                    or words)
    return unicodedata.normalize("NFC", text) if len(text) <= 2000 else text   # its time grows with the square


class Number(NamedTuple):
    """A number as it was written: 5.20% has the value 26/5, the unit "%" and the step 1/100."""

    value: Fraction                     # of what stands before the unit
    unit: str                           # "%", a currency, or ""
    step: Fraction                      # one unit of the last written digit; 0 for 3/4


def number(text: str) -> Number | None:
    """The number that a text is, if it is nothing but a number: sign, thousands commas, decimals, exponent, fraction,
    currency, percent, thousand to trillion; parentheses around it do not count. Nothing is rounded.

    >>> [str(number(text).value) for text in ("1,000.50", "-$5 million", "1.2 × 10^3", "(3/4)", "12 %", "1e-3")]
    ['2001/2', '-5000000', '1200', '3/4', '12', '1/1000']
    >>> [number(text) for text in ("", "5 km", "12,34", "five", "1/0", "4-5", "1e999999999", "9" * 5000)]
    [None, None, None, None, None, None, None, None]
    """
    if len(text) > NUMERAL:
        return None
    text = re.sub("(?<=10)[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda raised: "^" + raised[0].translate(RAISED), plain(text))
    text = " ".join(text.translate(SIGNS).split())
    found = NUMBER.fullmatch(re.sub(r"^\((.*)\)$", r"\1", text).strip())
    if not found or not re.search(r"\d", found["digits"], re.ASCII) or found["sign"] and found["inner"]:
        return None
    units = {UNITS[unit.lower()] for unit in (found["before"], found["after"]) if unit}
    below = Fraction(found["below"] or 1)
    if len(units) > 1 or not below:
        return None
    exponent = int(found["exponent"] or found["power"] or 0) + SCALES.get((found["scale"] or "").lower(), 0)
    power = Fraction(10) ** exponent
    value = Fraction(found["digits"].replace(",", "").rstrip(".")) * power / below
    step = 0 if found["below"] else power / 10 ** len(found["decimals"] or "")
    return Number(-value if "-" in found["sign"] + found["inner"] else value, "".join(units), Fraction(step))


def _same(a: Number, b: Number, slack: Fraction = Fraction(0)) -> bool:
    """Whether a is within `slack` of b. If only one of them bears a percent sign, it may mean its hundredth too."""
    if a.unit and b.unit and not set(a.unit) & set(b.unit):
        return False
    hundredth = Fraction(1, 100)
    return abs(a.value - b.value) <= slack or (
        a.unit == "%" != b.unit and abs(a.value * hundredth - b.value) <= slack) or (
        b.unit == "%" != a.unit and abs(a.value - b.value * hundredth) <= slack * hundredth)


def matches(answer: str, gold: str) -> bool:
    """Equal as numbers if either is a number, else equal after normalisation. An empty answer matches nothing.

    >>> matches("1,000.0", "1000"), matches("-5", "5"), matches("20.4", "204"), matches("The U.K.", "uk")
    (True, False, False, True)
    >>> matches("5%", "0.05"), matches("5%", "5"), matches("5%", "500"), matches("$5", "5"), matches("$5", "€5")
    (True, True, False, True, False)
    """
    a, b = number(answer), number(gold)
    if a or b:
        return bool(a and b and _same(a, b))
    if max(len(answer), len(gold)) > LINE + 10 * min(len(answer), len(gold)):
        return False
    answer = normalise(answer)
    return bool(answer) and answer == normalise(gold)


def near(answer: str, gold: str) -> bool:
    """Equal as numbers up to rounding: half a unit of the gold's last written digit but no more than 1 % of it, or,
    where the gold is no whole number, 0.15 % of it. A gold answer that is no number (yes, no) has to be matched.

    >>> near("20.43", "20.4"), near("20.5", "20.4"), near("-20.4", "20.4"), near("2018", "2019"), near("1.4", "1")
    (True, False, False, False, False)
    """
    a, b = number(answer), number(gold)
    if not b:
        return matches(answer, gold)
    slack = min(b.step / 2, abs(b.value) * Fraction(1, 100))
    if b.value.denominator > 1:
        slack = max(slack, abs(b.value) * Fraction(15, 10_000))
    return bool(a and _same(a, b, slack))


CHOICE = re.compile(r"(?:(?:option|choice)\s+)?(?:\(([A-J])\)|\[([A-J])\]|([A-J])\)?)[.,:]?", re.I | re.A)
CHOICE_AND_TEXT = re.compile(r"""
    (?:(?:option|choice)\s+)?
    (?: \(([A-J])\) | ([A-J]) (?=[).:] | \s-\s | ,?\s(?:because|since)\b) )              # (B), B. B) B: B - B because
    [).:\s-]* (\S.*)""", re.I | re.A | re.S | re.VERBOSE)
ANOTHER = re.compile(r"""
    [(\[] [A-J] [)\]]                                                          # (B)
    | (?<!\w) [A-J] [).:] (?=\s|$)                                             # B)
    | (?<!\w) (?:or|and|nor|to|through|possibly|perhaps|maybe) \s+ [A-J] (?!\w)
    | (?i: ^\W{0,9} (?:or|and|nor|but)\b | ^(?:is|was) (?:n't|\s(?:not|wrong|incorrect|false))\b)
    """, re.VERBOSE)                    # after a letter: it is not the only one, or not chosen


def choice(answer: str) -> str:
    """The letter of a multiple choice, in upper case, alone or before its text; "" for none and for several.

    >>> [choice(text) for text in ("B", "(b)", "B.", "B) Bananas", "(B): bread and tea", "option B")]
    ['B', 'B', 'B', 'B', 'B', 'B']
    >>> [choice(text) for text in ("Bananas", "Both", "A or B", "A, B", "A and B", "(A) or (B)", "not A", "B) x, C) y")]
    ['', '', '', '', '', '', '', '']
    """
    answer = plain(answer[:LINE]).strip(QUOTES + "*")
    if found := CHOICE.fullmatch(answer):
        return next(filter(None, found.groups())).upper()
    found = CHOICE_AND_TEXT.fullmatch(answer)
    if not found or len(re.findall(r"\w", found[3])) < 2:
        return ""
    if ANOTHER.search(found[3]) and not re.match(r"(?:both|all|neither|none)\b", found[3], re.I):     # an option's text
        return ""
    return (found[1] or found[2]).upper()


# Lists

BULLET = re.compile(r"^\s*(?:[-*+•·–—]|\(?\d{1,3}[.)])\s")


def items(answer: str, gold_items: Sequence[str] = ()) -> list[str]:
    """The items of a list, normalised: its lines without bullets and numbers. With `gold_items`, a single line that is
    none of them is cut at ";", at arrows, or else at "," and the last "and"; a gold list itself has one item a line:
    items(gold).

    >>> items("1. Tea\\n\\n2) the salt"), items("* Smith, John")
    (['tea', 'salt'], ['smith john'])
    >>> items("tea, salt and pepper", ["rope"]), items("Doe, Jane", ["doe jane"]), items("Smith, J.; Doe, J.", ["x"])
    (['tea', 'salt', 'pepper'], ['doe jane'], ['smith j', 'doe j'])
    """
    known = {normalise(item) for item in gold_items}
    found = _unbulleted(answer.split("\n"), known)
    if len(found) != 1 or not known or found[0] in known:
        return found
    line = plain(answer)
    commas = "," if not number(line) and re.fullmatch(r"[\d,]+", line) else r"(?<!\d),|,(?!\d)|、"      # 3,1,2
    *first, last = re.split(next((cut for cut in (";", "→", " > ") if cut in line), commas), line)
    last = [last] if normalise(last) in known else re.split(r"(?:^|\s)and\s", last)
    return _unbulleted([*first, *last], known)


def _unbulleted(lines: Sequence[str], known: Collection[str]) -> list[str]:
    """The lines, normalised, without what marks them as items; but "7. Symphony" stays if it is known as it is."""
    items = [item if (item := normalise(line)) in known or not BULLET.match(line) else normalise(BULLET.sub("", line))
             for line in lines if line.strip()]
    return list(filter(None, items))
