"""All forms of a row. A new one is a function from a row to an Example, and a line in FORMATS.

`id` may be missing in each of them. `task` says how an answer is rewarded ("qa" if missing), `source` names the
benchmark that a row belongs to, `response` is a worked answer to learn from, its thinking included. Unknown fields are
ignored. An `answer` is a text or a list of accepted texts. For a task that asks for a list it is the list of its items,
and for "iou" a table as JSON. Numbers are written as text, because their digits count: 4.50 says more than 4.5.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..errors import DataError
from ..records import Example
from . import benchmarks, plain, verl


class Format(NamedTuple):
    name: str                                       # how an error message calls it
    matches: Callable[[dict], bool]
    read: Callable[[dict], Example]                 # raises DataError with the name of a field


def has_document(row: dict) -> bool:
    return "context" in row or "document" in row


def is_prompt(row: dict) -> bool:
    return "prompt" in row and not has_document(row)


# Tried in this order. The second line of verl is for rows without reward_model, so that the error names this field.
FORMATS = [
    Format("verl", lambda row: "reward_model" in row, verl.read),
    Format("context and question", lambda row: has_document(row) and "question" in row, plain.question),
    Format("LongBench", lambda row: has_document(row) and ("input" in row or "answers" in row), benchmarks.longbench),
    Format("Frames", lambda row: "wiki_items" in row or "Prompt" in row, benchmarks.frames),
    Format("DocMath-Eval", lambda row: "paragraphs" in row or "ground_truth" in row, benchmarks.docmath),
    Format("messages", lambda row: "messages" in row, plain.conversation),
    Format("prompt and completion", lambda row: "completion" in row, plain.completion),
    Format("verl", lambda row: is_prompt(row) and "data_source" in row and "answer" not in row, verl.read),
    Format("prompt and answer", is_prompt, plain.prompt),
    Format("text", lambda row: "text" in row and "question" not in row, plain.page),
]


def parse(row: dict) -> Example:
    """The example in a row. Its id is "" if the row has none. Raises DataError with the name of a field."""
    for form in FORMATS:
        if form.matches(row):
            return form.read(row)
    missing = "question" if has_document(row) else "context"
    raise DataError(f'the field "{missing}" is missing; the forms of a row are: '
                    f'{", ".join(dict.fromkeys(form.name for form in FORMATS))} (docs/data.md)')
