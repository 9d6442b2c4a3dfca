"""Text to token ids and back, with the tokenizer and chat template of a model directory.

A document may contain `<|im_end|>`, which must never become a special token. So the chat template is rendered around
placeholders and cut there. Its pieces are encoded with the special tokens, contents by a second tokenizer that has
none. (transformers' `split_special_tokens` leaves tokens that are added but not special.)
"""

import json
import re
from array import array
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ..errors import ModelError
from .config import quiet_transformers, require
from .template import PROMPT
from .weights import read_json

Messages = Sequence[tuple[str, str]]           # (role, content)
TURN = "\ue000turn {}\ue000"                   # a placeholder that no template contains
THINK = ("<think>", "</think>")
SPELLS_SPECIAL = "this tokenizer's vocabulary spells a special token in plain text"
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
         "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json")


class Tokenizer:
    def __init__(self, directory: str | Path):
        """Raises ModelError for no fast tokenizer, chat template or end token, or for ids without an embedding."""
        import tokenizers
        from transformers import AutoTokenizer
        self.directory = directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"model directory {directory} is not there")
        require((directory / "tokenizer.json").is_file(), f"{directory} has no tokenizer.json; save a fast one there")
        with quiet_transformers(f"{directory}: the tokenizer cannot be loaded"):
            self.hf = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        require(self.hf.chat_template, f"{directory}: the tokenizer has no chat template (chat_template.jinja)")
        self.files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
        self.eos_ids = self._end_tokens(directory / "generation_config.json")
        self.eos_id = self.eos_ids[0] if self.hf.eos_token_id is None else self.hf.eos_token_id

        plain = json.loads(self.hf.backend_tokenizer.to_str())
        plain |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self.plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
        self.special_ids = frozenset(self.hf.get_added_vocab().values())
        self.templates: dict[tuple, tuple[list[str], list[list[int]]]] = {}    # {messages: see _around}
        texts, _ = self._around([("user", TURN)], [TURN])
        self.opens_think = texts[-1].rstrip().endswith(THINK[0])     # R1-Distill's template writes the <think> itself
        self.vocab_size = max(self.hf.get_vocab().values()) + 1
        if (directory / "config.json").is_file():
            rows = read_json(directory / "config.json").get("vocab_size", self.vocab_size)
            require(self.vocab_size <= rows,                         # fewer is fine: Qwen pads its embedding
                    f"{directory}: tokenizer and model differ, ids up to {self.vocab_size - 1} but {rows} rows")

    def _end_tokens(self, path: Path) -> tuple[int, ...]:
        listed = read_json(path).get("eos_token_id") if path.is_file() else None
        ends = {*(listed if isinstance(listed, list) else [listed]), self.hf.eos_token_id} - {None}
        for end in ends:
            require(type(end) is int and 0 <= end < 2**31, f"{path}: eos_token_id holds {end!r}, which is not an id")
        require(ends, f"{path.parent}: neither tokenizer nor {path.name} names an end token")
        return tuple(sorted(ends))

    def _render(self, messages: Messages) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        with quiet_transformers(f"{self.directory}: the chat template does not render {_turns(messages)}"):
            return self.hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def _around(self, messages: Messages, places: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """What the chat template writes before, between and after the placeholders in the messages: texts, and ids."""
        key = tuple(messages)
        if key not in self.templates:
            text = self._render(messages)
            counts, starts = [text.count(place) for place in places], [text.find(place) for place in places]
            if counts != [1] * len(places) or starts != sorted(starts):
                does = "drops" if 0 in counts else "repeats" if max(counts) > 1 else "reorders"
                raise ModelError(f"{self.directory}: the chat template {does} what is said in {_turns(messages)}")
            texts = re.split("|".join(map(re.escape, places)), text)
            self.templates[key] = texts, [self.hf.encode(text, add_special_tokens=False) for text in texts]
        return self.templates[key]

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, none of them special."""
        ids = self.plain.encode(text, add_special_tokens=False).ids
        require(self.special_ids.isdisjoint(ids), SPELLS_SPECIAL)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[array]:
        """`encode` of each text, as an array of 32-bit integers. The texts share all cores."""
        batch = [array("i", encoded.ids) for encoded in self.plain.encode_batch_fast(texts, add_special_tokens=False)]
        require(all(map(self.special_ids.isdisjoint, batch)), SPELLS_SPECIAL)
        return batch

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response as the model would write it: `<think>` and `</think>` are tokens, the end token comes
        last. A `<think>` that the chat template has written is not repeated."""
        ids = []
        if self.opens_think:
            text = text.removeprefix(THINK[0]).lstrip("\n")
        for piece in re.split("(</?think>)", text):
            ids += self.hf.encode(piece, add_special_tokens=False) if piece in THINK else self.encode(piece)
        return [*ids, self.eos_id]

    @property
    def prompt_pieces(self) -> list[list[int]]:
        """The ids before the document, between document and question, and after the question. Raises ModelError."""
        places = ("\ue000document\ue000", "\ue000question\ue000")     # no template contains these
        content = PROMPT.format(document=places[0], question=places[1])
        return self._around([("user", content)], places)[1]

    def prompt(self, document_ids: Sequence[int], question_ids: Sequence[int]) -> list[int]:
        """The ids of a question about a document, open for the answer."""
        before, between, after = self.prompt_pieces
        return [*before, *document_ids, *between, *question_ids, *after]

    def chat(self, messages: Messages) -> list[int]:
        """The ids of a chat, open for the answer. Contents are plain text. Raises ModelError for a template that
        rewrites one: R1-Distill's and Qwen3's cut what an assistant said before its `</think>`."""
        before, *after = self.chat_pieces(messages)
        ids = list(before)
        for (_, content), piece in zip(messages, after):
            ids += self.encode(content) + piece
        return ids

    def chat_pieces(self, messages: Messages) -> list[list[int]]:
        """The ids before, between and after the contents of a chat."""
        places = [TURN.format(number) for number in range(len(messages))]
        turns = [(role, place) for (role, _), place in zip(messages, places)]
        texts, ids = self._around(turns, places)
        rendered = self._render(messages)
        expected = texts[0]
        for number, (role, content) in enumerate(messages, start=1):
            expected += content + texts[number]
            require(rendered == expected or number < len(messages) and rendered.startswith(expected),
                    f"{self.directory}: the chat template rewrites what turn {number} ({role}) says")
        return ids

    def decode(self, ids) -> str:
        """The text of `ids` up to the first end token. `</think>` stays, also if it is flagged as special."""
        before_end = takewhile(lambda token: token not in self.eos_ids, ids)
        return self.hf.decode(list(before_end), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def save_pretrained(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (Path(directory) / name).write_bytes(content)


def _turns(messages: Messages) -> str:
    return f"a chat of the turns {', '.join(role for role, _ in messages) or '(none)'}"
