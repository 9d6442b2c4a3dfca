"""The answer parser"""

from hypothesis import strategies as st

FILE = "nanoqwenlong/reward/answers.py"
WRITE = ("said", "final", "_after_marker")
TESTS = ["tests/test_answers.py", "-k", "said or final or statement or markers or last_million or no_text"]
TRAIN = None

PIECES = ["<think>", "</think>", "The answer is ", "<answer>", "</answer>", "\\boxed{", "{", "}", "tea", "salt 7", "\n"]
text = st.lists(st.sampled_from(PIECES), max_size=7).map("".join)
word = st.sampled_from(["tea", "7", "Oslo or so"])
CASES = st.fixed_dictionaries({"text": text, "before": text, "word": word, "other": st.sampled_from(["wool", "8"])})


def answer(m, text, before, word):
    said = [m.said(each) for each in (text, text + "</think>" + before, "</think>" + text)]
    texts = [f"\\boxed{{{{{word}}} {word}}}", f"{text} The answer is {word}{before}", f"\\boxed{{{word}{before}",
             f"<answer>{word}</answer>{text}"]
    return said, [[m._after_marker(each), m.final(each)] for each in texts]


def unfinished(m, text, word):
    """A response whose thinking never ended, or began again after it ended, says nothing: None"""
    assert m.said(text.replace("</think>", "") + word) is None
    assert m.said(text + "</think>" + word + "<think>" + word) is None


def after_the_thoughts(m, text, word):
    """What was said is what follows the last </think>. No thought before it is read, whatever it contains"""
    assert m.said(text + "</think> " + word) == " " + word
    assert m.said("x" * 3_000_000 + "</think>" + word) == word


def last_marker(m, word, other):
    """Of several markers the last one counts"""
    assert m.final(f"The answer is {other}. No: the answer is {word}.") == word
    assert m.final(f"<answer>{other}</answer> or \\boxed{{{word}}}") == word


def no_marker(m, word):
    """Without a marker the whole text is the answer, without quotes, emphasis and fences around it"""
    assert m.final(f' "**{word}**". ') == word and m.final(f"```\n{word}\n```") == word
    assert m._after_marker(word) == ("", "")


def boxes(m, word, other):
    """A box ends at its own closing brace. Braces inside, and escaped ones, do not end it. An open box holds nothing"""
    for inside in (f"{{{word}}} {other}", f"\\frac{{{word}}}{{2}}", f"\\}} {word}"):
        assert m._after_marker(f"So \\boxed{{{inside}}}, not {other}}}")[1] == inside
    assert m._after_marker(f"So \\boxed{{{word}") == ("So \\boxed{", "")


def tags(m, word, other):
    """A closing tag ends the answer"""
    assert m.final(f"<answer>{word}</answer> {other}") == word and m.final(f"[answer]{word}[/ANSWER]{other}") == word


LAWS = (unfinished, after_the_thoughts, last_marker, no_marker, boxes, tags)
WRONG = (
    ("the text after the first </think> is read instead of the last", "text.rpartition(\"</think>\")",
     "text.partition(\"</think>\")"),
    ("a response without </think> is read as a whole", "not in rest else None", "not in rest else text"),
    ("it is not noticed that the thinking began again", "if ended and \"<think>\" not in rest", "if ended"),
    ("the first marker counts", "last = markers[-1]", "last = markers[0]"),
    ("a box ends at the first closing brace", "depth += (brace[0] == \"{\") - (brace[0] == \"}\")",
     "depth -= brace[0] == \"}\""),
    ("a box that is never closed counts", "return marker, \"\"                 ", "return marker, tail  "))
