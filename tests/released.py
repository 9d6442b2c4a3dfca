"""The rule rewards of the released QwenLong-L1 and GoLongRL code, rewritten from a description, holes included. Only
tests and docs/rewards.md use them, for comparison.

    python -m tests.released            how many responses of tests/corpus/ they reward, and we

Two things are simpler than in the released code. Numbers are read by float(), not by evaluating Python. Of the last 500
characters, which math-verify parses there, only \\boxed{} is read.
"""

import json
import math
import re
import string
from collections import Counter

from nanoqwenlong.reward import measures
from nanoqwenlong.reward.judge import Judge, prompt
from nanoqwenlong.rewards import TASKS
from tests.corpus import HOSTILE, TRUE, rewarded


def released(task: str, text: str, gold: str | tuple[str, ...]) -> float:
    """The released reward of a response. It knows only the first of several accepted answers."""
    rule = RULES[task]
    if "</think>" not in text or rule in GOLONGRL and (text.count("<think>") > 1 or text.count("</think>") > 1):
        return 0.0
    return float(rule(text, gold if isinstance(gold, str) else gold[0]))


# QwenLong-L1

def behind_thinking(text: str) -> str:
    return text.rpartition("</think>")[2].strip().replace("*", "")


def qa(text: str, gold: str) -> bool:
    """Two-way substring of what follows the last "the answer is", to the very end. "" is in every text."""
    said, found, answer = behind_thinking(text).rpartition("the answer is")
    answer = answer.strip().strip(".").strip()
    a, b = bare_words(answer), bare_words(gold)
    return bool(found and answer) and (a in b or b in a)


def bare_words(text: str) -> str:
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def number(text: str, gold: str) -> bool:
    """The first number after the first "the answer is". Any power of ten is right, and any sign."""
    a, b = first_number(behind_thinking(text)), first_number(f"the answer is {gold}")
    if a is None or b is None:
        return False
    if abs(a - b) <= 0.0015 * abs(b):
        return True
    small, large = sorted((abs(a), abs(b)))
    return small > 0 and (
        math.log10(large / small) % 1 in (0.0, 1.0) or math.ceil(small * 1000) == math.ceil(large * 1000) or
        any(abs(small * factor - large) <= 0.0015 * large for factor in (100, 1000, 100_000)))


def first_number(text: str) -> float | None:
    """A text that is not a number is 0. None if the words before it are missing."""
    found = re.search(r"the answer is [=≈`%$°£€¥]*(-?[0-9.,]+)", text, re.IGNORECASE)
    if not found:
        return None
    digits = found[1].replace(",", "").rstrip(".")
    return float(digits) if re.fullmatch(r"-?(0|[1-9]\d{0,300}|(?=\.\d))(\.\d*)?", digits) else 0.0


def choice(text: str, gold: str) -> bool:
    said = behind_thinking(text)
    found = re.search(r"The correct answer is \(([A-D])\)", said) or re.search(r"The correct answer is ([A-D])", said)
    return bool(found) and found[1] == gold.strip("()")


# GoLongRL: the thinking is part of the answer in all but the first two

def em(text: str, gold: str) -> bool:
    return text.rpartition("</think>")[2].strip() == gold.strip()


def accuracy(text: str, gold: str) -> bool:
    return choice(text, gold) if re.fullmatch(r"\(?[A-D]\)?", gold) else lines(text)[:1] == lines(gold)[:1]


def lines(text: str) -> list[str]:
    marker = "[Answer]" if "[Answer]" in text else "[答案]"
    return [re.sub(" +", " ", line) for line in text.rpartition(marker)[2].strip().lower().split("\n")]


def f1(text: str, gold: str) -> float:
    a, g = set(lines(text)), set(lines(gold))
    return 2 * len(a & g) / (len(a) + len(g))


def sub_em(text: str, gold: str) -> float:
    """Recall: naming everything is right."""
    return sum(item in lines(text) for item in lines(gold)) / len(lines(gold))


def ndcg(text: str, gold: str) -> float:
    """Only the last place of a repeated item counts. Its other places stay empty."""
    places = {item: place for place, item in enumerate(lines(text))}
    ranking = sorted(places, key=places.get)
    worth = {item: len(lines(gold)) - place for place, item in enumerate(lines(gold))}
    gain = [sum(worth.get(item, 0) / math.log2(place + 2) for place, item in enumerate(side[:len(worth)]))
            for side in (ranking, list(worth))]
    return gain[0] / gain[1]


def pairwise(text: str, gold: str) -> float:
    """The share of right pairs among the pairs of the answer: two items make only one pair."""
    answer, right = lines(text), lines(gold)
    if len(answer) < 2 or len(right) < 2:
        return 0.0
    places = {item: place for place, item in enumerate(answer)}
    pairs = sum(a in places and b in places and places[a] < places[b] for i, a in enumerate(right)
                for b in right[i + 1:])
    share = pairs / math.comb(len(answer), 2)
    return share if share <= 1 else 0.0                        # an assertion, which a broad except turns into 0


def math_verify(text: str, gold: str) -> bool:
    """The one box in the last 500 characters, thinking included. Nothing without a box, or with two."""
    boxes = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text[-500:])
    return len(boxes) == 1 and measures.math(boxes[0], gold) == 1


def iou(text: str, gold: str) -> float:
    """JSON in the first <answer> of the whole response."""
    found = re.search("<answer>(.*?)</answer>", text, re.DOTALL)
    try:
        a, g = (Counter(tuple(map(str, row)) for row in json.loads(table)["data"])
                for table in (found[1] if found else text, gold))
    except Exception:                                          # theirs is as broad
        return 0.0
    common = (a & g).total()
    return common / max(1, a.total() + g.total() - common)


RULES = {"qa": qa, "number": number, "choice": choice, "em": em, "accuracy": accuracy, "f1": f1, "math": math_verify,
         "iou": iou, "sub_em": sub_em, "ndcg": ndcg, "pairwise": pairwise, "rouge_l": measures.rouge_l}
GOLONGRL = set(RULES.values()) - {qa, number, choice}


# The table of docs/rewards.md

def table() -> str:
    """The rewarded responses per task: by their rule, by ours, and by ours with the judge of tests/test_corpus.py."""
    from tests.test_corpus import Obeying, scores
    rows = []
    for task in TASKS:
        row = [task]
        for cases in (HOSTILE, TRUE):
            cases = [case for case in cases if case.task == task]
            theirs = [released(task, case.text, case.gold) for case in cases]
            ours, judged = ([score.reward for score in scores(cases, judge)]
                            for judge in (None, Judge(Obeying(prompt))))
            row += [len(cases)] + [sum(rewarded(task, reward) for reward in side) for side in (theirs, ours, judged)]
        rows.append(row)
    rows.append(["all", *(sum(column) for column in list(zip(*rows))[1:])])
    head = ["task", *(f"{name}{part}" for name in ("hostile", "true") for part in (
        "", ": released rule", ": our rule", ": and a judge"))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] + ["---:"] * 8, *rows))


if __name__ == "__main__":
    print(table())
