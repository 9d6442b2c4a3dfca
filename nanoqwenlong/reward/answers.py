"""What was answered, and does it say the same as the right answer? Pure functions of text. No torch.

    response  --said-->  after the last </think>  --statement, final-->  the answer  --matches, near

No text makes these functions fail, none is ever evaluated, and 10 MB take a few seconds.
"""

import re

from .text import EMPHASIS, number, same, unquoted, visible
from .words import normalise

READ = 1_000_000                        # characters that are read, the last ones of a response
LINE, WHOLE = 10_000, 100_000           # characters of a statement and of a final answer; longer ones are invalid
MARKER = re.compile(r"""
    the\s+(?:(?:correct|final|best)\s+)*(?:answer|(?<=correct\s)(?:option|choice))\s+is | <answer>
    | \\(?:boxed|fbox)\s?{ | [\[【](?:final\s|最终)?(?:answer|答案)[\]】] | 答案[ *_]*(?:[:：]|[是为选](?![否不什项])) | 故选择?
    | ^(?:[ \t>#*_-]*(?:(?:the|my)[ ])?(?:(?:correct|final|best)[ ])?answer[ *_]*[:：]         # at a line's start
      | [ ]*\#+[ ](?:(?:(?:correct|final|best)[ ])?answer|答案)[ ]*$)                # a heading
    """, re.I | re.M | re.X)
AFTER_MARKER = re.compile(r"(?:[*_]+(?=[\s:：])|[:：\s])*")            # **Answer:** x
BLOCK = re.compile(r"""                 # a fence or a displayed formula, and nothing else on its last line
    (?: ```\w*[ \t\r]*\n ((?:(?!```).)*) ``` | \$\$ ((?:(?!\$\$).)*) \$\$ | \\\[ ((?:(?!\\\]).)*) \\\] )
    [ \t\r.。*]*(?:\n|$)
    """, re.S | re.X)
ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.S)


# 1. Extraction: what was answered

def said(text: str) -> str | None:
    """What follows the last </think>. None if the thinking never ended, or began again.

    >>> said("<think>3? 4!</think> Four."), said("Four."), said("<think>3</think> Four. <think> or five")
    (' Four.', None, None)
    """
    _, ended, rest = text.rpartition("</think>")
    return rest[-READ:] if ended and "<think>" not in rest else None


def statement(said: str) -> str:
    """The line after the last marker, without markdown emphasis, quotes and the final full stop. "" without a marker.
    A box, a fence, a displayed formula and an environment (a matrix) may be longer than a line. LaTeX stays as it is.

    >>> statement("The answer is 4? No: the answer is **(5)**.\\nThat is on page 3."), statement("four")
    ('(5)', '')
    >>> statement("So <answer>Oslo</answer>."), statement(r"\\(\\boxed{\\frac{x+1}{2}}\\)."), statement("【答案】B。")
    ('Oslo', '\\\\frac{x+1}{2}', 'B')
    """
    marker, tail = _after_marker(said)
    tail = visible(tail[AFTER_MARKER.match(tail).end():][:LINE + 1])
    tail = ENVIRONMENT.sub(lambda match: " ".join(match[0].split()), tail)
    block = BLOCK.match(tail)
    if block:
        line = block[block.lastindex]
    elif marker.endswith("{"):
        line = tail
    else:
        line = tail.split("\n", 1)[0]
    if len(line) > LINE:
        return ""
    return unquoted(EMPHASIS.sub(r"\2", line), marker)


def final(said: str) -> str:
    """What follows the last marker, or else everything, without code fences, and without quotes and emphasis around it.

    >>> final("Here they are.\\n[Answer]\\n- tea\\n- salt"), final("**42**"), final('```json\\n{"data": []}\\n```')
    ('- tea\\n- salt', '42', '{"data": []}')
    """
    marker, tail = _after_marker(said)
    text = tail[AFTER_MARKER.match(tail).end():] if marker else said
    if len(text) > WHOLE:
        return ""
    text = re.sub(r"^[ \t]*```\w*[ \t\r]*$", "", text, flags=re.MULTILINE)
    return unquoted(text, marker)


def _after_marker(said: str) -> tuple[str, str]:
    """The last marker with what precedes it on its line, and what follows it, up to its closing tag or brace.
    Two empty texts without a marker."""
    markers = list(MARKER.finditer(said))
    if not markers:
        return "", ""
    last = markers[-1]
    marker = said[:last.start()].rpartition("\n")[2] + last[0]
    tail = said[last.end():]
    if not last[0].endswith("{"):
        return marker, re.split(r"</answer>|\[/answer\]", tail, maxsplit=1, flags=re.I)[0]
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", tail[:WHOLE]):                       # \\{ opens nothing
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return marker, tail[:brace.start()]
    return marker, ""                                                          # a box that is never closed


# 2. Comparison: is it the same?

def matches(answer: str, gold: str) -> bool:
    """Exact match (SQuAD, Rajpurkar et al. 2016) of numbers or normalised texts. An empty answer matches nothing.

    >>> matches("1,000.0", "1000"), matches("20.4", "204"), matches("The U.K.", "uk"), matches("5%", "0.05")
    (True, False, True, True)
    """
    a, b = number(answer), number(gold)
    if a and b:
        return same(a, b)
    if a or b:
        return False
    shorter, longer = sorted(map(len, [answer, gold]))
    if longer > LINE + 10 * shorter:
        return False
    words = normalise(answer)
    if words == normalise(gold):
        return words != ""
    return normalise(answer, articles=True) == normalise(gold, articles=True)  # "B A C" and "b a c"


def near(answer: str, gold: str) -> bool:
    """Equal as numbers up to half a unit of the gold answer's last written digit, but at most 1 % of its value.

    If the gold answer is not a whole number, the tolerance is at least 0.15 %. If it is not a number: `matches`.

    >>> near("20.43", "20.4"), near("20.5", "20.4"), near("-20.4", "20.4"), near("2018", "2019"), near("1.4", "1")
    (True, False, False, False, False)
    """
    a, b = number(answer), number(gold)
    if not b:
        return matches(answer, gold)
    value = abs(b.value)
    slack = min(b.step / 2, value / 100)
    if value.denominator > 1:
        slack = max(slack, value * 15 / 10_000)
    return bool(a) and same(a, b, slack)
