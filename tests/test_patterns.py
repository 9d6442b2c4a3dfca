"""The counts of reasoning patterns: quotes against brute force, cues in sentences written for them, near misses."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from nanoqwenlong import toy
from nanoqwenlong.analysis.patterns import CHARACTER, FUNCTION_WORDS, Document, Patterns, count, placed, quotes, read_by
from nanoqwenlong.records import Example
from nanoqwenlong.reward import measures

WORDS = st.lists(st.sampled_from("the of oslo kim tea 東 京".split()), max_size=24)
NOTES = Document("We sent Bern milk. We showed Mia Minsk. We sent Oslo silk. We showed Kim Oslo. We sent Riga soap.")


def within(run: list[str], document: list[str]) -> bool:
    return any(document[i:i + len(run)] == run for i in range(len(document) - len(run) + 1))


def long_enough(run: list[str]) -> bool:
    sizes = [0.5 if CHARACTER.match(word) else 1 for word in run]
    return sum(sizes) >= 4 and sum(size for word, size in zip(run, sizes) if word not in FUNCTION_WORDS) >= 3


def runs_of(words: list[str], document: list[str]) -> list[range]:
    """The longest runs in which every 4 consecutive words occur in the document, by trying every run."""
    inside = [range(i, j) for i in range(len(words)) for j in range(i + 4, len(words) + 1)
              if all(within(words[k:k + 4], document) for k in range(i, j - 3))]
    return [run for run in inside if not any(set(run) < set(other) for other in inside)]


# Quotes

@settings(max_examples=80)
@given(st.lists(st.sampled_from("the oslo kim 東".split()), max_size=30), st.data())
def test_quotes_are_those_of_brute_force(document, data):
    """The answer is stitched from pieces of the document, so that runs overlap."""
    place = st.integers(0, len(document))
    words = [word for i, n in data.draw(st.lists(st.tuples(place, st.integers(1, 12)), max_size=5))
             for word in document[i:i + n]]
    expected: list[list[int]] = []
    for run in runs_of(words, document):
        if not long_enough([words[i] for i in run]):
            continue
        before = [] if not expected else expected[-1]
        alone, rest = [i for i in before if i not in run], [i for i in run if i not in before]
        if len(rest) == len(run):
            expected.append(rest)
        elif long_enough([words[i] for i in alone]):
            expected[-1:] = [alone, list(run)]
        elif long_enough([words[i] for i in rest]):
            expected.append(rest)
    found = quotes(words, Document(" ".join(document)))
    assert found == [(run[0], run[-1] + 1) for run in expected]


@given(WORDS, st.integers(0, 20), st.integers(4, 24))
def test_a_passage_of_the_document_is_within_one_quote(document, start, length):
    """Whatever words surround it. A passage that is too short, or has too many function words, is no quote."""
    passage = document[start:start + length]
    found = quotes(["bern", *passage, "riga"], Document(" ".join(document)))
    assert found == ([(1, 1 + len(passage))] if long_enough(passage) else [])


def test_a_quote_may_cross_from_one_passage_to_another_where_they_share_three_words():
    """The price of looking at 4 words at a time: the run is not in the document, but each 4 of its words are."""
    document = Document("Kim sold tea from Oslo to Bern. Mia took tea from Oslo by rail.")
    assert quotes("kim sold tea from oslo by rail".split(), document) == [(0, 7)]
    assert quotes("kim sold tea from riga".split(), document) == [(0, 4)]


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_a_document_takes_memory_in_proportion_to_its_length(words):
    assert len(Document(" ".join(words)).runs) <= max(0, len(words) - 3)


def test_time_is_in_proportion_to_length():
    """The most repetitive texts, with and without a match at every word. Quadratic time would take hours."""
    document = Document("kim tea oslo bern " * 15000)
    assert count("kim tea oslo bern " * 15000, document).longest_quote == 60000
    assert count("kim tea oslo bern riga " * 12000, document).grounding == 12000


@pytest.mark.parametrize("text, found", [
    ("Well, WE showed -- Kim: Oslo!", ["WE showed -- Kim: Oslo"]),                 # case and punctuation are ignored
    ("We showed Kim Oslo. We sent Oslo silk.", ["We showed Kim Oslo", "We sent Oslo silk"]),  # not "... Oslo. We sent"
    ("We sent Oslo silk. We showed Kim Oslo.", ["We sent Oslo silk. We showed Kim Oslo"]),       # together, as there
    ("We showed Kim silk.", []), ("showed Kim Oslo", []), ("Oslo. We sent", []), ("", []),
    ("Oslo. We sent Riga", ["Oslo. We sent Riga"])])
def test_quotes_are_found_and_end_where_they_should(text, found):
    counted = count(text, NOTES)
    assert [text[first:end] for first, end in counted.quotes] == found and counted.grounding == len(found)


def test_words_that_two_quotes_share_are_counted_once():
    document = Document("Oslo Kim tea silk. Kim tea silk Bern Riga Lima Mia.")
    def found(text):
        return quotes(text.split(), document)
    assert found("oslo kim tea silk bern riga lima mia") == [(0, 8)]              # one run: they share three words
    document = Document("Oslo Kim tea silk. Tea silk Bern Riga Lima Mia.")
    assert found("oslo kim tea silk bern riga lima mia") == [(0, 4), (4, 8)]       # "oslo kim" alone would be none
    assert found("oslo kim tea silk bern riga lima") == [(0, 4)]                   # nor "bern riga lima"
    assert found("mia oslo kim tea silk bern riga lima mia")[0] == (1, 5)


def test_the_longest_quote_may_run_over_sentences():
    assert count("Kim Oslo", NOTES).longest_quote == 0 and count("tea", NOTES).longest_quote == 0
    assert count("We sent Oslo silk. We showed Kim Oslo. Yes.", NOTES).longest_quote == 8
    assert count("anything at all", Document("")) == Patterns(0, 0, 0, 0, 0, ())


def test_function_words_alone_are_no_quote():
    document = Document("It is one of those that he would have been in by then, and Paris too.")
    assert count("one of those that he would have been in", document).grounding == 0
    assert count("therefore, the answer is Oslo", Document("Therefore, the answer is X.")).grounding == 0


def test_chinese_and_japanese_characters_are_half_words():
    document = Document("东京是日本的首都，人口约一千四百万。")
    assert count("文中说：东京是日本的首都。", document).grounding == 1                # eight
    assert count("东京是日本的首", document).grounding == 0                           # seven
    assert count("인구는 약 천사백만 명이다", Document("도쿄의 인구는 약 천사백만 명이다")).longest_quote == 4   # Korean has spaces


@given(st.text(alphabet="ab é\u0301ｅＡ，東ｶﾞİß.1_'\n", max_size=40))
def test_words_are_those_of_rouge_and_stand_where_they_are_said_to(text):
    found = placed(text)
    if "İ" not in text:                                        # whose lower case is two characters
        assert [word for word, _, _ in found] == measures.words(text)
    ends = [0, *(place for _, first, end in found for place in (first, end)), len(text)]
    assert ends == sorted(ends)
    for word, first, end in found:
        assert measures.words(text[first:end]) == [word] or "İ" in text


# Cues

SENTENCES = [
    ("subgoal", ["First, find the town.", "Next, the price.", "Step 2: add them.", "To answer it, I need both.",
                 "I need to find who was shown Oslo.", "Let's break it down.", "- Finally, divide.",
                 "We have to compute it.", "Now I'll look at the second table.", "Now let me read the notes."],
     ["This is the first time.", "It stood next to the river.", "They took a step back.", "He came second.",
      "They find it hard.", "We then left.", "Footsteps 2 and 3."]),
    ("backtracking", ["Wait, that is another town.", "But wait.", "Hmm, wait - Oslo came later.",
                      "So it is tea - wait, no.", "Tea—wait—no.", "“Actually, 1999.”", "It is Oslo; actually Bern.",
                      "On second thought, no.", "Let me think again.",
                      "Let me re-read the letter.", "I should go back to the notes.", "No, that's the other one.",
                      "Now I have to re-read it.",
                      "I misread the date.", "But that can't be right.", "That’s wrong.", "Hold on."],
     ["They await the train.", "Wait times rose by 5 %.", "You wait for the train.", "The actual price is 5.",
      "The company actually grew.", "Nobody was wrong.", "No town that is small.", "A second thought came.",
      "Factually, it is 5.", "They go back to Oslo."]),
    ("verification", ["Let me check.", "To verify, add them up.", "I double-checked it.",
                      "Let us now confirm the date.", "This matches the table.", "Checking: 2 + 3 = 5.",
                      "Is that right?", "We should make sure.", "Now let me just check.",
                      "Then I will also verify it."],
     ["He sent a check.", "The board voted to confirm him.", "A verified account.", "The matches were lit.",
      "Checkers is a game.", "That is right.", "Confirmed in 1990."])]
NAMES = [name for name, _, _ in SENTENCES]


@pytest.mark.parametrize("name, sentence, expected", [
    (name, sentence, expected) for name, yes, no in SENTENCES for expected, group in ((1, yes), (0, no))
    for sentence in group])
def test_cues(name, sentence, expected):
    counted = count(f"The text says so. {sentence} Kim was there.", Document(""))
    assert {other: getattr(counted, other) for other in NAMES} == {**dict.fromkeys(NAMES, 0), name: expected}


def test_a_sentence_counts_once_for_each_pattern():
    text = "<think>Wait, wait, actually no. First, step 1: let me check it, now let me verify</think>Wait.\nWait!"
    counted = count(text, Document(""))
    assert (counted.subgoal, counted.backtracking, counted.verification) == (1, 3, 1)


def test_cues_of_the_document_are_not_the_answers():
    document = Document("First, let me check the oven, wrote Kim.")
    assert count('It says "First, let me check the oven". Wait, no.', document) == Patterns(1, 0, 1, 0, 6, ((9, 37),))


@given(st.text(max_size=80), st.text(max_size=80))
@example("", "İ")
@example("\u0301", "a\u0301\u0301\u0301\u0301\u0301 ｶﾞ")
def test_no_text_makes_it_fail(document, text):
    count(text, Document(document))
    words = [word for word, _, _ in placed(document)]
    assert count(document, Document(document)).longest_quote == (len(words) if long_enough(words) else 0)


# The document

def test_the_document_of_a_chat_is_what_stands_between_its_tags():
    def chat(*turns):
        return read_by(Example("a", "", "", "x", messages=turns))
    long = "<text>\na <text> b\n</text> c\n</text>\n\nWhere?"
    assert chat(("system", "Be brief."), ("user", long)) == "a <text> b\n</text> c"
    assert chat(("user", "Oslo is a town. Where?")) == "Oslo is a town. Where?"
    assert chat(("user", "</text> Oslo <text> Where?")) == "</text> Oslo <text> Where?"
    assert read_by(Example("a", "An <text>old</text> note.", "", "x")) == "An <text>old</text> note."


def test_the_toy_tasks_worked_answers_quote_their_two_sentences():
    for made in toy.examples(20, toy.LONG, seed=1):
        counted = count(made.response, Document(read_by(made)))
        said = [made.response[first:end] for first, end in counted.quotes]
        assert counted.grounding == made.response.split("</think>")[0].count("."), (made.response, said)
