"""A judge at toy scale, to be trained: rows that teach it, and a random tiny model that knows their words.

    python -m recipes.toy_judge runs/judge 8000        makes runs/judge/rows.jsonl and the model in runs/judge/new

A row is a prompt as judge.py writes it, and a reply: both answers again, and whether they name the same thing. The
things of the toy task have two names each (toy.OTHER_WORDS). Beside pairs of the same and of different names there are
lists, negations, and the questions with known answers that judge.py slips in while it works.
"""

import json
import random
import sys
from pathlib import Path

from nanoqwenlong import toy
from nanoqwenlong.reward.judge import CANARIES, Question, nonce, prompt

VERDICTS = {1.0: "same [[YES]]", 0.0: "other [[NO]]"}


def rows(num: int, seed: int = 0) -> list[dict]:
    """`num` pairs of prompt and completion, about half of them of answers that are the same."""
    rng, found = random.Random(seed), []
    for number in range(num):
        question, same = rng.choice(CANARIES) if rng.random() < 0.1 else pair(rng)
        found.append({"prompt": prompt(question, nonce(question, seed=rng.randrange(10**9))),
                      "completion": f"{question.answer} / {question.golds[0]} {VERDICTS[same]}"})
    return found


def pair(rng: random.Random) -> tuple[Question, float]:
    """A toy question with its gold answer and another one, and whether they are the same."""
    town, person = rng.choice(toy.TOWNS), rng.choice(toy.PEOPLE)
    asked, names = rng.choice([(f"What did we send {town}?", toy.GOODS),
                               (f"Which town did we show {person}?", toy.TOWNS),
                               (f"What did we send the town that we showed {person}?", toy.GOODS)])
    gold, other = rng.sample(names, 2)
    if rng.random() < 0.5:
        return Question(asked, (gold,), rng.choice([gold, toy.OTHER_WORDS.get(gold, gold)])), 1.0
    wrong = rng.choice([other, toy.OTHER_WORDS.get(other, other)] * 3 + [f"{gold}, {other}", f"not {gold}", person])
    return Question(asked, (gold,), wrong), 0.0


def main(directory: Path, num: int) -> None:
    found = rows(num)
    model, tokenizer = toy.new_model(0, [text for row in found for text in row.values()], looks_back=(1, 2),
                                     num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4)
    for part in (model, tokenizer):
        part.save_pretrained(directory / "new")
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
