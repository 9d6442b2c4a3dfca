"""recipes/real_data.py: questions of two sources become files by document length, and nothing held out is trained on.

The sources are made here, in the forms in which they are released."""

import gzip
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from recipes import real_data
from recipes.real_data import Passage, Question

from nanoqwenlong import data
from nanoqwenlong.errors import DataError
from nanoqwenlong.pretrained.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"one": (0, 400, (0,)), "three": (250, 1100, (2,)), "long": (400, 3000, (4, 6))}        # of the toy's tokens
PLACES = ["Bergen", "Oslo", "Rome", "Kyiv", "Lima", "Cairo", "Quito", "Delhi", "Tunis", "Hanoi", "Seoul", "Sofia"]
RARE = [f"{first}{last}" for first in ("al", "be", "cor", "du", "er", "fin") for last in ("mor", "nex", "tun", "vil")]


def write_sources(directory: Path, num_articles: int = 48, length: int = 60) -> tuple[Path, Path]:
    """Two files in the forms of nq-open-oracle.jsonl.gz and xquad.en.json. Each article has a town of its own."""
    rng = random.Random(0)
    directory.mkdir(exist_ok=True)
    rows, articles = [], []
    for number in range(num_articles):
        town = f"{RARE[number % 24].capitalize()} {PLACES[number // 24]}"
        filler = " ".join(rng.choices(RARE, k=length))
        text = f"It is an old place. The mayor of {town} , J. Berg ,  was born in 19{number:02}. {filler}"
        rows.append({"question": f"who is the mayor {number} of {town.lower()}", "answers": [f"19{number:02}", "Ada"],
                     "ctxs": [{"title": town, "text": text, "hasanswer": True, "isgold": True}]})
        qas = [{"id": f"q{number}", "question": f"When was the mayor {number} of {town} born?",
                "answers": [{"text": f"18{number:02}", "answer_start": 0}]}]
        filler = " ".join(rng.choices(RARE, k=9))
        context = f"In 18{number:02} the river rose. The mayor was born in 18{number:02}. {filler}"
        qas[0]["answers"][0]["answer_start"] = context.rindex(f"18{number:02}")
        title = f"The_{town.replace(' ', '_')}_{number}"
        articles.append({"title": title, "paragraphs": [{"context": context, "qas": qas}]})
    rows.append({**rows[0], "question": "who cannot be answered", "answers": ["Nobody Here"]})
    nq, xquad = directory / "nq-open-oracle.jsonl.gz", directory / "xquad.en.json"
    with gzip.open(nq, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    xquad.write_text(json.dumps({"version": "1.1", "data": articles}))
    return nq, xquad


@pytest.fixture(scope="module")
def out(tmp_path_factory, toy_directory) -> Path:
    """The files made of small sources. Most tokens of the toy's tokenizer are a letter here."""
    directory = tmp_path_factory.mktemp("real")
    nq, xquad = write_sources(directory / "given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_data, "KINDS", KINDS)
        patch.setattr(real_data, "SFT_RESPONSE", 200)
        for name in ("first", "again"):
            real_data.main([str(directory / name), "--tokenizer", str(toy_directory), "--nq", str(nq), "--xquad",
                            str(xquad)])
    return directory / "first"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def passages(row: dict) -> list[Passage]:
    return [Passage(*passage.split("\n", 1)) for passage in row["context"].split("\n\n")]


def test_the_files_hold_what_their_names_say(out, toy_directory):
    tokenizer = Tokenizer(toy_directory)
    names = {path.stem for path in out.iterdir()}
    assert names == {"sft", "control", "rl_one", "rl_three", "rl_long", "held_nq_one", "held_nq_three", "held_nq_long",
                     "held_xquad_one", "held_xquad_three"}
    for name in names - {"sft", "control"}:
        low, high, numbers = KINDS[name.rsplit("_", 1)[1]]
        for row in rows(out / f"{name}.jsonl"):
            length = len(tokenizer.encode(row["context"])) + len(tokenizer.encode(row["question"]))
            assert low < length <= high and "response" not in row
            assert len(passages(row)) - 1 in numbers
            assert row["source"] == ("xquad" if "xquad" in name else "nq")
            answer = row["answer"] if isinstance(row["answer"], str) else row["answer"][0]
            assert [answer in passage.text for passage in passages(row)].count(True) == 1      # no distractor has it
    assert all(row["source"] == "xquad" for row in rows(out / "sft.jsonl"))
    one, three, long = ({row["id"].rsplit("-", 1)[0] for row in rows(out / f"rl_{kind}.jsonl")} for kind in KINDS)
    assert len(one) == len(three) == len(long) == 20 and not one & (three | long) and three == long
    assert len(rows(out / "held_nq_one.jsonl")) == len(rows(out / "held_xquad_three.jsonl")) == 8      # a sixth of 48
    asked = {row["id"]: row["question"] for row in rows(out / "rl_one.jsonl") + rows(out / "held_nq_one.jsonl")}
    assert all(re.fullmatch(r"Who is the mayor \d+ of .*\?", question) for question in asked.values())


def test_the_scripts_read_every_file(out):
    for path in out.iterdir():
        has_responses = path.stem in ("sft", "control")
        assert data.read([path], need_question=True, need_response=has_responses)


def test_nothing_that_is_held_out_is_in_a_training_file(out):
    titles, texts = {True: set(), False: set()}, {True: set(), False: set()}
    for path in out.iterdir():
        for row in rows(path):
            titles[path.stem.startswith("held")] |= {passage.title for passage in passages(row)}
            texts[path.stem.startswith("held")] |= {passage.text for passage in passages(row)}
    assert titles[True] and not titles[True] & titles[False] and not texts[True] & texts[False]


def test_the_same_sources_give_the_same_files(out):
    for path in out.iterdir():
        assert path.read_bytes() == (out.parent / "again" / path.name).read_bytes()


def test_a_worked_answer_quotes_the_sentence_from_its_start_and_states_the_answer(out):
    for row in rows(out / "sft.jsonl"):
        answer = row["answer"]
        assert row["response"] == (f"<think> The mayor was born in {answer}</think> "
                                   f"Therefore, the answer is {answer}.")      # not the year in the first sentence
    for row in rows(out / "control.jsonl"):
        quote, answer = re.fullmatch(r"<think> (.*)</think> Therefore, the answer is (.*)\.", row["response"]).groups()
        assert re.fullmatch(rf"The mayor of \w+ \w+, J. Berg, was born in {answer}", quote) and answer in row["answer"]
    assert {row["id"] for row in rows(out / "control.jsonl")} == {
        row["id"] for name in ("rl_one", "rl_three") for row in rows(out / f"{name}.jsonl")}


def test_what_shares_a_title_a_run_of_words_or_a_question_is_one_group():
    run = " ".join(f"word{number}" for number in range(13))
    texts = {"a": "first text here", "b": f"Ada said: {run.upper()}, then left", "c": f"so {run} it is",
             "d": f"{run.removesuffix(' word12')} word13", "e": "short", "f": "short"}
    titles = {**{name: name for name in texts}, "a": "Old_Town", "d": "old town"}
    asked = {**{name: f"what is {name}?" for name in texts}, "b": "Is it e?", "e": "is it E"}
    questions = [Question(name, "nq", asked[name], ("x",), Passage(titles[name], text), 0)
                 for name, text in texts.items()]
    for order in (questions, questions[::-1]):
        group_of = real_data.groups(order)
        named = {}
        for question in questions:
            named.setdefault(group_of[question.passage], set()).add(question.id)
        assert sorted(map(sorted, named.values())) == [["a", "d"], ["b", "c", "e", "f"]]


def test_bm25_ranks_as_its_formula_says():
    """Against Robertson and Zaragoza's formula, with each term computed anew for each passage."""
    rng = random.Random(1)
    collection = [Passage(rng.choice(RARE), " ".join(rng.choices(RARE, k=rng.randint(1, 30)))) for _ in range(40)]
    collection = list(dict.fromkeys(collection))
    texts = [f"{title} {text}".split() for title, text in collection]
    mean = sum(map(len, texts)) / len(texts)
    for _ in range(20):
        question = rng.sample(RARE, 4)
        scores = {}
        for passage, text in zip(collection, texts):
            score = 0.0
            for word in question:
                having = sum(word in other for other in texts)
                frequency = Counter(text)[word]
                score += math.log(1 + (len(texts) - having + 0.5) / (having + 0.5)) * frequency * 2.2 / (
                    frequency + 1.2 * (0.25 + 0.75 * len(text) / mean))
            scores[passage] = score
        ranked = real_data.bm25(collection)(" ".join(question))
        assert set(ranked) == {passage for passage, score in scores.items() if score > 0}
        assert all(scores[one] >= scores[other] - 1e-9 for one, other in zip(ranked, ranked[1:]))


@pytest.mark.parametrize("name, content", [
    ("nq", gzip.compress(b'{"question": "who"}\n', mtime=0)), ("nq", b'{"question": "who"}\n'),
    ("nq", gzip.compress(b"[1]\n", mtime=0)), ("nq", gzip.compress(b'{"question": "who"}\n', mtime=0)[:-9]),
    ("xquad", b"<html>404</html>"), ("xquad", b'{"data": [{}]}'), ("xquad", b"[]"), ("xquad", b"\xff"),
    ("xquad", b'{"data": 5}')])
def test_another_file_is_refused_in_one_sentence(name, content, tmp_path, toy_directory):
    paths = dict(zip(("nq", "xquad"), write_sources(tmp_path / "given", 6)))
    paths[name].write_bytes(content)
    with pytest.raises(DataError, match=f"{paths[name].name} is not the file .* of the source {name}") as error:
        real_data.build(paths["nq"], paths["xquad"], Tokenizer(toy_directory))
    assert "\n" not in str(error.value)


def test_a_source_is_downloaded_once_and_without_a_network_the_error_names_the_flag(tmp_path, monkeypatch, capsys):
    url = (tmp_path / "there.json").as_uri()
    monkeypatch.setitem(real_data.SOURCES, "xquad", (url, "00"))
    with pytest.raises(DataError, match="there.json cannot be downloaded .* --xquad FILE"):
        real_data.download("xquad", tmp_path / "sources")
    (tmp_path / "there.json").write_text("{}")
    assert real_data.download("xquad", tmp_path / "sources").read_text() == "{}"
    assert "is another version" in capsys.readouterr().out
    (tmp_path / "there.json").unlink()
    assert real_data.download("xquad", tmp_path / "sources").name == "there.json"
    assert [path.name for path in (tmp_path / "sources").iterdir()] == ["there.json"]
