"""The prompt, which no other file knows: its text, and the marks by which its parts are found again."""

# QwenLong-L1, Table 1. Document and question are stripped before they are filled in.
PROMPT = """Please read the following text and answer the question below.

<text>
{document}
</text>

{question}

Format your response as follows: "Therefore, the answer is (insert answer here)"."""
BEFORE_DOCUMENT, AFTER_DOCUMENT, AFTER_QUESTION = "<text>", "</text>", "Format your response as follows"


def document_in(turn: str) -> str:
    """The document in a prompt of this form, or the whole turn if it has no marks."""
    _, _, rest = turn.partition(BEFORE_DOCUMENT)
    inside, mark, _ = rest.rpartition(AFTER_DOCUMENT)
    return inside.strip() if mark else turn


def question_in(turn: str) -> str:
    """The question in a prompt of this form, or "". The last marks count, because a document may contain marks too."""
    start, end = turn.rfind(AFTER_DOCUMENT), turn.rfind(AFTER_QUESTION)
    return turn[start + len(AFTER_DOCUMENT):end].strip() if 0 <= start < end else ""
