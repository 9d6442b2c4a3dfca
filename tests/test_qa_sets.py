"""Question-answering sets as people have them: what a row becomes, which paragraphs stay, and what is said about files
and rows of another form. The schemas are those of the released files."""

import copy
import gzip
import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import train_sft
from nanoqwenlong import build, data, rewards
from nanoqwenlong.data import formats, passages
from nanoqwenlong.data.passages import Paragraph
from nanoqwenlong.errors import ConfigError, DataError
from nanoqwenlong.ops import flags
from nanoqwenlong.records import Example

ED, SCOTT = ["Ed Wood is a film.", " It is a comedy."], ["Scott Derrickson is a director."]
JOINED = "Ed Wood (film)\nEd Wood is a film. It is a comedy.\n\nScott Derrickson\nScott Derrickson is a director."
FACTS = [["Scott Derrickson", 0], ["Ed Wood", 0]]
PAIRS = [["Ed Wood (film)", ED], ["Scott Derrickson", SCOTT]]
HOTPOT = {"_id": "5a8b", "answer": "yes", "question": "Same nationality?", "supporting_facts": FACTS, "context": PAIRS,
          "type": "comparison", "level": "hard"}
HOTPOT_HF = {**HOTPOT, "supporting_facts": {"title": ["Scott Derrickson"], "sent_id": [0]},
             "context": {"title": ["Ed Wood (film)", "Scott Derrickson"], "sentences": [ED, SCOTT]}}
TWO_WIKI = {**HOTPOT, "context": json.dumps(PAIRS), "supporting_facts": json.dumps(FACTS), "evidences": "[]"}
MUSIQUE = {"id": "2hop__1_2", "question": "When?", "question_decomposition": [], "answer": "June 1982",
           "answer_aliases": ["1982"], "answerable": True, "paragraphs": [
               {"idx": 0, "title": "Lionel Messi", "paragraph_text": "Messi scored.", "is_supporting": False},
               {"idx": 1, "title": "Diego Maradona", "paragraph_text": "He came in 1982.", "is_supporting": True},
               {"idx": 2, "title": "Spain", "paragraph_text": "A country.", "is_supporting": False}]}
SQUAD = {"id": "56be", "title": "Super_Bowl_50", "context": "The Broncos won.", "question": "Who won?",
         "answers": {"text": ["Broncos", "The Broncos", "Broncos"], "answer_start": [4, 0, 4]}}
IMPOSSIBLE = {**SQUAD, "id": "57", "answers": {"text": [], "answer_start": []}}
CTXS = {"question": "who got the prize", "answers": ["Wilhelm Röntgen", "?!"], "ctxs": [
    {"id": "1", "title": "Peace", "text": "Another prize.", "score": 9.1, "hasanswer": False, "isgold": False},
    {"id": "2", "title": "Physics", "text": "It went to Wilhelm Röntgen.", "hasanswer": True, "isgold": True}]}
KILT = {"id": "k1", "input": "Who got it?", "output": [
    {"answer": "Röntgen", "provenance": [{"wikipedia_id": "7", "title": "Prize", "text": "Röntgen got it."}]},
    {"provenance": [{"wikipedia_id": "7", "title": "Prize", "text": "Röntgen got it."}, {"wikipedia_id": "8"}]},
    {"answer": "W. Röntgen"}]}
NIAH = {"index": 0, "input": "Numbers are hidden here.\n...\nWhich?", "outputs": ["12", "345"], "length": 4096}
ASKED = Example("56be", "Super Bowl 50\nThe Broncos won.", "Who won?", ("Broncos", "The Broncos"))
SETS = {
    "HotpotQA": (HOTPOT, Example("5a8b", JOINED, "Same nationality?", "yes")),
    "HotpotQA of the hub": (HOTPOT_HF, Example("5a8b", JOINED, "Same nationality?", "yes")),
    "2WikiMultihopQA as text": (TWO_WIKI, Example("5a8b", JOINED, "Same nationality?", "yes")),
    "a test set of HotpotQA with answers": ({k: v for k, v in HOTPOT.items() if k != "supporting_facts"},
                                            Example("5a8b", JOINED, "Same nationality?", "yes")),
    "MuSiQue": (MUSIQUE, Example(
        "2hop__1_2", "Lionel Messi\nMessi scored.\n\nDiego Maradona\nHe came in 1982.\n\nSpain\nA country.", "When?",
        ("June 1982", "1982"))),
    "SQuAD of the hub": (SQUAD, ASKED),
    "SQuAD as released": ({**SQUAD, "is_impossible": False, "answers": [
        {"text": "Broncos", "answer_start": 4}, {"text": "The Broncos", "answer_start": 0}]}, ASKED),
    "a set of SQuAD's form without titles": ({k: v for k, v in SQUAD.items() if k != "title"},
                                             replace(ASKED, document="The Broncos won.")),
    "Natural Questions": (CTXS, Example("2", "Peace\nAnother prize.\n\nPhysics\nIt went to Wilhelm Röntgen.",
                                        "who got the prize", ("Wilhelm Röntgen",))),
    "KILT with passages": (KILT, Example("k1", "Prize\nRöntgen got it.", "Who got it?", ("Röntgen", "W. Röntgen"))),
    "KILT with a context": ({**KILT, "context": "Röntgen got it."}, Example("k1", "Röntgen got it.", "Who got it?",
                                                                           ("Röntgen", "W. Röntgen"))),
    "RULER, all outputs": (NIAH, Example("2", "", "", "12\n345", "f1", (("user", NIAH["input"]),))),
    "RULER, one output": ({**NIAH, "outputs": ["12"]}, Example("2", "", "", ("12",), "em", (("user", NIAH["input"]),))),
}


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", SETS)
def test_a_row_of_a_set(case, tmp_path):
    """From JSONL after a row of another form, and from Parquet."""
    row, expected = SETS[case]
    expected = replace(expected, source="d")
    path = jsonl(tmp_path / "d.jsonl", {"id": "first", "text": "..."}, {**row, "response": "R"})
    assert data.read([path])[1] == replace(expected, response="R")
    try:
        table = pyarrow.table({name: [value] for name, value in row.items()})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        assert row["context"] is PAIRS                         # no column type holds a title and a list in one list
    else:
        parquet.write_table(table, tmp_path / "d.parquet")
        [example] = data.read([tmp_path / "d.parquet"])
        assert replace(example, id=expected.id) == expected


def test_all_outputs_of_ruler_are_needed_but_for_question_answering_any_will_do():
    """The scores of its string_match_all and string_match_part for the same answers, where those are 0, 0.5 or 1."""
    wants_all = formats.parse({**NIAH, "outputs": ["12", "34", "56", "78"]})
    wants_any = formats.parse({**NIAH, "input": "Answer the question based on the given documents. Who?",
                               "outputs": ["Oslo", "Oslo, Norway"]})
    for said, reward in (("12, 34, 56, 78", 1), ("78, 56, 34, 12", 1), ("90", 0)):
        assert rewards.score(f"<think></think>{said}", wants_all).reward == reward
    assert 0 < rewards.score("<think></think>12, 34", wants_all).reward < 1
    for said, reward in (("Oslo", 1), ("Oslo, Norway", 1), ("Bergen", 0)):
        assert rewards.score(f"<think></think>{said}", wants_any).reward == reward


# Files of SQuAD's form: one object

RELEASED = {"version": "v2.0", "data": [
    {"title": "Super_Bowl_50", "paragraphs": [{"context": "The Broncos won.", "qas": [
        {"id": "a", "question": "Who won?", "answers": [{"text": "Broncos"}], "is_impossible": False},
        {"id": "b", "question": "Who sang?", "answers": [], "is_impossible": True, "plausible_answers": []}]},
        {"context": "It rained.", "qas": []}]},
    {"title": "Warsaw", "paragraphs": [{"context": "A city.", "qas": [
        {"id": "c", "question": "What?", "answers": [{"text": "A city", "answer_start": 0}]}]}]}]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("before, pack", [("", bytes), ("\ufeff\n", bytes), ("", gzip.compress)])
def test_a_released_file_is_read_in_any_layout_and_unanswerable_questions_are_counted(tmp_path, indent, before, pack):
    path, notes = tmp_path / ("d.json.gz" if pack is gzip.compress else "d.json"), []
    path.write_bytes(pack((before + json.dumps(RELEASED, indent=indent)).encode()))
    one, other = data.read([path], say=notes.append)
    assert (one.id, one.document, one.answer) == ("a", "Super Bowl 50\nThe Broncos won.", ("Broncos",))
    assert (other.id, other.document, other.source) == ("c", "Warsaw\nA city.", "d")
    assert notes == ["1 questions are left out, because the data set says that they have no answer"]


def test_a_bad_question_of_a_released_file_is_named_by_its_place_and_the_others_are_read(tmp_path):
    content, told = json.loads(json.dumps(RELEASED)), []
    content["data"][0]["paragraphs"][0]["qas"][0].pop("question")
    content["data"][0]["paragraphs"][1] = {"context": "It rained."}
    content["data"].append({"title": "x", "paragraphs": [{"context": "y", "qas": ["z"]}]})
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert [example.id for example in data.read([tmp_path / "d.json"], tell=told.append)] == ["c"]
    first, *lines = told[0].split("\n")
    places = ("data[0].paragraphs[0].qas[0]", "data[0].paragraphs[1].qas[0]", "data[2].paragraphs[0].qas[0]")
    assert first.startswith("3 bad rows")
    for line, place, field in zip(lines, places, ('"question"', '"qas"', '"qas"'), strict=True):
        assert line.startswith(f"{tmp_path}/d.json:{place}: ") and field in line


@pytest.mark.parametrize("row", [IMPOSSIBLE, {**MUSIQUE, "answerable": False}, {**SQUAD, "is_impossible": True}])
def test_only_unanswerable_questions_are_an_error(row, tmp_path):
    with pytest.raises(DataError, match="there is no row in it"):
        data.read([jsonl(tmp_path / "d.jsonl", row)])


# Which paragraphs stay

@pytest.mark.parametrize("row, kept", [
    (HOTPOT, "Scott Derrickson\nScott Derrickson is a director."), (TWO_WIKI, "Scott Derrickson\nScott"),
    (HOTPOT_HF, "Scott Derrickson\nScott"), (CTXS, "Physics\nIt went to Wilhelm Röntgen."),
    ({**CTXS, "ctxs": [CTXS["ctxs"][0], {**CTXS["ctxs"][1], "isgold": False}]}, "Physics\nIt went"),
    (MUSIQUE, "Diego Maradona\nHe came in 1982."), (SQUAD, "Super Bowl 50\nThe Broncos won."), (KILT, "Prize\nR")])
def test_a_document_of_one_paragraph_is_the_one_that_is_needed(row, kept):
    document = formats.parse(row, max_paragraphs=1).document
    assert document.startswith(kept) and "\n\n" not in document
    assert formats.parse(row, max_paragraphs=99) == formats.parse(row)


def test_the_first_distractors_stay_and_the_order_too():
    assert formats.parse(MUSIQUE, max_paragraphs=2).document == (
        "Lionel Messi\nMessi scored.\n\nDiego Maradona\nHe came in 1982.")


@given(st.lists(st.sampled_from([True, False, None]), max_size=12), st.integers(1, 12))
def test_keep_never_removes_what_is_needed(marks, most):
    paragraphs = [Paragraph(str(place), "x", mark) for place, mark in enumerate(marks)]
    kept = passages.keep(paragraphs, most)
    needed = [each for each in paragraphs if each.needed is not False]
    others = [each for each in paragraphs if each.needed is False]
    assert kept == sorted(kept, key=lambda each: int(each.title)) and all(each in kept for each in needed)
    assert [each for each in kept if each in others] == others[:max(0, most - len(needed))]
    assert passages.keep(paragraphs, 0) == paragraphs


def test_documents_that_the_limit_does_not_reach_are_counted_once(tmp_path):
    two_needed = {**HOTPOT, "_id": "x", "supporting_facts": [["Ed Wood (film)", 0], ["Scott Derrickson", 0]]}
    unmarked = {**CTXS, "ctxs": [{"title": "A", "text": "b"}, {"title": "C", "text": "d"}]}
    plain = {"context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"}
    notes, path = [], jsonl(tmp_path / "d.jsonl", HOTPOT, two_needed, unmarked, plain, SQUAD)
    assert len(data.read([path], max_paragraphs=1, say=notes.append)) == 5
    assert notes == ["--max-paragraphs 1 does not limit 3 of 5 documents: the row has one text, needs more paragraphs, "
                     "or does not say which it needs"]
    data.read([path], max_paragraphs=2, say=notes.append)
    assert "does not limit 1 of 5" in notes[1]


@pytest.mark.parametrize("script", ["train_rl", "train_sft", "eval"])
def test_each_script_limits_paragraphs(script, tmp_path, toy_pair):
    module, notes = importlib.import_module(script), []
    path = str(jsonl(tmp_path / "d.jsonl", {**MUSIQUE, "response": "<think></think> The answer is 1982."}))
    cfg = module.Config(data=(path,), max_paragraphs=1)
    if script == "train_sft":
        [example], _ = train_sft.read_data(cfg, toy_pair[1], notes.append)
    else:
        [example] = build.questions(cfg, notes.append)
    assert example.document == "Diego Maradona\nHe came in 1982." and notes == []
    with pytest.raises(ConfigError, match="max-paragraphs"):
        flags.parse(module.Config, ["--max-paragraphs", "-1"])


# Rows with a missing or odd field

@pytest.mark.parametrize("row, field", [
    ({**HOTPOT, "context": [["A", ["b"], "c"], "x"]}, '"context[1]'),
    ({**HOTPOT, "context": [["A"]]}, '"context[0].text"'),
    ({**HOTPOT, "context": [["A", [5]]]}, '"context[0].text"'), ({**HOTPOT, "context": "[1"}, '"context"'),
    ({**HOTPOT, "supporting_facts": [[5, 0]]}, '"supporting_facts[0]"'), ({**HOTPOT, "answer": True}, '"answer"'),
    ({**HOTPOT_HF, "context": {"title": ["a", "b"], "sentences": [["c"]]}}, '"context"'),
    ({**HOTPOT_HF, "context": {"title": "a", "sentences": [["c"]]}}, '"context.title"'),
    ({k: v for k, v in HOTPOT.items() if k != "answer"}, '"answer" is missing'),
    ({**MUSIQUE, "paragraphs": [{"title": "A"}]}, '"paragraphs[0].text" is missing'),
    ({**MUSIQUE, "paragraphs": [{"title": 5, "paragraph_text": "b"}]}, '"paragraphs[0].title"'),
    ({**MUSIQUE, "answer_aliases": {"x": 1}}, '"answer_aliases.text"'), ({**MUSIQUE, "question": 5}, '"question"'),
    ({**SQUAD, "answers": {"text": [5.5, None]}}, '"answers.text[1]"'),
    ({**SQUAD, "answers": [{}]}, '"answers[0].text"'),
    ({**CTXS, "ctxs": []}, '"ctxs" is an empty list'), ({**CTXS, "answers": ["..."]}, '"answers" cannot be used'),
    ({**CTXS, "ctxs": [{"title": "A", "text": " "}]}, '"ctxs" has no text'), ({**KILT, "output": [5]}, '"output[0]"'),
    ({**KILT, "output": [{"answer": "x", "provenance": 5}]}, '"provenance"'),
    ({"input": "who", "output": [{"answer": "x", "provenance": [{"wikipedia_id": "7"}]}]}, "kilt_knowledgesource.json"),
    ({**NIAH, "outputs": []}, '"outputs"'), ({**NIAH, "outputs": "12"}, '"outputs"'),
    ({**NIAH, "input": ""}, '"input"')])
def test_an_odd_field_is_named_with_file_and_line(row, field, tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"text": "..."}, row)
    with pytest.raises(DataError) as error:
        data.read([path])
    assert str(error.value).startswith(f"{path}:2: ") and field in str(error.value) and "\n" not in str(error.value)


def places(value, path=()):
    """Every path of keys and indices in a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def test_any_value_anywhere_gives_an_example_or_a_sentence():
    """Nothing else is raised, and what passes can be rewarded."""
    outcomes = Counter()
    for row, _ in SETS.values():
        for path in places(row):
            for value in (None, True, 4, 0.5, "", "x", "[1]", '{"a": 1}', [], [None], ["x"], [["x"]], [{}], {},
                          {"x": 1}, {"text": ["x"]}, {"title": ["x"], "text": [5]}, "x\udc00"):
                changed = copy.deepcopy(row)
                place = changed
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
                try:
                    example = formats.parse({name: item for name, item in changed.items() if item is not None})
                except DataError as error:
                    outcomes["refused"] += 1
                    assert "\n" not in str(error)
                    continue
                outcomes["passed"] += 1
                assert bool(example.document) != bool(example.messages)
                assert not any(rewards.gold_problem(example.task, gold) for gold in example.accepted)
                texts = [example.id, example.document, example.question, *example.accepted]
                assert all(text.encode() is not None for text in texts)
    assert min(outcomes.values()) > 500


# Files of another form: one sentence

STRANGE = {"story": 5, "ask": 5, "key": 5}
WRONG_FILES = {
    "lfs.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS pointer"),
    "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS pointer"),
    "page.json": (b"\n<!DOCTYPE html>\n<html>" + b"<p>\n" * 99, "web page"),
    "page.parquet": (b"<html>\n{\n", "web page"),
    "README.md": (b"# Data\n\nSome text, and more.\n" * 40, "not JSON"),
    "rows.csv": (b"id,question,answer\n" + b"1,who,me\n" * 99, "read_csv"),
    "404.jsonl": (b"404: Not Found", "not JSON"),
    "model.bin": (bytes(range(256)) * 300, "binary file"),
    "utf16.json": ("[{}]".encode("utf-16"), "UTF-16"),
    "splits.json": (json.dumps({"train": [STRANGE], "dev": []}).encode(), "train, dev"),
    "layout.json": (json.dumps({"train": [STRANGE], "dev": []}, indent=1).encode(), "train, dev"),
    "cut.json": (json.dumps(RELEASED, indent=1).encode()[:-9], "rows is bad: not JSON"),
    "objects.jsonl": ((json.dumps(STRANGE, indent=1) + "\n").encode() * 30, "objects.jsonl:1: not JSON"),
    "texts.json": (json.dumps(["a", "b"] * 30).encode(), "should be an object, it is a string"),
    "strange.jsonl": ((json.dumps(STRANGE) + "\n").encode() * 30, "each of its 30 rows.*its fields: story, ask, key"),
    "lists.jsonl": ((json.dumps({"context": ["a"], "question": "b", "answer": "c"}) + "\n").encode() * 30,
                    '"context" should be a string, it is a list'),
    "frames.jsonl": ((json.dumps({"Prompt": "Who?", "Answer": "Ada", "wiki_links": "[]"}) + "\n").encode() * 30,
                     '"wiki_items" is missing.*Download the pages in "wiki_links"'),
    "kilt.jsonl": ((json.dumps({"input": "Who?", "output": [{"answer": "Ada"}]}) + "\n").encode() * 30,
                   "each of its 30 rows.*kilt_knowledgesource.json"),
    "empty.jsonl": (b"", "there is no row"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_of_another_form_is_one_sentence(name, tmp_path):
    content, said = WRONG_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        data.read([tmp_path / name])
    message = str(error.value)
    assert message.startswith(str(tmp_path / name)) and "\n" not in message and len(message) < 600


def test_a_parquet_file_without_known_columns_names_those_that_it_has(tmp_path):
    parquet.write_table(pyarrow.table({"story": ["x"] * 30, "ask": ["y"] * 30}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r'each of its 30 rows is bad: the field "context" is missing.*story, ask\)'):
        data.read([tmp_path / "d.parquet"])


def test_a_file_is_recognised_by_its_content_not_its_name(tmp_path):
    row = {"id": "a", "context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"}
    parquet.write_table(pyarrow.table({name: [value] for name, value in row.items()}), tmp_path / "parquet.bin")
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(json.dumps(row).encode()))
    (tmp_path / "layout.json").write_text(json.dumps(row, indent=2))
    for name in ("parquet.bin", "packed.jsonl", "layout.json"):
        assert [example.answer for example in data.read([tmp_path / name])] == ["Oslo"]


def test_a_bad_first_line_does_not_spoil_a_file(tmp_path):
    good = json.dumps({"context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"})
    for bad in ("# made by hand", '{"context": "x"'):
        (tmp_path / "d.jsonl").write_text(f"{bad}\n{good}\n")
        assert len(data.read([tmp_path / "d.jsonl"], tell=print)) == 1
