"""The prompt, which no other file knows: its text, another one from a file, and the marks of its parts."""

from pathlib import Path

from ..errors import DataError

# QwenLong-L1, Table 1. Document and question are stripped before they are filled in.
PROMPT = """Please read the following text and answer the question below.

<text>
{document}
</text>

{question}

Format your response as follows: "Therefore, the answer is (insert answer here)"."""
FIELDS = ("document", "question")
BEFORE_DOCUMENT, AFTER_DOCUMENT, AFTER_QUESTION = "<text>", "</text>", "Format your response as follows"


def read_template(path: str | Path) -> str:
    """The prompt template in this text file, without the line ends after it. "" for no path. Only {document} and
    {question} are fields, other braces are text. Raises DataError if one of the two is missing or stands twice."""
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}") from None
    for name in FIELDS:
        if (count := text.count(f"{{{name}}}")) != 1:
            raise DataError(f"{path} has {{{name}}} {count} times; a prompt template needs it once")
    return text


def document_in(turn: str) -> str:
    """The document in a prompt of this form, or the whole turn if it has no marks."""
    _, _, rest = turn.partition(BEFORE_DOCUMENT)
    inside, mark, _ = rest.rpartition(AFTER_DOCUMENT)
    return inside.strip() if mark else turn


def question_in(turn: str) -> str:
    """The question in a prompt of this form, or "". The last marks count, because a document may contain marks too."""
    start, end = turn.rfind(AFTER_DOCUMENT), turn.rfind(AFTER_QUESTION)
    return turn[start + len(AFTER_DOCUMENT):end].strip() if 0 <= start < end else ""
