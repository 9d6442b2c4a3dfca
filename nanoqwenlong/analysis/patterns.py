"""Four habits of reasoning, counted in an answer: quoting, planning, turning back, checking. No torch.

QwenLong-L1 (section 4.3) lets an LLM count them. Here fixed rules count. A quote is a run of words (measures.py), of
which every 4 in a row occur in the document. A CJK character is half a word. The other habits have English cues."""

import re
import unicodedata
from typing import NamedTuple

from ..pretrained.template import document_in
from ..records import Example
from ..reward.measures import CJK, SPELT, WORD

N, CONTENT_WORDS = 4, 3                 # least words of a quote, and those of them that are no function words
FUNCTION_WORDS = frozenset("""a about after all also an and any are as at be been before but by can could did do does
    for from had has have he her here his i if in into is it its may might more most must my no not of on only or our
    out over s shall she should so some such t than that the their them then there therefore these they this those to
    under up was we were what when where which who whom whose will with would you your""".split())
CHARACTER = re.compile(f"[{CJK}]")

# A sentence, in lower case and without bullets and opening quotes, has a habit if a cue matches. "_" is a space.
I_WILL = """(?:let_me|let's|let_us|(?:i|we)(?:'ll|_(?:will|should|must|have_to|need_to|want_to)))
            (?:_(?:first|now|just|also))*"""
AGAIN = "(?:read|think|consider|examine|visit|trace|start|do|calculate|count)"
IT = "(?:that|this|it)"
CUES = {
    "subgoal": rf"""^(?:first|firstly|first_of_all|second|secondly|third|thirdly|next|then|finally|lastly),
      | ^(?:first|next|now|then),?_{I_WILL}_(?!(?:first|now|just|also|check|verify|confirm|validate|make_sure
            |double-?|re-\w+|re(?:{AGAIN}|check))\b)
      | \b{I_WILL}_(?:find|determine|identify|locate|look_for|look_up|calculate|compute|start|begin|break)\b
      | (?:\b{I_WILL}|^to)_(?:figure|work)_out\b | ^to_(?:answer|solve|find|determine|calculate|compute)\b
      | \bstep_(?:\d+|one|two|three|four|five)\b""",
    "backtracking": rf"""(?:^|\b(?:but|no|oh|hmm|so)\b,?_|[-,;:]_|[–—]_?)wait
            (?=[,.:;!?…—]|_[-–—]|$|_(?:a|no|but|so|that|this|it|there|what|maybe|actually|i|let|is)\b)
      | (?:^|^(?:but|no|oh|hmm|wait|and|so),?_|[-–—,;:]_)actually\b
      | \bon_second_thoughts?\b | ^(?:hold_on|scratch_that)\b
      | \b{I_WILL}_(?:re-?{AGAIN}|go_back|start_over|start_again|try_again|look_again|think_again)\b
      | ^(?:but_)?no,_{IT}(?:'s|_is|_was|_can't|_cannot|_doesn't|_isn't)
      | (?:^|[-–—,;:]_|\bbut_){IT}(?:(?:'s|_is|_was)_(?:wrong|incorrect|not_right|not_correct)|_can't_be_right)
      | \bi_(?:made_an?_(?:mistake|error)|was_wrong|mis(?:read|counted|took|calculated|understood))""",
    "verification": rf"""\b(?:double|cross)-?_?check | \b{I_WILL}_(?:check|verify|confirm|make_sure|validate)\b
      | ^to_(?:check|verify|confirm|validate|be_sure|make_sure)\b | ^(?:checking|verifying|confirming)\b
      | ^(?:so_)?(?:this|that|which|it)_(?:confirms|matches|agrees_with|checks_out|is_consistent_with)\b
      | ^(?:is|was)_{IT}_(?:right|correct)\?"""}
CUES = {habit: re.compile(cues.replace("_", r"\ "), re.VERBOSE) for habit, cues in CUES.items()}
BORDER = re.compile(r"""(?<=[.!?…])["'”)\]*]*\s+|[。！？]|\n|</?think>""")             # between sentences
OPENING = " \t\r>*#-•\"'“([0123456789.)"                        # what may precede the first word of a sentence
STRAIGHT = str.maketrans("’‘", "''")


class Patterns(NamedTuple):             # of one answer. Each sentence counts once for a habit
    grounding: int                      # quotes of at least N words
    subgoal: int
    backtracking: int
    verification: int
    longest_quote: int                  # words of the longest quote, or 0
    quotes: tuple[tuple[int, int], ...]  # start and end of each quote in the text, in characters


class Document:                         # 60,000 words take about 10 MB
    def __init__(self, text: str):
        words = [word for word, _, _ in placed(text)]
        self.runs = set(zip(*(words[i:] for i in range(N))))


def count(text: str, document: Document) -> Patterns:
    """The counts of one answer. Never fails.

    >>> count("<think>First, who was shown Oslo? We showed Kim Oslo. Wait, let me check.</think>",
    ...       Document("We sent Oslo silk. We showed Kim Oslo."))
    Patterns(grounding=1, subgoal=1, backtracking=1, verification=1, longest_quote=4, quotes=((34, 52),))
    """
    words = placed(text)
    ranges = quotes([word for word, _, _ in words], document)  # in words
    spans = tuple((words[first][1], words[end - 1][2]) for first, end in ranges)           # in characters
    characters = list(text)
    for first, end in spans:                                   # the cues of a quote are the document's
        characters[first:end] = "·" * (end - first)
    parts = BORDER.split("".join(characters).lower().translate(STRAIGHT))
    sentences = [part.strip().lstrip(OPENING) for part in parts]
    cues = {habit: sum(bool(cue.search(sentence)) for sentence in sentences) for habit, cue in CUES.items()}
    longest = max([end - first for first, end in ranges], default=0)
    return Patterns(len(spans), **cues, longest_quote=longest, quotes=spans)


def quotes(words: list[str], document: Document) -> list[tuple[int, int]]:
    """(first word, end) of each quote. If two overlap, the shared words go to the later one, or to the earlier one if
    that would be too short without them. So the first word of a sentence stays with it."""
    runs = []                                                  # (first, end) of words whose N-word runs all match
    for first in range(len(words) - N + 1):
        if tuple(words[first:first + N]) in document.runs:
            start = runs.pop()[0] if runs and runs[-1][1] == first + N - 1 else first
            runs.append((start, first + N))
    result: list[tuple[int, int]] = []
    for first, end in runs:
        before, taken = result[-1] if result else (0, 0)
        if taken > first and is_quote(words[first:end]):
            if is_quote(words[before:first]):
                result[-1] = (before, first)
            else:
                first = taken
        if is_quote(words[first:end]):
            result.append((first, end))
    return result


def is_quote(words: list[str]) -> bool:
    sizes = [0.5 if CHARACTER.match(word) else 1 for word in words]
    content = [size for word, size in zip(words, sizes) if word not in FUNCTION_WORDS]
    return sum(sizes) >= N and sum(content) >= CONTENT_WORDS


def placed(text: str) -> list[tuple[str, int, int]]:
    """The words of a text (measures.words), each with its start and end in the text."""
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


def read_by(example: Example) -> str:
    """The document of an example. In a chat that is the marked part of the longest turn, or all of that turn."""
    longest = max((content for _, content in example.messages or ()), key=len, default="")
    return document_in(longest) if example.messages else example.document
