"""Four habits of reasoning, counted in an answer: quoting, planning, turning back, checking. No torch.

QwenLong-L1 (section 4.3) has an LLM count grounding, subgoal setting, backtracking and verification in each response,
and finds that all four rise with the score during RL. Its prompt is not published, and a count of each answer of each
step should cost nothing; so here a plain rule counts, the same on every machine. Its numbers say whether a habit grows,
not how often an LLM would have seen it.

    grounding       quotes of the document, word for word: runs of 4 words or more, 3 of them no function words
    the other three sentences with one of the cues below (English), once a sentence, thinking and answer alike

Words are those of ROUGE-L (metrics.py), so case and punctuation do not matter; where no spaces are written, in Chinese
and Japanese, a character counts as half a word and as no function word: 8 make a quote. Reading a document and its
answers takes time in proportion to their length, whatever they say.
"""

import re
import unicodedata
from dataclasses import dataclass

from ..data.prompt import document_in
from ..records import Example
from ..reward.measures import CJK, SPELT, WORD

LONG_ENOUGH, TELLING_ENOUGH = 4, 3                             # words of a quote; of them no function words
FUNCTION_WORDS = frozenset("""a about after all also an and any are as at be been before but by can could did do does
    for from had has have he her here his i if in into is it its may might more most must my no not of on only or our
    out over s shall she should so some such t than that the their them then there therefore these they this those to
    under up was we were what when where which who whom whose will with would you your""".split())

# In lower case, with straight apostrophes. ^ is where a sentence begins, behind bullets and opening quotes.
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
OPENING = " \t\r>*#-•\"'“([0123456789.)"                        # what may stand before a sentence's first word
STRAIGHT = str.maketrans("’‘", "''")


@dataclass(frozen=True)
class Patterns:
    """What was counted in one answer.

    >>> count("<think>First, who was shown Oslo? We showed Kim Oslo. Wait, let me check.</think>",
    ...       Document("We sent Oslo silk. We showed Kim Oslo."))
    Patterns(grounding=1, subgoal=1, backtracking=1, verification=1, longest_quote=4, quotes=((34, 52),))
    """

    grounding: int
    subgoal: int
    backtracking: int
    verification: int
    longest_quote: int                  # words of the longest run that answer and document share; it may be a short one
    quotes: tuple[tuple[int, int], ...]  # first character and the one behind the last, of each quote, in order


class Document:
    """The words of a document, ready to be looked for: its suffix automaton (Blumer et al. 1985), every run of words of
    the document being a path from state 0. 60,000 words take about half a second and 30 MB.

    >>> Document("the cat sat on the mat").matches("a cat sat on a mat".split())
    [0, 1, 2, 3, 0, 1]
    """

    def __init__(self, text: str):
        self.follow: list[dict[str, int]] = [{}]               # of each state: word -> state
        self.link, self.length = [-1], [0]                     # of each state: its suffix that ends elsewhere too
        last = 0
        for word, _, _ in placed(text):
            last = self._append(word, last)

    def _append(self, word: str, last: int) -> int:
        """One word more: the state of the whole text so far."""
        follow, link, length = self.follow, self.link, self.length
        new, state = len(follow), last
        follow.append({})
        length.append(length[last] + 1)
        link.append(0)
        while state >= 0 and word not in follow[state]:
            follow[state][word] = new
            state = link[state]
        if state < 0:
            return new
        found = follow[state][word]
        if length[found] > length[state] + 1:                  # its longer runs end here only: they part company
            short, found = found, len(follow)
            follow.append(dict(follow[short]))
            length.append(length[state] + 1)
            link.append(link[short])
            link[short] = found
            while state >= 0 and follow[state].get(word) == short:
                follow[state][word] = found
                state = link[state]
        link[new] = found
        return new

    def matches(self, words: list[str]) -> list[int]:
        """For each word: how many, up to it and with it, stand in the document in this order."""
        follow, link, length = self.follow, self.link, self.length
        state, run, found = 0, 0, []
        for word in words:
            while state and word not in follow[state]:
                state = link[state]
                run = length[state]
            if word in follow[state]:
                state, run = follow[state][word], run + 1
            found.append(run)
        return found


def count(text: str, document: Document) -> Patterns:
    """What one answer shows. Never fails, whatever the text."""
    words = placed(text)
    matches = document.matches([word for word, _, _ in words])
    spans = tuple((words[first][1], words[last][2]) for first, last in quotes([word for word, _, _ in words], matches))
    said = sentences(text, spans)
    cues = {name: sum(bool(cue.search(sentence)) for sentence in said) for name, cue in CUES.items()}
    return Patterns(len(spans), **cues, longest_quote=max(matches, default=0), quotes=spans)


def quotes(words: list[str], matches: list[int]) -> list[tuple[int, int]]:
    """(first, last) word of each quote: runs that the document has and that cannot be made longer at either end. Words
    that two of them share belong to the later one where the earlier is a quote without them too, else to the earlier.
    (So the next sentence's "The" is not taken from it where the document, too, goes on with "The".)

    >>> words = "we showed kim oslo we sent bern tea".split()
    >>> quotes(words, Document("We sent Bern tea. We showed Kim Oslo. We sent Riga tin.").matches(words))
    [(0, 3), (4, 7)]
    """
    weight, telling = [0.0], [0.0]                             # of the words before each place
    for word in words:
        size = 0.5 if CHARACTER.match(word) else 1.0
        weight.append(weight[-1] + size)
        telling.append(telling[-1] + size * (word not in FUNCTION_WORDS))

    def is_quote(first: int, last: int) -> bool:
        return (weight[last + 1] - weight[first] >= LONG_ENOUGH
                and telling[last + 1] - telling[first] >= TELLING_ENOUGH)

    found: list[tuple[int, int]] = []
    for last, run in enumerate(matches):
        first = last + 1 - run
        if last + 1 < len(words) and matches[last + 1] == run + 1 or not is_quote(first, last):
            continue
        if found and found[-1][1] >= first:
            if is_quote(found[-1][0], first - 1):
                found[-1] = (found[-1][0], first - 1)
            elif is_quote(found[-1][1] + 1, last):
                first = found[-1][1] + 1
            else:
                continue
        found.append((first, last))
    return found


CHARACTER = re.compile(f"[{CJK}]")


def placed(text: str) -> list[tuple[str, int, int]]:
    """The words of a text (metrics.words), each with its first character's place and that behind its last.

    >>> placed("Tom's cafe\\u0301, 東京")
    [('tom', 0, 3), ('s', 4, 5), ('café', 6, 11), ('東', 13, 14), ('京', 14, 15)]
    """
    pieces, origin, done = [], [], 0                           # the text in NFKC, and where each character comes from
    for found in SPELT.finditer(text):
        spelt = unicodedata.normalize("NFKC", found[0])
        pieces += [text[done:found.start()], spelt]
        origin += [*range(done, found.start()), found.start(), *[found.end()] * (len(spelt) - 1)]
        done = found.end()
    origin += range(done, len(text) + 1)
    return [(found[0].lower(), origin[found.start()], origin[found.end()])
            for found in WORD.finditer("".join([*pieces, text[done:]]))]


def sentences(text: str, quotes: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """In lower case, without what stands before the first word. Quotes are blanked: their cues are the document's.

    >>> sentences("<think>1. First, Oslo. Wait... no</think>So it is 3.5!", ((17, 21),))
    ['first, ····.', 'wait...', 'no', 'so it is 3.5!']
    """
    pieces, done = [], 0
    for first, end in quotes:
        pieces += [text[done:first], "·" * (end - first)]
        done = end
    text = "".join([*pieces, text[done:]]).lower().translate(STRAIGHT)
    return [said for part in BORDER.split(text) if (said := part.strip().lstrip(OPENING))]


def read_by(example: Example) -> str:
    """The document of an example, wherever it stands: a chat's is what its longest turn has between <text> and </text>,
    as in the prompt of QwenLong-L1, or else that turn, question and instructions included.

    >>> chat = (("user", "Please read.\\n<text>\\nTom is in Oslo.\\n</text>\\nWhere is Tom?"),)
    >>> read_by(Example("a", "", "", "Oslo", messages=chat))
    'Tom is in Oslo.'
    """
    turn = max((content for _, content in example.messages), key=len, default=example.document)
    return document_in(turn) if example.messages else turn
