"""What a response earns, in training and in evaluation.

1. What follows the last `</think>` is cut down to an answer (reward/answers.py).
2. The measure of the task compares the answer with each accepted one. The best counts (reward/tasks.py).
3. If this rule gives 0 and the answer may say the same in other words, a judge is asked (reward/judge.py).
   If the judge gives no verdict, the reward is NaN: unscorable, which is not wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from . import parallel
from .records import Example, Score
from .reward.judge import LONGEST_ANSWER, LONGEST_GOLD, Question
from .reward.tasks import TASKS, extract, gold_problem, task_named
from .reward.text import number
from .reward.words import ARTICLES, normalise

__all__ = ["TASKS", "Score", "agreed", "extract", "gold_problem", "score", "score_all"]


def score(text: str, example: Example, judge=None) -> Score:
    """The score of one response to `example`."""
    return score_all([[text]], [example], judge)[0][0]


def score_all(texts: Sequence[Sequence[str]], examples: Sequence[Example], judge=None) -> list[list[Score]]:
    """(P, G) The scores of G responses to each of P examples. Raises DataError for an unknown task.

    judge.ask(questions) -> 1.0, 0.0 or NaN for each. Called exactly once, as on all ranks, even without a question."""
    scores = []
    places = []
    questions = []
    for group, example in zip(texts, examples, strict=True):
        row = []
        for text in group:
            rule_score = by_rule(text, example)
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


def by_rule(text: str, example: Example) -> Score:
    """The score without a judge."""
    measure = task_named(example.task).measure
    answer = extract(text, example.task)
    rule = 0.0
    for gold in example.accepted:
        rule = max(rule, float(measure(answer, gold)))
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
    if number(answer) and number(gold):
        return False                                           # the rule has compared them
    num_letters = 0                                            # and digits, besides those of articles
    for word in normalise(answer).split():
        if word not in ARTICLES:
            num_letters += sum(map(str.isalnum, word))
    return num_letters >= 2


def agreed(scores: list[list[Score]]) -> list[list[Score]]:
    """The scores of rank 0, on all ranks. They only differ if a task "math" meets its deadline on some ranks."""
    as_dicts = []
    for group in scores:
        as_dicts.append(list(map(asdict, group)))
    first = parallel.gather(as_dicts)[0]
    return [[Score(**fields) for fields in group] for group in first]
