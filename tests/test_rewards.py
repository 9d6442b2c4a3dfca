"""What counts as an answer and what as right: a table to read, then the promises behind it."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from nanoqwenlong.records import Example
from nanoqwenlong.rewards import extract, matches, normalise, number, score, score_all


def reward(text, *gold) -> float:
    return score(text, Example("e", "", "", gold)).reward


def stated(answer: str) -> str:
    return f"<think>Let me look.</think> Therefore, the answer is {answer}."


# Extraction

@pytest.mark.parametrize("text, answer", [
    ("<think>x</think> Therefore, the answer is Oslo.", "Oslo"),
    ("<think>x</think>The answer is Oslo", "Oslo"),
    ("<think>x</think> THE ANSWER IS Oslo", "Oslo"),
    ("</think> the answer is Oslo", "Oslo"),                                   # the template opens <think>
    ("the answer is Oslo", ""),                                                # thinking never ended
    ("<think>the answer is Oslo</think>", ""),                                 # said while thinking only
    ("<think>x</think> Oslo", ""),
    ("<think>x</think>", ""), ("</think>", ""), ("", ""),
    ("<think>x</think> the answer is", ""), ("<think>x</think> the answer is .", ""),
    ("<think>x</think> the answer is:", ""), ("<think>x</think> the answer is\n\n", ""),
    ("<think>a</think> the answer is Rome.</think> the answer is Oslo.", "Oslo"),      # behind the last </think>
    ("<think>a</think> the answer is Rome.</think> Oslo.", ""),
    ("</think> the answer is Rome. No: the answer is Oslo.", "Oslo"),          # the last one
    ("</think> the answer is Rome.\nThe answer is Oslo.", "Oslo"),
    ("</think> the answer is **Oslo**.", "Oslo"), ("</think> the answer is **Oslo.**", "Oslo"),
    ("</think> **The answer is** Oslo", "Oslo"), ("</think> **The answer is: Oslo**", "Oslo"),
    ("</think> the answer is: Oslo", "Oslo"), ("</think> the answer is:\n\nOslo", "Oslo"),
    ("</think> the answer is\r\nOslo\r\n", "Oslo"),
    ("</think> the answer is Oslo.\nIt lies in Norway.", "Oslo"),              # one line
    ("</think> the answer is Oslo.  \n", "Oslo"), ("</think> the answer is Oslo...", "Oslo"),
    ("</think> the answer is 20.4", "20.4"), ("</think> the answer is 20.4.", "20.4"),
    ("</think> the answer is (Oslo).", "(Oslo)"), ("</think> the answer is U.S.", "U.S"),
    ("</think> the answer is .5", ".5"), ("</think> the answer is -5", "-5"),
    ("</think> the answer is 5*3", "5*3"),                                     # not 53
    ("</think> the answer is 東京。", "東京。"), ("</think> the answer is São Paulo.", "São Paulo")])
def test_extract(text, answer):
    assert extract(text) == answer


# Comparison: (answer, gold, right?)

@pytest.mark.parametrize("answer, gold, right", [
    # the same words
    ("Oslo", "Oslo", True), ("oslo", "OSLO", True), ("the Beatles", "Beatles", True), ("An  apple", "apple", True),
    ('"Oslo"', "Oslo", True), ("(Oslo)", "Oslo", True), ("U.S.", "US", True),
    ("U.S", "U.S.", True), ("well-known", "well known", True), ("Smith, John", "Smith John", True),
    ("U.S. co-op", "US co-op", True), ("Marie\u00a0Curie", "Marie Curie", True), ("p.m.", "pm", True),
    ("Martin’s Bar", "Martin's Bar", True), ("“Oslo”", "Oslo", True),
    ("É", "é", True), ("東京", "東京", True), ("naïve", "naive", False),
    # one-letter answers (multiple choice)
    ("A", "A", True), ("(A)", "A", True), ("a", "A", True), ("B", "A", False), ("A", "B", False), ("C", "C", True),
    # hostile: what the released rule pays for
    ("!", "Marie Curie", False), (":", "Marie Curie", False), ("", "Marie Curie", False), (" ", "Marie Curie", False),
    ("a", "Marie Curie", False), ("the", "Marie Curie", False), ("the", "The Hague", False), (".", "5", False),
    ("not marie curie", "Marie Curie", False), ("Marie", "Marie Curie", False), ("Curie", "Marie Curie", False),
    ("Marie Curie and Pierre Curie", "Marie Curie", False), ("Marie Curie or Einstein", "Marie Curie", False),
    ("1, 2, 3, 4 or 5", "3", False), ("Oslo, Bern, Rome", "Bern", False), ("the answer", "Oslo", False),
    ("m", "Marie Curie", False), ("mariecurie", "Marie Curie", False), ("anything", "", False), ("", "", False),
    ("!", "!", False), ("the", "", False), ("a", "the", False), ("What is the capital?", "Oslo", False),
    ("yes", "no", False), ("yes and no", "yes", False), ("unknown", "Oslo", False), ("None", "0", False),
    # numbers
    ("1,000", "1000.0", True), ("1000", "1,000", True), ("-5", "5", False), ("−5", "-5", True), ("-5", "-5.0", True),
    ("+5", "5", True), ("1e3", "1000", True), ("1.5e3", "1500", True), (".5", "0.5", True), ("20.4", "204", False),
    ("20.4", "20.40", True), ("007", "7", True), ("(5)", "5", True), ("5", "5.", True), ("1.000.000", "1000000", False),
    ("12,34", "1234", False), ("1,5", "1.5", False), ("1,5", "15", False), ("1 000", "1000", False),
    ("0.1", "0.10000000000000001", False), ("5", "15", False), ("15", "5", False), ("5 5", "5", False),
    ("five", "5", False), ("5 or 6", "5", False), ("nan", "5", False), ("inf", "5", False), ("١", "1", False),
    ("1/2", "12", False), ("2*6", "26", False), ("5%", "5", False), ("$5", "5", False), ("5%", "5 %", True),
    ("$5.50", "$5.50", True), ("5 km", "5", False), ("5:30", "530", False),
    # numbers inside words: what makes the number is kept
    ("20.4 km", "204 km", False), ("-5 km", "5 km", False), ("1,000 km", "1000 km", True), ("5.0 km", "5 km", False),
    ("1/2 km", "12 km", False), ("1,5 km", "15 km", False), ("v1.2", "v12", False), ("pages 4-5", "pages 45", False),
    ("No. 5", "No 5", True), ("1999-2000", "1999 2000", True)])
def test_matches(answer, gold, right):
    assert matches(answer, gold) is right


def test_a_number_is_nothing_but_a_number():
    assert [str(number(x)) for x in ("5", "-5", "1,234,567.50", ".5", "1e3", " (7) ")] == [
        "5", "-5", "1234567.50", "0.5", "1E+3", "7"]
    for text in ("", " ", ".", "-", "+", "e5", "()", "--5", "1,23", "1,2345", "1.2.3", "5 km", "0x10", "1_000", "½",
                 "五", "nan", "inf", "Infinity", "1e99999", "5\n6", "1e", "e"):
        assert number(text) is None, text


def test_very_long_numbers_are_compared_exactly_and_fast():
    assert matches("1" * 5000, "1" * 5000) and not matches("1" * 5000, "1" * 4999 + "2")
    assert not matches("1," * 5000 + "x", "1")
    assert not matches("1e999", "1e998") and matches("1e999", "10e998")


def test_normalise_leaves_nothing_of_articles_and_punctuation():
    assert normalise("  The  Quick, 'brown' fox. ") == "quick brown fox"
    assert normalise("!?:;") == normalise("") == ""


# Scores

def test_any_accepted_answer_counts():
    for answer in ("Oslo", "Kristiania", "oslo"):
        assert reward(stated(answer), "Oslo", "Kristiania") == 1.0
    assert reward(stated("Oslo Kristiania"), "Oslo", "Kristiania") == 0.0
    assert reward(stated("Oslo")) == 0.0                                       # no accepted answer at all


def test_a_score_says_what_it_saw():
    got = score(stated("**Oslo**"), Example("e", "", "", "oslo"))
    assert (got.reward, got.rule, got.judge, got.answer) == (1.0, 1.0, None, "Oslo")
    got = score("Oslo", Example("e", "", "", "oslo"))
    assert (got.reward, got.rule, got.judge, got.answer) == (0.0, 0.0, None, "")


def test_score_all_keeps_the_order():
    examples = [Example("a", "", "", "Oslo"), Example("b", "", "", "Bern")]
    texts = [[stated("Oslo"), stated("Bern")], [stated("Bern"), "Bern"]]
    assert [[s.reward for s in row] for row in score_all(texts, examples)] == [[1, 0], [1, 0]]


anything = st.one_of(st.text(), st.lists(st.sampled_from(
    ("</think>", "<think>", "the answer is", " ", ".", "-", "1", ",", "000", "e5", "(", ")", "*", "\n", "a", "Oslo",
     "−", "\ud800", "\x00", "İ", "٣"))).map("".join))


@settings(max_examples=150, deadline=None)
@given(anything, anything, st.booleans())
def test_score_never_raises(text, gold, state_it):
    assert reward(stated(text) if state_it else text, gold) in (0.0, 1.0)


@settings(max_examples=150, deadline=None)
@given(st.text("abcdefgthTHEAan0123456789 ", min_size=1).filter(str.strip))
@example("A")
@example("the a")
@example("007 a")
def test_the_gold_answer_stated_properly_always_earns_one(gold):
    for text in (stated(gold), stated(f"**{gold}**"), stated(gold.upper()), f"</think>The answer is: {gold}\nDone."):
        assert reward(text, gold) == 1.0


@settings(max_examples=200, deadline=None)
@given(st.text("abcd0159 .,-", min_size=1), st.text("abcd0159 .,-", min_size=1))
def test_matching_is_symmetric(a, b):
    assert matches(a, b) == matches(b, a)


@settings(max_examples=300, deadline=None)
@given(st.integers(-10**6, 10**6), st.integers(-10**6, 10**6), st.booleans(), st.integers(0, 3))
def test_numbers_match_exactly_when_they_are_equal(a, b, commas, places):
    for x, y in ((a, b), (a, a), (a, -a), (a, 10 * a)):
        assert matches(f"{x:,}" if commas else f"{x}", f"{y}.{'0' * places}" if places else f"{y}") == (x == y)


@pytest.mark.parametrize("said", ['"42".', '"42."', "`42`", "“42”.", "'42'", "**42**."])
def test_quotes_around_an_answer_do_not_count(said):
    """The prompt shows the sentence in quotes, so models copy them."""
    assert score(f"<think>hm</think> Therefore, the answer is {said}", Example("a", "", "", "42")).reward == 1
