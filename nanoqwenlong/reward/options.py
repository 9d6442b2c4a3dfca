"""Which option of a multiple choice was chosen? In English and Chinese. No torch."""

import re

from .text import plain
from .words import CJK

LONGEST = 10_000                        # characters of an answer
EMPHASIS = str.maketrans("", "", "*`\"“”")
BEFORE = r"\s*(?:(?:option|choice|letter)\s+|选项|选择|应?该?选)?\s*"
BRACKETED = re.compile(rf"^{BEFORE}[(\[{{【《]\s*([A-J])\s*[)\]}}】》]", re.I | re.A)
ALONE = re.compile(rf"{BEFORE}([A-J])\s*(?:选?项)?[).,:;、。\s]*", re.I | re.A)
WITH_TEXT = re.compile(rf"""
    {BEFORE} ([A-J])
    (?: \s*[).,:;、。]+ | \s+-+\s | -+\s | \s*[–—]+ | \s+(?=(?:because|since|is)\b|[{CJK}]) | \s*(?=因为|由于|是) )
    \s* (.*)""", re.I | re.A | re.S | re.X)                                # B) Bananas, B: x, B — 5, B because
A_NAME = re.compile(rf"{BEFORE}[A-J]\s*[.,;–—-].*\w", re.I | re.S)            # C. Darwin, B-52

# In the text after a letter: another letter, or words that reject the letter
CHAR = rf"[^\W{CJK}]"                   # of a word in Latin letters
OTHER = re.compile(rf"""
    [(\[【]\s*([A-Ja-j])\s*[)\]】]  |  (?<!{CHAR})([A-Ja-j])[):、]
    | (?: ^ | [,.;:!?/|&、。…–—] | \s- | (?<!{CHAR})(?i:or|and|nor|not?|to|through|is|be|but|than|then|maybe|perhaps
        |possibly|probably|actually|rather|also|although|though|while|whereas|unless|instead\sof
        |option|choice|answer|it's|that|thought|meant?|choose|pick|say)\s )
      \s* (?! [AI]\s+{CHAR} | I\b.*\bI[IV] ) ([A-J]) (?! {CHAR} | -{CHAR} | \.\s*{CHAR} | ['’+\#$] )
    | (?<!{CHAR})(?i:or|and|nor|not|maybe|perhaps|possibly|probably|actually)\s+ ([A-Jb-hj]) (?!{CHAR})
    | [或和与及跟是选到至非项]\s*([A-J]) (?!{CHAR})
    """, re.X)
ABOUT_OPTIONS = re.compile(r"(?:both|all|neither|none)\b|以上|[A-J]\s?[和与、]\s?[A-J]\s?[都均皆]", re.I)
RIGHT = r"(?:right|correct|the\s(?:right\s|correct\s)?(?:answer|one))\b"
REJECTED = re.compile(rf"""
    ^\W{{0,9}} (?:or|and|nor|but|maybe|perhaps|possibly)\b
    | ^\W{{0,9}} (?:is|was|are|has|had|seems|looks|appears) (?:n't\b | \b.*\b(?:not|never|wrong|incorrect|false|out
        |excluded|eliminated|impossible|unlikely|rejected)\b)
    | ^\W{{0,9}} (?:could|may|might|would|should)\s(?:be|also|well)\b
    | (?:\b(?:not|never|cannot)|n't) \s (?:be\s|have\sbeen\s)? (?:{RIGHT} | sure\b) | \bunsure\b
    | (?: ^ | [.,;?!–—-] ) \s* (?:no|nope|not|wait|sorry|actually|correction|wrong|incorrect) \s* (?: [.,;:!–—-] | $)
    | \b(?:is|was|are) \s (?:wrong|incorrect|ruled\sout) \W* $
    | ^\W{{0,9}} (?: 是?(?:不对|不是|不正确|不成立|有误|并非|被?排除|可能|也许|或许|大概) | 是错 | 或(?!然) | (?:错[的了]?|否)\W*$)
    | 也可能 | (?:不对|不正确|错了|错的)\W*$
    """, re.I | re.S | re.X)


def choice(answer: str) -> str:
    """The letter of a multiple choice, in upper case, alone or before its text. "" for no letter, for several, and for
    one that the text rejects.

    >>> [choice(text) for text in ("B", "(b)", "B) Bananas", "option B", "Bananas", "A or B", "not A", "B) x, C) y")]
    ['B', 'B', 'B', 'B', '', '', '', '']
    >>> [choice(text) for text in ("B、香蕉", "选B", "B - 7", "(B) is wrong", "B. No, C", "B不对")]
    ['B', 'B', 'B', '', '', '']
    """
    answer = " ".join(plain(answer[:LONGEST]).translate(EMPHASIS).split()).strip("'‘’")
    answer = BRACKETED.sub(r"\1) ", answer)                                    # (B) x: B) x
    alone = ALONE.fullmatch(answer)
    if alone:
        return alone[1].upper()
    match = WITH_TEXT.fullmatch(answer)
    if not match:
        return ""
    letter, text = match[1].upper(), match[2]
    if not re.search(r"\w", text) or REJECTED.search(text) or re.fullmatch("[a-j]", text):
        return ""
    if re.search(rf"{letter}\.", answer) and re.search(rf"(?<!{CHAR})(?!{letter})[A-Ea-e]\.\s", text):
        return ""                                              # A. monthly B. weekly
    others = [other[other.lastindex] for other in OTHER.finditer(text)]
    if set(others) - {letter, letter.lower()} and not ABOUT_OPTIONS.match(text):
        return ""
    return letter


def gold_choice(gold: str) -> str:
    """The letter that a gold answer names, "" if it is a text. "C. Darwin" is a name, "C) Darwin" is not."""
    return "" if A_NAME.fullmatch(gold) else choice(gold)
