"""Words made comparable, together with the signs that carry meaning. No torch."""

import re
import unicodedata

from .text import RAISED, SIGNS, plain

ARTICLES = ("a", "an", "the")
CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"    # Han and kana
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
ARTICLE = re.compile(r"""               # stands before a word. An "A" inside a text is a name: "hepatitis A virus"
    (?<![^\s"'`(\[*_]) (?:[Tt][Hh][Ee] | an?) \s+ (?=["'`(\[*_]*\w)
    | ^\W*A[Nn]?\s+ (?!(?:and|or|minor|major|flat|sharp)\b) (?=[^\W\d_]{2})
    """, re.VERBOSE)
HUNG = re.compile(r"(?:(?<=[a-z]{3})|(?<=\d)(?<![^\W\d]\d))-(?=,?\s(?:and|or|to)\s)")             # pre- and post-war
KEPT = str.maketrans("()[]{}!'\":-", "（）［］｛｝！＇＂：－")        # no plain text holds these: they mark what is kept
DROPPED = re.compile("[-!\"(),:;?`{}\\[\\]…„«»¡¿。｡、・·•「」『』《》〈〉【】〔〕®™©]")
LONE = r"(?<![\w'])[a-z]"
VALUE = r"(?:\.?\d|[∞√$€£¥(（])"
END = r"\s*-?(?:[a-z]|∞|[a-z.]{0,9}\d[\w.%]{0,40})\s*"


def keep(match: re.Match) -> str:
    return match[0].translate(KEPT)


GROUP = re.compile(rf"""
    (?: (?<=[\d*/^×÷√+-]) | (?<=[*/^×÷][ ]) | (?<={LONE}) ) \([^()]*\)          # 2(x + 1), f(x)
    | \([^()]*\) (?= \s?[*/^×÷] | [-+!\d(（] | [a-z]\b )                         # (x + 1)/2, (x + 1)y
    """, re.VERBOSE)
RULES = [(re.compile(pattern), replacement) for pattern, replacement in (      # in this order, for a text in lower case
    # around words: quotes, $formulas$, **emphasis**
    (r"(?<!\w)\"([^\"]*)\"(?!\w)", r"\1"),
    (r"(?<!\w)'([^']*)'(?!\w)", r"\1"),
    (r"\$([^$]*)\$(?!\d)", r"\1"),
    (r"(?<![a-z\d)])(?:\*\*|__)|(?:\*\*|__)(?![a-z\d(])", ""),
    (r"(?<!\w)([*_])(?=[^\s*_])([^*_]*)(?<!\s)\1(?!\w)", r"\2"),
    # the brackets of formulas, 2(x + (y - 1)), and of intervals and sets, (3, 4]
    *[(GROUP, keep)] * 3,
    (rf"\[{END}(?:,{END})+[\])]|\({END},{END}\]|\{{{END}(?:,{END})*\}}", keep),
    # arrows, comparisons, operators
    (r"(?<![-=])[-=]{1,3}>|[⇒➔➜➝➙⟶⟹]", "→"),
    (r"!=", "≠"),
    (r"\+/-", "±"),
    (r"<=|[≤⩽≦]", " at most "),
    (r">=|[≥⩾≧]", " at least "),
    (r"<", " less than "),
    (r">", " more than "),
    (r"%|\bper cent\b", " percent "),
    (r"&", " and "),
    (rf"(?<={LONE})[#♯]", " sharp "),
    (r"(?<=\d)\s?~\s?(?=\d)", " "),
    (r"[~≈]", " about "),
    (rf"^\s*=|^\s*\+(?={VALUE})|(?<!\w)us(?=\$)", ""),
    (r"\+", " plus "),
    (r"(?<=\d)\s?[x*]\s?(?=\d)|[*⋅]", "×"),
    (f"[{''.join(map(chr, RAISED))}]+", lambda raised: "^" + raised[0].translate(RAISED)),
    # a minus sign stands before a value or a formula, or after a name (HER2-). Other hyphens separate words
    (rf"^\s*-+\s*(?={VALUE})|^\s*-(?=\w)|(?<=[{CJK}])-(?={VALUE})", "－"),
    (rf"(?:(?<=\s)|(?<=[^\w\s\"'.)\]-]))-(?={VALUE}|[a-z]\b)", "－"),
    (r"(?<=\w)-+(?![-\w(\[$.\"'])|(?<=\w)-+(?=\.?$)", " minus "),
    # factorials, primes, ratios
    (rf"(?:(?<=[\d）])|(?<={LONE}))!+|(?<!\S)!(?=\w)", keep),
    (rf"(?:(?<=\d)|(?<={LONE}))['\"]+(?![a-z])", keep),
    (r"(?<=\d):(?=\d)|(?<=\d ):(?= \d)", keep),
    # points after initials and in numbers, commas in numbers
    (rf"(?<={LONE}\.)\s(?=[a-z](?:\.|$))", ""),
    (r"(?<=[^\W\d])\.(?=\d)", " "),
    (r"(?<![\w.])\.(?=\d)", "0."),
    (r"(?<=\d),(?=\d{3}(?!\d))|\.(?!\d)|'", ""),
)]


def normalise(text: str, articles: bool = False) -> str:
    """The words of a text and its signs that carry meaning, for comparison. It is SQuAD's normalisation (lower case,
    no punctuation, no articles, single spaces), but `p < .05` is not `p > .05`, HER2- not HER2+, -5 km not 5 km. Spaces
    beside Chinese characters do not count. `articles`: whether they stay. Only case tells an article from a name."""
    text = plain(text).translate(SIGNS)
    if not articles:
        text = HUNG.sub(" ", ARTICLE.sub(" ", text))
    text = text.translate(LOWERED).lower()
    if len(text) <= 2000:
        text = unicodedata.normalize("NFC", text)                              # takes the square of the length
    if not re.search(r"[\w∞]", text):
        return re.sub(r"[!-~\s]", "", DROPPED.sub("", text))
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"[^\w\s.－]", r" \g<0> ", DROPPED.sub(" ", text)).replace("－", "-")
    return re.sub(rf"(?<=[{CJK}])\s|\s(?=[{CJK}])", "", " ".join(text.split()))
