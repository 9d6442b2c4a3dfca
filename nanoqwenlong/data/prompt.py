"""The prompt: its text, its marks, and examples as token ids.

This file is the only one that knows what the prompt says. To ask in another way, change PROMPT and the marks.
"""

from collections.abc import Sequence
from dataclasses import replace

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
PLACES = ("\ue000document\ue000", "\ue000question\ue000")               # placeholders that no template contains


def document_in(turn: str) -> str:
    """The document in a prompt of this form, or the whole turn if it has no marks.

    >>> document_in("Read this. <text> Rain fell. </text> What fell?"), document_in("What fell?")
    ('Rain fell.', 'What fell?')
    """
    _, _, rest = turn.partition(BEFORE_DOCUMENT)
    inside, mark, _ = rest.rpartition(AFTER_DOCUMENT)
    return inside.strip() if mark else turn


def question_in(turn: str) -> str:
    """The question in a prompt of this form, or "". The last marks count, because a document may contain marks too."""
    start, end = turn.rfind(AFTER_DOCUMENT), turn.rfind(AFTER_QUESTION)
    return turn[start + len(AFTER_DOCUMENT):end].strip() if 0 <= start < end else ""


def prompt_pieces(tokenizer) -> list[list[int]]:
    """The ids before the document, between document and question, and after the question."""
    document, question = PLACES
    return tokenizer.pieces(PROMPT.format(document=document, question=question), PLACES)


def tokenize(examples: Sequence[Example], tokenizer, max_prompt_tokens: int, cut: bool = False
             ) -> tuple[list[Example], int]:
    """Returns the examples with prompt_ids and length filled in, and how many were dropped or cut.

    A prompt over `max_prompt_tokens` is dropped in training: the answer may stand in the part that is cut away, and a
    guess must not be rewarded. An evaluation has to ask every question. With `cut`, such a prompt loses the middle of
    its document (in a chat: of its longest turn), until it fits exactly. `num_cut` says how many tokens it lost, and
    `length` stays the length before the cut. Raises DataError if a question leaves no room for a document, if no
    prompt fits, or if the chat template cannot show a chat. Equal documents are encoded once.
    """
    kept, no_room, documents = [], [], {}
    for example in examples:
        parts = _parts(example, tokenizer, documents)
        num_cut = max(0, sum(map(len, parts)) - max_prompt_tokens)
        length = sum(map(len, parts[1::2]))
        if num_cut and not cut:
            continue
        if num_cut:
            turns = range(1, len(parts), 2)
            place = max(turns, key=lambda turn: len(parts[turn])) if example.messages else 1
            whole = parts[place]
            room = len(whole) - num_cut
            if room <= 0:
                no_room.append(example.id)
                continue
            tail = room // 2
            parts[place] = whole[:room - tail] + whole[len(whole) - tail:]
        ids = tuple(token for part in parts for token in part)
        kept.append(replace(example, prompt_ids=ids, length=length, num_cut=num_cut))
    if no_room:
        raise DataError(f"{len(no_room)} of {len(examples)} questions leave no room for a document in a prompt of "
                        f"{max_prompt_tokens} tokens (the first is {no_room[0]!r}); raise --max-prompt-tokens")
    if examples and not kept:
        raise DataError(f"all {len(examples)} prompts are longer than {max_prompt_tokens} tokens; raise "
                        "--max-prompt-tokens or give shorter documents")
    return kept, sum(example.num_cut > 0 for example in kept) if cut else len(examples) - len(kept)


def _parts(example: Example, tokenizer, documents: dict[str, list[int]]) -> list[list[int]]:
    """The ids of a prompt in parts: the template's, then what the example says, and so on in turn. `documents` keeps
    what has been encoded."""
    if example.messages:
        try:
            return tokenizer.chat_parts(example.messages)
        except ModelError as error:
            raise DataError(f"example {example.id!r}: {error}") from None
    if example.document not in documents:
        documents[example.document] = tokenizer.encode(example.document.strip())
    document = documents[example.document]
    if example.task == "text":
        return [[], document, []]
    before, between, after = prompt_pieces(tokenizer)
    return [before, document, between, tokenizer.encode(example.question.strip()), after]


def sft_branch(example: Example, tokenizer) -> Branch:
    """The whole sequence as one branch of an empty stem.

    The targets share a weight of 1, so the loss of an example is the mean over its response (QwenLong-L1, Eq. 11). In
    plain text every token is a target.
    """
    if example.task == "text":
        ids, num_targets = (*example.prompt_ids, tokenizer.eos_id), len(example.prompt_ids)
    else:
        response = tokenizer.encode_response(example.response)
        ids, num_targets = (*example.prompt_ids, *response), len(response)
    weights = (0.0,) * (len(ids) - 1 - num_targets) + (1 / num_targets,) * num_targets
    return Branch(ids[:-1], ids[1:], weights)
