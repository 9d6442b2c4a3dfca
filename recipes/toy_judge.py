"""A judge at toy scale: rows to train it on, and a random tiny model with their words in its tokenizer.

    python -m recipes.toy_judge runs/judge 8000        makes runs/judge/rows.jsonl and the model in runs/judge/new

A row is a prompt as judge.py writes it, and a reply that repeats both answers and says whether they name the same
thing. The things of the toy task have two names each (toy.OTHER_WORDS). There are pairs of equal and of different
names, lists, negations, and the canaries: questions with known verdicts that judge.py asks now and then.
"""

import json
import random
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from nanoqwenlong import toy
from nanoqwenlong.reward.judge import CANARIES, Question, nonce, prompt

VERDICTS = {1.0: "same [[YES]]", 0.0: "other [[NO]]"}


def rows(num: int, seed: int = 0) -> list[dict]:
    """`num` prompts with completions. In about half of them, the two answers are the same."""
    rng = random.Random(seed)
    made = []
    for _ in range(num):
        question, same = rng.choice(CANARIES) if rng.random() < 0.1 else pair(rng)
        code = nonce(question, seed=rng.randrange(10**9))
        made.append({"prompt": prompt(question, code),
                     "completion": f"{question.answer} / {question.golds[0]} {VERDICTS[same]}"})
    return made


def pair(rng: random.Random) -> tuple[Question, float]:
    """A toy question with its gold answer and an answer, and 1.0 if the two are the same, else 0.0."""
    town, person = rng.choice(toy.TOWNS), rng.choice(toy.PEOPLE)
    question, names = rng.choice([(f"What did we send {town}?", toy.GOODS),
                                  (f"Which town did we show {person}?", toy.TOWNS),
                                  (f"What went to the town that we showed {person}?", toy.GOODS)])
    gold, other = rng.sample(names, 2)
    if rng.random() < 0.5:
        right = rng.choice([gold, toy.OTHER_WORDS.get(gold, gold)])
        return Question(question, (gold,), right), 1.0
    other_names = [other, toy.OTHER_WORDS.get(other, other)]
    wrong = rng.choice(other_names * 3 + [f"{gold}, {other}", f"not {gold}", person])
    return Question(question, (gold,), wrong), 0.0


def main(directory: Path, num: int) -> None:
    made = rows(num)
    texts = [text for row in made for text in row.values()]
    model, tokenizer = toy.new_model(0, texts, looks_back=(1, 2), num_hidden_layers=3, num_attention_heads=4,
                                     num_key_value_heads=4)
    model.save_pretrained(directory / "new")
    tokenizer.save_pretrained(directory / "new")
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser("python -m recipes.toy_judge", description=__doc__,
                            formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("num", type=int, help="rows to write")
    main(**vars(parser.parse_args()))
