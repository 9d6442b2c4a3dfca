"""Four habits of reasoning, counted in an answer: quoting, planning, turning back, checking. No torch.

QwenLong-L1 (section 4.3) lets an LLM count grounding, subgoal setting, backtracking and verification in each answer.
All four rise with the score during RL. That prompt is not published, and counting every answer should cost nothing, so
here a fixed rule counts. The numbers show whether a habit grows, not how often an LLM would see it.

    grounding       quotes of the document, word for word: at least 4 words, at least 3 of them no function words
    the others      sentences with one of the English cues below, counted once per sentence

A quote is a run of words in which every 4 consecutive words occur in the document. So a run may cross from one passage
to another where they share 3 words. Words are those of ROUGE-L (measures.py): case and punctuation do not matter. A
Chinese or Japanese character counts as half a word. Time and memory are proportional to the number of words.
"""

import re
import unicodedata
from dataclasses import dataclass

from ..data.prompt import document_in
from ..records import Example
from ..reward.measures import CJK, SPELT, WORD

N = 4                                                          # words of a quote
CONTENT_WORDS = 3                                              # words of a quote that are no function words
FUNCTION_WORDS = frozenset("""a about after all also an and any are as at be been before but by can could did do does
    for from had has have he her here his i if in into is it its may might more most must my no not of on only or our
    out over s shall she should so some such t than that the their them then there therefore these they this those to
    under up was we were what when where which who whom whose will with would you your""".split())
CHARACTER = re.compile(f"[{CJK}]")

# Sentences are in lower case, with straight apostrophes. ^ is their start, after bullets and opening quotes.
I_WILL = r"""(?:let\ me|let's|let\ us|(?:i|we)(?:'ll|\ (?:will|should|must|have\ to|need\ to|want\ to)))
             (?:\ (?:first|now|just|also))*"""
CUES = {
    "subgoal": rf"""
        ^(?:first|firstly|first\ of\ all|second|secondly|third|thirdly|next|then|finally|lastly),
      | ^(?:first|next|now|then),?\ {I_WILL}\ (?!(?:first|now|just|also|check|verify|confirm|validate|make\ sure
            |double-?|re-\w+|re(?:read|think|consider|examine|visit|trace|start|do|calculate|count|check))\b)
      | \bstep\ (?:\d+|one|two|three|four|five)\b
      | ^to\ (?:answer|solve|find|determine|calculate|compute|work\ out|figure\ out)\b
      | \b{I_WILL}\ (?:find|determine|identify|locate|look\ (?:for|up)|figure\ out|work\ out|calculate|compute|start
            |begin|break)\b""",
    "backtracking": rf"""
        (?:^|\b(?:but|no|oh|hmm|so)\b,?\ |[-,;:]\ |[–—]\ ?)wait
            (?=[,.:;!?…—]|\ [-–—]|$|\ (?:a|no|but|so|that|this|it|there|what|maybe|actually|i|let|is)\b)
      | (?:^|^(?:but|no|oh|hmm|wait|and|so),?\ |[-–—,;:]\ )actually\b
      | \bon\ second\ thoughts?\b | ^(?:hold\ on|scratch\ that)\b
      | \b{I_WILL}\ (?:re-?(?:read|think|consider|examine|visit|trace|start|do|calculate|count)\b|go\ back\b
            |start\ (?:over|again)\b|(?:try|look|think)\ again\b)
      | ^(?:but\ )?no,\ (?:that|this|it)(?:'s|\ is|\ was|\ can't|\ cannot|\ doesn't|\ isn't)
      | (?:^|[-–—,;:]\ |\bbut\ )(?:that|this|it)(?:(?:'s|\ is|\ was)\ (?:wrong|incorrect|not\ (?:right|correct))
            |\ can't\ be\ right)
      | \bi\ (?:made\ an?\ (?:mistake|error)|was\ wrong|mis(?:read|counted|took|calculated|understood))""",
    "verification": rf"""
        \b(?:double|cross)-?\ ?check | \b{I_WILL}\ (?:check|verify|confirm|make\ sure|validate)\b
      | ^to\ (?:check|verify|confirm|validate|be\ sure|make\ sure)\b | ^(?:checking|verifying|confirming)\b
      | ^(?:so\ )?(?:this|that|which|it)\ (?:confirms|matches|agrees\ with|checks\ out|is\ consistent\ with)\b
      | ^(?:is|was)\ (?:that|this|it)\ (?:right|correct)\?""",
}
CUES = {name: re.compile(cues, re.VERBOSE) for name, cues in CUES.items()}
BORDER = re.compile(r"""(?<=[.!?…])["'”)\]*]*\s+|[。！？]|\n|</?think>""")             # between sentences
OPENING = " \t\r>*#-•\"'“([0123456789.)"                        # what may precede the first word of a sentence
STRAIGHT = str.maketrans("’‘", "''")


@dataclass(frozen=True)
class Patterns:
    """The counts of one answer.

    >>> count("<think>First, who was shown Oslo? We showed Kim Oslo. Wait, let me check.</think>",
    ...       Document("We sent Oslo silk. We showed Kim Oslo."))
    Patterns(grounding=1, subgoal=1, backtracking=1, verification=1, longest_quote=4, quotes=((34, 52),))
    """

    grounding: int
    subgoal: int
    backtracking: int
    verification: int
    longest_quote: int                  # words of the longest quote, or 0
    quotes: tuple[tuple[int, int], ...]  # start and end of each quote in the text, in characters


class Document:
    """The runs of N words of a document. 60,000 words take about 10 MB."""

    def __init__(self, text: str):
        words = [word for word, _, _ in placed(text)]
        self.runs = set(zip(*(words[i:] for i in range(N))))


def count(text: str, document: Document) -> Patterns:
    """The counts of one answer. Never fails, whatever the text."""
    words = placed(text)
    ranges = quotes([word for word, _, _ in words], document)
    spans = tuple((words[first][1], words[end - 1][2]) for first, end in ranges)
    said = sentences(text, spans)
    cues = {name: sum(bool(cue.search(sentence)) for sentence in said) for name, cue in CUES.items()}
    longest = max((end - first for first, end in ranges), default=0)
    return Patterns(len(spans), **cues, longest_quote=longest, quotes=spans)


def quotes(words: list[str], document: Document) -> list[tuple[int, int]]:
    """(first word, end) of each quote. If two overlap, the shared words go to the later one, or to the earlier one if
    that would be too short without them. So the "The" that begins the next sentence stays with the next sentence.

    >>> words = "we showed kim oslo we sent bern tea".split()
    >>> quotes(words, Document("We sent Bern tea. We showed Kim Oslo. We sent Riga tin."))
    [(0, 4), (4, 8)]
    """
    runs = []                                                  # [first, end] of words whose N-word runs all match
    for first in range(len(words) - N + 1):
        if tuple(words[first:first + N]) in document.runs:
            if runs and runs[-1][1] == first + N - 1:
                runs[-1][1] += 1
            else:
                runs.append([first, first + N])
    found: list[tuple[int, int]] = []
    for first, end in runs:
        if not is_quote(words[first:end]):
            continue
        if found and found[-1][1] > first:
            if is_quote(words[found[-1][0]:first]):
                found[-1] = (found[-1][0], first)
            else:
                first = found[-1][1]
        if is_quote(words[first:end]):
            found.append((first, end))
    return found


def is_quote(words: list[str]) -> bool:
    """Whether so many words are enough for a quote."""
    sizes = [0.5 if CHARACTER.match(word) else 1 for word in words]
    content = [size for word, size in zip(words, sizes) if word not in FUNCTION_WORDS]
    return sum(sizes) >= N and sum(content) >= CONTENT_WORDS


def placed(text: str) -> list[tuple[str, int, int]]:
    """The words of a text (measures.words), each with its start and end in the text.

    >>> placed("Tom's cafe\\u0301, 東京")
    [('tom', 0, 3), ('s', 4, 5), ('café', 6, 11), ('東', 13, 14), ('京', 14, 15)]
    """
    pieces, origin, done = [], [], 0                           # the text in NFKC, and the place of each character
    for match in SPELT.finditer(text):
        start, end = match.span()
        spelt = unicodedata.normalize("NFKC", match[0])
        pieces += [text[done:start], spelt]
        origin += [*range(done, start), start, *[end] * (len(spelt) - 1)]
        done = end
    origin += range(done, len(text) + 1)
    normal = "".join([*pieces, text[done:]])
    return [(match[0].lower(), origin[match.start()], origin[match.end()]) for match in WORD.finditer(normal)]


def sentences(text: str, quotes: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """The sentences in lower case, from their first word on. Quotes are blanked, because their cues are the document's.

    >>> sentences("<think>1. First, Oslo. Wait... no</think>So it is 3.5!", ((17, 21),))
    ['first, ····.', 'wait...', 'no', 'so it is 3.5!']
    """
    pieces, done = [], 0
    for first, end in quotes:
        pieces += [text[done:first], "·" * (end - first)]
        done = end
    text = "".join([*pieces, text[done:]]).lower().translate(STRAIGHT)
    stripped = [part.strip().lstrip(OPENING) for part in BORDER.split(text)]
    return [sentence for sentence in stripped if sentence]


def read_by(example: Example) -> str:
    """The document of an example. In a chat that is the marked part of the longest turn, or all of that turn.

    >>> chat = (("user", "Please read.\\n<text>\\nTom is in Oslo.\\n</text>\\nWhere is Tom?"),)
    >>> read_by(Example("a", "", "", "Oslo", messages=chat))
    'Tom is in Oslo.'
    """
    if not example.messages:
        return example.document
    return document_in(max((content for _, content in example.messages), key=len))
