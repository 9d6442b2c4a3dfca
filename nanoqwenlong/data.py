"""Readers. A row that cannot be used is refused with file, line and field; an example that is too long is counted.

JSONL, one object a line:

    {"id": "q1", "context": "...", "question": "...", "answer": "Oslo" or ["Oslo", "oslo"]}       RL, evaluation
    {..., "response": "<think>...</think> Therefore, the answer is Oslo."}                        SFT as well
    {"id": "t1", "text": "..."}                                                                   language modelling

`document` may stand for `context`; `id` may be missing (it is then the line's number); other fields are ignored.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .records import Branch, DataError, Example

SHOWN = 20                                                                     # bad rows listed before "and N more"


def read_jsonl(paths: Sequence[str | Path], need_response: bool = False, need_question: bool = False) -> list[Example]:
    """All rows of all files, in order. need_question: rows of plain text are refused.
    Raises DataError with one line per bad row, FileNotFoundError."""
    examples, problems, seen = [], [], {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"data file {path} is {'not a file' if path.exists() else 'not there'}")
        rows = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for number, row in enumerate(rows, start=1):
            if not row.strip():
                continue
            where = f"{path}:{number}"
            try:
                example = parse_row(row, str(number) if len(paths) == 1 else f"{path}:{number}", need_response)
                if need_question and example.task == "text":
                    raise DataError('a row of plain "text" has no question; only train_sft.py --data can use it')
                if example.id in seen:
                    raise DataError(f'"id" {example.id!r} was used before, at {seen[example.id]}; ids must be unique')
                seen[example.id] = where
                examples.append(example)
            except DataError as error:
                problems.append(f"{where}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n".join(problems[:SHOWN] + more))
    if not examples:
        raise DataError(f"{', '.join(map(str, paths))}: there is no row in it")
    return examples


def parse_row(row: bytes, default_id: str, need_response: bool = False) -> Example:
    """One line of JSONL. Raises DataError without the place: the caller knows it."""
    try:
        fields = json.loads(row.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
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
        raise DataError(f"a row is one JSON object, this is {_kind(fields)}")
    row_id = str(fields["id"]) if isinstance(fields.get("id"), int) and not isinstance(fields["id"], bool) else (
        _text(fields, "id") if "id" in fields else default_id)
    if "text" in fields and "question" not in fields:
        return Example(row_id, document=_text(fields, "text"), question="", answer="", task="text")
    document = _text(fields, "document" if "document" in fields else "context")
    answer = fields.get("answer")
    if isinstance(answer, list) and answer:
        answer = tuple(_text({"answer": item}, "answer") for item in answer)
    else:
        answer = _text(fields, "answer")
    response = _text(fields, "response") if need_response or "response" in fields else ""
    return Example(row_id, document, _text(fields, "question"), answer, response=response)


def _unique_keys(pairs):
    fields = {}
    for key, value in pairs:
        if key in fields:
            raise DataError(f'the key "{key}" stands twice in the row')
        fields[key] = value
    return fields


def _refuse_constant(name):
    raise DataError(f"{name} is not a JSON value; write a number or a string")


def _kind(value) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string",
            "bool": "a boolean"}.get(type(value).__name__, "a number")


def _text(fields: dict, name: str) -> str:
    """A field that must be a string with something in it."""
    if name not in fields:
        raise DataError(f'the field "{name}" is missing')
    value = fields[name]
    if not isinstance(value, str):
        raise DataError(f'"{name}" should be a string, it is {_kind(value)}')
    if not value.strip():
        raise DataError(f'"{name}" is empty')
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f'"{name}" holds half of a surrogate pair (\\ud800-\\udfff), which no text encoding can write')
    return value


def tokenize(examples: Sequence[Example], tokenizer, max_prompt_tokens: int) -> tuple[list[Example], int]:
    """Examples with prompt_ids and length filled in, and how many were dropped for a prompt over `max_prompt_tokens`.

    Nothing is cut: an answer may stand anywhere in a document. Equal documents are encoded once."""
    kept, documents = [], {}
    for example in examples:
        if example.document not in documents:
            documents[example.document] = tokenizer.encode(example.document.strip())
        document, question = documents[example.document], tokenizer.encode(example.question.strip())
        prompt = document if example.task == "text" else tokenizer.prompt(document, question)
        if len(prompt) <= max_prompt_tokens:
            kept.append(replace(example, prompt_ids=tuple(prompt), length=len(document) + len(question)))
    if examples and not kept:
        raise DataError(f"all {len(examples)} prompts are longer than {max_prompt_tokens} tokens")
    return kept, len(examples) - len(kept)


def sft_branch(example: Example, tokenizer) -> Branch:
    """The whole sequence as one branch of an empty stem. Targets share a weight of 1: the loss of an example is the
    mean over its response (QwenLong-L1, Eq. 11); plain text is learned token by token."""
    if example.task == "text":
        ids, num_targets = (*example.prompt_ids, tokenizer.eos_id), len(example.prompt_ids)
    else:
        response = tokenizer.encode_response(example.response)
        ids, num_targets = (*example.prompt_ids, *response), len(response)
    weights = (0.0,) * (len(ids) - 1 - num_targets) + (1 / num_targets,) * num_targets
    return Branch(ids[:-1], ids[1:], weights)
