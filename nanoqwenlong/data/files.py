"""Files of rows, and mixtures of tasks. Rows are numbered from 1. In JSONL, a row's number is that of its line."""

import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, nan
from pathlib import Path

from ..errors import ConfigError, DataError
from ..records import Example
from ..reward.tasks import TASKS
from . import formats
from .fields import ID_FIELDS, Unanswerable, WrongForm, at, check, require, without_nulls

SHOWN = 20                                                     # bad rows that an error lists before "and N more"
Rows = Iterator[tuple[int | str, Callable[[], dict]]]          # place of a row, and a function that gives its fields
BLANK = b"\xef\xbb\xbf \t\r\n"                                # a byte order mark, and white space
EXPECTED = "give JSONL (one object a line), one JSON array of objects, or Parquet"
KINDS = [                                                      # how a file starts, and what it is
    (rb"version https://git-lfs", "a Git LFS pointer, not the data; run `git lfs pull`, or download the file itself"),
    (rb"(?i)\s*<(!doctype|html|head|body|\?xml|!--)", "a web page, not the data; download the raw file"),
    (rb"\xff\xfe|\xfe\xff|\s*[^\s{\[](?s:.*)\0", f"a binary file, or text in UTF-16 instead of UTF-8; {EXPECTED}"),
    (rb"(?!(?:.*\n)*(?:\xef\xbb\xbf)?[ \t]*[{\[])\s*\S",         # no line starts with a bracket
     f"not JSON; {EXPECTED}. pandas makes JSONL of a table: read_csv(OLD).to_json(NEW, orient='records', lines=True)")]
COMMA = re.compile(r"[ \t\n\r]*([,\]]?)[ \t\n\r]*")            # what follows a value of a JSON array
SKIM = json.JSONDecoder(parse_int=str, parse_float=str)        # only finds where a value ends


def read(paths: Sequence[str | Path], need_response: bool = False, need_question: bool = False,
         tell: Callable[[str], None] | None = None, see: Callable[[Example, str], None] | None = None,
         max_paragraphs: int = 0, say: Callable[[str], None] = lambda note: None) -> list[Example]:
    """All examples of all files, in order. A row without an id gets its number. `tell` reports bad rows, which are left
    out. see(example, place) sees each good row with its file and number, and may raise DataError. `say` notes how many
    questions have no answer, and are left out, and how many documents max_paragraphs (0: no limit) does not limit.
    Raises FileNotFoundError, and DataError for bad rows without `tell` or if all are bad."""
    examples, reports, places, counts = [], [], {}, Counter()  # places: {id: where it was read}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"data file {path} " + ("is not a file" if path.exists() else "does not exist"))
        num_rows, problems = 0, []                             # problems: (where, error, fields of the row)
        for number, load in _questions(_rows(path)):
            place, num_rows, row = f"{path}:{number}", num_rows + 1, {}
            try:
                row = load()
                example = formats.parse(row, max_paragraphs, counts)
                is_text = example.task == "text"
                require(not (need_question and is_text),
                        'a row of plain "text" has no question; only train_sft.py --data can use it')
                require(example.response or is_text or not need_response, 'the field "response" is missing', WrongForm)
                require(example.answer or not need_question,
                        'the field "answer" is missing; without it only train_sft.py can use the row', WrongForm)
                name = example.id
                if not name or name in places and row.keys().isdisjoint(ID_FIELDS):
                    name = str(number) if len(paths) == 1 and str(number) not in places else place
                require(name not in places, f'"id" {name!r} was used before, at {places.get(name)}; ids must be unique')
                if see:
                    see(example, place)
                places[name] = place
                stem = Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
                examples.append(replace(example, id=name, source=example.source or stem))
            except Unanswerable:
                counts["unanswerable"] += 1
            except DataError as error:
                problems.append((place, error, [*row]))
        counts["bad"] += len(problems)
        reports += _report(path, num_rows, problems)
    if reports:
        report = "\n".join(reports[:SHOWN] + [f"and {len(reports) - SHOWN} more"] * (len(reports) > SHOWN))
        if tell is None or not examples:
            raise DataError(report)
        tell(f"{counts['bad']} bad rows are left out:\n{report}")
    if counts["unanswerable"]:
        say(f"{counts['unanswerable']} questions are left out, because the data set says that they have no answer")
    require(examples, f"{', '.join(map(str, paths))}: there is no row in it")
    if max_paragraphs and counts["long"]:
        say(f"--max-paragraphs {max_paragraphs} does not limit {counts['long']} of {len(examples)} documents: the row "
            "has one text, needs more paragraphs, or does not say which it needs")
    return examples


def _report(path: Path, num_rows: int, problems: Sequence[tuple[str, DataError, list[str]]]) -> list[str]:
    """A line for each bad row, or one line for a file in which every row is bad because the file has another form."""
    kinds = {str(error).partition(" at ")[0] for _, error, _ in problems}      # "not JSON at column 2: ..."
    if len(problems) == num_rows and len(kinds) == 1 and isinstance(problems[0][1], WrongForm):
        place, error, names = problems[0]
        place = f"{path}: each of its {num_rows} rows is bad" if num_rows > 1 else place
        return [f"{place}: {error}" + f" (its fields: {', '.join(names[:8])})"[:400] * bool(names)]
    return [f"{place}: {error}" for place, error, _ in problems]


def _questions(rows: Rows) -> Rows:
    """The rows. But SQuAD, XQuAD and others are released as one object of articles: it is replaced by its questions."""
    for number, load in rows:
        try:
            row = load()
            yield from _of_articles(row) if _has_articles(row) else [(number, partial(dict, row))]
        except DataError:
            yield number, load                                 # raises again


def _has_articles(content: dict) -> bool:
    articles = content.get("data")
    return isinstance(articles, list) and all(
        isinstance(each, dict) and isinstance(each.get("paragraphs"), list) for each in articles)


def _of_articles(content: dict) -> Rows:
    for i, article in enumerate(content["data"]):
        for j, paragraph in enumerate(article["paragraphs"]):
            qas = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for k, question in enumerate(qas if isinstance(qas, list) else [None]):
                yield f"data[{i}].paragraphs[{j}].qas[{k}]", partial(_question, article, paragraph, question)


def _question(article: dict, paragraph: dict, question) -> dict:
    at(check(question, dict, "qas"), "question")
    return without_nulls({"title": article.get("title"), "context": paragraph.get("context"), **question})


def _check_kind(path: Path, head: bytes, kinds: Sequence[tuple[bytes, str]]) -> None:
    kind = next((kind for start, kind in kinds if re.match(start, head)), "")
    require(not kind, f"{path}: this is {kind} (it starts with {head.strip(BLANK)[:30]!r})")


def _rows(path: Path) -> Rows:
    number = 0
    with path.open("rb") as file:
        head = file.read(65536)
    if path.suffix.lower() == ".parquet" or head.startswith(b"PAR1"):
        _check_kind(path, head, KINDS[:2])
        yield from _parquet(path)
        return
    try:
        is_gzip = path.suffix.lower() == ".gz" or head.startswith(b"\x1f\x8b")
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            _check_kind(path, file.read(65536), KINDS)
            file.seek(0)
            start = next(filter(None, (line.strip(BLANK) for line in file)), b"")
            file.seek(0)
            if start.startswith(b"["):                         # no row of JSONL starts with a bracket
                yield from _array(path, file.read())
                return
            if start == b"{" and (content := file.read().strip(BLANK)).endswith(b"}"):       # one object on many lines
                yield 1, partial(_parse, content)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                line = line.removesuffix(b"\n").removeprefix(b"\xef\xbb\xbf")  # joined files may have a BOM inside
                if line.strip():
                    yield number, partial(_parse, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not readable as gzip{f' after row {number}' * bool(number)}: {error}") from None


def _array(path: Path, content: bytes) -> Rows:
    """Each object is cut out first and parsed later, so a bad one does not spoil the others."""
    number = 0
    try:
        text = content.decode("utf-8")
        comma = COMMA.match(text, text.index("[") + 1)
        start = comma.start(1)
        while comma[1] != "]":
            number += 1
            _, end = SKIM.raw_decode(text, start)
            row, comma = text[start:end].encode(), COMMA.match(text, end)
            start = comma.end()
            if not comma[1]:
                raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, start)
            yield number, partial(_parse, row)
    except (RecursionError, ValueError) as error:
        place = f"{path}:{number}" if number else path
        raise DataError(f"{place}: {_why(error, in_file=True)}; the file is one JSON array of objects") from None
    require(comma.end() == len(text), f"{path}: there is text after the end of the JSON array")


def _parse(line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=lambda name: require(
            False, f"{name} is not a JSON value; write a number, a string or null"))
    except DataError:
        raise
    except (RecursionError, ValueError) as error:
        raise WrongForm(f"{_why(error)}; a row is one JSON object on one line") from None
    return {name: value for name, value in check(row, dict, "the row").items() if value is not None}


def _why(error: RecursionError | ValueError, in_file: bool = False) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at {f'line {error.lineno}, ' if in_file else ''}column {error.colno}: {error.msg}"
    return f"not usable as JSON: {str(error)[:80]}"            # absurd nesting, an integer of 5,000 digits


def _unique_keys(pairs: Sequence[tuple]) -> dict:
    row = {}
    for key, value in pairs:
        if key in row:
            raise DataError(f"the key {json.dumps(key)[:80]} stands twice in the row")
        row[key] = value
    return row


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


def shares(words: Sequence[str]) -> dict[str, float]:
    """{task: share} from the words of --task: ["qa=2", "f1"] is {"qa": 2.0, "f1": 1.0}. Raises ConfigError."""
    result = {}
    for word in words:
        task, equals, share = word.partition("=")
        if task not in TASKS:
            raise ConfigError(f"--task {word}: there is no task {task!r}; known are {', '.join(TASKS)}")
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
    """The examples of these tasks, in these proportions and in the old order. The seed decides which ones are left out.
    The task with the fewest examples for its share keeps all of them. Raises DataError for a task without examples."""
    places, chosen = {}, []
    for task in shares:
        places[task] = [i for i, example in enumerate(examples) if example.task == task]
        require(places[task], f"--task {task}: none of the {len(examples)} examples is of this task")
    unit = min(len(places[task]) / share for task, share in shares.items())
    for task, share in shares.items():
        random.Random(f"{seed}/mix/{task}").shuffle(places[task])
        chosen += places[task][:max(1, round(unit * share))]
    return [examples[i] for i in sorted(chosen)]
