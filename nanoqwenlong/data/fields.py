"""Fields of a row: each function returns a checked value, or raises DataError with the name of the field.

The caller adds the file and the number of the row.
"""

import json

from ..errors import DataError
from ..reward import answers
from ..reward.tasks import LISTS, TASKS, gold_problem
from .prompt import question_in

ROLES = ("system", "user", "assistant")
KINDS = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "a boolean",
         "int": "a number", "float": "a number"}


def kind(value) -> str:
    name = type(value).__name__
    return KINDS.get(name, f"of type {name}")


def without_nulls(value):
    """The same without fields that are null, at any depth. Parquet gives null for a column that a row does not have."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def at(fields, path: str, *default, under: str = ""):
    """The value at a path such as "extra_info.index", or the default. `under` is the path of `fields` in its row."""
    if not isinstance(fields, dict):
        raise DataError(f'"{under[:-1]}" should be an object, it is {kind(fields)}')
    name, _, rest = path.partition(".")
    if name in fields:
        return at(fields[name], rest, *default, under=f"{under}{name}.") if rest else fields[name]
    if not default:
        raise DataError(f'the field "{under}{name}" is missing')
    return default[0]


def text(fields, path: str, *default: str, under: str = "") -> str:
    """A string that is not empty, or the default if there is no such field."""
    value = at(fields, path, ..., under=under) if default else at(fields, path, under=under)
    return default[0] if value is ... else string(value, under + path)


def string(value, name: str) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise DataError(f'"{name}" should be a string, it is {kind(value)}')
    if not value or value.isspace():
        raise DataError(f'"{name}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'"{name}" holds half of a surrogate pair (\\ud800-\\udfff), which cannot be written as UTF-8'
                        ) from None
    return value


def list_of(row: dict, name: str) -> list:
    value = at(row, name)
    if not isinstance(value, list):
        raise DataError(f'"{name}" should be a list, it is {kind(value)}')
    return value


def id_of(row: dict, path: str = "id") -> str:
    """The id, or "" if the row has none. A whole number is taken as text."""
    value = at(row, path, ...)
    if value is ...:
        return ""
    return str(value) if type(value) is int else string(value, path)


def task_of(row: dict) -> str:
    task = text(row, "task", "qa")
    if task not in TASKS:
        raise DataError(f'"task" is {task[:40]!r}; known tasks are {", ".join(TASKS)}')
    return task


def chat(row: dict, name: str, speaker: str = "user") -> tuple[tuple[str, str], ...]:
    """(role, content) of each turn. A string is one turn of the speaker. A prompt has to end with a user's turn."""
    turns = at(row, name)
    if not isinstance(turns, list):
        return ((speaker, string(turns, name)),)
    if not turns:
        raise DataError(f'"{name}" is an empty list')
    messages = []
    for i, turn in enumerate(turns):
        role, content = text(turn, "role", under=f"{name}[{i}]."), text(turn, "content", under=f"{name}[{i}].")
        if role not in ROLES:
            raise DataError(f'"{name}[{i}].role" is {role[:40]!r}; known roles are {", ".join(ROLES)}')
        messages.append((role, content))
    if name == "prompt" and role != "user":
        raise DataError(f'"prompt" should end with a turn of the user, not of the {role}')
    return tuple(messages)


def question_of(row: dict, messages, *paths: str) -> str:
    """What a judge is shown as the question: the first of these fields that is there, or the question in the prompt."""
    for path in paths:
        if at(row, path, "") != "":
            return text(row, path)
    return question_in(messages[-1][1])


def golds(value, name: str, task: str) -> str | tuple[str, ...]:
    """The gold answer or answers, each of which earns full reward when it is given as an answer."""
    if task in LISTS:
        gold = _lines(value, name)
    elif task == "iou" and isinstance(value, dict | list):
        gold = _json(value, name)
    elif isinstance(value, list):
        gold = tuple(string(item, f"{name}[{i}]") for i, item in enumerate(value))
    else:
        gold = string(value, name)
    if not gold:
        raise DataError(f'"{name}" is an empty list')
    for one in gold if isinstance(gold, tuple) else (gold,):
        if problem := gold_problem(task, one):
            raise DataError(f'"{name}" cannot be used: {problem}')
    return gold


def _lines(value, name: str) -> str:
    """The items of a list, one a line."""
    values = value if isinstance(value, list) else string(value, name).strip().splitlines()
    items = []
    for i, item in enumerate(values):
        item = string(item, f"{name}[{i}]").strip()
        if len(item.splitlines()) > 1:
            raise DataError(f'"{name}[{i}]" has a line break in it; an item is one line')
        if not answers.normalise(item):
            raise DataError(f'"{name}[{i}]" is nothing but punctuation')
        items.append(item)
    return "\n".join(items)


def _json(value, name: str) -> str:
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:               # Parquet has dates, bytes and NaN
        raise DataError(f'"{name}" cannot be written as JSON: {str(error)[:80]}') from None
    return string(written, name)
