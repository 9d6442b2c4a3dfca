"""Answers to be read: which are shown, what is marked in them, and that they leave the terminal as it is."""

import io
import json
import sys

import pytest
from tools import rollouts


def answer(step=1, id="q1", sample=0, reward=1.0, advantage=0.0, text="<think> Ann paid.</think> The answer is Ann.",
           **more):
    return {"step": step, "id": id, "sample": sample, "task": "qa", "question": "Who paid?", "gold": ["Ann", "Anna"],
            "text": text, "answer": "Ann", "rule": 1.0, "judge": None, "reward": reward, "advantage": advantage,
            "finish_reason": "stop", **more}


@pytest.fixture
def show(tmp_path, capsys):
    """What the tool says of these rows: its exit code, stdout, stderr."""
    def call(rows, *words, last=""):
        content = "".join(json.dumps(row) + "\n" for row in rows) + last
        (tmp_path / "rollouts.jsonl").write_text(content, encoding="utf-8")
        code = rollouts.main([str(tmp_path), *map(str, words)])
        return code, *capsys.readouterr()
    return call


def order(out: str) -> list[str]:
    return [line[3:].split(",")[0] for line in out.splitlines() if line.startswith("-- ")]


ROWS = [answer(1, "old", reward=-1.0), answer(2, "half", reward=0.5), answer(2, "agreed", reward=0.0),
        answer(2, "alone", reward=0.0, advantage=-2.5), answer(2, "open", reward=None, advantage=0.0),
        answer(2, "right", reward=1.0, advantage=0.1), answer(2, "rare", reward=1.0, advantage=2.5)]


def test_the_worst_and_the_best_of_the_last_step(show):
    """Wrong where others were right comes before wrong where all were; what could not be scored comes last."""
    assert order(show(ROWS)[1]) == ["alone", "agreed", "half", "right", "rare"]
    assert order(show(ROWS, "--worst", 9)[1]) == ["alone", "agreed", "half", "right", "rare", "open"]
    assert order(show(ROWS, "--best", 3)[1]) == ["rare", "right", "half"]
    assert order(show(ROWS, "--step", 1)[1]) == ["old"]
    code, out, _ = show(ROWS, "--worst", 1, last='{"step": 3, "id": "li')              # of a run that still goes on
    assert (code, order(out)) == (0, ["alone"]) and out.startswith("step 2: the 1 worst of 6 answers\n")


def test_all_answers_to_one_question_the_last_time_it_was_asked(show):
    rows = [answer(1, "a", 0), answer(3, "a", 0), answer(3, "b", 0), answer(3, "a", 1, reward=0.0), answer(4, "b", 0)]
    _, out, _ = show(rows, "--id", "a")
    assert out.startswith("step 3: all 2 answers to a\n") and order(out) == ["a", "a"]
    assert out.index("answer 0") < out.index("answer 1")
    assert order(show([*rows, answer(4, "c", task="f1")], "--task", "f1")[1]) == ["c"]


def test_what_is_told_of_an_answer(show):
    row = answer(7, reward=0.25, advantage=-0.5, judge=1.0, penalty=0.75, length=321, finish_reason="length",
                 patterns={"grounding": 2, "subgoal": 0}, rule=0.0)
    assert show([row])[1].splitlines() == [
        "step 7: the 1 worst of 1 answers", "-- q1, answer 0, task qa", "  question   Who paid?",
        "  gold       Ann | Anna", "  extracted  'Ann'",
        "  reward     0.25 (rule 0, judge 1, penalty 0.75, advantage -0.5)",
        "  ended      truncated at --max-new-tokens, 321 tokens", "  patterns   grounding 2, subgoal 0", "",
        "<think> Ann paid.</think> The answer is Ann.", ""]
    out = show([answer(reward=None, answer="")])[1]
    assert "none, no verdict (rule 1, advantage 0)" in out and "extracted  nothing" in out


TEXT = "<think> I read: Ann paid twice. So?</think> Ann paid."
QUOTES = [[TEXT.index("Ann"), TEXT.index(" twice")], [TEXT.rindex("Ann"), len(TEXT)]]


def test_quotes_of_the_document_are_marked(show, monkeypatch):
    marked = "<think> I read: «Ann paid» twice. So?</think> «Ann paid.»"
    assert marked in show([answer(text=TEXT, quotes=QUOTES)])[1]
    assert TEXT in show([answer(text=TEXT, quotes=[[3, 1], [-1, 3], [0, 999], ["a", 2], 7, [1]])])[1]   # of no text
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    show([answer(text=TEXT, quotes=QUOTES)])
    assert marked.replace("«", "<<").replace("»", ">>") in written.getvalue().decode("ascii")


def test_of_long_thinking_the_end_is_shown_with_its_quotes(show):
    """A quote that begins before what is shown is marked in what is left of it."""
    text = "x" * 5000 + "QUOTE" + "y" * (rollouts.TAIL - 2 - len("</think>")) + "</think> Ann." + "z" * 3000
    row = answer(text=text, quotes=[[5000, 5005]])
    _, out, _ = show([row])
    assert "[5,003 characters of thinking before this; --full shows them] ...«TE»yyy" in out
    assert out.rstrip().endswith(f"zzz... [{3000 + 5 - rollouts.HEAD:,} characters more; --full shows them]")
    assert f"{'x' * 5000}«QUOTE»yyy" in show([row], "--full")[1] and out.count("x") < 10
    half = answer(text="</think>" + "h" * (rollouts.HEAD - 2) + "QUOTE" + "t" * 200,
                  quotes=[[6 + rollouts.HEAD, 11 + rollouts.HEAD]])
    assert "hh«QU»... [203 characters more" in show([half])[1]
    cut = show([answer(text="<think>" + "x" * 5000 + "END")])[1]                         # it never stopped thinking
    assert "xEND\n" in cut and len(cut) < 1500


def test_what_a_model_says_does_not_reach_the_terminal_raw(show):
    evil = "\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m\u2028\udc80"
    row = answer(text=evil + "é 中\n\tok", question=evil, gold=[evil], answer=evil, id=evil, task=evil,
                 patterns={evil: evil}, sample=evil, quotes=[[0, 4]])
    code, out, _ = show([row])
    assert code == 0 and not set(out) & set("\x1b\x07\r\u202e\x9b\u2028\udc80")
    assert "\\x1b[2J\\r\\u202e\\x9b31m\\u2028\\udc80é 中\n\tok" in out


@pytest.mark.parametrize("words, told", [
    (["--step", 5], "there is no step 5 in"), (["--id", "q9"], "has id q9"), (["--task", "f1"], "has task f1"),
    (["--step", 1, "--id", "q2"], "has id q2")])
def test_what_is_not_there_is_told_in_a_sentence(show, words, told):
    code, out, err = show([answer(1), answer(2), answer(3, "q2"), answer(7)], *words)
    assert (code, out) == (78, "") and told in err
    assert ("there are steps between 1 and 7\n" in err) == (words == ["--step", 5])


@pytest.mark.parametrize("line, told", [
    ("nonsense", ":2: this line is not a JSON object"), ("[]", ":2: this line is not a JSON object"),
    (json.dumps({**answer(), "text": 7}), ":2: 'text' is '7'"),
    ('{"step": 1, "id": "a"}', ":2: 'text' is 'missing'"),
    *((json.dumps(answer(**{name: ["much"]})), f":2: '{name}' is") for name in rollouts.FIELDS),
    *((json.dumps(answer(**{name: 10 ** 400})), f":2: '{name}' is") for name in ("reward", "penalty")),
    ('{"id": "a"}', ":2: 'step'")])
def test_a_bad_line_is_refused_in_a_sentence(show, line, told):
    code, out, err = show([answer()], last=line + "\n")
    assert (code, out) == (65, "") and told in err


@pytest.mark.parametrize("number, reason", [("0", "should be a number of 1 or more"), ("x", "invalid int value"),
                                            ("-1", "should be a number of 1 or more"), ("1.5", "invalid int value")])
def test_a_number_of_answers_that_is_none(number, reason, tmp_path, capsys):
    for order in ("--worst", "--best"):
        with pytest.raises(SystemExit):
            rollouts.main([str(tmp_path), order, number])
        assert reason in capsys.readouterr().err


def test_no_answers_yet(show, tmp_path, capsys):
    assert show([])[0] == 78 and rollouts.main([str(tmp_path / "none")]) == 66
    assert "rollouts.jsonl: No such file" in capsys.readouterr().err


def test_the_worst_are_different_answers(show):
    """A repeated text is shown once. Each question has a turn before one has its second. Rewards come first."""
    rows = [answer(1, "a", i, reward=0.0, advantage=-2.0, text="The answer is Bob.") for i in range(6)]
    rows += [answer(1, "a", 6, reward=0.0, advantage=-2.0, text="The answer is Cy."),
             answer(1, "b", 0, reward=0.0, advantage=-0.5, text="The answer is Bob."), answer(1, "c", 0, reward=0.5),
             answer(1, "d", 0, reward=1.0)]
    _, out, _ = show(rows)
    assert order(out) == ["a", "b", "a", "c", "d"] and out.startswith("step 1: the 5 worst of 10 answers\n")
    assert out.count("The answer is Bob.") == 2 and out.count("The answer is Cy.") == 1
    assert order(show(rows, "--best", 3)[1]) == ["d", "c", "b"]
    assert order(show(rows, "--id", "a")[1]) == ["a"] * 7              # all of them, if one asks for a question


def test_the_document_is_shown_on_request(show, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "q1", "context": "Ann has the bill. " * 200, "question": "Who paid?",
                                "answer": "Ann"}) + "\n")
    settings = {"data": [str(data)], "task": [], "skip_bad_rows": False, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    rows = [answer(1, "q1"), answer(1, "gone")]
    assert "Ann has the bill" not in show(rows)[1]
    code, out, _ = show(rows, "--document")
    assert code == 0 and "  document   Ann has the bill. " in out and "characters more; --full shows them]" in out
    assert "  document   no longer in the data" in out
    assert show(rows, "--document", "--full")[1].count("Ann has the bill. ") == 200
    data.unlink()
    code, out, error = show(rows, "--document")
    assert code == 66 and error.count("\n") == 1 and "data.jsonl" in error
