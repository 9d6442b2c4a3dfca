"""Files of rows. A row that cannot be used is reported with file, number and field.

The rows of a .parquet file are numbered from 1. Any other file is JSONL, numbered by line, or one JSON array, numbered
from 1. A row without an id is named by its number, and a row without a source by its file. formats.py says what the
fields mean.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import DataError
from ..records import Example
from . import formats
from .fields import kind, without_nulls

SHOWN = 20                                                     # bad rows that an error lists before "and N more"
ID_FIELDS = {"id", "_id", "question_id"}                       # but not verl's index, which need not be unique
Rows = Iterator[tuple[int, Callable[[], dict]]]                # number of a row, and a function that gives its fields


def read(paths: Sequence[str | Path], need_response: bool = False, need_question: bool = False,
         tell: Callable[[str], None] | None = None) -> list[Example]:
    """All examples of all files, in order.

    need_response: each row is to be learned from. need_question: each is to be answered and rewarded.
    tell: bad rows are reported to this function and left out. Without it, or if no row is left, they raise DataError,
    with one line for each. Raises FileNotFoundError."""
    examples, problems, places = [], [], {}                    # places: {id: where it was read}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"data file {path} " + ("is not a file" if path.exists() else "does not exist"))
        for number, load in _rows(path):
            place = f"{path}:{number}"
            try:
                row = load()
                example = formats.parse(row)
                _check_use(example, need_response, need_question)
                if not example.id or example.id in places and ID_FIELDS.isdisjoint(row):
                    short = len(paths) == 1 and str(number) not in places
                    example = replace(example, id=str(number) if short else place)
                if example.id in places:
                    raise DataError(f'"id" {example.id!r} was used before, at {places[example.id]}; ids must be unique')
                places[example.id] = place
                examples.append(replace(example, source=example.source or path.stem))
            except DataError as error:
                problems.append(f"{place}: {error}")
    if problems:
        report = problems[:SHOWN]
        if len(problems) > SHOWN:
            report.append(f"and {len(problems) - SHOWN} more")
        if tell is None or not examples:
            raise DataError("\n".join(report))
        tell("\n".join([f"{len(problems)} bad rows are left out:", *report]))
    if not examples:
        raise DataError(f"{', '.join(map(str, paths))}: there is no row in it")
    return examples


def _check_use(example: Example, need_response: bool, need_question: bool) -> None:
    if need_response and not example.response and example.task != "text":
        raise DataError('the field "response" is missing')
    if need_question and example.task == "text":
        raise DataError('a row of plain "text" has no question; only train_sft.py --data can use it')
    if need_question and not example.answer:
        raise DataError('the field "answer" is missing; without it only train_sft.py --data can use the row')


def _rows(path: Path) -> Rows:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    with path.open("rb") as file:                              # a row of JSONL never starts with a bracket
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    return _array(path) if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else _jsonl(path)


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix(b"\n").removeprefix(b"\xef\xbb\xbf")      # joined files may have a BOM inside
            if line.strip():
                yield number, partial(_parse, line)


SPACE = re.compile(r"[ \t\n\r]*")                              # what JSON allows between values
SKIM = json.JSONDecoder(parse_int=str, parse_float=str)        # only finds where a value ends


def _array(path: Path) -> Rows:
    """Each object is cut out first and parsed later, like a line, so a bad one does not spoil the others."""
    place = str(path)
    try:
        text = path.read_bytes().decode("utf-8")
        number, at = 0, SPACE.match(text, text.index("[") + 1).end()
        more = text[at:at + 1] != "]"
        while more:
            number, start = number + 1, at
            place = f"{path}:{number}"
            _, end = SKIM.raw_decode(text, start)
            at = SPACE.match(text, end).end()
            if text[at:at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, at)
            yield number, partial(_parse, text[start:end].encode())
            more = text[at] == ","
            if more:
                at = SPACE.match(text, at + 1).end()
    except (RecursionError, ValueError) as error:
        raise DataError(f"{place}: {_why(error, in_file=True)}; the file is one JSON array of objects") from None
    if text[at + 1:].strip(" \t\n\r"):
        raise DataError(f"{path}: there is text after the end of the JSON array")


def _parse(line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except DataError:
        raise
    except (RecursionError, ValueError) as error:
        raise DataError(f"{_why(error)}; a row is one JSON object on one line") from None
    if not isinstance(row, dict):
        raise DataError(f"a row is one JSON object, this is {kind(row)}")
    return row


def _why(error: RecursionError | ValueError, in_file: bool = False) -> str:
    """What is wrong with the JSON of a line, or of a whole file."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if in_file else ""
        return f"not JSON at {line}column {error.colno}: {error.msg}"
    return f"not usable as JSON: {str(error)[:80]}"            # absurd nesting, an integer of 5,000 digits


def _unique_keys(pairs: Sequence[tuple]) -> dict:
    row = {}
    for key, value in pairs:
        if key in row:
            raise DataError(f"the key {json.dumps(key)[:80]} stands twice in the row")
        row[key] = value
    return row


def _refuse_constant(name: str):
    raise DataError(f"{name} is not a JSON value; write a number or a string")


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow (pip install pyarrow). Or, on a machine that has it, turn it "
                        "into JSONL: pandas.read_parquet(OLD).to_json(NEW, orient='records', lines=True)") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64, use_threads=False):  # small: a row may hold a megabyte
                for place in range(len(batch)):
                    number += 1
                    yield number, partial(_values, batch.schema.names, [column[place] for column in batch.columns])
    except (pyarrow.ArrowException, OSError, ValueError) as error:             # ValueError: a name that is not UTF-8
        after = f" after row {number}" if number else ""
        raise DataError(f"{path}: not readable as Parquet{after}: {' '.join(str(error).split())[:200]}") from None


def _values(names: Sequence[str], scalars: Sequence) -> dict:
    pairs = []
    for name, scalar in zip(names, scalars):
        try:
            pairs.append((name, scalar.as_py()))
        except (ValueError, ArithmeticError, LookupError) as error:            # not UTF-8, a year 99,999, no time zone
            raise DataError(f"{json.dumps(name)[:80]} cannot be read: {str(error)[:80]}") from None
    return without_nulls(_unique_keys(pairs))
