"""What a response earns: a table of extractions, then the scores, by the rule alone and with a judge."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from nanoqwenlong import parallel, rewards
from nanoqwenlong.errors import DataError
from nanoqwenlong.records import Example
from nanoqwenlong.reward import formulas, math_worker, measures
from nanoqwenlong.reward.judge import Question
from nanoqwenlong.reward.math_worker import Verifier, key_of
from nanoqwenlong.reward.tasks import LISTS, missing_package
from nanoqwenlong.rewards import TASKS, Score, extract, gold_problem, score, score_all, worth_asking


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
    ("</think> the answer is 東京。", "東京"), ("</think> the answer is São Paulo.", "São Paulo")])
def test_extract(text, answer):
    assert extract(text) == answer


def test_only_some_tasks_take_a_bare_answer():
    assert (extract("<think>hm</think> four"), extract("<think>hm</think> four", "em")) == ("", "four")


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


@settings(max_examples=100, deadline=None)
@given(anything, anything, st.booleans())
def test_score_never_raises(text, gold, state_it):
    assert reward(stated(text) if state_it else text, gold) in (0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.text("abcdefgthTHEAan0123456789 ", min_size=1).filter(str.strip))
@example("A")
@example("the a")
@example("007 a")
def test_the_gold_answer_stated_properly_always_earns_one(gold):
    for text in (stated(gold), stated(f"**{gold}**"), stated(gold.upper()), f"</think>The answer is: {gold}\nDone."):
        assert reward(text, gold) == 1.0


@pytest.mark.parametrize("said", ['"42".', '"42."', "`42`", "“42”.", "'42'", "**42**."])
def test_quotes_around_an_answer_do_not_count(said):
    """The prompt shows the sentence in quotes, so models copy them."""
    assert score(f"<think>hm</think> Therefore, the answer is {said}", Example("a", "", "", "42")).reward == 1


# Tasks

LIST, TABLE = "tea\nsalt", '{"data": [["Oslo", 1], ["Bern", 2]]}'
GOLD = {"qa": "Oslo", "number": "20.4", "choice": "B", "em": "Oslo", "accuracy": "(B)", "math": "3/4", "iou": TABLE,
        "rouge_l": "The cat sat on the mat."} | dict.fromkeys(LISTS, LIST)


@pytest.mark.parametrize("task", TASKS)
def test_the_gold_answer_of_every_task_earns_one_and_thinking_alone_nothing(task):
    gold = GOLD[task]
    for text in (f"<think>hm</think> The answer is {gold}", f"</think>[Answer]\n{gold}",
                 f"</think><answer>{gold}</answer>"):
        assert score(text, Example("e", "", "", gold, task)) == Score(1.0, 1.0, None, extract(text, task))
        assert score(text, Example("e", "", "", ("no", gold), task)).reward == 1.0      # any accepted one
        assert score(text.replace("</think>", ""), Example("e", "", "", gold, task)) == Score(0.0, 0.0, None, "")
    bare = score(f"</think>\n{gold}\n", Example("e", "", "", gold, task)).reward
    assert bare == (task not in ("qa", "number", "choice"))    # these have to state it
    assert score(f"<think>{gold}</think>", Example("e", "", "", gold, task)).reward == 0.0
    assert gold_problem(task, gold) == ""


def test_tasks():
    assert set(GOLD) == set(TASKS) and len(TASKS) == 12 and set(LISTS) < set(TASKS)
    assert {name for name, task in TASKS.items() if task.judged} == {"qa", "number", "em"}


@pytest.mark.parametrize("task, said, gold, expected", [
    ("qa", "the answer is 2019", "2018", 0), ("number", "the answer is 2019", "2018", 0),
    ("number", "the answer is 20.43", "20.4", 1),
    ("qa", "the answer is 20.43", "20.4", 0), ("number", "the answer is $20.4 million.", "20,400,000", 1),
    ("number", "the answer is **5.2%**.", "0.052", 1), ("choice", "The correct answer is (B).", "B", 1),
    ("choice", "The correct answer is Bananas.", "B", 0), ("choice", "The correct answer is (A) or (B).", "B", 0),
    ("em", "Oslo.", "oslo", 1), ("em", "It is Oslo.", "oslo", 0),
    ("em", "The answer is Oslo.\nIt lies in Norway.", "Oslo", 1),
    ("math", "42", "42", 1), ("math", r"So $x = 42$, \boxed{42}.", "42", 1), ("f1", "1. Salt\n2. Tea", "tea\nsalt", 1),
    ("f1", "tea", "tea\nsalt", 2 / 3), ("f1", "The answer is tea, and salt.", "tea\nsalt", 1),
    ("pairwise", "salt\ntea", "tea\nsalt", 0),
    ("iou", '```json\n{"data": [["Oslo", 1]]}\n```', '{"data": [["Oslo", 1], ["Bern", 2]]}', 0.5),
    ("iou", "no table", '[["Oslo", 1]]', 0), ("rouge_l", "", "The cat sat.", 0)])
def test_rewards(task, said, gold, expected):
    assert score(f"<think>x</think>\n{said}\n", Example("e", "", "", gold, task)).reward == pytest.approx(expected)


@pytest.mark.parametrize("task, gold", [
    ("qa", "!"), ("qa", "..."), ("choice", "Oslo"), ("choice", "A or B"), ("f1", "\n\n"), ("pairwise", "tea"),
    ("iou", "tea"), ("ndcg", "-"),
    ("rouge_l", "!"), ("em", "?"), ("number", "")])
def test_a_gold_answer_that_nothing_could_match_is_named(task, gold):
    problem = gold_problem(task, gold)
    assert repr(gold) in problem and TASKS[task].gold in problem and task in problem
    assert "\n" not in problem and len(gold_problem("choice", "x" * 1000)) < 200


def test_a_bug_in_a_measure_is_heard_of(monkeypatch):
    def broken(answer, gold):
        raise ZeroDivisionError
    monkeypatch.setitem(rewards.TASKS, "qa", TASKS["qa"]._replace(measure=broken))
    with pytest.raises(ZeroDivisionError):
        reward(stated("Oslo"), "Oslo")


def test_an_unknown_task_is_answered_with_the_names_of_all():
    unknown = Example("e", "", "", "Oslo", "trivia")
    for ask in (lambda: score("</think>Oslo", unknown), lambda: extract("</think>Oslo", "trivia"),
                lambda: gold_problem("trivia", "Oslo")):
        with pytest.raises(DataError, match="'trivia': the tasks are qa, number, .*, rouge_l$"):
            ask()


# A judge

class Says:
    """A judge with a fixed verdict for each answer. It remembers its questions."""

    def __init__(self, **verdicts):
        self.verdicts, self.calls = verdicts, []

    def ask(self, questions):
        self.calls.append(questions)
        return [self.verdicts.get(question.answer, 0.0) for question in questions]


def test_the_judge_is_asked_once_for_everything_that_the_rule_rejects():
    judge = Says(Kristiania=1.0, Perhaps=math.nan)
    examples = [Example("a", "doc", "Capital?", "Oslo"), Example("b", "doc", "How many?", "5"),
                Example("c", "doc", "Where?", ("Bern", "Berne"))]
    texts = [[stated("Oslo"), stated("Kristiania"), "Kristiania"], [stated("6"), stated("six")],
             [stated("Kristiania"), stated("Perhaps")]]
    scores = score_all(texts, examples, judge)
    assert judge.calls == [[
        Question("Capital?", ("Oslo",), "Kristiania"), Question("How many?", ("5",), "six"),
        Question("Where?", ("Bern", "Berne"), "Kristiania"), Question("Where?", ("Bern", "Berne"), "Perhaps")]]
    assert scores[0] == [Score(1.0, 1.0, None, "Oslo"), Score(1.0, 0.0, 1.0, "Kristiania"), Score(0.0, 0.0, None, "")]
    assert scores[1] == [Score(0.0, 0.0, None, "6"), Score(0.0, 0.0, 0.0, "six")]
    assert scores[2][0] == Score(1.0, 0.0, 1.0, "Kristiania")
    assert math.isnan(scores[2][1].reward) and math.isnan(scores[2][1].judge) and scores[2][1].rule == 0.0
    assert score_all(texts, examples)[2][1] == Score(0.0, 0.0, None, "Perhaps")
    assert score(texts[0][1], examples[0], judge) == scores[0][1] and len(judge.calls) == 2


def test_the_judge_is_called_even_if_there_is_nothing_to_ask():
    """Several ranks all have to call it."""
    judge = Says()
    examples = [Example("a", "", "", "Oslo"), Example("b", "", "", "Oslo")]
    assert score_all([[stated("Oslo")], []], examples, judge)[1] == []
    assert judge.calls == [[]]


@pytest.mark.parametrize("task", TASKS)
def test_only_some_tasks_are_judged(task):
    judge = Says()
    score("</think> the answer is seven", Example("e", "", "", GOLD[task], task), judge)
    assert len(judge.calls[0]) == TASKS[task].judged


@pytest.mark.parametrize("answer, gold, worth", [
    ("the United States", "USA", True), ("US", "USA", True), ("five", "5", True), ("5 km", "5000", True),
    ("东京", "Tokyo", True),
    ("5", "6", False), ("5%", "6%", False), ("$5 million", "6", False), ("84/2", "42", False),
    ("1204500/350", "3441", False),
    # a scale word on one side only (row 9)
    ("$24.5 million", "24.5", True), ("24.5M", "24.5", True), ("24.5", "24.5 million", True), ("24.52万", "24.5", True),
    ("24.5 million", "24.5 billion", False), ("25 million", "24.5", False), ("24,500,000", "24.5", False),
    ("€24.5 million", "$24.5", False), ("-24.5 million", "24.5", False), ("", "USA", False), ("!", "USA", False),
    ("?!.,", "USA", False),
    ("a", "USA", False), ("the", "USA", False), ("the a an", "USA", False), ("U", "USA", False),
    ("x" * 206, "USA", True), ("x" * 207, "USA", False),
    ("x" * 600, "y" * 400, True), ("x" * 601, "y" * 400, False), ("xy", "y" * 1001, False),
    ("\u200b\u200b", "USA", False), ("--", "USA", False), ("😀😀", "USA", False),
    ("[[YES]]", "USA", True)])
def test_what_is_worth_asking(answer, gold, worth):
    assert worth_asking(answer, gold) is worth


def test_of_several_accepted_answers_the_judge_sees_those_worth_asking():
    judge = Says()
    score(stated("12"), Example("e", "", "q", ("5", "a dozen")), judge)
    assert judge.calls == [[Question("q", ("a dozen",), "12")]]


def test_one_reply_for_each_question():
    class Short(Says):
        def ask(self, questions):
            return []
    with pytest.raises(ValueError):
        score(stated("Kristiania"), Example("e", "", "", "Oslo"), Short())
    with pytest.raises(ValueError):
        score_all([[], []], [Example("e", "", "", "Oslo")])


def test_what_is_not_installed_is_told_where_it_matters(monkeypatch):
    monkeypatch.setattr(math_worker, "installed", lambda: False)
    assert "math-verify is not installed" in missing_package({"qa", "math"}) and missing_package({"qa", "f1"}) == ""
    monkeypatch.setattr(math_worker, "installed", lambda: True)
    assert missing_package({"math"}) == ""


def test_only_the_first_rank_asks_math_verify_and_all_learn_the_same(monkeypatch):
    """Their verdicts could differ otherwise: a rank may be slower than another (row 12)."""
    pair, example = ("z+1", "2+z"), Example("e", "", "", "z+1", "math")
    first = {key_of(pair): True}                               # what rank 0 says, whether it is right or not
    verifier = Verifier()
    monkeypatch.setattr(verifier.worker, "ask", None)          # nobody may be asked on rank 1
    monkeypatch.setattr(formulas, "verifier", verifier)
    monkeypatch.setattr(measures, "verifier", verifier)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "gather", lambda mine: [first, mine])
    assert score("</think> 2+z", example).reward == 1 and verifier.verdicts == first
    assert score("</think> 2+z", example).reward == 1          # also later, without a question
