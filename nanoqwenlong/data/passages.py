"""Documents made of paragraphs: read them in the forms of the data sets, remove distractors, join the rest."""

import json
from typing import NamedTuple

from . import fields

TEXTS = ("text", "paragraph_text", "sentences", "contents")
MARKS = ("is_supporting", "isgold", "hasanswer", "has_answer")         # what says that a paragraph is needed


class Paragraph(NamedTuple):
    title: str
    text: str
    needed: bool | None = True          # for the answer. None: the row does not say


def read(row: dict, name: str) -> list[Paragraph]:
    """The paragraphs of a field: [title, sentences] pairs, or objects with a title and a text. HotpotQA names titles in
    supporting_facts, other sets mark paragraphs. Raises DataError."""
    paragraphs, needed = [], set()
    for number, fact in enumerate(listed(row, "supporting_facts")):
        title = fact.get("title") if isinstance(fact, dict) else fact[0] if fact and isinstance(fact, list) else fact
        needed.add(fields.string(title, f"supporting_facts[{number}]").strip())
    for place, item in fields.items(listed(row, name), name):
        item = dict(zip(("title", "text"), item)) if isinstance(item, list) else item
        title = fields.check(fields.at(item, "title", "", under=f"{place}."), str, f"{place}.title").strip()
        field = next((field for field in TEXTS if field in item), "text")
        text = fields.at(item, field, under=f"{place}.")
        if isinstance(text, list):
            text = " ".join(fields.check(sentence, str, f"{place}.{field}").strip() for sentence in text)
        marks = [title in needed] if needed else [bool(item[mark]) for mark in MARKS if mark in item]
        text = fields.check(text, str, f"{place}.{field}").strip()
        paragraphs.append(Paragraph(title, text, any(marks) if marks else None))
    fields.require(any(paragraph.text for paragraph in paragraphs), f'"{name}" has no text in it')
    return paragraphs


def kilt(row: dict) -> list[Paragraph]:
    """The text in `context`, or else the passages of all outputs. As released, KILT only points to Wikipedia."""
    if "context" in row:
        return [Paragraph("", fields.text(row, "context"))]
    sources = []
    for place, output in fields.items(row["output"], "output"):
        given = listed(fields.check(output, dict, place), "provenance")
        sources += [source for source in given if isinstance(source, dict) and source.get("text")]
    fields.require(sources, 'the field "context" is missing: KILT only points to Wikipedia. Look up "provenance" in '
                   'kilt_knowledgesource.json and write the passages into "context"', fields.WrongForm)
    return list(dict.fromkeys(read({"provenance": sources}, "provenance")))


def listed(row: dict, name: str):
    """A field that should be a list, maybe as JSON text or as an object of columns: {"title": [...], "text": [...]}"""
    value = fields.without_nulls(fields.at(row, name, []))
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (RecursionError, ValueError):
            pass                                               # no list, as the check below says
    if isinstance(value, dict):
        columns = [fields.check(column, list, f"{name}.{key}") for key, column in value.items()]
        fields.require(len(set(map(len, columns))) < 2, f'the columns of "{name}" have different lengths')
        value = [dict(zip(value, cells)) for cells in zip(*columns)]
    return fields.check(value, list, name)


def keep(paragraphs: list[Paragraph], most: int) -> list[Paragraph]:
    """The paragraphs in their order, if possible no more than `most` (0: all): those that the answer needs, and the
    first of the others. If the row does not say which are needed, all stay."""
    others = [place for place, paragraph in enumerate(paragraphs) if paragraph.needed is False]
    removed = others[max(0, len(others) + most - len(paragraphs)):] if most else []
    return [paragraph for place, paragraph in enumerate(paragraphs) if place not in removed]


def join(paragraphs: list[Paragraph]) -> str:
    """One document: each title above its text, with empty lines between paragraphs. Without titles, line by line."""
    texts = [f"{title}\n{text}" if title else text for title, text, _ in paragraphs]
    return ("\n\n" if any(paragraph.title for paragraph in paragraphs) else "\n").join(texts)
