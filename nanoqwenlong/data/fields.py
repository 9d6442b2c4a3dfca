"""Checked values of a row's fields. Each function raises DataError with the name of the field."""

import json
from math import isfinite

from ..errors import DataError
from ..pretrained.template import question_in
from ..reward import answers
from ..reward.tasks import LISTS, gold_problem

KINDS = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number",
         float: "a number"}
ID_FIELDS = ("id", "_id", "question_id")                       # but not verl's index, which need not be unique


class WrongForm(DataError):
    """A field that is missing, unknown, or of another type. If it is so in every row, the file has another form."""


class Unanswerable(DataError):
    """The data set says that the document does not answer the question."""


def require(condition, sentence: str, error: type[DataError] = DataError) -> None:
    if not condition:
        raise error(sentence)


def check(value, kind: type, name: str):
    """The value, if it is of this kind."""
    actual = KINDS.get(type(value), f"of type {type(value).__name__}")
    require(isinstance(value, kind), f'"{name}" should be {KINDS[kind]}, it is {actual}', WrongForm)
    return value


def without_nulls(value):
    """The value without null fields, at any depth. Parquet gives null for what a row does not have."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def items(value, name: str) -> list[tuple]:
    """(name, item) of each item of a list that is not empty."""
    require(check(value, list, name), f'"{name}" is an empty list')
    return [(f"{name}[{i}]", item) for i, item in enumerate(value)]


def at(fields, path: str, *default, under: str = ""):
    """The value at a path such as "extra_info.index", or the default. `under` is the path of `fields` in its row."""
    for name in path.split("."):
        if name not in check(fields, dict, under[:-1]):
            if default:
                return default[0]
            raise WrongForm(f'the field "{under}{name}" is missing')
        fields, under = fields[name], f"{under}{name}."
    return fields


def string(value, name: str) -> str:
    """A string that is not empty and can be written as UTF-8."""
    require(check(value, str, name) and not value.isspace(), f'"{name}" is empty')
    require(value.encode(errors="ignore").decode() == value,
            f'"{name}" holds half of a surrogate pair (\\ud800-\\udfff), which UTF-8 cannot write')
    return value


def text(fields, path: str, *default: str, under: str = "") -> str:
    """The string at a path, or the default if there is no such field."""
    return default[0] if default and path not in fields else string(at(fields, path, under=under), under + path)


def written(value, name: str) -> str:
    """A string that is not empty, or a number as text: 1 and 1.0 are "1". A boolean is neither."""
    if isinstance(value, float) and isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value) if type(value) is int else string(value, name)


def id_of(row: dict, *paths: str) -> str:
    """The id at the first of these paths that the row has, by default one of ID_FIELDS. "" if it has none."""
    for path in paths or ID_FIELDS:
        value = at(row, path, ...)
        if value is not ...:
            require(not isinstance(value, float) or value.is_integer(), f'"{path}" should be a string, it is a number')
            return written(value, path)
    return ""


def one_of(known, value: str, name: str) -> str:
    require(value in known, f'"{name}" is {value[:40]!r}; known are {", ".join(known)}')
    return value


def chat(row: dict, name: str, speaker: str = "user") -> tuple[tuple[str, str], ...]:
    """(role, content) of each turn. A string is one turn of the speaker. A prompt has to end with a user's turn."""
    turns = at(row, name)
    if not isinstance(turns, list):
        return ((speaker, string(turns, name)),)
    messages = []
    for place, turn in items(turns, name):
        role = one_of(("system", "user", "assistant"), text(turn, "role", under=f"{place}."), f"{place}.role")
        messages.append((role, text(turn, "content", under=f"{place}.")))
    require(name != "prompt" or role == "user", f'"prompt" should end with a turn of the user, not of the {role}')
    return tuple(messages)


def question_of(row: dict, messages, *paths: str) -> str:
    """What a judge is shown as the question: the first of these fields, or else the question in the prompt."""
    path = next((path for path in paths if at(row, path, "") != ""), "")
    return text(row, path) if path else question_in(messages[-1][1])


def golds(value, name: str, task: str) -> str | tuple[str, ...]:
    """The gold answer or answers, each of which earns full reward when it is given as an answer."""
    if task in LISTS:
        values = value if isinstance(value, list) else written(value, name).strip().splitlines()
        lines = []
        for place, item in items(values, name):
            lines.append(written(item, place).strip())
            require(len(lines[-1].splitlines()) < 2, f'"{place}" has a line break in it; an item is one line')
            require(answers.normalise(lines[-1]), f'"{place}" is nothing but punctuation')
        gold = "\n".join(lines)
    elif task == "iou" and isinstance(value, dict | list):
        try:
            gold = string(json.dumps(value, ensure_ascii=False, allow_nan=False), name)
        except (TypeError, ValueError, RecursionError) as error:       # Parquet has dates, bytes and NaN
            raise DataError(f'"{name}" cannot be written as JSON: {str(error)[:80]}') from None
    else:
        places = items(value, name) if isinstance(value, list) else [(name, value)]
        texts = tuple(written(item, place) for place, item in places)
        for place, item in places:
            require(task != "number" or not isinstance(item, float) or item.is_integer(),
                    f'"{place}" is the number {item}; write it as text, because its digits set the tolerance')
        gold = texts if isinstance(value, list) else texts[0]
    for text in [gold] if isinstance(gold, str) else gold:
        if problem := gold_problem(task, text):
            raise DataError(f'"{name}" cannot be used: {problem}')
    return gold
