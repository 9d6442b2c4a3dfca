"""What a row of a plain file may be, what is said about one that cannot be used, and the lengths, mixtures and weights
made of rows. The other formats: test_schemas.py."""

import importlib
import json
import subprocess
import sys
import weakref
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nanoqwenlong import data, errors
from nanoqwenlong.data import sft_branch, tokenize
from nanoqwenlong.errors import ConfigError, DataError, ModelError
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Example

ROOT = Path(__file__).resolve().parent.parent
GOOD = {"id": "a", "context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"}


def row(**changes) -> str:
    """GOOD with some fields set; a value of ... removes one."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not ...})


def write(path: Path, *rows: str | bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join((r.encode() if isinstance(r, str) else r) + end for r in rows))
    return path


def read(tmp_path: Path, *rows: str | bytes, **options) -> list[Example]:
    return data.read([write(tmp_path / "d.jsonl", *rows)], **options)


# Rows that can be used

@pytest.mark.parametrize("line, expected", [
    (row(), Example("a", "Tom lives in Oslo.", "Where?", "Oslo")),
    (row(context=..., document="Tom."), Example("a", "Tom.", "Where?", "Oslo")),
    (row(answer=["Oslo", "oslo"]), Example("a", "Tom lives in Oslo.", "Where?", ("Oslo", "oslo"))),
    (row(answer=["Oslo"]), Example("a", "Tom lives in Oslo.", "Where?", ("Oslo",))),
    (row(id=7), Example("7", "Tom lives in Oslo.", "Where?", "Oslo")),
    (row(response="<think></think> Oslo."), Example("a", "Tom lives in Oslo.", "Where?", "Oslo",
                                                    response="<think></think> Oslo.")),
    (row(extra={"anything": [None, 1.5]}), Example("a", "Tom lives in Oslo.", "Where?", "Oslo")),
    ('{"id": "t", "text": "Rain fell."}', Example("t", "Rain fell.", "", "", task="text")),
    (row(context="one\u2028two\x85three\x0bfour\0 \u202e👩\u200d🚀"),
     Example("a", "one\u2028two\x85three\x0bfour\0 \u202e👩\u200d🚀", "Where?", "Oslo")),
    ('{"id": "a", "context": "one\u2028two\x85three", "question": "Where?", "answer": "Oslo"}',
     Example("a", "one\u2028two\x85three", "Where?", "Oslo")),
    (row(context=" spaces stay \n"), Example("a", " spaces stay \n", "Where?", "Oslo")),
])
def test_a_good_row(line, expected, tmp_path):
    assert read(tmp_path, line) == [replace(expected, source="d")]


def test_a_missing_id_is_the_number_of_the_line(tmp_path):
    assert [e.id for e in read(tmp_path, row(id=...), "", row(), "  ", row(id=...))] == ["1", "a", "5"]


def test_files_without_ids_can_be_read_together(tmp_path):
    paths = [write(tmp_path / name, row(id=...), row(id=...)) for name in ("x.jsonl", "y.jsonl")]
    assert len({example.id for example in data.read(paths)}) == 4


def test_files_are_read_in_order_with_bom_and_crlf(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row(id='x')}\r\n\r\n\ufeff{row(id='y')}\r\n".encode())
    other = write(tmp_path / "y.jsonl", row(id="z"), end=b"")                  # no newline at its end
    assert [e.id for e in data.read([tmp_path / "x.jsonl", str(other)])] == ["x", "y", "z"]


def test_supervised_fine_tuning_needs_responses(tmp_path):
    assert read(tmp_path, row(response="yes"), need_response=True)[0].response == "yes"
    with pytest.raises(DataError, match='d.jsonl:2: the field "response" is missing'):
        read(tmp_path, row(response="yes"), row(id="b"), need_response=True)


# Rows that cannot; each stands on line 2 and its message names what is listed

BAD = {
    "no context": (row(context=...), ['"context"', "missing"]),
    "no question": (row(question=...), ['"question"', "missing"]),
    "no answer": (row(answer=...), ['"answer"', "missing"]),
    "empty object": ("{}", ['"context"', "missing"]),
    "empty context": (row(context=""), ['"context"', "empty"]),
    "empty document": (row(context=..., document=""), ['"document"', "empty"]),
    "blank question": (row(question=" \t\n"), ['"question"', "empty"]),
    "blank answer": (row(answer="\u3000"), ['"answer"', "empty"]),
    "empty text": ('{"text": ""}', ['"text"', "empty"]),
    "no accepted answer": (row(answer=[]), ['"answer"']),
    "one of the answers is blank": (row(answer=["Oslo", " "]), ['"answer[1]"', "empty"]),
    "one of the answers is a boolean": (row(answer=["Oslo", False]), ['"answer[1]"', "a boolean"]),
    "the digits of a number are lost": (row(answer=4.5, task="number"), ['"answer"', "4.5", "text"]),
    "answer is a boolean": (row(answer=True), ['"answer"', "a boolean"]),
    "answer is null": (row(answer=None), ['"answer"', "missing"]),
    "one of the answers is null": (row(answer=["Oslo", None]), ['"answer[1]"', "null"]),
    "answer is an object": (row(answer={"text": "Oslo"}), ['"answer"', "an object"]),
    "context is null": (row(context=None), ['"context"', "missing"]),
    "context is a list": (row(context=["Tom"]), ['"context"', "a list"]),
    "question is a number": (row(question=1.5), ['"question"', "a number"]),
    "response is a number": (row(response=5), ['"response"', "a number"]),
    "id is a boolean": (row(id=True), ['"id"', "a boolean"]),
    "id is empty": (row(id=""), ['"id"', "empty"]),
    "id is a fraction": (row(id=1.5), ['"id"', "a number"]),
    "id was used": (row(id="first"), ['"id"', "'first'", "d.jsonl:1"]),
    "a key twice": ('{"context": "x", "question": "y", "answer": "z", "answer": "w"}', ['"answer"', "twice"]),
    "half a surrogate pair": (row().replace("Tom", "\\ud83d"), ['"context"', "surrogate"]),
    "half a pair in an answer": (row(answer=["Oslo", "\udc00"]), ['"answer[1]"', "surrogate"]),
    "NaN": ('{"context": "x", "question": "y", "answer": NaN}', ["NaN"]),
    "Infinity in a field nobody reads": (row(score=float("-inf")), ["-Infinity"]),
    "cut": (row()[:-9], ["JSON", "column"]),
    "two objects on a line": (row() + row(), ["JSON", f"column {len(row()) + 1}"]),
    "a comma too many": (row()[:-1] + ",}", ["JSON", "column"]),
    "single quotes": ("{'context': 'x'}", ["JSON", "column 2"]),
    "an object over several lines": ("{", ["JSON", "one line"]),
    "a list": ("[]", ["a list"]),
    "a string": ('"row"', ["a string"]),
    "null": ("null", ["null"]),
    "not UTF-8": (row().encode()[:14] + b"\xff" + row().encode()[14:], ["UTF-8", "byte 14"]),
    "UTF-16": (row().encode("utf-16"), ["UTF-8", "byte 0"]),
    "absurd nesting": ("[" * 100_000, ["JSON"]),
    "absurd nesting of objects": ('{"a":' * 100_000, ["JSON"]),
    "a number of 5,000 digits": (row(id=...)[:-1] + f', "id": {"9" * 5000}}}', ["JSON", "digit"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_refused_with_file_line_and_field(case, tmp_path):
    line, named = BAD[case]
    with pytest.raises(DataError) as error:
        read(tmp_path, row(id="first"), line, row(id="last"))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'd.jsonl'}:2: ") and "\n" not in message and len(message) < 400
    assert all(name in message for name in named), message


def test_all_bad_rows_are_listed_up_to_twenty_and_the_others_counted(tmp_path):
    for num_bad, last in ((1, ":2: "), (20, ":40: "), (21, "and 1 more"), (30, "and 10 more")):
        rows = [line for i in range(num_bad) for line in (row(id=i), "{")]
        with pytest.raises(DataError) as error:
            read(tmp_path, *rows)
        lines = str(error.value).split("\n")
        assert len(lines) == min(num_bad, 20) + (num_bad > 20) and last in lines[-1]
        assert [f":{2 * i + 2}: " in line for i, line in enumerate(lines[:20])] == [True] * min(num_bad, 20)


def test_bad_rows_of_several_files_are_listed_together(tmp_path):
    write(tmp_path / "x.jsonl", "{"), write(tmp_path / "y.jsonl", row(), row())
    with pytest.raises(DataError) as error:
        data.read([tmp_path / "x.jsonl", tmp_path / "y.jsonl"])
    first, second = str(error.value).split("\n")
    assert "x.jsonl:1" in first and "y.jsonl:2" in second and "y.jsonl:1" in second


def test_no_file_and_no_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        data.read([tmp_path / "nowhere.jsonl"])
    for content in (b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(DataError, match="empty.jsonl"):
            data.read([tmp_path / "empty.jsonl"])


# One JSON array instead of lines

@pytest.mark.parametrize("text", [
    f"[{row()}, {row(id='b')}]", f"\ufeff\n [\n{row()}\r\n,\t{row(id='b')}\n]\n \n",
    json.dumps([json.loads(row()), json.loads(row(id="b"))], indent=2)])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d"])
def test_an_array_of_rows_reads_like_lines(text, name, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert data.read([tmp_path / name]) == read(tmp_path, row(), row(id="b"))


def test_rows_of_an_array_are_numbered_from_one_and_named_by_it(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([json.loads(row(id=...)), json.loads(row()), json.loads(row(id=...))]))
    assert [(e.id, e.source) for e in data.read([tmp_path / "d.json"])] == [("1", "d"), ("a", "d"), ("3", "d")]


@pytest.mark.parametrize("case", [case for case in BAD if case not in (
    "cut", "two objects on a line", "a comma too many", "single quotes", "an object over several lines", "not UTF-8",
    "UTF-16", "absurd nesting", "absurd nesting of objects")])
def test_a_bad_row_of_an_array_is_refused_as_on_a_line_and_the_others_are_read(case, tmp_path):
    line, named = BAD[case]
    path, told = tmp_path / "d.jsonl", []
    path.write_text(f"[{row(id='first')},\n{line},\n{row(id='last')}]")
    assert [e.id for e in data.read([path], tell=told.append)] == ["first", "last"]
    message = told[0].removeprefix("1 bad rows are left out:\n")
    assert message.startswith(f"{path}:2: ") and "\n" not in message and len(message) < 400
    assert all(name in message for name in named), message


@pytest.mark.parametrize("text, named", [
    (f"[{row()}", "d.json:1: not JSON at line 1, column"), (f"[{row()},", "d.json:2: not JSON at line 1"),
    (f"[{row()},\n]", "d.json:2: not JSON at line 2, column 1"), (f"[{row()} {row()}]", "d.json:1: not JSON at line 1"),
    (f"[{row()}] x", "text after the end"), (f"[{row()}][]", "text after the end"), ("[", "d.json:1: not JSON"),
    ("[] 5", "text after the end"), (f"[{row()[:-2]}]", "d.json:1: not JSON"), ("[" * 100_000, "d.json:1: not usable"),
    ("[,]", "d.json:1: not JSON"), ("[]", "d.json: there is no row in it"), ("[ \n]", "d.json: there is no row"),
    (b"[\xff]", "d.json: not UTF-8 at byte 1")])
def test_a_file_that_is_no_array_is_refused_in_one_sentence(text, named, tmp_path):
    (tmp_path / "d.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        data.read([tmp_path / "d.json"])
    assert named in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


# Lengths and weights, with a tokenizer of one id per character

class Characters:
    """Ids are code points; the template puts 1 before, 2 between, 3 and 4 after; 0 ends a response."""

    class hf:
        eos_token_id = 0

    eos_id = 0
    prompt_fields = ("document", "question")

    def __init__(self):
        self.encoded = []

    def encode_batch(self, texts):
        self.encoded += texts
        return [array("i", map(ord, text)) for text in texts]

    @property
    def prompt_pieces(self):
        return [1], [2], [3, 4]

    def chat_pieces(self, messages):
        if "system" in dict(messages):
            raise ModelError("the chat template drops what is said")
        return [[1], *[[5]] * len(messages)]

    def encode_response(self, text):
        return [*map(ord, text), 0]


AB, C = (ord("a"), ord("b")), ord("c")


def test_prompts_and_lengths():
    """length counts document and question, without the template around them; both are stripped."""
    [example], dropped = tokenize([Example("x", " ab\n", "c ", "z")], Characters(), 100)
    assert tuple(example.prompt_ids) == (1, *AB, 2, C, 3, 4) and example.length == 3 and dropped == 0
    [page], _ = tokenize([Example("t", "ab", "", "", task="text")], Characters(), 100)
    assert tuple(page.prompt_ids) == AB and page.length == 2


def test_a_chat_is_encoded_as_it_stands():
    """Not stripped, and the question for the judge is no part of it; a template that cannot show it names the row."""
    chat = Example("x", "", "z?", "z", messages=(("user", " b"), ("assistant", "c"), ("user", "ab")))
    [example], dropped = tokenize([chat, Example("y", "", "", "z", messages=(("user", "a" * 99),))], Characters(), 99)
    assert tuple(example.prompt_ids) == (1, ord(" "), ord("b"), 5, C, 5, *AB, 5)
    assert example.length == 5 and dropped == 1
    with pytest.raises(DataError, match="example 'y': the chat template drops"):
        tokenize([Example("y", "", "", "z", messages=(("system", "a"), ("user", "b")))], Characters(), 99)
    branch = sft_branch(replace(example, response="bb"), Characters())
    assert branch.weights == (0.0,) * 8 + (1 / 3,) * 3 and branch.target_ids[-3:] == (ord("b"), ord("b"), 0)


@pytest.mark.parametrize("limit, kept", [(7, ["x"]), (8, ["x", "y"]), (1000, ["x", "y", "z"])])
def test_overlong_prompts_are_dropped_and_counted_never_cut(limit, kept):
    examples = [Example("x", "ab", "c", "?"), Example("y", "abb", "c", "?"), Example("z", "a" * 300, "c", "?")]
    found, dropped = tokenize(examples, Characters(), limit)
    assert [e.id for e in found] == kept and dropped == 3 - len(kept)
    assert all(len(e.prompt_ids) == e.length + 4 and e.length == len(e.document) + 1 for e in found)


@pytest.mark.parametrize("limit, document, num_cut", [
    (15, "abcdefghij", 0), (14, "abcdeghij", 1), (13, "abcdghij", 2), (8, "abj", 7), (7, "aj", 8), (6, "a", 9)])
def test_an_evaluation_cuts_the_middle_of_a_document(limit, document, num_cut):
    """To exactly the limit (four ids of the template, one of the question); the length is the whole document's."""
    whole = Example("x", " abcdefghij\n", "k", "?")
    [example], number = tokenize([whole], Characters(), limit, cut=True)
    assert tuple(example.prompt_ids) == (1, *map(ord, document), 2, ord("k"), 3, 4) and len(example.prompt_ids) == limit
    assert (example.length, example.num_cut, number) == (11, num_cut, num_cut > 0)
    with pytest.raises(DataError, match="1 of 1 questions leave no room for a document in a prompt of 5 tokens"):
        tokenize([whole], Characters(), 5, cut=True)


def test_an_evaluation_cuts_the_middle_of_the_longest_turn_of_a_chat():
    turns = (("user", "abc"), ("assistant", "defg"), ("user", "hij"))          # 3 + 4 + 3 and four of the template
    chat = Example("x", "", "why?", "?", messages=turns)
    for limit, said in ((14, ["abc", "defg", "hij"]), (13, ["abc", "deg", "hij"]), (11, ["abc", "d", "hij"])):
        [example], number = tokenize([chat], Characters(), limit, cut=True)
        assert tuple(example.prompt_ids) == (1, *(token for text in said for token in (*map(ord, text), 5)))
        assert (example.length, example.num_cut, number) == (10, 14 - limit, limit < 14)


def test_a_question_that_leaves_no_room_for_a_document_is_an_error_and_not_dropped():
    examples = [Example("x", "ab", "c", "?"), Example("y", "ab", "c" * 9, "?"), Example("z", "a", "", "?", messages=(
        ("user", "a" * 20), ("user", "b" * 20)))]
    with pytest.raises(DataError, match=r"2 of 3 questions leave no room .* 10 tokens .* 'y'.*--max-prompt-tokens"):
        tokenize(examples, Characters(), 10, cut=True)
    assert [e.id for e in tokenize(examples, Characters(), 10)[0]] == ["x"]


def test_equal_documents_are_encoded_once():
    tokenizer = Characters()
    tokenize([Example(str(i), "ab", f"q{i}", "?") for i in range(5)], tokenizer, 100)
    assert tokenizer.encoded.count("ab") == 1 and len(tokenizer.encoded) == 6


# Prompts are arrays of 32-bit integers, encoded in batches

def test_prompts_take_four_bytes_a_token():
    examples = [Example("a", "ab" * 5000, "c", "?"), Example("b", "", "", "?", messages=(("user", "ab" * 5000),)),
                Example("c", "ab" * 5000, "", "", task="text")]
    for kept, _ in (tokenize(examples, Characters(), 20_000), tokenize(examples, Characters(), 9000, cut=True)):
        assert len(kept) == 3
        for example in kept:
            assert type(example.prompt_ids) is array and example.prompt_ids.itemsize == 4
            assert sys.getsizeof(example.prompt_ids) < 4 * len(example.prompt_ids) + 200


def test_equal_texts_far_apart_are_encoded_once_and_no_batch_holds_all(monkeypatch):
    """Each text's ids go with its last example: none of them is kept to the end."""
    batches, kept = [], []

    class Counting(Characters):
        def encode_batch(self, texts):
            batches.append(len(texts))
            kept.append(sum(reference() is not None for reference in references))
            result = super().encode_batch(texts)
            references.extend(map(weakref.ref, result))
            return result

    references, tokenizer = [], Counting()
    monkeypatch.setattr(data.prompt, "BATCH", 4)
    names = [f"document {i % 30}" for i in range(90)]
    examples = [Example(str(i), name, f"q{i}", "?") for i, name in enumerate(names)]
    examples += [Example(f"chat {i}", "", "", "?", messages=(("user", names[i]),)) for i in range(30)]
    tokenized, _ = tokenize(examples, tokenizer, 100)
    assert Counter(tokenizer.encoded) == Counter([*names[:30], *(f"q{i}" for i in range(90))])
    assert max(batches) <= 8 and max(kept) <= 30 + 8 and sum(r() is not None for r in references) <= 8
    for example, name in zip(tokenized, names):
        assert "".join(map(chr, example.prompt_ids[1:-2])) == f"{name}\x02q{example.id}"


def test_a_batch_of_texts_has_the_ids_of_each(toy_directory):
    tokenizer = Tokenizer(toy_directory)
    texts = ["", "Tom lives in Oslo.", "<|im_end|> </think>", "雨下了九天。👩\u200d🚀 x\u0301", " \n\t " * 50]
    assert [list(ids) for ids in tokenizer.encode_batch(texts)] == list(map(tokenizer.encode, texts))
    assert tokenizer.encode_batch([]) == []


def test_sft_weighs_the_response_alone_with_a_sum_of_one():
    """prompt 1 a 2 c 3 4, response "bb" and the end: three targets of 1/3."""
    [example], _ = tokenize([Example("x", "a", "c", "?", response="bb")], Characters(), 100)
    branch = sft_branch(example, Characters())
    assert branch.input_ids == (1, 97, 2, 99, 3, 4, 98, 98)
    assert branch.target_ids == (97, 2, 99, 3, 4, 98, 98, 0)
    assert branch.weights == (0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3) and branch.num_targets == 3


def test_plain_text_is_learned_token_by_token():
    [page], _ = tokenize([Example("t", "abc", "", "", task="text")], Characters(), 100)
    branch = sft_branch(page, Characters())
    assert branch.input_ids == (97, 98, 99) and branch.target_ids == (98, 99, 0) and branch.weights == (1 / 3,) * 3


# Mixtures

def of_tasks(**numbers: int) -> list[Example]:
    """So many examples of each task, in turn."""
    names = [(place, task) for task, number in numbers.items() for place in range(number)]
    return [Example(f"{task}{place}", "", "", "x", task) for place, task in sorted(names)]


@pytest.mark.parametrize("shares, kept", [
    ({"qa": 1}, {"qa": 40}), ({"qa": 1, "f1": 1}, {"qa": 10, "f1": 10}), ({"qa": 2, "f1": 1}, {"qa": 20, "f1": 10}),
    ({"qa": 8, "f1": 1, "em": 1}, {"qa": 40, "f1": 5, "em": 5}), ({"em": 0.5, "f1": 0.25}, {"em": 20, "f1": 10}),
    ({"qa": 1e9, "f1": 1}, {"qa": 40, "f1": 1})])
def test_a_mixture_has_its_proportions(shares, kept):
    """The scarcest for its share stands whole; order and examples are the old ones, and those kept a function of the
    seed."""
    examples = of_tasks(qa=40, f1=10, em=30)
    mixed = data.mix(examples, shares, seed=0)
    assert Counter(example.task for example in mixed) == kept
    assert mixed == [example for example in examples if example in mixed] == data.mix(examples, shares, seed=0)
    thinned = any(number < Counter(e.task for e in examples)[task] for task, number in kept.items())
    assert any(data.mix(examples, shares, seed) != mixed for seed in (1, 2, 3)) == thinned


def test_every_example_may_be_kept():
    examples = of_tasks(qa=6, f1=3)
    kept = Counter(e.id for seed in range(200) for e in data.mix(examples, {"qa": 1, "f1": 1}, seed) if e.task == "qa")
    assert len(kept) == 6 and all(70 <= number <= 130 for number in kept.values())             # 100 +- 3 x 7


def test_shares_as_they_are_written():
    assert data.shares(["qa=2", "f1", "em=0.25"]) == {"qa": 2.0, "f1": 1.0, "em": 0.25} and data.shares([]) == {}


@pytest.mark.parametrize("words, named", [
    (["qa=0"], "qa=0: a share"), (["qa=-1"], "qa=-1: a share"), (["qa="], "qa=: a share"), (["qa=x"], "a share"),
    (["qa=nan"], "a share"), (["qa=inf"], "a share"), (["qa=1=2"], "a share"),
    (["F1"], "'F1'; known are qa, .*rouge_l"),
    ([""], "no task ''"), (["text"], "no task 'text'"), (["qa", "qa=2"], "qa=2: qa is named twice")])
def test_shares_that_are_none_are_refused(words, named):
    with pytest.raises(ConfigError, match=named):
        data.shares(words)


def test_a_task_without_examples_is_named():
    with pytest.raises(DataError, match="--task em: none of the 2 examples"):
        data.mix(of_tasks(qa=1, f1=1), {"qa": 1, "em": 1}, 0)


# The file we ship, and the whole way through a script

def squeeze(text: str) -> str:
    return " ".join(text.lower().split())


def test_the_licence_questions_are_answered_by_their_texts():
    examples, licence = data.read([ROOT / "examples/licence_qa.jsonl"]), (ROOT / "LICENSE").read_text()
    assert len(examples) == 20
    for example in examples:
        assert squeeze(example.accepted[0]) in squeeze(example.document), example.id
        assert example.document in licence, example.id
    assert all(len(e.document) < len(licence) for e in examples[:10])
    assert all(e.document == licence for e in examples[10:])


SCRIPTS = ["train_rl", "train_sft", "eval"]


def start(script: str, *words: str) -> int:
    """The script's own last line, in this process."""
    module = importlib.import_module(script)
    return exits.start(module.main, module.Config, getattr(module, "PRESETS", {}), list(words))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_one_sentence_per_bad_row_and_exit_65(script, toy_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = write(tmp_path / "bad.jsonl", row(answer=None), row(response="yes"), "{", row(context=" ", id="c"))
    assert start(script, "--model", str(toy_directory), "--data", str(bad)) == errors.BAD_DATA == 65
    lines = capsys.readouterr().err.strip().split("\n")
    assert [line.split(": ")[0] for line in lines] == [f"{bad}:{number}" for number in (1, 3, 4)]
    assert {p.name for p in tmp_path.iterdir()} == {"bad.jsonl"}               # no run directory was begun


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exit_65_when_every_prompt_is_too_long(script, toy_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    long = write(tmp_path / "long.jsonl", row(response="yes"), row(id="b", response="yes"))
    words = ["--model", str(toy_directory), "--data", str(long), "--max-prompt-tokens", "5"]
    if script != "eval":
        words.append("--dry-run")
    assert start(script, *words) == 65
    message = capsys.readouterr().err.strip()
    assert "5" in message and "\n" not in message


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exit_66_when_a_file_is_not_there(script, toy_directory, tmp_path, capsys):
    assert start(script, "--model", str(toy_directory), "--data", str(tmp_path / "nowhere.jsonl")) == 66
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert start(script, "--model", str(tmp_path / "nomodel")) == 66
    assert "nomodel" in capsys.readouterr().err


def test_supervised_fine_tuning_on_fewer_examples_than_a_batch(toy_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = write(tmp_path / "few.jsonl", row(response="yes"), row(id="b", response="no"))
    assert start("train_sft", "--model", str(toy_directory), "--data", str(few), "--eval-every", "0", "--dry-run") == 0


@pytest.mark.full
def test_a_bad_file_through_a_real_process(toy_directory, tmp_path):
    bad = write(tmp_path / "bad.jsonl", row(answer=None), "{")
    words = ["--model", str(toy_directory), "--data", str(bad), "--dry-run"]
    done = subprocess.run([sys.executable, "train_rl.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 65 and "Traceback" not in done.stderr
    assert done.stderr.strip().split("\n") == [
        f'{bad}:1: the field "answer" is missing',
        f"{bad}:2: not JSON at column 2: Expecting property name enclosed in double quotes; "
        "a row is one JSON object on one line"]


def test_the_number_shown_is_the_number_documented():
    assert data.files.SHOWN == 20
