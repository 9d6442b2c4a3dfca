"""SQuAD 1.1 and 2.0, XQuAD and other sets of their form. A released file is one JSON object of articles."""

from collections.abc import Callable, Iterator
from functools import partial

from . import fields


def is_file(content: dict) -> bool:
    articles = content.get("data")
    return isinstance(articles, list) and all(
        isinstance(each, dict) and isinstance(each.get("paragraphs"), list) for each in articles)


def rows(content: dict) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The questions: the place of each, and a function that gives its row."""
    for i, article in enumerate(content["data"]):
        for j, paragraph in enumerate(article["paragraphs"]):
            qas = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for k, question in enumerate(qas if isinstance(qas, list) else [None]):
                yield f"data[{i}].paragraphs[{j}].qas[{k}]", partial(_row, article, paragraph, question)


def _row(article: dict, paragraph: dict, question) -> dict:
    fields.at(fields.check(question, dict, "qas"), "question")
    return fields.without_nulls({"title": article.get("title"), "context": paragraph.get("context"), **question})
