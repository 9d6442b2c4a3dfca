"""What both collections are made of, and the ways to state an answer."""

from collections.abc import Iterable
from typing import NamedTuple


class Case(NamedTuple):
    task: str
    question: str
    document: str
    gold: str | tuple[str, ...]
    text: str  # the response, as a model wrote it


GRADED = ("f1", "sub_em", "ndcg", "pairwise", "iou", "rouge_l")


def rewarded(task: str, reward: float) -> bool:
    return reward > (0.5 if task in GRADED else 0.0)


def stated(answer: str) -> str:
    return f"<think>Let me look.</think>\n\nTherefore, the answer is {answer}"


def bare(answer: str) -> str:
    return f"<think>Let me look.</think>\n\n{answer}"


ENGLISH = (
    "Therefore, the answer is {}",
    "[Answer] {}",
    "<answer>{}</answer>",
    "The final answer is: {}",
    "Answer: {}",
    "So the answer is {}.",
    "I read it twice.\n\n[Answer]\n{}",
)
CHINESE = (
    "答案：{}",
    "【答案】{}",
    "因此，答案是{}。",
    "[答案] {}",
    "最终答案为：{}",
    "所以正确答案是：{}",
    "【答案】：{}。",
    "**答案：**{}",
)


def han(text: str) -> bool:
    """Whether the text is Chinese, at least in part."""
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def said(answer: str, place: int = 0, chinese: bool | None = None) -> str:
    """A response that states the answer. `place` chooses the way, among the ones of its language."""
    ways = CHINESE if (han(answer) if chinese is None else chinese) else ENGLISH
    return f"<think>{'我看一下。' if ways is CHINESE else 'Let me look.'}</think>\n\n" + ways[place % len(ways)].format(
        answer
    )


class Row(NamedTuple):
    """A gold answer with answers of each kind. `judged` are right too, in words or signs that only a judge can know."""

    gold: str
    right: list[str]
    wrong: list[str]
    judged: list[str]


def table(text: str) -> list[Row]:
    """One row a line: gold ¦¦ right ¦ right ¦¦ wrong ¦ wrong ¦¦ judged ¦ judged. The last part may be missing."""
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        gold, *parts = line.split("¦¦")
        cells = [list(filter(None, map(str.strip, part.split("¦")))) for part in parts]
        rows.append(Row(gold.strip(), *cells, *([[]] * (3 - len(cells)))))
    return rows


def of_rows(
    rows: Iterable[Row],
    tasks: Iterable[str],
    question: str,
    document: str = "",
    ways: int = 1,
    chinese: bool | None = None,
) -> tuple[list[Case], list[Case]]:
    """The hostile and the true cases of rows, for each task, each answer in some ways of stating it."""
    hostile, true = [], []
    for number, row in enumerate(rows):
        for shift, task in enumerate(tasks):
            for cases, answers in ((hostile, row.wrong), (true, [row.gold, *row.right, *row.judged])):
                cases += [
                    Case(task, question, document, row.gold, said(answer, number + shift + place + way, chinese))
                    for place, answer in enumerate(answers)
                    for way in range(ways)
                ]
    return hostile, true


def of_options(
    texts: dict[str, str], chosen: Iterable[str], unchosen: Iterable[str], question: str, chinese: bool
) -> tuple[list[Case], list[Case]]:
    """The hostile and the true cases of a multiple choice, for each of its options: texts = {letter: text}. Forms of an
    answer name {0} the right letter, {1} its text, {2} another letter, {3} its text."""
    hostile, true = [], []
    letters = list(texts)
    for number, letter in enumerate(letters):
        other = letters[(number + 1) % len(letters)]
        for task in ("choice", "accuracy"):
            for cases, forms in ((hostile, unchosen), (true, chosen)):
                for place, form in enumerate(forms):
                    answer = form.format(letter, texts[letter], other, texts[other])
                    cases.append(Case(task, question, "", letter, said(answer, number + place, chinese)))
    return hostile, true
