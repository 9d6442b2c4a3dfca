"""Examples as token ids: the prompt of each, and the response to learn from."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from ..errors import DataError, ModelError
from ..records import Branch, Example


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
    before, between, after = tokenizer.prompt_pieces
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
