"""All forms of a row, in the table FORMATS, and the functions for our own and TRL's. docs/data.md shows a row of each.

A new form is a function from a row to an Example, and a line of the table. Unknown fields of a row are ignored.
"""

from collections import namedtuple

from ..errors import DataError
from ..records import Example
from . import benchmarks, fields, verl


def plain(row: dict, messages=(), response: str = "") -> Example:
    """A question about a document, or a prompt. TRL's rows bring messages and a response, and need no answer then."""
    document = ""
    if has_document(row) and not messages:
        document = fields.text(row, "document" if "document" in row else "context")
        question = fields.text(row, "question")
    else:
        messages = messages or fields.chat(row, "prompt")
        question = fields.question_of(row, messages, "question")
    task = fields.task_of(row)
    answer = "" if response and "answer" not in row else fields.golds(fields.at(row, "answer"), "answer", task)
    return Example(fields.id_of(row), document, question, answer, task, messages,
                   response or fields.text(row, "response", ""), source=fields.text(row, "source", ""))


def completion(row: dict) -> Example:
    """TRL's prompt and completion. With an answer it can be rewarded as well."""
    messages, turns = fields.chat(row, "prompt"), fields.chat(row, "completion", "assistant")
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise DataError('"completion" should be a string, or one turn of the assistant')
    return plain(row, messages, turns[0][1])


def conversation(row: dict) -> Example:
    """TRL's messages. The last turn is the response, and the turns before it are its prompt."""
    turns = fields.chat(row, "messages")
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise DataError('"messages" should end with a turn of the user and one of the assistant, the response')
    return plain(row, turns[:-1], turns[-1][1])


def page(row: dict) -> Example:
    document = fields.text(row, "text")
    return Example(fields.id_of(row), document, "", "", "text", source=fields.text(row, "source", ""))


def as_row(example: Example) -> dict:
    """The row that is read as this example."""
    document, task = ("text", "") if example.task == "text" else ("context", example.task)
    row = {"id": example.id, "prompt": [{"role": role, "content": content} for role, content in example.messages],
           document: example.document, "question": example.question, "answer": example.answer, "task": task,
           "response" if example.answer else "completion": example.response, "source": example.source}
    return {name: value for name, value in row.items() if value}


def has_document(row: dict) -> bool:
    return "context" in row or "document" in row


def is_prompt(row: dict) -> bool:
    return "prompt" in row and not has_document(row)


# Name for errors, whether a row is of this form, function from the row to an Example. Tried in this order. The second
# line of verl is for rows without reward_model, so that the error names this field.
Format = namedtuple("Format", "name matches read")
FORMATS = [
    Format("verl", lambda row: "reward_model" in row, verl.read),
    Format("context and question", lambda row: has_document(row) and "question" in row, plain),
    Format("LongBench", lambda row: has_document(row) and ("input" in row or "answers" in row), benchmarks.longbench),
    Format("Frames", lambda row: "wiki_items" in row or "Prompt" in row, benchmarks.frames),
    Format("DocMath-Eval", lambda row: "paragraphs" in row or "ground_truth" in row, benchmarks.docmath),
    Format("messages", lambda row: "messages" in row, conversation),
    Format("prompt and completion", lambda row: "completion" in row, completion),
    Format("verl", lambda row: is_prompt(row) and "data_source" in row and "answer" not in row, verl.read),
    Format("prompt and answer", is_prompt, plain),
    Format("text", lambda row: "text" in row and "question" not in row, page),
]


def parse(row: dict) -> Example:
    """The example in a row. Its id is "" if the row has none. Raises DataError with the name of a field."""
    for form in FORMATS:
        if form.matches(row):
            return form.read(row)
    missing = "question" if has_document(row) else "context"
    names = ", ".join(dict.fromkeys(form.name for form in FORMATS))
    raise DataError(f'the field "{missing}" is missing; the forms of a row are: {names} (docs/data.md)')
