"""Rows on which a tiny model learns to be a judge: do two answers to a toy question name the same thing?

    python -m tools.judge_data 4000 > judge.jsonl           prompts as judge.py writes them, each with its reply

The things of the toy task have two names each (toy.OTHER_WORDS). Beside pairs of the same and of different names there
are lists, negations and the questions with known answers of judge.py, which a judge is tested with while it works.
"""

import json
import random
import sys

from nanoqwenlong import toy
from nanoqwenlong.judge import CANARIES, Question, nonce, prompt

VERDICTS = {1.0: "[[YES]]", 0.0: "[[NO]]"}


def rows(num: int, seed: int = 0):
    """`num` pairs of prompt and completion, half of them of answers that are the same."""
    rng = random.Random(seed)
    for number in range(num):
        question, same = rng.choice(CANARIES) if rng.random() < 0.1 else pair(rng)
        yield {"prompt": prompt(question, nonce(question, seed=rng.randrange(10**9))),
               "completion": f"{question.answer} / {question.golds[0]}\n{VERDICTS[same]}"}


def pair(rng: random.Random) -> tuple[Question, float]:
    """A toy question with its gold answer and another one, and whether they are the same."""
    town, person = rng.choice(toy.TOWNS), rng.choice(toy.PEOPLE)
    asked, names = rng.choice([(f"What did we send {town}?", toy.GOODS),
                               (f"Which town did we show {person}?", toy.TOWNS),
                               (f"What did we send the town that we showed {person}?", toy.GOODS)])
    gold, other = rng.sample(names, 2)
    if rng.random() < 0.5:
        return Question(asked, (gold,), rng.choice([gold, toy.OTHER_WORDS.get(gold, gold)])), 1.0
    wrong = rng.choice([other, toy.OTHER_WORDS.get(other, other), f"{gold}, {other}", f"not {gold}", person])
    return Question(asked, (gold,), wrong), 0.0


if __name__ == "__main__":
    for row in rows(int(sys.argv[1])):
        print(json.dumps(row))
