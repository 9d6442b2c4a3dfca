"""The nine measures against independent computations of the same definitions, and the holes of the
released code."""

import json
import math as math_library
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from nanoqwenlong.records import Example
from nanoqwenlong.reward import math_worker, measures
from nanoqwenlong.reward.formulas import verifier
from nanoqwenlong.reward.math_worker import Verifier, Worker
from nanoqwenlong.reward.measures import accuracy, em, f1, iou, math, ndcg, pairwise, rouge_l, sub_em
from nanoqwenlong.rewards import gold_problem, score_all
from tests import formulas

MEASURES = (em, accuracy, math, f1, sub_em, ndcg, pairwise, iou, rouge_l)
LISTS = (f1, sub_em, ndcg, pairwise)
WORDS = "tea salt oil rice rope wool silk iron coal grain pearl amber".split()


def lines(things) -> str:
    return "\n".join(things)


def list_cases(number: int, repeats: bool = False) -> list[tuple[list[str], list[str]]]:
    """Pairs (answer, gold). An answer holds some of the gold items and some wrong ones, in some order."""
    draw, cases = random.Random(number), []
    for _ in range(number):
        gold = draw.sample(WORDS[:8], draw.randint(2, 7))
        answer = draw.sample(gold, draw.randint(0, len(gold))) + draw.sample(WORDS[8:], draw.choice((0, 0, 1, 3)))
        if draw.random() < 0.7:
            draw.shuffle(answer)
        if repeats:
            answer += draw.choices(answer, k=draw.randint(0, 2)) if answer else []
            gold += draw.choices(gold, k=draw.choice((0, 0, 1)))
        cases.append((answer, gold))
    return cases


# Against other computations of the same

def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    for a, g in list_cases(200, repeats=True):
        found = [item for item in dict.fromkeys(a) if item in g]
        precision, recall = len(found) / max(1, len({*a})), len(found) / len({*g})
        expected = 2 * precision * recall / (precision + recall) if found else 0
        assert f1(lines(a), lines(g)) == pytest.approx(expected), (a, g)


def test_f1_is_that_of_scikit_learn():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    cases = list_cases(200, repeats=True)
    guess, truth = ([[word in side for side in sides] for word in WORDS] for sides in zip(*cases))
    theirs = f1_score(truth, guess, average=None, zero_division=0)
    assert [f1(lines(a), lines(g)) for a, g in cases] == pytest.approx(theirs.tolist())


def test_sub_em_is_recall_or_precision_whichever_is_less():
    for a, g in list_cases(200, repeats=True):
        left, found = list(a), 0
        for item in g:
            if item in left:
                left.remove(item)
                found += 1
        assert sub_em(lines(a), lines(g)) == pytest.approx(min(found / len(g), found / len(a)) if a else 0), (a, g)
        if not set(a) - set(g) and len(a) == len(set(a)) and len(g) == len(set(g)):
            assert sub_em(lines(a), lines(g)) == sum(item in a for item in g) / len(g)


def test_ndcg_is_its_definition():
    for a, g in list_cases(200, repeats=False):
        worth = {item: len(g) - place for place, item in enumerate(g)}
        gains = [sum(worth.get(item, 0) / math_library.log2(place + 2) for place, item in enumerate(ranked[:len(g)]))
                 for ranked in (a, g)]
        assert ndcg(lines(a), lines(g)) == pytest.approx(gains[0] / gains[1]), (a, g)


def test_ndcg_is_that_of_scikit_learn():
    """Which ranks by score: an item's score is its place from the end. A missing item comes after k items worth
    nothing."""
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    for a, g in list_cases(200):
        k = len(g)
        ranked = [*a, *["nothing"] * k, *[item for item in g if item not in a]]
        worth = [k - g.index(item) if item in g else 0 for item in ranked]
        theirs = ndcg_score([worth], [list(range(len(ranked), 0, -1))], k=k)
        assert ndcg(lines(a), lines(g)) == pytest.approx(theirs), (a, g)


def test_pairwise_is_a_count_over_all_pairs():
    for a, g in list_cases(200, repeats=True):
        marked = []
        for side in (g, a):
            seen = Counter()
            marked.append([f"{item} {seen.update([item]) or seen[item]}" for item in side])
        g_items, a_items = marked
        everything = list(dict.fromkeys(g_items + a_items))
        right = sum(x in g_items and y in g_items and x in a_items and y in a_items
                    and (g_items.index(x) < g_items.index(y)) == (a_items.index(x) < a_items.index(y))
                    for x, y in combinations(everything, 2))
        assert pairwise(lines(a), lines(g)) == pytest.approx(right / len(list(combinations(everything, 2)))), (a, g)


def test_iou_is_a_count_of_rows():
    draw = random.Random(0)
    for _ in range(200):
        a, g = ([(draw.choice(WORDS[:3]), draw.randint(1, 3)) for _ in range(draw.randint(0, 5))] for _ in "ag")
        x, y = Counter(a), Counter(g)
        expected = (x & y).total() / (x | y).total() if a or g else 1
        wrap = draw.choice((json.dumps, lambda rows: json.dumps({"data": rows}),
                            lambda rows: f"```json\n{json.dumps(rows)}\n```",
                            lambda rows: json.dumps([{"what": what, "many": many} for what, many in rows])))
        assert iou(wrap(a), wrap(g)) == pytest.approx(expected), (a, g)


def test_rouge_l_is_that_of_the_rouge_score_package():
    from rouge_score.rouge_scorer import RougeScorer
    scorer, draw = RougeScorer(["rougeL"]), random.Random(0)
    tokens = ["the", "Cat", "sat", "on", "2", "3.5", "x_y", "o'clock", "co-op", "MAT", "--", "(it)", "\n", "$5%"]
    for _ in range(200):
        a, g = (draw.choice((" ", "  ")).join(draw.choices(tokens, k=draw.randint(0, 20))) for _ in "ag")
        assert rouge_l(a, g) == pytest.approx(scorer.score(g, a)["rougeL"].fmeasure), (a, g)


@settings(max_examples=60, deadline=None)
@given(st.text("abc"), st.text("abcd"))
def test_common_is_the_textbooks_table(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        row, above = [0], row
        for place, y in enumerate(b):
            row.append(above[place] + 1 if x == y else max(above[place + 1], row[place]))
    assert measures.common(list(a), list(b)) == row[-1]


def test_rouge_l_of_long_texts():
    draw = random.Random(0)
    long, short = (" ".join(draw.choices([f"w{n}" for n in range(500)], k=k)) for k in (20_000, 1_000))
    assert 0 < rouge_l(long, short) == rouge_l(short, long) < 0.1
    assert rouge_l(long, long) == 1


@pytest.mark.parametrize("a, g, expected", [
    ("今天天气好", "今天天气很好", 10 / 11), ("東京タワー", "東京タワー。", 1), ("GRPO算法", "grpo 算法", 1),
    ("ＧＲＰＯ", "grpo", 1), ("서울 시청", "서울 시장", 0.5), ("naïve", "nai\u0308ve", 1)])
def test_rouge_l_beyond_ascii(a, g, expected):
    assert rouge_l(a, g) == pytest.approx(expected)


def written(value: Fraction, draw: random.Random, reduced: bool = False) -> str:
    """The number in one of many exact notations. reduced: without fractions that can be reduced."""
    p, q, k = value.numerator, value.denominator, draw.randint(2, 9)
    ways = [f"{p}/{q}", rf"\frac{{{p}}}{{{q}}}"] if q > 1 or not reduced else [f"{p}"]
    ways += [rf"$\dfrac{{{k * p}}}{{{k * q}}}$", rf"\({k * p}/{k * q}\)"] * (not reduced)
    if 10 ** 6 % q == 0:
        ways += [f"{float(value):,.6f}", f"{float(value)}", f"{float(100 * value)}%", f"({float(value):+.6f})"]
    return draw.choice(ways)


def test_em_and_math_of_numbers_of_known_value():
    draw = random.Random(0)
    for _ in range(300):
        value = Fraction(draw.randint(-3000, 3000), draw.choice((1, 2, 3, 7, 8, 40)))
        other = draw.choice((-value, value + Fraction(1, 8), 10 * value, value + 1, value / 1000))
        gold = written(value, draw)
        right, wrong = (written(each, draw, reduced="/" not in gold and "frac" not in gold) for each in (value, other))
        assert math(right, gold) == 1, (right, gold)
        assert math(wrong, gold) == (value == other), (wrong, gold)


def test_em_of_texts_known_to_be_the_same_or_not():
    draw = random.Random(0)
    for _ in range(300):
        words = draw.sample(WORDS, draw.randint(1, 4))
        gold = " ".join(words)
        same = draw.choice(("{}", "{}.", "The {}", '"{}"', " {} ", "{}!"))
        same = same.format(draw.choice((gold, gold.upper(), gold.title())))
        other = draw.choice((f"not {gold}", f"{gold} or wine", gold[:-1], words[0] + " x", "", gold + gold))
        assert em(same, gold) == accuracy(same, gold) == math(same, gold) == 1, (same, gold)
        assert em(other, gold) == accuracy(other, gold) == math(other, gold) == 0, (other, gold)


def test_accuracy_of_options():
    ways = ("{}", "({})", "{}.", "{}) " + WORDS[0], "({}) two words", "option {}", "[{}]")
    for gold in "ABCDEFGHIJ":
        for other in "ABCDEFGHIJ":
            for way in ways:
                assert accuracy(way.format(other), gold) == accuracy(way.format(other).lower(), gold) == (other == gold)
        for none in (f"not {gold}", f"{gold} or {chr(65 + (ord(gold) - 64) % 10)}", f"{gold}nything", "none", ""):
            assert accuracy(none, gold) == 0, none
    assert accuracy("(C)", "C) rice") == 1 and accuracy("Rice.", "rice") == 1 and accuracy("oil", "rice") == 0


# Promises of all of them

GOLDS = {
    em: ["Oslo", "1,000", "a b\nc"],
    accuracy: ["B", "Bern", "(C) tea"],
    math: [r"x^2+\frac{1}{x}", "yes", "(1, 2]", "5%", "一", "3 apples, 2 pears",
           r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"],
    **dict.fromkeys(LISTS, ["tea\nsalt", "tea\nsalt\ntea\nOil, crude", "1. a\n2. b\n\n- a\n10\n10.0"]),
    iou: ['{"data": [["a", 1], ["a", 1], [null, "ü"]]}', "[]", '[{"b": [1, {"c": NaN}], "a": true}]'],
    rouge_l: ["The cat sat.", "今天 x"]}


@pytest.mark.parametrize("measure, gold", [(measure, gold) for measure in MEASURES for gold in GOLDS[measure]])
def test_the_gold_answer_earns_exactly_one_and_an_empty_one_nothing(measure, gold):
    assert measure(gold, gold) == measure(f" {gold} ", gold) == 1.0
    assert measure("", gold) == measure(" \n", gold) == measure("", "") == 0.0


anything = st.one_of(st.text(), st.lists(st.sampled_from(
    ("</think>", "[Answer]", "tea", "salt", "Oslo", "\n", "\n\n", " ", "- ", "1. ", "; ", ", ", " and ", "A", "(B)",
     " or ", "5", "%", "-", "1e999999", "/0", "$", "\\", "\\frac{1}{2}", "{", "}", "[", "]", '{"data": [[', "]]}",
     '"a": ', "null", "NaN", "```json\n", "```", "\ud800", "\x00", "\u2028", "İ", "٣", "ﷺ", "今", "½", "9" * 200))
    ).map("".join))


@settings(max_examples=40, deadline=None)
@given(anything, anything)
@example("[" * 20_000, "[]")
@example("[" * 900 + "]" * 900, "[" * 900 + "]" * 900)
@example('{"data": {"data": []}}', '{"data": [1, [2, [3]], {"a": {"b": []}}]}')
@example(f'[[{"9" * 5_000}, NaN, -Infinity, 1e999999999, "\\ud800"]]', "[[1]]")
@example("x" * 20_000, "x+1")
def test_every_text_earns_something_between_nothing_and_one(answer, gold):
    with patch.object(math_worker, "installed", return_value=False):
        for measure in MEASURES:
            assert 0.0 <= measure(answer, gold) <= 1.0, measure
            assert measure("", gold) == 0.0
            assert measure(gold, gold) in (0.0, 1.0), measure


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(WORDS)), st.lists(st.sampled_from(WORDS), min_size=2),
       st.randoms(use_true_random=False))
def test_sets_have_no_order_and_whatever_is_added_in_vain_costs(answer, gold, draw):
    shuffled = draw.sample(answer, len(answer))
    for measure in (f1, sub_em):
        assert measure(lines(shuffled), lines(gold)) == measure(lines(answer), lines(gold))
    for measure in LISTS:
        before = measure(lines(answer), lines(gold))
        assert measure(lines([*answer, "junk"]), lines(gold)) <= before
        assert measure(lines(["junk", *answer]), lines(gold)) <= before


def test_hole_32_a_mistake_of_the_scorer_is_not_a_wrong_answer():
    """The released code turns every exception into 0, even the one for a repeated gold item."""
    inside = dict(zip(MEASURES, "normalise gold_choice compared items items items items normalise common".split()))
    for measure, name in inside.items():
        broken = patch.object(sys.modules[measure.__module__], name, side_effect=KeyError("a mistake"))
        with broken, pytest.raises(KeyError, match="a mistake"):
            measure('[["tea"]]', '[["oil"]]') if measure is iou else measure("tea\nsalt", "tea salt")
    for measure in LISTS:
        assert measure("tea\nsalt\ntea", "tea\nsalt\ntea") == 1.0


# What the released code lets through

def test_hole_24_pairwise_divides_by_the_golds_pairs():
    gold = "a1\nb2\nc3\nd4\ne5"
    assert pairwise("a1\nb2", gold) == 1 / 10                                  # the released code: 1
    assert pairwise("e5\nd4\nc3\nb2\na1", gold) == 0
    assert pairwise(gold + "\nf6\ng7", gold) == 10 / 21
    assert pairwise(gold + "\na1", gold) == pairwise("a1\n" + gold, gold) == 10 / 15
    assert pairwise("e5\n" + gold, gold) == 6 / 15                             # its first place counts
    assert pairwise("a1", "a1") == pairwise("a1\nb2", "a1") == 0               # no order to be right about


def test_hole_25_sub_em_of_every_candidate_there_is():
    gold = WORDS[:3]
    assert sub_em(lines(gold[:2]), lines(gold)) == pytest.approx(2 / 3)
    assert sub_em(lines(WORDS), lines(gold)) == 3 / 12                         # the released code: 1
    assert sub_em(lines(WORDS * 50), lines(gold)) == 3 / 600
    assert sub_em("yes\nno", "yes\nno\nyes\nno") == 0.5                        # one of the gold's for one
    assert sub_em("tea salt oil", lines(gold)) == sub_em("te", "tea") == 0     # whole items


def test_hole_26_rouge_l_of_a_copy_with_more_around_it():
    gold = "the cat sat on the mat"
    assert rouge_l(gold, gold) == 1
    assert rouge_l(f"[Answer] {gold}", gold) == pytest.approx(12 / 13)         # markers are taken off before
    assert rouge_l(f"Let me think. {gold} Yes. {gold}", gold) == pytest.approx(12 / 22)
    assert rouge_l(gold * 100, gold) < 0.03


@pytest.mark.parametrize("measure", LISTS)
def test_hole_27_no_measure_looks_for_a_marker_in_what_was_answered(measure):
    thinking = "[Answer]\ntea\nsalt\n</think>\nsilk\nwool"
    assert measure(thinking, "tea\nsalt") < 1 and measure("silk\nwool", "tea\nsalt") == 0
    assert measure("tea\nsalt", "tea\nsalt") == 1


def test_hole_29_math_takes_the_whole_answer_and_nothing_else():
    assert math("42", "42") == 1                                               # the released code parses no bare number
    assert math(r"42", r"\text{42}") == math("$42$", "42") == 1
    hedges = [
        "41 or 42", "41, 42", "42; 41", r"\{41, 42\}", "$41$ $42$", r"\boxed{41} \boxed{42}", "x=41, x=42", r"\pm 42",
        "-42", r"41 \text{ or } 42", "41}, {42", r"41} \boxed{42", "not 42", "42 is wrong", "42x", "4 2", "42!", ""]
    assert [hedge for hedge in hedges if math(hedge, "42")] == []


def test_hole_30_bullets_blank_lines_repeats_and_places():
    for measure in LISTS:
        assert measure("- tea\n\n- salt", "tea\nsalt") == measure("1. Tea\n2. Salt.", "tea\nsalt") == 1
    assert f1("tea\nrice", "tea\nsalt") == 0.5
    gold = "a1\nb2\nc3"
    assert ndcg("c3\n" + gold, gold) < ndcg("c3\na1\nb2", gold) + 1e-12 < 1    # the first place counts
    assert ndcg("a1\na1\nb2\nc3", gold) < ndcg("a1\nb2\na1", gold) < ndcg("a1\nb2\nc3", gold)
    assert ndcg("x\ny\nz\n" + gold, gold) == 0                                 # too late
    assert ndcg("c3\nb2\na1", gold) == ndcg("c3\nb2\na1\na1\nx", gold)         # what follows has no place


def test_hole_31_iou_of_what_is_no_table_and_of_empty_ones():
    empty = ('{"data": []}', "[]", "```\n[]\n```")
    assert all(iou(a, g) == 1 for a in empty for g in empty)
    assert iou("[]", "[[1]]") == iou("[[1]]", "[]") == iou("", "[]") == iou("[]", "no table") == 0
    assert iou('{"data": 5}', "[]") == iou('{"rows": []}', "[]") == iou("5", "[]") == iou('[["a"]', '[["a"]]') == 0
    assert iou('<answer>[["a"]]</answer>', '[["a"]]') == 1                     # the text around it does not count
    assert iou('```json\n[["b"]]\n```\nNo:\n```json\n[["a"]]\n```', '[["a"]]') == 1
    assert iou('[["1,000", "The U.K.", null, true]]', '[[1e3, "uk", "", "True"]]') == 1
    assert iou(f'[[{"9" * 5000}, 1e999]]', f'[[{"9" * 5000}, 1e999]]') == 1
    assert iou('[[1, 2]]', '[[2, 1]]') == iou('[["20.4"]]', "[[204]]") == iou('[["-5"]]', "[[5]]") == 0
    assert iou('[{"a": 1, "b": 2}]', '[{"b": 2, "a": 1}]') == 1 and iou('[{"a": 1, "b": 2}]', '[{"b": 1, "a": 2}]') == 0


def test_hole_33_no_language_has_to_be_named():
    assert rouge_l("我喜欢长文本", "我喜欢短文本") == pytest.approx(5 / 6)       # the released code, unless told: 0


# Expressions, and the process that compares them

def test_math_of_polynomials_of_known_value():
    draw = random.Random(0)
    for _ in range(5):
        a, b, c = (draw.randint(2, 9) for _ in "abc")
        same = draw.choice((f"{b}x+{a}x^2+{c}", f"x({a}x+{b})+{c}", rf"\frac{{{2 * a}x^2+{2 * b}x}}{{2}}+{c}"))
        assert math(same, f"{a}x^2 + {b}x + {c}") == 1, same
        assert math(draw.choice((same.replace("x", "y"), f"{same}+1", f"-({same})")), f"{a}x^2 + {b}x + {c}") == 0, same


@pytest.mark.parametrize("answer, gold, right", [
    (r"\dfrac12", "0.5", 1), (r"2\sqrt{3}", r"\sqrt{12}", 1), ("1024", "2^{10}", 1), (r"-\frac{1}{2}", r"\frac12", 0),
    ("[0, 1)", "(0, 1]", 0), (r"\{2, 1\}", r"\{1,2\}", 1), ("(2, 1)", "(1, 2)", 0), ("x > 5", "5 < x", 1),
    ("x < 5", "x > 5", 0), ("x = 5", "5", 1), (r"5 \text{ km}", "5", 1), (r"\$5.50", "5.5", 1), ("1 0", "10", 0),
    ("x+1", "x-1", 0), ("x1", "x+1", 0), ("cab", "abc", 0), ("Yes.", "yes", 1), ("yes and no", "yes", 0),
    (r"\text{Monday}", "Monday", 1), ("", "x", 0),
    ("(1, 2)", "1 < x < 2", 1), ("1 < x < 2", "(1, 2)", 0)])                   # math-verify tells answer from gold
def test_math_of_expressions(answer, gold, right):
    assert math(answer, gold) == right


def test_signals_for_the_main_program_do_not_end_the_worker():
    assert verifier.worker.ask([["x+1", "1+x"]]) == [True]
    pid = verifier.worker.process.pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert verifier.worker.ask([["x+1", "x"]]) == [False] and verifier.worker.process.pid == pid


@pytest.mark.full
def test_the_worker_starts_again_and_ends_when_nobody_can_ask_any_more():
    assert math("1+x", "x+1") == 1.0
    process = verifier.worker.process
    process.stdin.close()
    assert process.wait() == 0
    assert math("2+x", "x+2") == 1.0 and verifier.worker.process is not process


def test_without_math_verify_an_expression_has_to_be_written_the_same():
    with patch.object(math_worker, "find_spec", return_value=None), patch.object(measures, "verifier", None):
        assert math("1 + x", "x+1") == math("x-1", "x+1") == 0 and math("$x + 1$", "x+1") == math("0.5", "1/2") == 1


# Formulas are compared, not flattened (row 1)

def boxed(pairs) -> list[float]:
    """The rewards of the answers, in boxes, of pairs (gold, answer)."""
    examples = [Example("e", "", "", gold, "math") for gold, _ in pairs]
    texts = [[rf"</think> So \boxed{{{answer}}}."] for _, answer in pairs]
    return [score.reward for score, in score_all(texts, examples)]


def test_every_gold_of_a_corpus_of_formulas_earns_one_and_is_accepted():
    golds = formulas.GOLDS
    assert len(set(golds)) >= 300 and [gold for gold in golds if gold_problem("math", gold)] == []
    assert [gold for gold, reward in zip(golds, boxed([(gold, gold) for gold in golds])) if reward != 1] == []
    for form in ("</think> The answer is ${}$.", "</think> The answer is\n$$\n{}\n$$", "</think>答案：{}。"):
        texts = [[form.format(gold)] for gold in golds]
        scores = score_all(texts, [Example("e", "", "", gold, "math") for gold in golds])
        assert [gold for gold, (score,) in zip(golds, scores) if score.reward != 1] == []


@pytest.mark.parametrize("pairs", [
    formulas.DIFFERENT[::3] + formulas.DIFFERENT[1::3],
    pytest.param([*formulas.DIFFERENT, *(pair[::-1] for pair in formulas.DIFFERENT)], marks=pytest.mark.full)])
def test_formulas_that_differ_earn_nothing(pairs):
    assert len(set(pairs)) >= 300
    assert [pair for pair, reward in zip(pairs, boxed(pairs)) if reward != 0] == []


@pytest.mark.parametrize("gold, answers", [
    (r"\frac{x+1}{2}", r"(x+1)/2||\dfrac{1+x}{2}||\frac{x}{2}+\frac12||\displaystyle\frac{x+1}{2}||\tfrac{x+1}2"),
    (r"2\frac{1}{2}", r"2.5||5/2||\frac52||2\dfrac12||2 \frac{1}{2}"), ("2^{n+1}", r"2\cdot 2^n||2^{1+n}||2^{n + 1}"),
    (r"60^\circ", r"60°||60^{\circ}||60||60\degree||60^\circ."), ("60", r"60^\circ||60°"),
    (r"12\,\text{cm}", r"12 cm||12||12\text{ cm}||12\ \mathrm{cm}||12cm"), ("12", r"12\text{ cm}||12 cm"),
    (r"12\text{ cm}^2", r"12 cm²||12\,\mathrm{cm^2}||12\text{cm}^{2}||12"), ("3 hours", r"3\text{ hours}||3 hour||3"),
    ("3个", r"3||3\text{个}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{cases}x=1\\y=2\end{cases}", r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right."),
    (r"x\le 3", r"x≤3||x \leq 3||3\ge x||(-\infty, 3]"), ("2\\pi", "2π||\\pi+\\pi"), ("x^2", "x²||x\\cdot x"),
    ("(1,2)", r"\left( 1, 2 \right)||(1,\,2)"), (r"\{1,2\}", r"\left\{2, 1\right\}||1, 2"),
    (r"x=1\text{ or }x=2", "x=2 或 x=1||x=1, x=2"), ("10{,}080", r"10080||10\,080||10,\!080||10,080"),
    (r"\frac{dy}{dx}", r"\frac{\mathrm{d}y}{\mathrm{d}x}||\dfrac{dy}{dx}"), ("x=5", "5||x = 5"),
    ("0.35", r"\frac{7}{20}")])
def test_formulas_that_are_the_same_earn_one(gold, answers):
    pairs = [(gold, answer) for answer in answers.split("||")]
    assert [answer for (_, answer), reward in zip(pairs, boxed(pairs)) if reward != 1] == []


@pytest.mark.parametrize("gold, answers", [
    ("42", r"42 or 43||42 or more||42 is wrong||42 \text{ or } 43||42\text{ or }43||42t||42m||42 x||42\text{ not}"),
    ("42", "84/2||6*7||42=43||43=42"),
    (r"\sqrt{2}", r"1 or \sqrt{2}||\pm\sqrt{2}||\{1,\sqrt{2}\}||\sqrt{2}, 1||\sqrt{2}\text{ or }1"),
    ("x", "x or y||x, y"),
    ("x=1517", "x=37*41||37*41"), ("20.4", "40.8/2||204/10"), (r"12\text{ cm}", r"12\text{ m}||12 km||12\text{ cm}^2")])
def test_hedges_calculations_and_other_units_earn_nothing(gold, answers):
    pairs = [(gold, answer) for answer in answers.split("||")]
    assert [answer for (_, answer), reward in zip(pairs, boxed(pairs)) if reward != 0] == []


# Golds made of letters are formulas in math, unless they are words (row 2)

@pytest.mark.parametrize("gold, right, wrong", [
    ("x", "x||$x$||(x)||y=x", "-x||x!||2x||X||x'||x^2||1/x||xx||x_1||not x||"),
    ("ab", "ab||a b||ba||a\\cdot b", "-ab||a-b||a+b||a/b||ab!||AB||aab||a||(ab)'"),
    ("n", "n", "N||n!||n-1||nn"), ("yes", "yes||Yes||YES.||\\text{yes}", "no||-yes no||not yes||sey"),
    ("no", "no||No", "on||yes||n o t"), ("A", "A||(A)||\\textbf{(A)}", "B||a||-A||AA"),
    ("increasing", "Increasing||\\text{increasing}", "decreasing||not increasing"), ("正确", "正确||正确。", "不正确||错误")])
def test_golds_of_letters(gold, right, wrong):
    right, wrong = ([(gold, answer) for answer in answers.split("||")] for answers in (right, wrong))
    assert [pair for pair, reward in zip(right, boxed(right)) if reward != 1] == []
    assert [pair for pair, reward in zip(wrong, boxed(wrong)) if reward != 0] == []


# math has a time budget (row 12)

HEAVY = [r"(10^8)!", "(100000000)! x", "9^{9^{9^9}} x", r"(x+y+z+1)^{400}(x-y)^{400}+x", r"\sum_{i=1}^{10^9} i^i x"]


def test_a_heavy_formula_is_unscorable_and_holds_nobody_up():
    pairs = [("5x", text) for text in HEAVY] + [("x+1", f"{n}+x") for n in range(40)]
    began = time.monotonic()
    verdicts = verifier.worker.ask(pairs)
    assert time.monotonic() - began < 5 + 10 * math_worker.CPU_SECONDS * len(HEAVY)
    assert verdicts[:2] == [None, None] and True not in verdicts[:len(HEAVY)]
    assert verdicts[len(HEAVY):] == [n == 1 for n in range(40)]                # neighbours keep their verdicts
    assert math_library.isnan(math("100000000!", "5x")) and math("x+5x-x", "5x") == 1


def test_what_ends_a_child_is_its_time_on_the_processor():
    pipe = math_worker.fork("5x", "(10^8)! x")
    assert os.read(pipe, 1) == b"" and os.WTERMSIG(os.wait()[1]) == signal.SIGPROF
    os.close(pipe)


def test_of_several_accepted_answers_a_heavy_one_leaves_a_right_one_right():
    texts = [["</think> 5x", "</think> (10^8)! x", "</think> 6x"]]
    scores, = score_all(texts, [Example("e", "", "", ("5x", "7x"), "math")])
    assert [score.rule for score in scores][::2] == [1, 0] and math_library.isnan(scores[1].reward)
    assert math_library.isnan(scores[1].rule) and scores[1].judge is None
    both = score_all([["</think> 5x", "</think> 6x"]], [Example("e", "", "", ("(10^8)! x", "5x"), "math")])[0]
    assert both[0].reward == 1 and math_library.isnan(both[1].reward)


def test_pairs_beyond_the_budget_are_unscorable(monkeypatch):
    monkeypatch.setattr(math_worker, "BUDGET", -1.0)
    assert math_worker.equal_pairs([("x", "y"), ("x", "x")]) == [None, None]


class Counting:
    """A worker that says None to everything and notes how often it was asked."""
    def __init__(self):
        self.asked = []

    def ask(self, pairs):
        self.asked += pairs


def test_what_took_too_long_is_not_tried_again_also_by_a_resumed_run():
    first, again = Verifier(Counting()), Verifier(Counting())
    pair = ("y+100000000", "x+1")
    assert [first.verdict(pair) for _ in range(3)] == [None] * 3 and first.worker.asked == [pair]
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.verdict(pair) is None and again.worker.asked == [] and again.ask([pair, pair]) == {}
    assert again.ask([("x", "y")] * 2).popitem()[1] is None and again.worker.asked == [("x", "y")]


def test_only_the_newest_verdicts_are_kept_in_a_checkpoint(monkeypatch):
    monkeypatch.setattr(math_worker, "MOST_VERDICTS", 2)
    one = Verifier(Counting())
    for name in "abc":
        one.verdict((name, "x"))
    assert list(one.state_dict()) == [math_worker.key_of((name, "x")) for name in "bc"]


def test_importing_the_measures_brings_no_sympy():
    code = ("import sys, nanoqwenlong.reward.measures as m; "
            "print(m.verifier.worker.process, {'sympy', 'torch'} & {*sys.modules})")
    assert run(code) == "None set()"


# The process itself, with a program that is easier to foresee than math-verify

FAKE = """
import json, os, sys, time
os.write(1, b'"re'), time.sleep(0.01), os.write(1, b'ady"\\n')                # in two pieces
for line in sys.stdin:
    question = json.loads(line)
    if question == "die":
        os._exit(3)
    if question == "sleep":
        time.sleep(600)
    os.write(1, json.dumps(os.getpid() if question == "pid" else question).encode() + b"\\n")
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, text=True,
                          stdout=subprocess.PIPE, timeout=60).stdout.strip()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def fake():
    worker = Worker((sys.executable, "-S", "-c", FAKE))
    yield worker
    worker.stop()


def test_a_worker_is_started_once_and_when_needed(fake):
    assert fake.process is None
    pid = fake.ask("pid")
    assert fake.ask(["a", "ü\ud800\n"]) == ["a", "ü\ud800\n"] and fake.ask("pid") == pid and not is_gone(pid)
    fake.stop()
    assert fake.process is None and is_gone(pid)


def test_a_worker_that_takes_too_long_is_killed(fake):
    pid = fake.ask("pid")
    fake.deadline = 0.05
    assert fake.ask("sleep") is None and is_gone(pid)
    fake.deadline = 60
    assert fake.ask("pid") != pid


def test_a_worker_that_died_is_started_again(fake):
    pid = fake.ask("pid")
    assert fake.ask("die") is None and fake.process is None
    pid, before = fake.ask("pid"), pid
    assert pid != before
    os.kill(pid, signal.SIGKILL)                                               # while nobody asks
    fake.process.wait()
    assert fake.ask("pid") not in (pid, before, None)


def test_a_late_reply_is_not_that_to_the_next_question(fake):
    """Ctrl-C while waiting: the reply comes, but nobody reads it."""
    pid = fake.ask("pid")
    with patch.object(fake, "read", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        fake.ask("first")
    assert fake.ask("second") == "second" and is_gone(pid)


def test_long_questions_pass_in_pieces(fake):
    assert fake.ask(["x" * 300_000, "y"]) == ["x" * 300_000, "y"]
    assert math("x" * 5000 + "+1", "x+1") == 0                 # longer than a formula can be


def test_a_program_that_does_not_start_is_named():
    with pytest.raises(RuntimeError, match="-c pass`, which compares expressions, does not start"):
        Worker((sys.executable, "-c", "pass")).ask("pid")


def test_a_program_that_reads_nothing_gets_no_second_question():
    deaf = Worker((sys.executable, "-S", "-c", "import os, time; os.close(0); os.write(1, b'1\\n'); time.sleep(600)"))
    assert deaf.ask("pid") is None and deaf.process is None


def test_threads_take_turns(fake):
    wrong = []

    def ask_many(name: int) -> None:
        wrong.extend(n for n in range(50) if fake.ask([name, n]) != [name, n])
    threads = [threading.Thread(target=ask_many, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_a_worker_of_its_own(fake):
    pid = fake.ask("pid")
    fake.lock.acquire()                                                        # as if another thread were asking
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if fake.process is None and fake.ask("pid") not in (pid, None) and not is_gone(pid) else 2
            fake.stop()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fake.lock.release()
    assert fake.ask("pid") == pid


def test_the_worker_does_not_outlive_the_program():
    code = ("from nanoqwenlong.reward.math_worker import Worker; "
            f"print(Worker({(sys.executable, '-c', FAKE)!r}).ask('pid'))")
    assert is_gone(int(run(code)))


@pytest.mark.parametrize("answer, gold", [
    ("37*41", "1517"), (r"\sum_{i=1}^{100} i", "5050"), (r"\int_0^5 1 dx", "5"), ("(120-80)/80", "0.5"), ("2+3", "5"),
    ("12!/10!", "132"), (r"\min(5,6)", "5"), (r"\ln(e^5)", "5"), ("4=6=5", "5"), (r"\frac{120-80}{80}", "0.5"),
    ("2^{10}", "1024")])
def test_a_calculation_is_no_answer_where_a_number_is(answer, gold):
    assert math(answer, gold) == 0


@pytest.mark.parametrize("answer, gold", [("x = 5", "5"), (r"5\text{ cm}", "5"), (r"\frac{6}{8}", "0.75"), ("-5", "-5"),
                                          (r"2\sqrt{3}", r"\sqrt{12}"), ("x+1", "1+x")])
def test_a_value_in_another_form_is_one(answer, gold):
    assert math(answer, gold) == 1


@pytest.mark.parametrize("measure, answer, gold, value", [
    (accuracy, "(b)", "B", 1), (accuracy, "Bananas", "B", 0),
    (accuracy, "A or B", "B", 0), (accuracy, "Oslo", "oslo", 1),
    (math, "42", "42.0", 1), (math, "-5", "5", 0), (math, r"$\frac{3}{4}$", "0.75", 1), (math, "x + 1", "$x+1$", 1),
    (math, "40+2", "42", 0), (math, "5 or 6", "5", 0),
    (f1, "- tea\n\n- salt", "salt\ntea", 1), (f1, "tea\nrice", "salt\ntea\noil", 0.4),
    (sub_em, "tea", "tea\nsalt", 0.5), (sub_em, "tea\nsalt\nrice\noil", "tea\nsalt", 0.5),
    (ndcg, "a\nb\nc", "a\nb\nc", 1), (ndcg, "b\na\nc", "a\nb\nc", 0.922), (ndcg, "x\na\nb\nc", "a\nb\nc", 0.607),
    (pairwise, "a\nb\nc", "a\nb\nc", 1), (pairwise, "b\na\nc", "a\nb\nc", 0.667),
    (pairwise, "a\nb\nc\nx", "a\nb\nc", 0.5),
    (pairwise, "a", "a", 0),
    (iou, '{"data": [["Oslo", "1,000"]]}', '[["oslo", 1000]]', 1),
    (iou, "[[1], [2], [2]]", "[[2], [2], [3], [4]]", 0.4),
    (rouge_l, "The cat sat.", "the cat sat", 1), (rouge_l, "the dog sat", "the cat sat", 0.667),
    (rouge_l, "東京都", "京都", 0.8)])
def test_a_few_values_that_can_be_checked_by_hand(measure, answer, gold, value):
    assert round(measure(answer, gold), 3) == value
