"""What a response earns, in training and in evaluation.

1. What follows the last `</think>` is cut down to an answer (reward/answers.py).
2. The measure of the task compares the answer with each accepted one. The best counts (reward/tasks.py).
3. If this rule gives 0 and the answer may say the same in other words, a judge is asked (reward/judge.py).
   If the judge gives no verdict, the reward is NaN: unscorable, which is not wrong. A formula that math-verify could
   not compare in its time is unscorable as well.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from .records import Example, Score
from .reward.answers import said
from .reward.formulas import verifier
from .reward.judge import LONGEST_ANSWER, LONGEST_GOLD, Question
from .reward.tasks import TASKS, extract, gold_problem, task_named, verify
from .reward.text import differ_in_scale, number
from .reward.words import ARTICLES, normalise

__all__ = ["TASKS", "Score", "extract", "gold_problem", "score", "score_all", "verifier"]


def score(text: str, example: Example, judge=None) -> Score:
    """The score of one response to `example`."""
    return score_all([[text]], [example], judge)[0][0]


def score_all(texts: Sequence[Sequence[str]], examples: Sequence[Example], judge=None) -> list[list[Score]]:
    """(P, G) The scores of G responses to each of P examples. Raises DataError for an unknown task.

    judge.ask(questions) -> 1.0, 0.0 or NaN for each. Called exactly once, as on all ranks, even without a question."""
    answers = []
    for group, example in zip(texts, examples, strict=True):
        answers.append([extract(text, example.task) for text in group])
    verify(answers, examples)                                  # the formulas, all at once
    scores = []
    places = []
    questions = []
    for group, example in zip(answers, examples, strict=True):
        row = []
        for answer in group:
            rule_score = by_rule(answer, example)
            question = for_judge(rule_score, example)
            if question:
                places.append((len(scores), len(row)))
                questions.append(question)
            row.append(rule_score)
        scores.append(row)
    if judge is None:
        return scores
    verdicts = judge.ask(questions)
    for (row, column), verdict in zip(places, verdicts, strict=True):
        rule_score = scores[row][column]                       # the rule gave 0
        scores[row][column] = replace(rule_score, reward=verdict, judge=verdict)
    return scores


def by_rule(answer: str, example: Example) -> Score:
    """The score without a judge. NaN if no accepted answer is known to be matched, and one could not be compared."""
    measure = task_named(example.task).measure
    rule = 0.0
    unscorable = False
    for gold in example.accepted:
        value = float(measure(answer, gold))
        if math.isnan(value):
            unscorable = True
        else:
            rule = max(rule, value)
    if unscorable and rule == 0:
        rule = math.nan
    return Score(rule, rule, None, answer)


def for_judge(score: Score, example: Example) -> Question | None:
    """What the judge is asked about a score, None if nothing."""
    if score.rule > 0 or not task_named(example.task).judged:
        return None
    golds = []
    for gold in example.accepted:
        if worth_asking(score.answer, gold):
            golds.append(gold)
    if not golds:
        return None
    return Question(example.question, tuple(golds), score.answer)


def worth_asking(answer: str, gold: str) -> bool:
    """Whether the answer may say the same as the gold answer in other words: "United States" for "USA"."""
    longest = min(200 + 2 * len(gold), LONGEST_ANSWER)
    if len(answer) > longest:
        return False
    if len(gold) > LONGEST_GOLD:
        return False
    a, b = number(answer, any_fraction=True), number(gold)
    if a and b:
        return differ_in_scale(a, b)                           # otherwise the rule has compared them
    num_letters = 0                                            # and digits, besides those of articles
    for word in normalise(answer).split():
        if word not in ARTICLES:
            num_letters += sum(map(str.isalnum, word))
    return num_letters >= 2


def response_problem(text: str, example: Example) -> str:
    """Why a response to learn from could never earn a reward by the rule, "" if it could. Plain text has no rule."""
    if example.task != "text" and said(text) is None:
        return "has no </think>, after which the answer is read"
    if not example.answer or score(text, example).reward != 0:
        return ""
    answer = extract(text, example.task)
    if not answer:
        return "states no answer"
    return f"states {answer[:60]!r}, but the answer is {example.accepted[0][:60]!r}"
