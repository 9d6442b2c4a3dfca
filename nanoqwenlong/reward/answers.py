"""What was answered, and does it say the same as the right answer? Pure functions of text. No torch.

    response  --said-->  after the last </think>  --statement, final-->  the answer  --matches, near, choice

A `statement` is one line after a marker such as "the answer is". A `final` answer may be bare and have many lines.
Numbers are compared as numbers, exactly (numbers.py). Everything else is compared after normalisation (text.py).
No text makes these functions fail, none is ever evaluated, and 10 MB take a second or two.
"""

import re
from fractions import Fraction

from .numbers import number, same
from .text import normalise, plain

QUOTES = " \t\r\"'`“”‘’"                # around an answer: the prompt itself shows the sentence in quotes
LINE, WHOLE = 10_000, 100_000           # characters of a statement and of a final answer; longer ones are invalid
MARKER = re.compile(r"the\s+(?:(?:correct|final|best)\s+)*answer\s+is|\[(?:answer|答案)\]|<answer>|\\boxed\s?{", re.I)
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
    """, re.VERBOSE)                    # in the text after a letter: it names others too, or rejects the letter


# 1. Extraction: what was answered

def said(text: str) -> str | None:
    """What follows the last </think>. None if the thinking never ended, or began again.

    >>> said("<think>3? 4!</think> Four."), said("Four."), said("<think>3</think> Four. <think> or five")
    (' Four.', None, None)
    """
    _, ended, rest = text.rpartition("</think>")
    return rest if ended and "<think>" not in rest else None


def statement(said: str) -> str:
    """The stated answer: the line after the last marker, without markdown emphasis, quotes and the final full stop.

    "" without a marker. Markers: "the answer is" (also correct, final, best), [Answer], [答案], <answer>, \\boxed{}.

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
    """What follows the last marker, everything if there is none. It may have many lines. Code fences are removed, and
    so are quotes and emphasis around the whole.

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
    """What follows the last marker, up to its closing tag or brace. None without a marker."""
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


# 2. Comparison: is it the same?

def matches(answer: str, gold: str) -> bool:
    """Equal as numbers if either is a number, else equal after normalisation. An empty answer matches nothing.

    >>> matches("1,000.0", "1000"), matches("-5", "5"), matches("20.4", "204"), matches("The U.K.", "uk")
    (True, False, False, True)
    >>> matches("5%", "0.05"), matches("5%", "5"), matches("5%", "500"), matches("$5", "5"), matches("$5", "€5")
    (True, True, False, True, False)
    """
    a, b = number(answer), number(gold)
    if a or b:
        return bool(a and b and same(a, b))
    if max(len(answer), len(gold)) > LINE + 10 * min(len(answer), len(gold)):
        return False
    answer = normalise(answer)
    return bool(answer) and answer == normalise(gold)


def near(answer: str, gold: str) -> bool:
    """Equal as numbers up to rounding. A gold answer that is not a number (yes, no) has to be matched.

    The tolerance is half a unit of the gold answer's last written digit, but at most 1 % of its value. If the gold
    answer is not a whole number, the tolerance is at least 0.15 % of its value.

    >>> near("20.43", "20.4"), near("20.5", "20.4"), near("-20.4", "20.4"), near("2018", "2019"), near("1.4", "1")
    (True, False, False, False, False)
    """
    a, b = number(answer), number(gold)
    if not b:
        return matches(answer, gold)
    slack = min(b.step / 2, abs(b.value) * Fraction(1, 100))
    if b.value.denominator > 1:
        slack = max(slack, abs(b.value) * Fraction(15, 10_000))
    return bool(a and same(a, b, slack))


def choice(answer: str) -> str:
    """The letter of a multiple choice, in upper case, alone or before its text. "" for no letter and for several.

    >>> [choice(text) for text in ("B", "(b)", "B.", "B) Bananas", "(B): bread and tea", "option B")]
    ['B', 'B', 'B', 'B', 'B', 'B']
    >>> [choice(text) for text in ("Bananas", "Both", "A or B", "A, B", "A and B", "(A) or (B)", "not A", "B) x, C) y")]
    ['', '', '', '', '', '', '', '']
    """
    answer = plain(answer[:LINE]).strip(QUOTES + "*")
    match = CHOICE.fullmatch(answer)
    if match:
        return "".join(filter(None, match.groups())).upper()
    match = CHOICE_AND_TEXT.fullmatch(answer)
    if not match:
        return ""
    letter, text = match[1] or match[2], match[3]
    if len(re.findall(r"\w", text)) < 2:
        return ""
    if ANOTHER.search(text) and not re.match(r"(?:both|all|neither|none)\b", text, re.I):    # "D) both A and B" is one
        return ""
    return letter.upper()
