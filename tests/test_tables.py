"""The results of an evaluation against figures computed by hand, and the tables that show them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from nanoqwenlong.analysis import evaluate, tables
from nanoqwenlong.analysis.evaluate import Answer, interval
from nanoqwenlong.records import Example
from nanoqwenlong.rewards import Score, extract

NAN = float("nan")


def asked(source="a", length=10, task="qa", num_cut=0) -> Example:
    return Example("", "", "", "x", task, length=length, num_cut=num_cut, source=source)


def summary(*questions, lengths=(), model="m") -> dict:
    """Of (example, rewards); each answer is one token longer than the one before, and the first is cut short."""
    sampled = [len(rewards) for _, rewards in questions]
    answers = [[Answer("", sum(sampled[:i]) + j + 1, "stop" if i + j else "length") for j in range(number)]
               for i, number in enumerate(sampled)]
    return tables.summarise(model, [example for example, _ in questions], answers,
                            [[Score(r, r, None, "") for r in rewards] for _, rewards in questions], lengths)


def test_a_cell_by_hand():
    """Three questions of two answers: right and wrong, right and open, open and wrong."""
    made = summary((asked(num_cut=3), [1, 0]), (asked(), [1, NAN]), (asked(num_cut=1), [NAN, 0]))
    outcomes = made["all"].pop("outcomes")
    assert outcomes == pytest.approx({"right": 1 / 3, "partly_right": 0, "wrong": 0, "truncated": 0, "no_answer": 0,
                                      "no_think_end": 1 / 3, "unscorable": 1 / 3})
    assert made["all"] == pytest.approx({
        "accuracy": 1 / 3, "low": interval(1 / 3, 3)[0], "high": interval(2 / 3, 3)[1], "questions": 3,
        "mean_length": 3.5, "clipped_ratio": 1 / 6, "unscorable": 2, "cut": 2, "pass@1": 1 / 3, "pass@2": 2 / 3})
    assert made["by_length"] == {"all": {**made["all"], "outcomes": outcomes}}
    assert made["by_task"] == made["by_source"] == {}
    assert made["average"] is None and list(made) == ["model", "all", "by_length", "by_task", "by_source", "average"]
    alone = summary((asked(), [0.5]))["all"]
    assert list(alone) == ["accuracy", "low", "high", "questions", "mean_length", "clipped_ratio", "outcomes"]


def test_pass_at_k_is_told_for_powers_of_two_and_for_all_samples():
    """Five samples, of which one is right, and of which all are: mean over the two questions. Half right is not."""
    cell = summary((asked(), [0.5, 1, 0, 0, 0.9]), (asked(), [1] * 5))["all"]
    assert {name: value for name, value in cell.items() if "@" in name} == pytest.approx(
        {"pass@1": (1 / 5 + 1) / 2, "pass@2": (2 / 5 + 1) / 2, "pass@4": (4 / 5 + 1) / 2, "pass@5": 1})


def test_buckets_are_the_phases_shortest_first_and_lose_no_question():
    made = summary(*((asked(length=n), [n / 1000]) for n in (250, 100, 101, 5, 301, 300)), lengths=(100, 200, 300))
    assert {name: cell["accuracy"] for name, cell in made["by_length"].items()} == pytest.approx(
        {"0-100": 0.0525, "100-200": 0.101, "200-300": 0.275, "300+": 0.301})
    assert [cell["questions"] for cell in made["by_length"].values()] == [2, 1, 2, 1]
    assert list(made["by_length"]) == ["0-100", "100-200", "200-300", "300+"]
    assert list(summary((asked(length=250), [1]), lengths=(100, 300))["by_length"]) == ["100-300"]


def test_an_average_weighs_sources_alike():
    """One question of a, wrong, and three of b, right: 0 and 1 are 50 %, not 75 %."""
    made = summary((asked("a"), [0]), *[(asked("b", task="f1"), [1])] * 3)
    assert {name: cell["accuracy"] for name, cell in made["by_source"].items()} == {"a": 0, "b": 1}
    assert {name: cell["questions"] for name, cell in made["by_task"].items()} == {"qa": 1, "f1": 3}
    (_, high), (low, _) = interval(0, 1), interval(1, 3)
    assert made["average"] == pytest.approx({"accuracy": 0.5, "low": 0.5 - (1 - low) / 2, "high": 0.5 + high / 2,
                                             "questions": 4, "sources": 2})
    assert json.loads(json.dumps(made, allow_nan=False)) == made


# Tables

def read(text: str) -> list[list[list[str]]]:
    """The Markdown tables in a text, cell by cell, without the line under the head; every row as wide as the others."""
    found = []
    for part in text.split("\n\n"):
        lines = part.split("\n")
        if lines[0].startswith("|"):
            assert len(set(map(len, lines))) == 1 and set(lines[1]) == {"|", "-"}
            found.append([[cell.strip() for cell in line[1:-1].split("|")] for line in [lines[0], *lines[2:]]])
    return found


def test_the_table_by_length():
    """The intervals are Wilson's of 1 of 2, 2 of 2 and 0 of 1, from the formula."""
    long = (asked(length=90), [0])
    models = [summary((asked(), [1]), (asked(), [0]), long, lengths=(80, 200), model="m/1"),
              summary((asked(), [1]), (asked(), [1]), long, long, lengths=(80, 200), model="m/2")]
    text = tables.markdown({"models": models, "settings": {"max_new_tokens": 48}})
    assert read(text)[:1] == [[["accuracy, %", "0-80 tokens (n=2)", "80-200 tokens (n=1-2)"],
                           ["m/1", "50.0 [9.5, 90.5]", "0.0 [0.0, 79.3]"],
                           ["m/2", "100.0 [34.2, 100.0]", "0.0 [0.0, 65.8]"]]]
    assert len(text.split("\n\n")) == 2                                        # and what became of the answers


def judged_by_rule(model, *texts, lengths=()):
    """Results of an answer per text, with the gold answer x, about documents of 10, 90, 10, ... tokens. An answer that
    ends with ~ was truncated there."""
    examples = [asked(length=90 if row % 2 else 10) for row in range(len(texts))]
    answers = [[Answer(text.rstrip("~"), 3, "length" if text.endswith("~") else "stop")] for text in texts]
    return tables.summarise(model, examples, answers, evaluate.score_answers(examples, answers), lengths)


SAID = "</think> The answer is "


def test_the_table_of_what_became_of_the_answers():
    """A row per model and bucket. A failure that no answer has is left out."""
    one = judged_by_rule("m1", SAID + "x", SAID + "x~", SAID + "y", SAID + "y~", "The answer is x", "</think> x",
                         lengths=(80,))
    two = judged_by_rule("m2", SAID + "x", lengths=(80,))
    assert one["all"]["outcomes"] == pytest.approx({
        "right": 2 / 6, "partly_right": 0, "wrong": 1 / 6, "truncated": 1 / 6, "no_think_end": 1 / 6,
        "no_answer": 1 / 6, "unscorable": 0})
    table = [["answers, %", "right", "wrong", "truncated", "no `</think>`", "no answer"],
             ["m1, 0-80 tokens", "33.3", "33.3", "0.0", "33.3", "0.0"],
             ["m1, 80+ tokens", "33.3", "0.0", "33.3", "0.0", "33.3"], ["m2", "100.0", "0.0", "0.0", "0.0", "0.0"]]
    assert read(tables.markdown({"models": [one, two]}))[-1] == table
    assert read(tables.markdown({"models": [two]}))[-1] == [["answers, %", "right", "wrong"], ["m2", "100.0", "0.0"]]


@pytest.mark.parametrize("text, reward, truncated, outcome", [
    (SAID + "x", 1, False, "right"), (SAID + "x", 1, True, "right"),           # stated before it was truncated
    ("x", 1, False, "right"),                                                  # a judge may say so
    (SAID + "x", 0.5, False, "partly_right"), (SAID + "x", 1e-9, True, "partly_right"),
    (SAID + "x", NAN, False, "unscorable"), (SAID + "x", NAN, True, "unscorable"),
    (SAID + "y", 0, False, "wrong"), (SAID + "y", 0, True, "truncated"), ("", 0, True, "truncated"),
    ("", 0, False, "no_think_end"), ("<think> The answer is x", 0, False, "no_think_end"),
    ("</think> The answer is x <think> or", 0, False, "no_think_end"),         # it began again
    ("</think>", 0, False, "no_answer"), ("</think> x", 0, False, "no_answer"), (SAID, 0, False, "no_answer")])
@pytest.mark.parametrize("task", ["qa", "f1"])
def test_what_became_of_an_answer(text, reward, truncated, outcome, task):
    """f1 reads everything after the thinking, so only silence states nothing."""
    score = Score(reward, reward, None, extract(text, task))
    if task == "f1" and text == "</think> x":
        outcome = "wrong"
    assert evaluate.outcome(Answer(text, 3, "length" if truncated else "stop"), score) == outcome


@given(st.lists(st.lists(st.tuples(st.sampled_from(["", "x", "</think>", SAID + "x", SAID + "y"]), st.booleans(),
                                   st.sampled_from([0, 0.3, 1, NAN])), min_size=3, max_size=3), min_size=1, max_size=9))
def test_shares_add_up_to_all_answers_and_agree_with_the_accuracy(questions):
    answers = [[Answer(text, 3, "length" if cut else "stop") for text, cut, _ in each] for each in questions]
    scores = [[Score(reward, reward, None, extract(text)) for text, _, reward in each] for each in questions]
    cell = tables.summarise("m", [asked()] * len(questions), answers, scores)["all"]
    outcomes = cell["outcomes"]
    assert list(outcomes) == list(evaluate.OUTCOMES) and sum(outcomes.values()) == pytest.approx(1)
    assert outcomes["right"] == pytest.approx(cell["pass@1"]) and outcomes["right"] <= cell["accuracy"] + 1e-9
    assert outcomes["unscorable"] * 3 * len(questions) == pytest.approx(cell.get("unscorable", 0))
    assert outcomes["truncated"] <= cell["clipped_ratio"] + 1e-9


def test_what_befell_questions_is_said():
    model = summary((asked(), [1]), (asked(num_cut=5), [NAN]))
    text = tables.markdown({"models": [model], "settings": {"max_prompt_tokens": 900}})
    assert text.split("\n\n")[2] == (
        "m: 1 of 2 documents were cut in their middle to fit 900 tokens; 1 answers unscorable: no verdict "
        "(counted wrong, and right in the upper end of the interval).")
    del model["all"]["unscorable"], model["all"]["cut"]
    assert tables.markdown({"models": [model]}).count("\n\n") == 1


def test_sources_stand_in_the_papers_order():
    models = [summary(*((asked(source), [1]) for source in ("qasper", "mine", "hotpotqa", "docmath")))]
    assert read(tables.markdown({"models": models}))[1][0] == [
        "by source, %", "docmath (n=1)", "hotpotqa (n=1)", "qasper (n=1)", "mine (n=1)", "average (n=4)"]


def test_the_papers_table_in_the_docs_has_our_columns_and_its_averages():
    """Its last column is the mean of the others, to the digit that it prints."""
    text = Path("docs/evaluation.md").read_text(encoding="utf-8")
    (table,) = [part for part in text.split("\n\n") if "| 2wikimqa |" in part and "DeepSeek-R1 |" in part]
    head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert tuple(head[1:-1]) == tables.PAPER_ORDER and head[-1] == "average" and len(rows) == 18
    assert ["DeepSeek-R1", "66.0", "79.6", "89.9", "82.5", "74.5", "59.5", "53.0", "72.1"] in rows
    for name, *rates, average in rows:
        assert abs(sum(map(float, rates)) / 7 - float(average)) <= 0.051, name


def test_tasks_have_a_table_and_samples_have_one():
    model = summary((asked(), [1, 0]), (asked(task="f1"), [1, 1]))
    _, by_task, passed, _ = read(tables.markdown({"models": [model]}))
    assert by_task[0] == ["by task, %", "qa (n=1)", "f1 (n=1)"] and by_task[1][2] == "100.0 [20.7, 100.0]"
    assert passed[0][1:] == ["pass@1 (n=2)", "pass@2 (n=2)"]
    assert [cell.split()[0] for cell in passed[1][1:]] == ["75.0", "100.0"]


def test_names_of_sources_break_no_table_and_no_terminal():
    name = "a|b\n\x1b[2J\u202e"
    made = summary((asked(source=name), [1]), (asked(source="c"), [0]), model="m\x1b[1m")
    text = tables.markdown({"models": [made]})
    assert name in made["by_source"] and "| a\\|b\\n\\x1b[2J\\u202e (n=1) | c (n=1) " in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len({line.replace("\\|", "").count("|") for line in text.split("\n\n")[1].splitlines()}) == 1


def test_dozens_of_sources_are_no_table():
    """A row may name its page as its source."""
    text = tables.markdown({"models": [summary(*((asked(f"page {n}"), [1]) for n in range(30)))]})
    assert len(read(text)) == 2 and "\n30 sources: their results are in results.json" in text
