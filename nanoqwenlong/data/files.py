"""Readers. A row that cannot be used is refused with file, row and field; an example that is too long is counted.

A file whose name ends in .parquet is read by pyarrow, its rows numbered from 1. Any other is JSONL, one object a line,
or a single JSON array of objects, numbered from 1. A row without an id of its own is named by its number, one without a
source by its file's name. What the fields of a row mean stands in schemas.py.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, nan
from pathlib import Path

from .. import rewards
from ..curriculum import epoch_order
from ..errors import ConfigError, DataError
from ..records import Example
from . import schemas
from .schemas import kind, without_nulls

SHOWN = 20                                                                     # bad rows listed before "and N more"


def read(paths: Sequence[str | Path], need_response: bool = False, need_question: bool = False,
         tell: Callable[[str], None] | None = None) -> list[Example]:
    """All rows of all files, in order. need_response: each is to be learned from. need_question: each is to be answered
    and rewarded. Raises DataError with one line per bad row, FileNotFoundError. tell: bad rows are told of and left
    out, as long as there are others."""
    examples, problems, seen = [], [], {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"data file {path} is {'not a file' if path.exists() else 'not there'}")
        for number, load in (_parquet if path.suffix.lower() == ".parquet" else _json)(path):
            where = f"{path}:{number}"
            try:
                row = load()
                example = schemas.parse(row)
                _check_use(example, need_response, need_question)
                named = not {"id", "_id", "question_id"}.isdisjoint(row)       # verl's index need not be unique
                if not example.id or example.id in seen and not named:
                    alone = len(paths) == 1 and str(number) not in seen
                    example = replace(example, id=str(number) if alone else where)
                if not example.source:
                    example = replace(example, source=path.stem)
                if example.id in seen:
                    raise DataError(f'"id" {example.id!r} was used before, at {seen[example.id]}; ids must be unique')
                seen[example.id] = where
                examples.append(example)
            except DataError as error:
                problems.append(f"{where}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        if tell is None or not examples:
            raise DataError("\n".join(problems[:SHOWN] + more))
        tell("\n".join([f"{len(problems)} bad rows are left out:", *problems[:SHOWN], *more]))
    if not examples:
        raise DataError(f"{', '.join(map(str, paths))}: there is no row in it")
    return examples


def _check_use(example: Example, need_response: bool, need_question: bool) -> None:
    if need_response and not example.response and example.task != "text":
        raise DataError('the field "response" is missing')
    if need_question and example.task == "text":
        raise DataError('a row of plain "text" has no question; only train_sft.py --data can use it')
    if need_question and not example.answer:
        raise DataError('the field "answer" is missing; without one only train_sft.py --data can use the row')


# Files: the number of each row, and a function that gives its fields or raises DataError

SPACE = re.compile(r"[ \t\n\r]*")                                              # what JSON may have between values
SKIM = json.JSONDecoder(parse_int=str, parse_float=str)                        # finds where a value ends, and no more


def _json(path: Path) -> Iterator[tuple[int, Callable[[], dict]]]:
    """By its first character, for no row of JSONL begins with a bracket."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    return (_array if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else _jsonl)(path)


def _array(path: Path) -> Iterator[tuple[int, Callable[[], dict]]]:
    """Each object is found first and read then, as a line would be: what is wrong with one is not the others' fault."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 at byte {error.start}") from None
    number, at = 0, SPACE.match(text, text.index("[") + 1).end()
    more = text[at:at + 1] != "]"
    while more:
        number += 1
        try:
            start, end = at, SKIM.raw_decode(text, at)[1]
            at = SPACE.match(text, end).end()
            if text[at:at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}; the "
                            "file is one JSON array of objects") from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{path}:{number}: not usable as JSON: {str(error)[:80]}") from None
        yield number, partial(_parse, text[start:end].encode())
        if more := text[at] == ",":
            at = SPACE.match(text, at + 1).end()
    if text[at + 1:].strip(" \t\n\r"):
        raise DataError(f"{path}: something stands behind the end of the JSON array")


def _jsonl(path: Path) -> Iterator[tuple[int, Callable[[], dict]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix(b"\n").removeprefix(b"\xef\xbb\xbf")      # files with a BOM may have been joined
            if line.strip():
                yield number, partial(_parse, line)


def _parse(line: bytes) -> dict:
    try:
        fields = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"the line is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON at column {error.colno}: {error.msg}; a row is one JSON object on one line"
                        ) from None
    except (RecursionError, ValueError) as error:                              # absurd nesting, a 5,000-digit integer
        raise DataError(f"not usable as JSON: {str(error)[:80]}") from None
    if not isinstance(fields, dict):
        raise DataError(f"a row is one JSON object, this is {kind(fields)}")
    return fields


def _unique_keys(pairs):
    fields = {}
    for key, value in pairs:
        if key in fields:
            raise DataError(f"the key {json.dumps(key)[:80]} stands twice in the row")
        fields[key] = value
    return fields


def _refuse_constant(name):
    raise DataError(f"{name} is not a JSON value; write a number or a string")


def _parquet(path: Path) -> Iterator[tuple[int, Callable[[], dict]]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: Parquet is read by pyarrow (pip install pyarrow). Or, where that is, make it JSONL: "
                        "pandas.read_parquet(OLD).to_json(NEW, orient='records', lines=True)") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64, use_threads=False):   # a row may hold a megabyte
                names, columns = batch.schema.names, batch.columns
                for place in range(len(batch)):
                    number += 1
                    yield number, partial(_take, names, [column[place] for column in columns])
    except (pyarrow.ArrowException, OSError, ValueError) as error:             # ValueError: a name that is not UTF-8
        after = f" after row {number}" if number else ""
        raise DataError(f"{path}: not readable as Parquet{after}: {' '.join(str(error).split())[:200]}") from None


def _take(names: Sequence[str], scalars: Sequence) -> dict:
    fields = []
    for name, scalar in zip(names, scalars):
        try:
            fields.append((name, scalar.as_py()))
        except (ValueError, ArithmeticError, LookupError) as error:            # not UTF-8; a year 99,999; no time zone
            raise DataError(f"{json.dumps(name)[:80]} cannot be read: {str(error)[:80]}") from None
    return without_nulls(_unique_keys(fields))


# Examples

def shares(words: Sequence[str]) -> dict[str, float]:
    """What --task says: {task: share}, a share being 1 if it is left out. Raises ConfigError.

    >>> shares(["qa=2", "f1"])
    {'qa': 2.0, 'f1': 1.0}
    """
    result = {}
    for word in words:
        task, equals, share = word.partition("=")
        if task not in rewards.TASKS:
            raise ConfigError(f"--task {word}: there is no task {task!r}; known are {', '.join(rewards.TASKS)}")
        if task in result:
            raise ConfigError(f"--task {word}: {task} is named twice")
        try:
            result[task] = float(share) if equals else 1.0
        except ValueError:
            result[task] = nan
        if not 0 < result[task] < inf:
            raise ConfigError(f"--task {word}: a share is a number above 0, as in {task}=2")
    return result


def mix(examples: Sequence[Example], shares: Mapping[str, float], seed: int) -> list[Example]:
    """Only these tasks, in these proportions: the task that is scarcest for its share keeps all its examples, of the
    others some are left out, which ones being a function of the seed. The order stays."""
    places = {task: [i for i, example in enumerate(examples) if example.task == task] for task in shares}
    for task, found in places.items():
        if not found:
            raise DataError(f"--task {task}: none of the {len(examples)} examples is of this task")
    unit = min(len(found) / shares[task] for task, found in places.items())
    kept = []
    for task, found in places.items():
        order = epoch_order(len(found), f"{seed}/mix/{task}")
        kept += [found[i] for i in order[:max(1, round(unit * shares[task]))]]
    return [examples[i] for i in sorted(kept)]
