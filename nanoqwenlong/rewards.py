"""Was the answer right? One extractor and one comparison, for training and evaluation alike. No torch.

The answer is what follows the last "the answer is" behind the last `</think>`; without `</think>` there is none, so a
response that never ends its thinking earns 0. The comparison is exact match after normalisation. QwenLong-L1's
released rule accepts substrings in both directions, which gives full reward to "a" or "not Marie Curie"; this does not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from .records import Example


QUOTES = " \t\r\"'`“”‘’"          # around an answer: the prompt itself shows the sentence in quotes


@dataclass(frozen=True)
class Score:
    """What one response earned.

    >>> score("<think>Tom visits Oslo.</think> Therefore, the answer is **Oslo**.", Example("a", "", "", "oslo"))
    Score(reward=1.0, rule=1.0, judge=None, answer='Oslo')
    """

    reward: float
    rule: float
    judge: float | None                 # None: not asked
    answer: str                         # what was extracted; "" if nothing was


def score(text: str, example: Example) -> Score:
    """The score of one response to `example`."""
    answer = extract(text)
    rule = float(any(matches(answer, gold) for gold in example.accepted))
    return Score(rule, rule, None, answer)


def score_all(texts: Sequence[Sequence[str]], examples: Sequence[Example]) -> list[list[Score]]:
    """For each example the scores of its responses."""
    return [[score(text, example) for text in group] for group, example in zip(texts, examples)]


def extract(text: str) -> str:
    """The stated answer: one line, markdown emphasis and the final full stop removed; "" if there is none.

    >>> extract("<think>the answer is 3</think> The answer is 4? No: the answer is (5).")
    '(5)'
    >>> extract("the answer is 4"), extract("<think>hm</think> four")
    ('', '')
    """
    before, ended, said = text.rpartition("</think>")
    places = [found.end() for found in re.finditer("the answer is", said, re.IGNORECASE)]
    if not ended or not places:
        return ""
    tail = re.sub(r"(?<![\d*])\*+|\*+(?![\d*])", "", said[places[-1]:]).lstrip(": \t\r\n").split("\n")[0]
    return tail.strip(QUOTES).rstrip(".").strip(QUOTES)


def matches(answer: str, gold: str) -> bool:
    """Equal as numbers if either is a number, else equal after normalisation. An empty answer matches nothing.

    >>> matches("1,000.0", "1000"), matches("-5", "5"), matches("20.4", "204"), matches("The U.K.", "uk")
    (True, False, False, True)
    """
    a, b = number(answer), number(gold)
    if a is not None or b is not None:
        return a == b
    answer = normalise(answer)
    return bool(answer) and answer == normalise(gold)


def number(text: str) -> Decimal | None:
    """The value of a text that is nothing but a number: sign, thousands commas, decimals, exponent. "(5)" is 5."""
    text = re.sub(r"^\((.*)\)$", r"\1", text.replace("−", "-").strip()).strip()
    if not re.fullmatch(r"[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d*)?([eE][+-]?\d{1,3})?", text, re.ASCII) or not text:
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:                                                   # a lone sign or exponent
        return None


def normalise(text: str) -> str:
    """SQuAD's normalisation (lower case; no punctuation, no a/an/the; single spaces), but what makes a number is kept:
    a point or minus sign before a digit, so that 20.4 km is not 204 km.

    >>> normalise("  The  Quick, 'brown' fox. "), normalise("-20.4 km"), normalise("1,000 km")
    ('quick brown fox', '-20.4 km', '1000 km')
    """
    text = text.lower().translate(str.maketrans("−’‘“”", "-''\"\""))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)                        # thousands
    text = re.sub(r"(?<=\d)[^\w\s.-](?=\d)|(?<=\w)-|-(?![\d.])", " ", text)
    text = re.sub(r"[.](?!\d)", "", text)
    text = re.sub(r"[!\"#$%&'()*+,/:;<=>?@\[\\\]^_`{|}~]", "", text)
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)
