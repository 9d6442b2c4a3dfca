"""Rows in the formats of QwenLong-L1's, GoLongRL's and TRL's files: what each becomes, and that no bad one passes."""

import copy
import datetime
import gzip
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nanoqwenlong import data, rewards
from nanoqwenlong.data import fields, formats, verl
from nanoqwenlong.errors import DataError
from nanoqwenlong.records import Example
from nanoqwenlong.reward import tasks

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ('Please read the following text and answer the question below.\n\n<text>\nTom lives in Oslo.\n</text>\n\n'
          'Where does Tom live?\n\nFormat your response as follows: "Therefore, the answer is (insert answer here)".')
MARKED = ("<text>\n</text> Format your response as follows </text>\n\nWho?\n\n"        # by its document, too
          "Format your response as follows: ...")


def user(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


def docqa(source="musique_0_20000", gold="Therefore, the answer is Oslo.", prompt=PAPERS, **extra) -> dict:
    return {"data_source": source, "prompt": user(prompt), "ability": "doc-qa",
            "reward_model": {"style": "rule", "ground_truth": gold}, "extra_info": {"index": 7, **extra}}


def golongrl(source="longbench_pro", mode="T5.1 Full-Sentence Citation Alignment", doc_ids=("tea", "salt"), label="",
             **extra) -> dict:
    gold = {"doc_ids": list(doc_ids), "golden_label": label, "summary": "English"}
    return {"data_source": source, "prompt": user("Name them."), "ability": "any",
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"reward_mode": mode, "question": "Which?", **extra}}


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, *rows: dict, **options) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path, **options)
    return path


def at(row: dict, path: str, value=...) -> dict:
    """A copy of the row with another value at the path, numbers in it being places in lists; without one, removed."""
    row = copy.deepcopy(row)
    *names, last = (int(name) if name.isdigit() else name for name in path.split("."))
    place = row
    for name in names:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return row


PLAIN = {"id": "p", "context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo", "task": "qa",
         "response": "<think></think> Therefore, the answer is Oslo."}
GOODS = {"id": "g", "prompt": user("Name the goods."), "answer": ["tea", "salt"], "task": "f1"}
ORDER = {"id": "o", "prompt": "Put them in order.", "answer": "tea\nsalt\n", "task": "pairwise"}
TABLE = {"id": "t", "prompt": "Fill in the table.", "answer": {"data": [["Oslo", 1]]}, "task": "iou"}
LEARNED = {"id": "l", "prompt": user("Hi."), "completion": [{"role": "assistant", "content": "Hello."}]}
CHAT = {"id": "c", "messages": [{"role": "system", "content": "Be brief."}, *user("Hi."),
                                {"role": "assistant", "content": "Hello."}]}
HOTPOT = {"_id": "h1", "input": "Where?", "context": "Tom lives in Oslo.", "answers": ["Oslo", "in Oslo"], "length": 4,
          "dataset": "hotpotqa", "language": "en", "all_classes": None}
FRAMES = {"Prompt": "Which country?", "Answer": "Norway", "wiki_items": [
    {"title": "Oslo", "text": "A city."}, {"title": "Norway", "text": "A country.\n\nCold."}], "reasoning_types": "x"}
DOCMATH = {"question_id": "test-7", "question": "What is it now?", "ground_truth": 20.4, "table_evidence": [],
           "paragraphs": ["Rent was 5.", "", "It rose by 15.4."], "paragraph_evidence": [0, 2]}
ASKED = Example("test-7", "Rent was 5.\n\nIt rose by 15.4.", "What is it now?", "20.4", "number", source="docmath")


def asked(name: str, prompt: str, answer, task: str = "qa", question: str = "", response: str = "") -> Example:
    """An example of one user turn."""
    return Example(name, "", question, answer, task, (("user", prompt),), response)


WHERE, TABLE_TEXT = "Where does Tom live?", '{"data": [["Oslo", 1]]}'
GOOD = {                                                       # the second row of a file, so "2" if it has no id
    "plain": (PLAIN, Example("p", "Tom lives in Oslo.", "Where?", "Oslo", response=PLAIN["response"])),
    "plain, a task": ({**PLAIN, "answer": "5.2 %", "task": "number"}, Example(
        "p", "Tom lives in Oslo.", "Where?", "5.2 %", "number", response=PLAIN["response"])),
    "a document that bears a prompt": ({**PLAIN, "prompt": 5}, Example(
        "p", "Tom lives in Oslo.", "Where?", "Oslo", response=PLAIN["response"])),
    "a text": ({"text": "Rain fell."}, Example("2", "Rain fell.", "", "", "text")),
    "summaries": ({"prompt": "Sum up.", "answer": ["It rained.", "Rain fell."], "task": "rouge_l"},
                  asked("2", "Sum up.", ("It rained.", "Rain fell."), "rouge_l")),
    "a list": (GOODS, asked("g", "Name the goods.", "tea\nsalt", "f1")),
    "a list as text": (ORDER, asked("o", "Put them in order.", "tea\nsalt", "pairwise")),
    "a list of one": ({**GOODS, "answer": [" tea, or\tsalt "]}, asked("g", "Name the goods.", "tea, or\tsalt", "f1")),
    "a table": (TABLE, asked("t", "Fill in the table.", TABLE_TEXT, "iou")),
    "a table as text": ({**TABLE, "answer": "[[1]]"}, asked("t", "Fill in the table.", "[[1]]", "iou")),
    "a prompt in the paper's form": ({"prompt": PAPERS, "answer": "Oslo"}, asked("2", PAPERS, "Oslo", question=WHERE)),
    "a prompt and its question": ({"prompt": PAPERS, "question": "Where?", "answer": "Oslo"},
                                  asked("2", PAPERS, "Oslo", question="Where?")),
    "a prompt with a worked answer": ({"prompt": "Hi.", "answer": "Ho", "response": "It is Ho."},
                                      asked("2", "Hi.", "Ho", response="It is Ho.")),
    "docqa": (docqa(), asked("musique_0_20000/7", PAPERS, "Oslo", "qa", WHERE)),
    "docqa, hops": (docqa("multihoprag_20000_40000", "Therefore, the answer is **Oslo**"),
                    asked("multihoprag_20000_40000/7", PAPERS, "Oslo", "qa", WHERE)),
    "docqa, numbers": (docqa("docmath_40000_plus", "Therefore, the answer is 1,204.5"),
                       asked("docmath_40000_plus/7", PAPERS, "1,204.5", "number", WHERE)),
    "docqa, choices": (docqa("long_toc_choices_0_20000", "The correct answer is (B)"),
                       asked("long_toc_choices_0_20000/7", PAPERS, "(B)", "choice", WHERE)),
    "docqa, a bare gold answer": (docqa(gold="Oslo"), asked("musique_0_20000/7", PAPERS, "Oslo", "qa", WHERE)),
    "docqa, the question beside it": (docqa(input_question="Where?"),
                                      asked("musique_0_20000/7", PAPERS, "Oslo", "qa", "Where?")),
    "docqa without extra_info": (at(docqa(), "extra_info"), asked("2", PAPERS, "Oslo", "qa", WHERE)),
    "docqa, marks in the document": (docqa(prompt=MARKED), asked("musique_0_20000/7", MARKED, "Oslo", "qa", "Who?")),
    "docqa, marks out of order": (docqa(prompt="Format your response as follows: </text> Who?"),
                                  asked("musique_0_20000/7", "Format your response as follows: </text> Who?", "Oslo")),
    "docqa, one mark": (docqa(prompt="</text>\n\nWho?"), asked("musique_0_20000/7", "</text>\n\nWho?", "Oslo")),
    "golongrl, a list": (golongrl(), asked("2", "Name them.", "tea\nsalt", "f1", "Which?")),
    "golongrl, a list of gold objects": (at(golongrl(), "reward_model.ground_truth", [5, {"doc_ids": ["tea"]}]),
                                         asked("2", "Name them.", "tea", "f1", "Which?")),
    "golongrl, summaries": (golongrl(mode="T4.2 Query-Focused Summary", doc_ids=["It rained.", "Rain fell."]),
                            asked("2", "Name them.", ("It rained.", "Rain fell."), "rouge_l", "Which?")),
    "golongrl, one of a list": (golongrl(mode="T11.1 Long-Range Entity & Commitment Tracking", doc_ids=["B"]),
                                asked("2", "Name them.", ("B",), "accuracy", "Which?")),
    "golongrl, selection": (golongrl("selection", "selection", [], "The correct answer is (C)"),
                            asked("2", "Name them.", "(C)", "accuracy", "Which?")),
    "golongrl, EM": (golongrl("EM", "EM", [], "The blue"), asked("2", "Name them.", "The blue", "em", "Which?")),
    "golongrl, math": (at(golongrl("a/math_longcot_math_verify"), "reward_model.ground_truth", r"\boxed{\pi}"),
                       asked("2", "Name them.", r"\pi", "math", "Which?")),
    "golongrl, tables": (golongrl("multitableqa_pretraining", None, [], TABLE_TEXT),
                         asked("2", "Name them.", TABLE_TEXT, "iou", "Which?")),
    "golongrl, a system turn": (at(golongrl(), "prompt", [{"role": "system", "content": "Obey."}, *user("Go.")]),
                                Example("2", "", "Which?", "tea\nsalt", "f1", (("system", "Obey."), ("user", "Go.")))),
    "verl, a source of one's own": ({**docqa("mine", "Oslo"), "task": "em", "id": "v"},
                                    asked("v", PAPERS, "Oslo", "em", WHERE)),
    "verl, a list of one's own": ({**golongrl("mine", label="tea"), "task": "f1"},
                                  asked("2", "Name them.", "tea\nsalt", "f1", "Which?")),
    "plain, a source": ({**PLAIN, "source": "mine"}, Example(
        "p", "Tom lives in Oslo.", "Where?", "Oslo", response=PLAIN["response"], source="mine")),
    "longbench": (HOTPOT, Example("h1", "Tom lives in Oslo.", "Where?", ("Oslo", "in Oslo"), source="hotpotqa")),
    "longbench, bare": (at(at({**HOTPOT, "answers": [" in\nOslo ", "?!"]}, "_id"), "dataset"),
                        Example("2", "Tom lives in Oslo.", "Where?", ("in Oslo",))),
    "frames": (FRAMES, Example("2", "Oslo\nA city.\nNorway\nA country.\n\nCold.", "Which country?", "Norway",
                               source="frames")),
    "docmath": (DOCMATH, Example("test-7", "Rent was 5.\n\nIt rose by 15.4.", "What is it now?", "20.4", "number",
                                 source="docmath")),
    "docmath, a whole number": ({**DOCMATH, "ground_truth": 2019}, replace(ASKED, answer="2019")),
    "docmath, many digits": ({**DOCMATH, "ground_truth": 0.1 + 0.2}, replace(ASKED, answer="0.30000000000000004")),
    "docmath, as text": ({**DOCMATH, "ground_truth": " 1,204.50 "}, replace(ASKED, answer="1,204.50")),
    "docmath, a boolean": ({**DOCMATH, "ground_truth": True}, replace(ASKED, answer=("True", "yes"), task="qa")),
    "docmath, no": ({**DOCMATH, "ground_truth": "No"}, replace(ASKED, answer=("False", "no"), task="qa")),
    "docmath, words": ({**DOCMATH, "ground_truth": "Bank A"}, replace(ASKED, answer="Bank A", task="qa")),
    "trl, completion": (LEARNED, asked("l", "Hi.", "", response="Hello.")),
    "trl, as text": ({"prompt": "Hi.", "completion": "Ho.", "data_source": "x"}, asked("2", "Hi.", "", response="Ho.")),
    "trl, with an answer": ({**LEARNED, "answer": "Hello"}, asked("l", "Hi.", "Hello", response="Hello.")),
    "trl, messages": (CHAT, Example("c", "", "", "", "qa", (("system", "Be brief."), ("user", "Hi.")), "Hello.")),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_row(case, tmp_path):
    """From JSONL, and from Parquet beside a row of another format, so that both have null columns."""
    row, expected = GOOD[case]
    first = {"id": "first", "text": "..."}
    expected = replace(expected, source=expected.source or (row["data_source"] if "reward_model" in row else "d"))
    assert data.read([jsonl(tmp_path / "d.jsonl", first, row)])[1] == expected
    try:
        path = table(tmp_path / "d.parquet", first, row)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        assert case in ("a table", "golongrl, a list of gold objects")         # columns of one kind cannot hold these
    else:
        assert data.read([path])[1] == expected
    assert formats.parse(json.loads(json.dumps(data.as_row(expected)))) == expected


@pytest.mark.parametrize("names, task", [
    ("T1.1 T1.2 NDCG", "ndcg"), ("T2.1 T2.2 T6.3 Pairwise_Accuracy", "pairwise"), ("T4.1 T4.2 Summary", "rouge_l"),
    ("T3.1 T3.2 T11.1 T11.2 Accuracy", "accuracy"), ("T6.1 T8.1 T8.2 T8.3 T10.1 T10.2 SubEM", "sub_em"),
    ("T5.1 T5.2 T6.2 T7.1 T7.2 T7.3 T9.1 T9.2 F1_Score", "f1"), ("EM", "em"), ("math_verify", "math"), ("IoU", "iou")])
def test_the_measures_of_longbench_pro(names, task):
    """FACTS, 2.3: 25 sub-tasks and nine measures, by name and number or by number alone."""
    gold = ["[[1], [2]]"] if task == "iou" else ["1"] if task in tasks.SINGLE else ["tea", "salt"]
    for mode in names.split():
        for full in {mode, f"{mode} Some Name" if mode[0] == "T" else mode}:
            assert formats.parse(golongrl(mode=full, doc_ids=gold)).task == task


def test_every_ability_and_every_task_has_its_name():
    nine = "accuracy em f1 iou math ndcg pairwise rouge_l sub_em".split()
    assert len(verl.MODES) == 25 + 9 and sorted(verl.ABILITIES.values()) == nine
    for ability, task in verl.ABILITIES.items():
        row = at(golongrl(mode=None), "ability", ability)
        gold = ["[[1]]"] if task == "iou" else ["1"] if task in tasks.SINGLE else ["tea", "salt"]
        assert formats.parse(at(row, "reward_model.ground_truth.doc_ids", gold)).task == task
    assert {*verl.PARTS.values(), *verl.SOURCES.values(), *verl.MODES.values()} <= {*rewards.TASKS}
    assert {*tasks.SINGLE} | {*tasks.LISTS, "iou", "rouge_l"} == {*rewards.TASKS}


def test_verls_index_names_a_row_where_it_is_unique(tmp_path):
    rows = [docqa(), docqa("docmath", "5"), docqa(), {**docqa(), "id": "mine"}]
    path = jsonl(tmp_path / "d.jsonl", *rows)
    assert [e.id for e in data.read([path])] == ["musique_0_20000/7", "docmath/7", "3", "mine"]
    other = table(tmp_path / "d.parquet", *rows[:2])
    assert [e.id for e in data.read([path, other])][2:] == [f"{path}:3", "mine", f"{other}:1", f"{other}:2"]
    with pytest.raises(DataError, match=":2: \"id\" 'mine' was used before"):
        data.read([jsonl(path, {**docqa(), "id": "mine"}, {**docqa(), "id": "mine"})])


@pytest.mark.parametrize("row", [DOCMATH, HOTPOT])
def test_a_benchmark_that_is_given_twice_is_refused(row, tmp_path):
    """Its questions would count twice, and make the interval too narrow."""
    path, copy = jsonl(tmp_path / "d.jsonl", row), jsonl(tmp_path / "copy.jsonl", row)
    with pytest.raises(DataError, match="copy.jsonl:1: .* was used before, at .*d.jsonl:1"):
        data.read([path, copy])


def test_what_a_row_can_be_used_for(tmp_path):
    """Rows without an answer cannot be rewarded, rows without a response not be learned from."""
    rows = [LEARNED, {**LEARNED, "id": "a", "answer": "Hello"}, docqa(), {"text": "Rain fell."}, CHAT]
    path = jsonl(tmp_path / "d.jsonl", *rows)
    assert len(data.read([path])) == 5
    no_answer = '"answer" is missing'
    for need, bad in (("need_question", {1: no_answer, 4: 'plain "text"', 5: no_answer}),
                      ("need_response", {3: '"response" is missing'})):
        with pytest.raises(DataError) as error:
            data.read([path], **{need: True})
        lines = str(error.value).split("\n")
        assert len(lines) == len(bad) and all(
            line.startswith(f"{path}:{number}: ") and said in line for line, (number, said) in zip(lines, bad.items()))


# Bad rows: each value that a field can be given by mistake, wherever it is not what should stand there

WRONG = {"missing": ..., "null": None, "number": 4, "whole": 4.0, "fraction": 0.5, "true": True, "empty": "",
         "blank": " \n\u3000",
         "half a pair": "x\udc00", "empty list": [], "list of numbers": [4], "list of null": [None],
         "list of blanks": [" "], "list of lists": [["x"]], "object": {"x": 1}, "empty object": {}}
NUMBERS = "number, whole, fraction"
LISTS = "empty list, list of null, list of lists, list of numbers, list of blanks"
GOLD = "reward_model.ground_truth"
FIELDS = [                                                     # row, field, what it may be
    (PLAIN, "id", "missing, number, whole"), (PLAIN, "context", ""), (PLAIN, "question", ""),
    (PLAIN, "answer", f"{NUMBERS}, list of numbers"),
    ({**PLAIN, "task": "number"}, "answer", "number, whole, list of numbers"),
    (PLAIN, "task", "missing"), (PLAIN, "response", "missing"),
    (at({**PLAIN, "document": "Tom."}, "context"), "document", ""),
    (GOODS, "prompt", "missing"), (GOODS, "prompt.0", "missing"), (GOODS, "prompt.0.role", ""),
    (GOODS, "prompt.0.content", ""), (GOODS, "answer", f"{NUMBERS}, list of numbers"),
    (GOODS, "answer.1", NUMBERS), (GOODS, "task", "missing"),
    ({**GOODS, "question": "What?"}, "question", "missing, empty"),
    ({**GOODS, "response": "Tea."}, "response", "missing"), (TABLE, "answer", LISTS),
    ({"text": "Rain fell."}, "text", ""), ({"text": "Rain fell.", "id": "x"}, "id", "missing, number, whole"),
    (docqa(), "data_source", ""), (docqa(), "prompt", ""), (docqa(), "prompt.0.role", ""),
    (docqa(), "prompt.0.content", ""), (docqa(), "reward_model", ""), (docqa(), GOLD, f"{NUMBERS}, list of numbers"),
    (docqa(), "extra_info", "missing, null, object, empty object"),
    (docqa(), "extra_info.index", "missing, null, number, whole"),
    (docqa(question="Where?"), "extra_info.question", "missing, null, empty"),
    (docqa(input_question="Where?"), "extra_info.input_question", "missing, null, empty"),
    (golongrl(), "data_source", ""), (golongrl(), "prompt", ""), (golongrl(), GOLD, f"{NUMBERS}, list of numbers"),
    (golongrl(), f"{GOLD}.doc_ids", f"{NUMBERS}, list of numbers"), (golongrl(), f"{GOLD}.doc_ids.0", NUMBERS),
    (golongrl("EM", label="Oslo"), f"{GOLD}.golden_label", f"{NUMBERS}, list of numbers"),
    (golongrl("multitableqa_pretraining", label="[[1]]"), f"{GOLD}.golden_label", LISTS),
    (golongrl(), "extra_info", ""), (golongrl(), "extra_info.reward_mode", ""), (golongrl(mode=None), "ability", ""),
    (LEARNED, "prompt", ""), (LEARNED, "completion", ""), (LEARNED, "completion.0.role", ""),
    (LEARNED, "completion.0.content", ""),
    ({**LEARNED, "answer": "Hello"}, "answer", f"missing, {NUMBERS}, list of numbers"),
    (CHAT, "messages", ""), (CHAT, "messages.0", "missing"), (CHAT, "messages.2.role", ""),
    (CHAT, "messages.2.content", ""), ({**PLAIN, "source": "mine"}, "source", "missing"),
    (HOTPOT, "_id", "missing, number, whole"), (HOTPOT, "input", ""), (HOTPOT, "context", ""),
    (HOTPOT, "answers", "list of numbers"),
    ({**HOTPOT, "answers": ["Oslo"]}, "answers.0", NUMBERS),
    (HOTPOT, "answers.0", NUMBERS), (HOTPOT, "dataset", "missing"),
    (FRAMES, "Prompt", ""), (FRAMES, "Answer", NUMBERS), (FRAMES, "wiki_items", ""),
    (FRAMES, "wiki_items.0", "missing"),
    (FRAMES, "wiki_items.1.title", ""), (FRAMES, "wiki_items.1.text", ""),
    (DOCMATH, "question_id", "missing, number, whole"), (DOCMATH, "question", ""), (DOCMATH, "paragraphs", ""),
    (DOCMATH, "ground_truth", f"{NUMBERS}, true"), (at(DOCMATH, "paragraphs.1"), "paragraphs", "list of blanks"),
]
ELSEWHERE = {                                                  # fields without which a row is of another format
    ("completion", "missing"): "answer", ("messages", "missing"): "context", ("document", "missing"): "context",
    ("text", "missing"): "context", **{("extra_info.reward_mode", gone): "ability" for gone in ("missing", "null")},
    **{("extra_info", gone): "ability" for gone in ("missing", "null", "object", "empty object")}}


def shown(path: str) -> str:
    """messages.2.role as it is named in a sentence: "messages[2].role"""
    parts = [f"[{name}]" if name.isdigit() else f".{name}" for name in path.split(".")]
    return '"' + "".join(parts).removeprefix(".")


def bad_rows() -> list[tuple[dict, str]]:
    """(row, the beginning of the field's name in the sentence)"""
    rows = []
    for row, path, allowed in FIELDS:
        for name, value in WRONG.items():
            if value is None and "." not in path:              # in any file null means that the field is missing
                name = "missing"
            if name not in allowed.split(", ") and not (value is ... and path.rsplit(".", 1)[-1].isdigit()):
                rows.append((at(row, path, value), shown(ELSEWHERE.get((path, name), path))))
    return rows


def test_each_of_hundreds_of_bad_rows_is_named_with_its_field(tmp_path, monkeypatch):
    rows = bad_rows()
    monkeypatch.setattr(data.files, "SHOWN", len(rows))
    path = jsonl(tmp_path / "bad.jsonl", *[{"id": str(number), **row} if "id" not in row else row
                                           for number, (row, _) in enumerate(rows)])
    with pytest.raises(DataError) as error:
        data.read([path])
    said = dict(line.removeprefix(f"{path}:").split(": ", 1) for line in str(error.value).split("\n"))
    wrong = {number: (field, said.get(str(number)), row) for number, (row, field) in enumerate(rows, start=1)
             if field not in said.get(str(number), "")}
    assert not wrong, "\n".join(map(str, wrong.items()))
    assert len(said) == len(rows) >= 300


NOT_KNOWN = {                                                  # names, orders and lists that nobody can use
    "a task": ({**PLAIN, "task": "QA"}, ['"task"', "'QA'", "rouge_l"]),
    "a task of a list": ({**GOODS, "task": "text"}, ['"task"', "'text'", "rouge_l"]),
    "a data_source": (docqa("hiyouga/geometry3k"), ['"data_source"', "'hiyouga/geometry3k'", "docmath", "selection"]),
    "a data_source, nearly": (golongrl("chEMistry", label="x"), ['"data_source"', "'chEMistry'", "EM"]),
    "a reward_mode": (golongrl(mode="T5.9 Full"), ['"extra_info.reward_mode"', "'T5.9 Full'", "T5.1", "NDCG"]),
    "a reward_mode, nearly": (golongrl(mode="F1_score"), ['"extra_info.reward_mode"', "F1_Score"]),
    "an ability": (at(golongrl(mode=None), "ability", "Ordering"), ['"ability"', "'Ordering'", "Long Document"]),
    "a document without a question": ({"document": "Tom.", "prompt": "Where?", "answer": "x"},
                                      ['"question" is missing']),
    "a question about a text": ({"text": "Tom.", "question": "Where?", "answer": "x"}, ['"context" is missing']),
    "a role": ({**GOODS, "prompt": [{"role": "tool", "content": "x"}]}, ['"prompt[0].role"', "'tool'", "assistant"]),
    "a prompt that the assistant ends": (at(docqa(), "prompt.0.role", "assistant"), ['"prompt"', "user", "assistant"]),
    "messages that the user ends": ({"messages": user("Hi.")}, ['"messages"', "assistant"]),
    "messages of the assistant alone": ({"messages": CHAT["messages"][2:]}, ['"messages"', "user"]),
    "two turns of completion": ({**LEARNED, "completion": LEARNED["completion"] * 2}, ['"completion"', "one turn"]),
    "a user's completion": ({**LEARNED, "completion": user("Hello.")}, ['"completion"', "assistant"]),
    "an item of punctuation": ({**GOODS, "answer": ["tea", "?!"]}, ['"answer[1]"', "punctuation"]),
    "an item of two lines": ({**GOODS, "answer": ["tea", "salt\nand oil"]}, ['"answer[1]"', "line"]),
    "an item of two lines of another kind": ({**GOODS, "answer": ["tea\u2028salt"]}, ['"answer[0]"', "line"]),
    "an empty line": ({**ORDER, "answer": "tea\n\nsalt"}, ['"answer[1]"', "empty"]),
    "one item in order": ({**ORDER, "answer": ["tea"]}, ['"answer"', "pairwise", "two"]),
    "a choice that is none": (docqa("long_toc_choices", "Bananas"), ['"reward_model.ground_truth"', "letter"]),
    "an answer of punctuation": ({**PLAIN, "answer": "?!"}, ['"answer"', "letter or digit"]),
    "the second of the accepted": ({**PLAIN, "answer": ["Oslo", "..."]}, ['"answer"', "letter or digit"]),
    "a table that is no JSON": ({**TABLE, "answer": "[[1]"}, ['"answer"', "JSON"]),
    "a table without rows": ({**TABLE, "answer": {"rows": [1]}}, ['"answer"', "JSON"]),
    "half a pair in a table": ({**TABLE, "answer": [["\udc00"]]}, ['"answer"', "surrogate"]),
    "two answers where one counts": (golongrl(mode="Accuracy", doc_ids=["A", "B"]), [f'"{GOLD}.doc_ids"', "2 answers"]),
    "an index of the wrong kind": (docqa(index=0.5), ['"extra_info.index"', "a number"]),
}


@pytest.mark.parametrize("case", NOT_KNOWN)
def test_what_nobody_knows_is_refused_and_what_is_known_is_named(case, tmp_path):
    row, named = NOT_KNOWN[case]
    path = jsonl(tmp_path / "d.jsonl", {"text": "..."}, row)
    with pytest.raises(DataError) as error:
        data.read([path])
    said = str(error.value)
    assert said.startswith(f"{path}:2: ") and "\n" not in said and len(said) < 700
    assert all(name in said for name in named), said


def test_a_number_larger_than_any_float_is_refused(tmp_path):
    for digits in (400, 5000):
        path = tmp_path / f"{digits}.json"
        row = json.dumps({**DOCMATH, "ground_truth": "HUGE"}).replace('"HUGE"', "1" * digits)
        path.write_text(f"[{row}]")
        with pytest.raises(DataError, match=":1: ") as error:
            data.read([path])
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("gold", [float("inf"), float("nan")])
def test_a_number_that_nobody_can_answer_is_refused(gold, tmp_path):
    """Parquet has them; in JSON 1e999 is one."""
    row = {**DOCMATH, "ground_truth": gold}
    (tmp_path / "d.json").write_text(json.dumps([row]).replace("Infinity", "1e999"))
    for path in (table(tmp_path / "d.parquet", row), tmp_path / "d.json"):
        with pytest.raises(DataError, match=':1: ("ground_truth" is (inf|nan)|NaN is not)'):
            data.read([path])


def anything(rng: random.Random, depth: int = 0):
    """A value of JSON, made of names and values that rows have."""
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind < 7:
        return [None, True, 4, 0.5, "", rng.choice(["Oslo", "B", "[[1]]", "tea\nsalt"]), rng.choice(
            ["qa", "f1", "iou", "user", "assistant", "longbench_pro", "EM", "T5.1 x", "docmath", "Summary"])][kind]
    inner = [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inner if kind == 7 else dict(zip(rng.sample(
        ["role", "content", "ground_truth", "doc_ids", "golden_label", "index", "question", "reward_mode"], 4), inner))


def test_any_row_is_an_example_or_a_sentence():
    """A good row with some of its fields left out, and others put in: nothing else is raised, and what passes is text
    that can be rewarded."""
    rng, names = random.Random(0), sorted({name for row, _ in GOOD.values() for name in row})
    passed = 0
    for _ in range(3000):
        row = {name: value for name, value in rng.choice(list(GOOD.values()))[0].items() if rng.random() < 0.9}
        row |= {name: anything(rng) for name in rng.sample(names, rng.randrange(3))}
        try:
            example = formats.parse(row)
        except DataError as error:
            assert "\n" not in str(error) and '"' in str(error)
            continue
        texts = [example.id, example.document, example.question, example.response, *example.accepted]
        assert all(isinstance(text, str) for text in [*texts, *sum(example.messages, ())])
        assert bool(example.document) != bool(example.messages) and example.task in {*rewards.TASKS, "text"}
        assert not any(rewards.gold_problem(example.task, gold) for gold in example.accepted if gold)
        passed += 1
    assert 300 < passed < 2700


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=40))
def test_text_comes_through_a_file_as_it_was_or_is_refused(texts, tmp_path_factory):
    """Escaped or not; empty texts and halves of surrogate pairs are refused."""
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    bad = [number for number, text in enumerate(texts, start=1)
           if not text.strip() or any("\ud800" <= char <= "\udfff" for char in text)]
    for ascii_only in (True, False):
        rows = [json.dumps({**PLAIN, "id": number, "context": text}, ensure_ascii=ascii_only)
                for number, text in enumerate(texts)]
        path.write_bytes("\n".join(rows).encode("utf-8", errors="surrogatepass"))
        if bad:
            with pytest.raises(DataError) as error:
                data.read([path])
            assert [line.split(": ")[0] for line in str(error.value).split("\n")[:20]] == [
                f"{path}:{number}" for number in bad[:20]]
        else:
            assert [example.document for example in data.read([path])] == texts


# Parquet

def test_rows_of_large_groups_are_numbered_from_one(tmp_path):
    rows = [docqa(index=number, gold="Oslo") for number in range(200)]
    rows[149]["reward_model"]["ground_truth"] = None
    rows[150]["prompt"][0]["content"] = " "
    for group in (200, 7):
        path = table(tmp_path / "d.parquet", *rows, row_group_size=group)
        with pytest.raises(DataError) as error:
            data.read([path])
        assert str(error.value).split("\n") == [f'{path}:150: the field "reward_model.ground_truth" is missing',
                                                f'{path}:151: "prompt[0].content" is empty']
    path = table(tmp_path / "d.PARQUET", *rows[:149])
    assert [e.id for e in data.read([path])] == [f"musique_0_20000/{number}" for number in range(149)]


def column(values, kind) -> pyarrow.Array:
    return pyarrow.array(values, kind)


NO_UTF8 = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"),
                                                           pyarrow.py_buffer(b"\xff\xfe")])
COLUMNS = {                                                    # of one row that is else right: its name, what is said
    "bytes": (column([b"Tom."], pyarrow.binary()), ['"context"', "of type bytes"]),
    "numbers": (column([4], pyarrow.int64()), ['"context"', "a number"]),
    "a date": (column([0], pyarrow.date32()), ['"context"', "of type date"]),
    "a time no calendar has": (column([2**62], pyarrow.timestamp("us")), ['"context"', "cannot be read"]),
    "a list": (column([["Tom."]], pyarrow.list_(pyarrow.string())), ['"context"', "a list"]),
    "a structure": (column([{"x": "Tom."}], pyarrow.struct({"x": pyarrow.string()})), ['"context"', "an object"]),
    "nothing": (column([None], pyarrow.null()), ['"context"', "missing"]),
    "null": (column([None], pyarrow.string()), ['"context"', "missing"]),
    "no UTF-8": (NO_UTF8, ['"context"', "cannot be read", "utf-8"]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_of_another_type_is_named(case, tmp_path):
    values, named = COLUMNS[case]
    good = {"question": ["Where?"], "answer": ["Oslo"]}
    parquet.write_table(pyarrow.table({**good, "context": values}), tmp_path / "d.parquet")
    with pytest.raises(DataError) as error:
        data.read([tmp_path / "d.parquet"])
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/d.parquet:1: ") and "\n" not in said and all(n in said for n in named), said


def test_what_json_cannot_say_is_no_table(tmp_path):
    for value in (float("nan"), b"Oslo", datetime.date(2020, 1, 1)):
        path = table(tmp_path / "d.parquet", {**TABLE, "answer": [[value]]})
        with pytest.raises(DataError, match='d.parquet:1: "answer" cannot be written as JSON'):
            data.read([path])


def test_columns_of_other_string_types_are_read(tmp_path):
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())):
        made = {name: pyarrow.array([PLAIN[name]]).cast(kind) for name in ("context", "question", "answer")}
        parquet.write_table(pyarrow.table(made), tmp_path / "d.parquet")
        assert data.read([tmp_path / "d.parquet"]) == [
            Example("1", PLAIN["context"], "Where?", "Oslo", source="d")]


def test_files_that_are_no_parquet(tmp_path):
    path = table(tmp_path / "d.parquet", *[docqa(index=i) for i in range(20)], compression="none")
    whole = path.read_bytes()
    broken = [b"", b"PAR1", b"{}\n" * 9, b"PAR1" + b"\0" * 50 + b"PAR1", whole[:-1], whole[:200], whole[100:]]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            data.read([path])
        assert str(error.value).startswith(f"{path}: not readable as Parquet") and "\n" not in str(error.value)
    table(path, {"context": "x"})
    parquet.write_table(pyarrow.table({"context": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="there is no row in it"):
        data.read([path])
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["context", "context"]), path)
    with pytest.raises(DataError, match='d.parquet:1: the key "context" stands twice'):
        data.read([path])


def test_flipped_bits_end_in_a_sentence_or_in_rows(tmp_path):
    """A page without a checksum may be read wrong, but nothing else than a DataError comes of it."""
    path = table(tmp_path / "d.parquet", *[docqa(index=i, gold="Oslo") for i in range(20)])
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        try:
            assert len(data.read([path])) <= 20
        except DataError as error:
            assert str(path) in str(error)


def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = table(tmp_path / "d.parquet", docqa())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="d.parquet: .*pip install pyarrow.*to_json") as error:
        data.read([path])
    assert "\n" not in str(error.value)


# Absent and odd values

LONGBENCH_V2 = {"_id": "66f3", "domain": "Long In-context Learning", "sub_domain": "User guide QA",
                "difficulty": "easy", "length": "short", "question": "Where does Tom live?", "choice_A": "Bern",
                "choice_B": "Oslo", "choice_C": "Rome", "choice_D": "Kyiv", "answer": "B",
                "context": "Tom lives in Oslo."}
ASKED = ("What is the correct answer to this question: Where does Tom live?\n"
         "Choices:\n(A) Bern\n(B) Oslo\n(C) Rome\n(D) Kyiv")


def test_a_row_of_longbench_v2_asks_with_its_options(tmp_path):
    [example] = data.read([jsonl(tmp_path / "d.jsonl", LONGBENCH_V2)], need_question=True)
    assert (example.id, example.task, example.answer, example.document) == ("66f3", "choice", "B", "Tom lives in Oslo.")
    assert example.question == ASKED
    rewards_of = [rewards.score(f"<think>.</think>The answer is {letter}", example).reward for letter in "ABCD"]
    assert rewards_of == [0, 1, 0, 0]


PLAIN_B = {"context": "Tom lives in Oslo.", "question": "Where does Tom live?", "answer": "B"}
CITIES = ["Bern", "Oslo", "Rome", "Kyiv"]


@pytest.mark.parametrize("row", [
    {**PLAIN_B, "choices": CITIES}, {**PLAIN_B, "options": CITIES}, {**PLAIN_B, "answer": "Oslo", "choices": CITIES},
    {**PLAIN_B, "options": dict(zip("ABCD", CITIES))}, {**PLAIN_B, **dict(zip("ABCD", CITIES))},
    {**PLAIN_B, **{f"option_{letter.lower()}": city for letter, city in zip("ABCD", CITIES)}}])
def test_options_in_other_columns_are_asked_too(row):
    example = formats.parse(row)
    assert (example.question, example.answer, example.task) == (ASKED, "B", "choice")


@pytest.mark.parametrize("row", [
    {**PLAIN_B, "answer": 1, "choices": CITIES},               # from 0 or from 1?
    {**PLAIN_B, "answer": "E", "choices": CITIES}, {**PLAIN_B, "answer": "Paris", "choices": CITIES},
    {**PLAIN_B, "choice_A": "Bern"}, {**PLAIN_B, "choice_A": "Bern", "choice_C": "Rome"},
    {**PLAIN_B, "choices": ["Oslo"]}, {**PLAIN_B, "choices": ["Oslo"] * 11}, {**PLAIN_B, "choices": ["Bern", None]},
    {"prompt": "Where?", "answer": "B", "choices": CITIES},    # a prompt is used word for word
    {**PLAIN_B, "system": "Answer in French."}, {**PLAIN_B, "hint": "It is in Norway."},
    {**PLAIN_B, "prompt": "Answer in one word."}])
def test_a_column_that_changes_the_question_is_never_ignored(row):
    with pytest.raises(DataError, match='"'):
        formats.parse(row)


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_empty_column_changes_nothing(tmp_path, value):
    row = {**PLAIN_B, "answer": "Oslo", "choices": value, "system": value}
    assert data.read([jsonl(tmp_path / "d.jsonl", row)])[0].question == "Where does Tom live?"


@pytest.mark.parametrize("value, gold", [(4, "4"), (4.0, "4"), (-3, "-3"), (0.5, "0.5"), ([4, "four"], ("4", "four"))])
def test_a_number_may_be_a_gold_answer_or_an_id(tmp_path, value, gold):
    assert data.read([jsonl(tmp_path / "d.jsonl", {**PLAIN_B, "answer": value})])[0].answer == gold
    if isinstance(gold, str) and value == int(value):
        assert data.read([jsonl(tmp_path / "e.jsonl", {**PLAIN_B, "id": value})])[0].id == gold


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.json.gz", "D.JSONL.GZ"])
def test_a_gzip_file_is_read_and_names_its_source(tmp_path, name):
    row = json.dumps({**PLAIN_B, "answer": "Oslo"})
    (tmp_path / name).write_bytes(gzip.compress(f"[{row}]".encode() if "json.gz" in name else f"{row}\n".encode()))
    [example] = data.read([tmp_path / name])
    assert (example.answer, example.source.lower()) == ("Oslo", "d")


def test_a_broken_gzip_file_is_named(tmp_path):
    whole = gzip.compress(("x" * 99 + json.dumps(PLAIN_B)).encode() * 50)
    for content in (whole[:-20], b"not gzip", b"", whole[:30] + b"xxxx" + whole[34:]):
        (tmp_path / "d.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="d.jsonl.gz"):
            data.read([tmp_path / "d.jsonl.gz"])


# The file we ship

def test_the_example_has_a_row_of_every_task():
    examples = data.read([ROOT / "examples/tasks.jsonl"], need_question=True)
    assert [example.task for example in examples] == list(rewards.TASKS)
    for example in examples:
        said = example.accepted[0]
        told = f"the answer is {said}" if example.task in tasks.SINGLE else said
        assert rewards.score(f"<think>Hm.</think>{told}", example).reward == 1, example.id
        assert rewards.score("<think>Hm.</think>the answer is 77", example).reward == 0, example.id


@pytest.mark.parametrize("task", ["f1", "sub_em", "ndcg", "pairwise"])
def test_an_item_may_stand_twice_in_a_list(task):
    """The measures say what that means; published data holds such lists."""
    assert formats.parse({**GOODS, "task": task, "answer": ["tea", "salt", "tea"]}).answer == "tea\nsalt\ntea"


def test_every_row_on_the_page_about_data_can_be_read(tmp_path):
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    rows = [line for block in page.split("```json\n")[1:] for line in block.split("```")[0].splitlines()]
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    assert len(data.read([tmp_path / "d.jsonl"])) == len(rows) == 12


def test_a_new_format_is_a_function_and_a_line_of_the_table(tmp_path, monkeypatch):
    def quiz(row: dict) -> Example:
        return Example("", fields.text(row, "story"), fields.text(row, "ask"), fields.text(row, "key"))
    path = jsonl(tmp_path / "d.jsonl", {"story": "Tom lives in Oslo.", "ask": "Where?", "key": "Oslo"}, PLAIN)
    line = formats.Format("quiz", lambda row: "story" in row, quiz)
    monkeypatch.setattr(formats, "FORMATS", [line, *formats.FORMATS])
    assert [(e.id, e.document, e.answer) for e in data.read([path])] == [
        (name, "Tom lives in Oslo.", "Oslo") for name in ("1", "p")]
    with pytest.raises(DataError, match='"context" is missing; the forms of a row are: quiz, .*verl, .*docs/data.md'):
        formats.parse({"tale": "Tom lives in Oslo."})
