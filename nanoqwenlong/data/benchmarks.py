"""The benchmarks of QwenLong-L1's evaluation, as they are released.

    {"input": "...", "context": "...", "answers": ["Oslo"], "dataset": "hotpotqa", "_id": ...}  LongBench
    {"Prompt": "...", "Answer": "...", "wiki_items": [{"title": "...", "text": "..."}]}         Frames, with its pages
    {"question_id": ..., "question": "...", "paragraphs": ["..."], "ground_truth": 20.4}        DocMath-Eval
"""

from ..errors import DataError
from ..records import Example
from ..reward import answers
from ..reward.tasks import gold_problem
from . import fields

# DocMath-Eval writes a yes or no as a boolean
ACCEPTED = {"true": ["True", "yes"], "yes": ["True", "yes"], "false": ["False", "no"], "no": ["False", "no"]}


def longbench(row: dict) -> Example:
    """Each reference is accepted. One that could not earn full reward itself (such as bare punctuation) is left out,
    as long as there are others."""
    usable, problems = [], []
    for i, reference in enumerate(fields.list_of(row, "answers")):
        gold = " ".join(fields.string(reference, f"answers[{i}]").split())     # in one line
        problem = gold_problem("qa", gold)
        if problem:
            problems.append(problem)
        else:
            usable.append(gold)
    if not usable:
        raise DataError('"answers" ' + (f"cannot be used: {problems[0]}" if problems else "is an empty list"))
    return Example(fields.id_of(row, "_id"), fields.text(row, "context"), fields.text(row, "input"), tuple(usable),
                   source=fields.text(row, "dataset", ""))


def frames(row: dict) -> Example:
    """A row with the texts of its Wikipedia pages. As released, Frames has only links to them."""
    pages = fields.list_of(row, "wiki_items")
    if not pages:
        raise DataError('"wiki_items" is an empty list')
    lines = []
    for i, page in enumerate(pages):
        lines += [fields.text(page, name, under=f"wiki_items[{i}].") for name in ("title", "text")]
    gold = " ".join(fields.text(row, "Answer").split())
    return Example(fields.id_of(row), "\n".join(lines), fields.text(row, "Prompt"), fields.golds(gold, "Answer", "qa"),
                   source="frames")


def docmath(row: dict) -> Example:
    """A number may be near its gold answer. Any other answer has to be the same."""
    paragraphs, gold = fields.list_of(row, "paragraphs"), fields.at(row, "ground_truth")
    if not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise DataError('"paragraphs" should be a list of strings')
    if isinstance(gold, bool):
        gold = str(gold)
    elif isinstance(gold, int | float):
        if not abs(gold) < 1e308:                                      # an integer may be larger than any float
            raise DataError(f'"ground_truth" is {str(gold)[:20]}, which no answer can match')
        gold = repr(gold)                                              # the shortest digits that give this number
    gold = fields.string(gold, "ground_truth").strip()
    task = "number" if answers.number(gold) else "qa"
    accepted = fields.golds(ACCEPTED.get(gold.lower(), gold), "ground_truth", task)
    return Example(fields.id_of(row, "question_id"), fields.string("\n".join(paragraphs), "paragraphs"),
                   fields.text(row, "question"), accepted, task, source="docmath")
