"""Texts made comparable: `plain` keeps lines and words, `normalise` keeps only what tells answers apart. No torch."""

import re
import unicodedata

ARTICLES = ("a", "an", "the")
WIDE_CODES = (*range(0xFF01, 0xFF5F), *range(0xFFE0, 0xFFE7), *range(0xFB00, 0xFB07), 0x3000)
WIDE = {code: unicodedata.normalize("NFKC", chr(code)) for code in WIDE_CODES}     # full-width forms and ligatures
SIGNS = str.maketrans("−‐‑‒–—’‘“”", "------''\"\"")
LATEX = [
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}", r"\1"),
    (r"(?<=\d)\\([dt]?frac)", r" \\\1"),
    (r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:times|cdot)", "×"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\{,\}", ","),
    (r"\\[,;:! ]", " "),
    (r"\\[()\[\]]", ""),
    (r"\\([%$#&_{}])", r"\1"),
]
SPOKEN = [                              # signs that a normalised text says in words
    (r"(?:≤|<=)(?= ?\$?\d)", " at most "),
    (r"(?:≥|>=)(?= ?\$?\d)", " at least "),
    (r"<(?= ?\$?\d)", " less than "),
    (r"(?<![-=])>(?= ?\$?\d)", " more than "),
    (r"(?<=\d) ?%", " percent "),
    (r"(?<!\w)([a-z]{1,3})\+(?![\w+-])", r"\1 plus "),
    (r"(?<!\w)([a-z]{1,3})-(?![\w+-]| \w)", r"\1 minus "),
    (r"(?<!\w)c(?=\+\+)", "c plus "),
    (r"(?<!\w)([cf])#", r"\1 sharp "),
]


def plain(text: str) -> str:
    """The text without full-width forms, invisible characters and simple LaTeX. Its lines are kept.

    >>> plain("（１，０００）"), plain(r"$\\frac{1}{2}$"), plain("Os\\u200blo\\x00")
    ('(1,000)', '1/2', 'Oslo')
    """
    text = "".join(char for char in text.translate(WIDE) if char.isprintable() or char.isspace())
    if "\\" in text or "{" in text:
        for pattern, replacement in LATEX:
            text = re.sub(pattern, replacement, text)
    return re.sub(r"^\s*\$\$?([^$]*)\$\$?(?=\.?\s*$)", r"\1", text)


def normalise(text: str) -> str:
    """SQuAD's normalisation (lower case, no punctuation, no a/an/the, single spaces) with exceptions.

    What makes a number is kept: a point or minus sign before a digit, so that 20.4 km is not 204 km. What tells names
    apart is kept too: < or > before a number, percent after it, the sign of a grade, an A at the end.

    >>> normalise("  The  Quick, 'brown' fox. "), normalise("-20.4 km"), normalise("> 5% of sales"), normalise("AA-")
    ('quick brown fox', '-20.4 km', 'more than 5 percent of sales', 'aa minus')
    """
    text = plain(text).translate(SIGNS).lower()
    for pattern, words in SPOKEN:
        text = re.sub(pattern, words, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)                        # commas between thousands
    text = re.sub(r"(?<=\d)[^\w\s.-]+(?=\d)|(?<=\w)-|-(?!\.?\d)", " ", text)
    text = re.sub(r"[.](?!\d)", "", text)
    text = re.sub(r"[!\"#$%&'()*+,/:;<=>?@\[\\\]^_`{|}~。、・「」『』《》〈〉【】]", "", text)
    words = text.split()
    last = words[-1:] if words[-1:] == ["a"] else []                           # "Exhibit A"
    text = " ".join([word for word in words if word not in ARTICLES] + last or words)
    return unicodedata.normalize("NFC", text) if len(text) <= 2000 else text   # NFC takes the square of the length
