"""Examples as token ids: the prompt of each, and the response to learn from.

Every rank keeps all prompts in memory, so their ids are arrays of 32-bit integers. A tuple of Python's integers would
take ten times as much.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import DataError, ModelError
from ..records import Branch, Example

BATCH = min(16, os.cpu_count() or 1)    # examples whose texts are encoded at once. Meanwhile a token takes 200 bytes


def tokenize(examples: Sequence[Example], tokenizer, max_prompt_tokens: int, cut=False) -> tuple[list[Example], int]:
    """The examples with prompt_ids and length, and how many prompts were too long. Without `cut` these are dropped.
    With it, they lose the middle of the document or longest turn. Raises DataError if no prompt fits."""
    fitting, no_room, num_long = [], [], 0
    for example, parts in _prompts(examples, tokenizer):
        length = sum(map(len, parts[1::2]))
        num_cut = max(0, sum(map(len, parts)) - max_prompt_tokens)
        num_long += num_cut > 0
        if num_cut and not cut:
            continue
        if num_cut:
            turns = range(1, len(parts), 2)
            if not example.messages:
                turns = [1 + 2 * tokenizer.prompt_fields.index("document")]
            longest = max(turns, key=lambda turn: len(parts[turn]))
            room = len(parts[longest]) - num_cut
            if room <= 0:
                no_room.append(example.id)
                continue
            start = (room + 1) // 2
            parts[longest] = parts[longest][:start] + parts[longest][start + num_cut:]
        fitting.append(replace(example, prompt_ids=sum(parts, array("i")), length=length, num_cut=num_cut))
    if no_room:
        raise DataError(f"{len(no_room)} of {len(examples)} questions leave no room for a document in a prompt of "
                        f"{max_prompt_tokens} tokens (the first is {no_room[0]!r}); raise --max-prompt-tokens")
    if examples and not fitting:
        raise DataError(f"all {len(examples)} prompts are longer than {max_prompt_tokens} tokens; raise "
                        "--max-prompt-tokens or give shorter documents")
    return fitting, num_long


def _prompts(examples: Sequence[Example], tokenizer) -> Iterator[tuple[Example, list[array]]]:
    """Each example with the ids of its prompt in parts: by turns the template's and the example's, the template's
    first. Equal texts are encoded once. Their ids are kept until the last example that has them."""
    uses = Counter(hash(text) for example in examples for text in _texts(example, tokenizer))
    encoded: dict[str, array] = {}
    for start in range(0, len(examples), BATCH):
        batch = examples[start:start + BATCH]
        texts = [text for example in batch for text in _texts(example, tokenizer)]
        new = [text for text in dict.fromkeys(texts) if text not in encoded]
        encoded.update(zip(new, tokenizer.encode_batch(new)))
        for example in batch:
            parts = [array("i", piece) for piece in _pieces(example, tokenizer)]
            for place, text in enumerate(_texts(example, tokenizer)):
                parts.insert(2 * place + 1, encoded[text])
            yield example, parts
        uses.subtract(map(hash, texts))
        for text in texts:
            if not uses[hash(text)]:
                encoded.pop(text, None)


def _texts(example: Example, tokenizer) -> list[str]:
    """What a prompt holds beside the template, in the template's order."""
    if example.messages:
        return [content for _, content in example.messages]
    names = ["document"] if example.task == "text" else tokenizer.prompt_fields
    return [getattr(example, name).strip() for name in names]


def _pieces(example: Example, tokenizer) -> Sequence[Sequence[int]]:
    """The template's ids around these texts, one piece more than there are texts."""
    if example.task == "text":
        return [], []
    if not example.messages:
        return tokenizer.prompt_pieces
    try:
        return tokenizer.chat_pieces(example.messages)
    except ModelError as error:
        raise DataError(f"example {example.id!r}: {error}") from None


def sft_branch(example: Example, tokenizer) -> Branch:
    """The whole sequence as one branch of an empty stem. The targets' weights add up to 1: the loss of an example is
    the mean over its response (QwenLong-L1, Eq. 11), or over all tokens of a plain text."""
    is_text = example.task == "text"
    response = [tokenizer.eos_id] if is_text else tokenizer.encode_response(example.response)
    ids = (*example.prompt_ids, *response)
    num_targets = len(example.prompt_ids) if is_text else len(response)
    weights = (0.0,) * (len(ids) - 1 - num_targets) + (1 / num_targets,) * num_targets
    return Branch(ids[:-1], ids[1:], weights)
