"""The prompt, which no other file knows: its text, its marks, and examples as token ids."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from ..errors import DataError, ModelError
from ..records import Branch, Example

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


def tokenize(examples: Sequence[Example], tokenizer, max_prompt_tokens: int, cut=False) -> tuple[list[Example], int]:
    """The examples with prompt_ids and length, and how many prompts were too long. Without `cut` these are dropped.
    With it, they lose the middle of the document or longest turn. Raises DataError if no prompt fits."""
    fitting, no_room, num_long = [], [], 0
    encode = cache(tokenizer.encode)                           # equal documents are encoded once
    for example in examples:
        parts = _parts(example, tokenizer, encode)
        length = sum(map(len, parts[1::2]))
        num_cut = max(0, sum(map(len, parts)) - max_prompt_tokens)
        num_long += num_cut > 0
        if num_cut and not cut:
            continue
        if num_cut:
            turns = range(1, len(parts), 2) if example.messages else [1]
            longest = max(turns, key=lambda turn: len(parts[turn]))
            room = len(parts[longest]) - num_cut
            if room <= 0:
                no_room.append(example.id)
                continue
            start = (room + 1) // 2
            parts[longest] = parts[longest][:start] + parts[longest][start + num_cut:]
        ids = tuple(token for part in parts for token in part)
        fitting.append(replace(example, prompt_ids=ids, length=length, num_cut=num_cut))
    if no_room:
        raise DataError(f"{len(no_room)} of {len(examples)} questions leave no room for a document in a prompt of "
                        f"{max_prompt_tokens} tokens (the first is {no_room[0]!r}); raise --max-prompt-tokens")
    if examples and not fitting:
        raise DataError(f"all {len(examples)} prompts are longer than {max_prompt_tokens} tokens; raise "
                        "--max-prompt-tokens or give shorter documents")
    return fitting, num_long


def _parts(example: Example, tokenizer, encode) -> list[list[int]]:
    """The ids of a prompt in parts: by turns the template's and the example's, the template's first."""
    if example.messages:
        try:
            return tokenizer.chat_parts(example.messages)
        except ModelError as error:
            raise DataError(f"example {example.id!r}: {error}") from None
    document = encode(example.document.strip())
    if example.task == "text":
        return [[], document, []]
    places = ("\ue000document\ue000", "\ue000question\ue000")         # no template contains these
    before, between, after = tokenizer.pieces(PROMPT.format(document=places[0], question=places[1]), places)
    return [before, document, between, tokenizer.encode(example.question.strip()), after]


def sft_branch(example: Example, tokenizer) -> Branch:
    """The whole sequence as one branch of an empty stem. The targets' weights add up to 1: the loss of an example is
    the mean over its response (QwenLong-L1, Eq. 11), or over all tokens of a plain text."""
    is_text = example.task == "text"
    response = [tokenizer.eos_id] if is_text else tokenizer.encode_response(example.response)
    ids = (*example.prompt_ids, *response)
    num_targets = len(example.prompt_ids) if is_text else len(response)
    weights = (0.0,) * (len(ids) - 1 - num_targets) + (1 / num_targets,) * num_targets
    return Branch(ids[:-1], ids[1:], weights)
