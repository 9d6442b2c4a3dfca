"""The toy task, and the tiny models made for it."""

import json
import random
from pathlib import Path

import pytest
import torch
from recipes.look_ups import look_up_rate

from nanoqwenlong import data, rewards, toy
from nanoqwenlong.analysis import evaluate
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained.tokenizer import Tokenizer

BOTH = pytest.mark.parametrize("records", [toy.SHORT, toy.LONG], ids=["short", "long"])


def records_of(document: str) -> dict[tuple[str, str], str]:
    """{("showed", "Tom"): "Oslo", ("sent", "Oslo"): "tea", ...}, read from the words of a document."""
    found = {}
    for sentence in document.removeprefix("Notes. ").rstrip(".").split(". "):
        we, verb, key, value = sentence.split()
        assert we == "We" and (verb, key) not in found
        found[verb, key] = value
    return found


def solve(example) -> str:
    """The answer worked out from document and question, not from how they were made."""
    facts, words = records_of(example.document), example.question.rstrip("?").split()
    if words[0] == "Which":
        return facts["showed", words[-1]]
    return facts["sent", facts["showed", words[-1]] if "town" in words else words[-1]]


@BOTH
def test_every_question_has_the_answer_that_its_document_gives(records):
    for example in toy.examples(300, records, seed=3):
        assert example.answer == solve(example)
        assert rewards.score(example.response, example).reward == 1
        kinds = [verb for verb, _ in records_of(example.document)]
        assert kinds.count("showed") >= 4 and kinds.count("sent") >= 4
        assert records[0] <= len(kinds) <= records[1]


def test_a_third_of_the_questions_need_two_look_ups():
    two = sum(example.question.startswith("What went to the town") for example in toy.examples(900, toy.SHORT, 0))
    assert 240 < two < 360


def test_the_answer_cannot_be_guessed_without_the_document():
    """Over many documents every town is the answer about equally often, for everybody together and for each person."""
    asked = [(e.question, e.answer) for e in toy.examples(6000, toy.SHORT, 0) if e.question.startswith("Which")]
    answers = [answer for _, answer in asked]
    assert all(0.5 < answers.count(town) * len(toy.TOWNS) / len(answers) < 1.5 for town in toy.TOWNS)
    toms = [answer for question, answer in asked if "Tom" in question]
    assert max(map(toms.count, toms)) < 0.2 * len(toms)


@BOTH
def test_examples_are_a_function_of_the_seed_and_splits_are_disjoint(records):
    train, again = toy.examples(300, records, 0), toy.examples(300, records, 0)
    heldout = toy.examples(300, records, 1, "heldout")
    assert train == again and train != toy.examples(300, records, 1)
    assert toy.examples(100, records, 0) == train[:100]
    assert {e.document for e in train}.isdisjoint({e.document for e in heldout})
    assert len({e.id for e in train + heldout}) == 600


def test_warm_up_does_not_stop_on_the_questions_that_the_table_is_made_of():
    """train_sft.py measures held-out seed 1, eval.py seed 0."""
    stop, table = (toy.examples(400, toy.SHORT, seed, "heldout") for seed in (1, 0))
    assert {e.document for e in stop}.isdisjoint({e.document for e in table})


def test_long_documents_are_at_least_three_times_the_short_ones_and_buckets_part_them(toy_pair):
    _, tokenizer = toy_pair
    short, _ = data.tokenize(toy.examples(300, toy.SHORT, 0), tokenizer, 10**6)
    long, _ = data.tokenize(toy.examples(300, toy.LONG, 0), tokenizer, 10**6)
    assert toy.LONG[0] >= 3 * toy.SHORT[0] and toy.LONG[1] >= 3 * toy.SHORT[1]
    assert max(e.length for e in short) <= toy.LENGTHS[0] < min(e.length for e in long)
    assert max(e.length for e in long) <= toy.LENGTHS[1]


def test_every_word_of_the_task_is_one_token(toy_pair):
    _, tokenizer = toy_pair
    for word in (*toy.PEOPLE, *toy.TOWNS, *toy.GOODS):
        assert len(tokenizer.encode(" " + word)) == 1


def test_pages_repeat_few_records_and_ask_nothing():
    for page in toy.pages(100, seed=0):
        sentences = page.document.removeprefix("Notes. ").rstrip(".").split(". ")
        assert page.task == "text" and "?" not in page.document
        assert len(sentences) == toy.MENTIONS and len(set(sentences)) <= toy.PAGE[1]


def test_a_new_model_starts_with_a_head_that_looks_one_token_back(toy_pair):
    """With random ids head 0 of layer 0 gives most of its attention to the token before."""
    model, _ = toy_pair
    seen = {}

    class Probe:
        def __call__(self, layer, q, k, v):
            scores = (q[:, 0] @ k[:, 0].T / q.shape[-1] ** 0.5).masked_fill(torch.ones(64, 64).triu(1) > 0, -torch.inf)
            seen.setdefault(layer, scores.softmax(-1))
            return torch.zeros_like(q)

    ids = torch.tensor(random.Random(0).choices(range(model.config.vocab_size), k=64))
    model(ids, torch.arange(64), Probe())
    assert seen[0].diagonal(-1)[5:].mean() > 0.5


# The committed models

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def load(name: str):
    return Qwen.from_pretrained(ASSETS / name), Tokenizer(ASSETS / name)


def test_the_base_looks_things_up_in_short_documents_and_less_surely_in_long_ones():
    model, tokenizer = load("nano-base")
    short, long = (look_up_rate(model, tokenizer, records) for records in (toy.SHORT[1], toy.LONG[1]))
    assert short >= 0.9 and long <= short - 0.05


@pytest.mark.parametrize("name, short, long", [("nano-sft", (0.3, 0.8), (0.1, 0.6)),
                                               ("nano-rl", (0.9, 1.0), (0.85, 1.0))])
def test_the_warm_up_stops_early_and_rl_teaches_the_rest(name, short, long):
    model, tokenizer = load(name)
    rates = []
    for records in (toy.SHORT, toy.LONG):
        asked, _ = data.tokenize(toy.examples(60, records, seed=5, split="heldout"), tokenizer, 10**6)
        answers = evaluate.answer_examples(Generator(model).sample, tokenizer, asked, n=1, max_new_tokens=48)
        rates.append(evaluate.accuracy(evaluate.score_answers(asked, answers)))
    assert short[0] <= rates[0] <= short[1] and long[0] <= rates[1] <= long[1], rates


@pytest.mark.parametrize("name", ["nano-base", "nano-sft", "nano-rl"])
def test_assets_are_ordinary_hugging_face_directories_and_small(name):
    import transformers
    hf = transformers.AutoModelForCausalLM.from_pretrained(ASSETS / name, attn_implementation="eager")
    text = transformers.AutoTokenizer.from_pretrained(ASSETS / name)
    ids = torch.tensor([text.encode("Notes. We showed Tom Oslo. We sent Oslo tea.")])
    model, _ = load(name)
    logits = hf(ids).logits
    assert (logits - model.logits(ids)).abs().max() <= 1e-6 * logits.abs().max()
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) <= 4 * 10**6
    assert json.loads((ASSETS / name / "made_by.json").read_text())["seed"] == 0


def test_a_task_that_is_not_of_the_toy_is_refused():
    with pytest.raises(ConfigError, match="--task choice: the toy task has qa, f1, pairwise only"):
        toy.examples(1, toy.SHORT, seed=0, tasks=("qa", "choice"))
