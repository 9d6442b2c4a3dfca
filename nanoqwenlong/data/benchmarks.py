"""The benchmarks of QwenLong-L1's evaluation, as they are released. docs/data.md shows a row of each."""

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
    references = fields.items(fields.at(row, "answers"), "answers")
    golds = [" ".join(fields.string(text, place).split()) for place, text in references]
    problems = [gold_problem("qa", gold) for gold in golds]
    if all(problems):
        raise DataError(f'"answers" cannot be used: {problems[0]}')
    usable = tuple(gold for gold, problem in zip(golds, problems) if not problem)
    return Example(fields.id_of(row, "_id"), fields.text(row, "context"), fields.text(row, "input"), usable,
                   source=fields.text(row, "dataset", ""))


def frames(row: dict) -> Example:
    """A row with the texts of its Wikipedia pages. As released, Frames has only links to them."""
    pages = fields.items(fields.at(row, "wiki_items"), "wiki_items")
    texts = [fields.text(page, name, under=f"{place}.") for place, page in pages for name in ("title", "text")]
    gold = " ".join(fields.text(row, "Answer").split())
    return Example(fields.id_of(row), "\n".join(texts), fields.text(row, "Prompt"), fields.golds(gold, "Answer", "qa"),
                   source="frames")


def docmath(row: dict) -> Example:
    """A number may be near its gold answer. Any other answer has to be the same."""
    paragraphs = fields.items(fields.at(row, "paragraphs"), "paragraphs")
    document = "\n".join(fields.check(text, str, place) for place, text in paragraphs)
    gold = fields.at(row, "ground_truth")
    if isinstance(gold, int | float):
        if not abs(gold) < 1e308:                              # an integer may be larger than any float
            raise DataError(f'"ground_truth" is {str(gold)[:20]}, which no answer can match')
        gold = repr(gold)                                      # "True", or the shortest digits that give this number
    gold = fields.string(gold, "ground_truth").strip()
    task = "number" if answers.number(gold) else "qa"
    accepted = fields.golds(ACCEPTED.get(gold.lower(), gold), "ground_truth", task)
    return Example(fields.id_of(row, "question_id"), fields.string(document, "paragraphs"),
                   fields.text(row, "question"), accepted, task, source="docmath")
