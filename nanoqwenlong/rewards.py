"""What a response earns. One extractor and one measure for each task, for training and evaluation alike. No torch.

The rule comes first: what was said behind the last `</think>` is cut down to an answer (answers.py), and the task's
measure (metrics.py) compares it with each accepted one; the best counts. Where the rule gives 0 to an answer that might
say the same in other words, a judge may be asked, for all responses of a step at once. The reward is the larger of the
two; where the judge could not tell it is NaN: unscorable, not wrong.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .records import Example, Score
from .reward import answers, measures
from .reward.judge import LONGEST_ANSWER, LONGEST_GOLD, Question


class Task(NamedTuple):
    """How one kind of task is rewarded."""

    measure: Callable[[str, str], float]                       # (answer, gold) -> 0 to 1
    extract: Callable[[str], str]                              # what was said behind </think> -> the answer
    judged: bool                                               # whether a judge may be asked
    gold: str                                                  # what a gold answer looks like


def near(answer: str, gold: str) -> float:
    return float(answers.near(answer, gold))


def choice(answer: str, gold: str) -> float:
    return float(answers.choice(answer) == answers.choice(gold) != "")


def value(said: str) -> str:
    """The statement, or else everything: for prompts that ask for nothing but a value."""
    return answers.statement(said) or answers.final(said)


WORDS, ITEMS = "one line of text, with a letter or digit and no marker of an answer in it", "a list, one item a line"
TASKS = {
    # QwenLong-L1: the answer has to be stated
    "qa": Task(measures.em, answers.statement, True, WORDS),
    "number": Task(near, answers.statement, True, "a number, or yes or no"),
    "choice": Task(choice, answers.statement, False, "a letter from A to J"),
    # GoLongRL: it may be bare
    "em": Task(measures.em, value, True, WORDS),
    "accuracy": Task(measures.accuracy, value, False, "a letter from A to J, or a short text"),
    "f1": Task(measures.f1, answers.final, False, ITEMS),
    "math": Task(measures.math, value, False, "a number or a formula"),
    "iou": Task(measures.iou, answers.final, False, 'JSON, {"data": [row, ...]} or [row, ...]'),
    "sub_em": Task(measures.sub_em, answers.final, False, ITEMS),
    "ndcg": Task(measures.ndcg, answers.final, False, ITEMS + ", the most relevant first"),
    "pairwise": Task(measures.pairwise, answers.final, False, ITEMS + ", in order, two at least"),
    "rouge_l": Task(measures.rouge_l, answers.final, False, "a text"),
}
LISTS = ("f1", "sub_em", "ndcg", "pairwise")                   # their gold is a list


def extract(text: str, task: str = "qa") -> str:
    """The answer that a response gives; "" if it gives none.

    >>> extract("<think>the answer is 3</think> The answer is 4? No: the answer is (5).")
    '(5)'
    >>> extract("the answer is 4"), extract("<think>hm</think> four"), extract("<think>hm</think> four", "em")
    ('', '', 'four')
    """
    said = answers.said(text)
    return "" if said is None else TASKS[task].extract(said)


def score(text: str, example: Example, judge=None) -> Score:
    """The score of one response to `example`."""
    return score_all([[text]], [example], judge)[0][0]


def score_all(texts: Sequence[Sequence[str]], examples: Sequence[Example], judge=None) -> list[list[Score]]:
    """For each example the scores of its responses. judge.ask(questions) -> 1.0, 0.0 or NaN for each Question; it is
    called once, with all there is to ask (which may be nothing: several ranks call it alike)."""
    scores = [[by_rule(text, example) for text in group] for group, example in zip(texts, examples, strict=True)]
    if judge is None:
        return scores
    asked = [(row, column, question) for row, example in enumerate(examples) for column, score in enumerate(scores[row])
             if (question := for_judge(score, example))]
    verdicts = judge.ask([question for _, _, question in asked])
    for (row, column, _), verdict in zip(asked, verdicts, strict=True):        # the rule gave 0, so max is the verdict
        scores[row][column] = replace(scores[row][column], reward=verdict, judge=verdict)
    return scores


def by_rule(text: str, example: Example) -> Score:
    """The score without a judge."""
    answer = extract(text, example.task)
    measure = TASKS[example.task].measure
    rule = max((measure(answer, gold) for gold in example.accepted), default=0.0)
    return Score(rule, rule, None, answer)


def for_judge(score: Score, example: Example) -> Question | None:
    """What a judge is asked about a score; None if there is nothing to ask."""
    if score.rule > 0 or not TASKS[example.task].judged:
        return None
    golds = tuple(gold for gold in example.accepted if worth_asking(score.answer, gold))
    return Question(example.question, golds, score.answer) if golds else None


def worth_asking(answer: str, gold: str) -> bool:
    """Whether the answer might say the same as the gold one in other words: two letters or digits at least beside
    articles, not much longer than the gold one, and not two numbers, which decide by themselves. What is not worth
    asking cannot persuade anybody.

    >>> [worth_asking(*pair) for pair in (("United States", "USA"), ("!", "USA"), ("the", "USA"), ("5", "6"))]
    [True, False, False, False]
    """
    if len(answer) > min(200 + 2 * len(gold), LONGEST_ANSWER) or len(gold) > LONGEST_GOLD:     # it is shown whole
        return False
    if answers.number(answer) and answers.number(gold):
        return False
    words = [word for word in answers.normalise(answer).split() if word not in answers.ARTICLES]
    return sum(char.isalnum() for char in "".join(words)) >= 2


def lacking(tasks: Iterable[str]) -> str:
    """What is not installed and would reward more of these tasks' answers, for the user; "" if nothing is."""
    if "math" in tasks and not measures.math_worker.installed():
        return ('task "math": math-verify is not installed (pip install ".[math]"), so formulas are right only if they '
                "are written like the gold answer; numbers are compared as ever")
    return ""


def gold_problem(task: str, gold: str) -> str:
    """Why a gold answer is none for this task: stated as an answer it has to earn 1. "" if it does.

    >>> gold_problem("number", "5.2 %"), gold_problem("choice", "Oslo")
    ('', "'Oslo' would not be right for itself; a gold answer of task choice is a letter from A to J")
    """
    if TASKS[task].measure(extract(f"</think>The answer is {gold}", task), gold) == 1:
        return ""
    shown = gold if len(gold) <= 60 else gold[:57] + "..."
    return f"{shown!r} would not be right for itself; a gold answer of task {task} is {TASKS[task].gold}"
