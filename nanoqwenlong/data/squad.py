"""SQuAD 1.1 and 2.0, XQuAD and other sets of their form: the one JSON object of a released file, and rows."""

from collections.abc import Callable, Iterator
from functools import partial

from . import fields
from .passages import Paragraph


def is_file(content: dict) -> bool:
    articles = content.get("data")
    return isinstance(articles, list) and all(
        isinstance(each, dict) and isinstance(each.get("paragraphs"), list) for each in articles)


def rows(content: dict) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The questions of a released file: the place of each, and a function that gives its row."""
    for i, article in enumerate(content["data"]):
        for j, paragraph in enumerate(article["paragraphs"]):
            place = f"data[{i}].paragraphs[{j}]"
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                yield place, partial(fields.at, {}, "qas")     # raises: the field "qas" is missing
                continue
            for k, question in enumerate(paragraph["qas"]):
                yield f"{place}.qas[{k}]", partial(_row, article, paragraph, question)


def _row(article: dict, paragraph: dict, question) -> dict:
    asked = fields.at(fields.check(question, dict, "qas"), "question")
    row = {"title": article.get("title"), "context": paragraph.get("context"), **question, "question": asked}
    return fields.without_nulls(row)


def paragraphs(row: dict) -> list[Paragraph]:
    return [Paragraph(str(row.get("title", "")).replace("_", " "), fields.text(row, "context"))]
