"""Our own rows, TRL's, and plain text. docs/data.md shows them all.

    {"id": "q1", "context": "...", "question": "...", "answer": "Oslo"}             a question about a document
    {"prompt": "..." or [{"role": "user", "content": "..."}, ...], "answer": ...}   a prompt, used word for word
    {"prompt": ..., "completion": ...}, {"messages": [...]}                         TRL's, for supervised fine-tuning
    {"text": "..."}                                                                 plain text
"""

from ..errors import DataError
from ..records import Example
from . import fields


def question(row: dict) -> Example:
    document = fields.text(row, "document" if "document" in row else "context")
    return _example(row, document=document, question=fields.text(row, "question"))


def prompt(row: dict) -> Example:
    return _example(row, messages=fields.chat(row, "prompt"))


def completion(row: dict) -> Example:
    """TRL's prompt and completion. With an answer it can be rewarded as well."""
    messages, turns = fields.chat(row, "prompt"), fields.chat(row, "completion", "assistant")
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise DataError('"completion" should be a string, or one turn of the assistant')
    return _example(row, messages=messages, response=turns[0][1])


def conversation(row: dict) -> Example:
    """TRL's messages. The last turn is the response, and the turns before it are its prompt."""
    turns = fields.chat(row, "messages")
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise DataError('"messages" should end with a turn of the user and one of the assistant, the response')
    return _example(row, messages=turns[:-1], response=turns[-1][1])


def page(row: dict) -> Example:
    document = fields.text(row, "text")
    return Example(fields.id_of(row), document, "", "", "text", source=fields.text(row, "source", ""))


def _example(row: dict, document: str = "", question: str = "", messages=(), response: str = "") -> Example:
    """A row needs an answer, unless its form brings a response."""
    task = fields.task_of(row)
    answer = ""
    if "answer" in row or not response:
        answer = fields.golds(fields.at(row, "answer"), "answer", task)
    return Example(fields.id_of(row), document, question or fields.question_of(row, messages, "question"), answer, task,
                   messages, response or fields.text(row, "response", ""),
                   source=fields.text(row, "source", ""))


def as_row(example: Example) -> dict:
    """The row that is read as this example."""
    if example.task == "text":
        row = {"id": example.id, "text": example.document, "source": example.source}
    else:
        prompt = [{"role": role, "content": content} for role, content in example.messages]
        row = {"id": example.id, "prompt": prompt, "context": example.document, "question": example.question,
               "answer": example.answer, "task": example.task,
               "response" if example.answer else "completion": example.response, "source": example.source}
    return {name: value for name, value in row.items() if value}
