"""Text to token ids and back, with the tokenizer and chat template of a model directory.

A document may contain `<|im_end|>`, which must never become a special token. So the chat template is rendered around
placeholders and cut there. Its pieces are encoded with the special tokens, contents by a second tokenizer that has
none. (transformers' `split_special_tokens` leaves tokens that are added but not special.) Llama 2's tokenizer writes a
space before every text. The second one does not, because contents continue a text.

All ids are those of tokenizer.json, which transformers would read with its own rules for a model that it knows. So
transformers only reads the template and the names of special tokens.
"""

import json
import re
from array import array
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from itertools import groupby, takewhile
from pathlib import Path

from ..errors import DataError, ModelError
from .config import quiet_transformers, require
from .template import FIELDS, PROMPT, read_template
from .weights import read_json, write_json

Messages = Sequence[tuple[str, str]]           # (role, content)
TURN = "\ue000turn {}\ue000"                   # a placeholder that no template contains
THINK = ("<think>", "</think>")
TEMPLATE = "prompt_template.txt"               # in the directories of models that were trained with --prompt-template
FILES = (TEMPLATE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
         "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json")
TODAY = datetime(2025, 1, 1)                   # the date in every prompt whose template prints today's
CLOCK = re.compile(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


class Tokenizer:
    def __init__(self, directory: str | Path):
        """Raises ModelError for a broken file, for no tokenizer.json, chat template or end token, and for ids without
        an embedding.

        thought: what the template writes of the model's thinking: "<think>\\n" in R1-Distill's, mostly ""."""
        import tokenizers
        from transformers import PreTrainedTokenizerFast
        self.directory = directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"model directory {directory} is not there")
        self.files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
        inside = sorted(directory.glob("**/tokenizer.json"))               # of a run: those of its checkpoints
        advice = f"is {inside[-1].parent} meant?" if inside else "save a fast one there"
        if (directory / "tokenizer.model").is_file():
            advice = "transformers makes it of tokenizer.model: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        require("tokenizer.json" in self.files, f"{directory} has no tokenizer.json; {advice}")
        self.prompt_template = read_template(directory / TEMPLATE) if TEMPLATE in self.files else PROMPT
        for name in self.files.keys() - {TEMPLATE, "chat_template.jinja", "merges.txt"}:
            read_json(directory / name)
        with quiet_transformers(f"{directory}/tokenizer.json cannot be used"):
            self.backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.backend.no_truncation()
        self.backend.no_padding()
        with quiet_transformers(f"{directory}: the tokenizer cannot be loaded"):
            self.hf = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        require(self.hf.chat_template, f"{directory}: the tokenizer has no chat template (chat_template.jinja)")
        ids = self.backend.get_vocab(with_added_tokens=True)
        for token in self.hf.get_vocab().keys() - ids.keys():
            raise ModelError(f"{directory}: {token!r} is named as a token, but tokenizer.json does not have it")
        config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
        self.eos_ids = self._end_tokens(config)
        self.eos_id = self.eos_ids[0] if self.hf.eos_token_id is None else self.hf.eos_token_id

        plain = json.loads(self.backend.to_str()) | {"added_tokens": [], "post_processor": None}
        continued = plain | {part: without_prefix(plain[part]) for part in ("normalizer", "pre_tokenizer")}
        self.plain, self.writes_prefix = tokenizers.Tokenizer.from_str(json.dumps(continued)), continued != plain
        added = self.backend.get_added_tokens_decoder()                        # {id: token}
        self.added = re.compile("|".join(re.escape(token.content) for token in added.values()) or "(?!)")
        self.ids, self.special_ids = frozenset(ids.values()), frozenset(added)
        self.templates: dict[tuple, tuple[list[str], list[list[int]]]] = {}    # {messages: see _around}
        texts, _ = self._around([("user", TURN)], [TURN])
        opening = texts[-1]                                          # of the answer: what follows the last other marker
        for token in added.values():
            if token.content not in THINK:
                opening = opening.rpartition(token.content)[2]
        self.thought = "".join(re.findall("(?s)</?think>.*", opening))
        self.vocab_size = max(self.ids) + 1
        rows = config.get("vocab_size", self.vocab_size)
        require(type(rows) is int and self.vocab_size <= rows,       # fewer is fine: Qwen pads its embedding
                f"{directory}: tokenizer and model differ, ids up to {self.vocab_size - 1} but {rows} rows")

    def use_template(self, text: str) -> None:
        """Ask with this prompt template from now on, as read_template returns it. save_pretrained writes it."""
        self.prompt_template, self.files[TEMPLATE] = text, text.encode()

    def _end_tokens(self, config: dict) -> tuple[int, ...]:
        path = self.directory / "generation_config.json"
        generation = read_json(path) if path.is_file() else config             # as in transformers
        ends = [end for end in (*_listed(generation), self.hf.eos_token_id) if end is not None]
        for end in ends:
            require(type(end) is int and 0 <= end < 2**31, f"{path}: eos_token_id holds {end!r}, which is not an id")
        require(ends, f"{path.parent}: neither tokenizer nor {path.name} names an end token")
        return tuple(sorted(set(ends)))

    def _render(self, messages: Messages) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        with quiet_transformers(f"{self.directory}: the chat template does not render {_turns(messages)}"):
            template = CLOCK.sub(lambda call: call[1] + TODAY.strftime(call[2]) + call[1], self.hf.get_chat_template())
            require(not re.search(r"strftime_now(?!\s+is\b)", template),
                    "it asks for the date with strftime_now, but not in a fixed format: write a date in its place")
            return self.hf.apply_chat_template(chat, chat_template=template, tokenize=False,
                                               add_generation_prompt=True)

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
            ids = [self.backend.encode(texts[0], add_special_tokens=False).ids]
            self.templates[key] = texts, ids + [self._encode_template(text) for text in texts[1:]]
        return self.templates[key]

    def _encode_template(self, text: str) -> list[int]:
        """The ids of a template's text after a placeholder. Up to its first added token it continues what is there."""
        match = self.added.search(text)
        start = 0 if not self.writes_prefix else match.start() if match else len(text)
        return self.encode(text[:start]) + self.backend.encode(text[start:], add_special_tokens=False).ids

    def digest(self) -> str:
        """A SHA-256 of all that the template has written so far, as text and as ids, in hexadecimal."""
        return sha256(json.dumps(sorted(self.templates.items())).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, none of them special."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[array]:
        """`encode` of each text, as an array of 32-bit integers. The texts share all cores."""
        batch = [array("i", encoded.ids) for encoded in self.plain.encode_batch_fast(texts, add_special_tokens=False)]
        require(all(map(self.special_ids.isdisjoint, batch)),
                "this tokenizer's vocabulary spells a special token in plain text")
        return batch

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response as the model would write it: `<think>` and `</think>` are tokens, the end token comes
        last. What the chat template has written of the thinking is not repeated. Raises DataError if the template has
        ended the thinking, and the response thinks."""
        ids, ended = [], THINK[1] in self.thought
        if text.startswith(self.thought):
            text = text.removeprefix(self.thought)
        else:
            text = re.sub(r"^\s*(<think>)?\s*</think>\s*" if ended else r"^\s*<think>", "", text).lstrip("\n")
        if ended and any(mark in text for mark in THINK):
            raise DataError(f"the response thinks, but the chat template of {self.directory} ends the thinking before "
                            "the answer: leave the thoughts out, or change the template")
        for piece in re.split("(</?think>)", text):
            ids += self._encode_template(piece) if piece in THINK else self.encode(piece)
        return [*ids, self.eos_id]

    @property
    def prompt_pieces(self) -> list[list[int]]:
        """The ids before, between and after `prompt_fields`. Raises ModelError."""
        content, places = self.prompt_template, []
        for name in self.prompt_fields:
            places.append(f"\ue000{name}\ue000")               # no template contains these
            content = content.replace(f"{{{name}}}", places[-1])
        return self._around([("user", content)], places)[1]

    @property
    def prompt_fields(self) -> list[str]:
        """"document" and "question", in the order of the prompt template."""
        return sorted(FIELDS, key=lambda name: self.prompt_template.index(f"{{{name}}}"))

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
        """The text of `ids` up to the first end token. `</think>` stays, also if it is flagged as special. An id that
        no token has (embeddings are padded) shows as <|id 151700|>, because a reward should see all that is sampled."""
        text = ""
        before_end = takewhile(lambda token: token not in self.eos_ids, ids)
        for is_token, run in groupby(before_end, self.ids.__contains__):
            if is_token:
                text += self.backend.decode(list(run), skip_special_tokens=False)
            else:
                text += "".join(map("<|id {}|>".format, run))
        return text

    def response(self, ids) -> str:
        """The whole response, as rewards and data files have it: the template's part of the thinking, and the text."""
        return self.thought + self.decode(ids)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the files as they were read. But generation_config.json, and a config.json that is there already, name
        the end token that responses are taught with, and tokenizer_config.json has no other template than was used."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        ends = [self.eos_id, *(end for end in self.eos_ids if end != self.eos_id)]
        for name in ("generation_config.json", "config.json"):
            path = directory / name
            content = read_json(path) if path.is_file() else {}
            if self.eos_id not in _listed(content) and (content or name != "config.json"):
                write_json(path, {**content, "eos_token_id": ends})
        config, template = json.loads(self.files.get("tokenizer_config.json", b"{}")), self.hf.chat_template
        if isinstance(template, str) and config.get("chat_template", template) != template:
            write_json(directory / "tokenizer_config.json", {**config, "chat_template": template})


def without_prefix(part):
    """A normaliser or pre-tokenizer of tokenizer.json that writes no space before a text, but is otherwise the same."""
    if isinstance(part, dict) and part.get("type") == "Prepend":
        return None
    if isinstance(part, dict):
        options = {"add_prefix_space": False, "prepend_scheme": "never"}
        return {name: options[name] if name in options else without_prefix(value) for name, value in part.items()}
    return list(filter(None, map(without_prefix, part))) if isinstance(part, list) else part


def _listed(config: dict) -> list:
    """The end tokens that a config.json or generation_config.json names: one, a list or None."""
    ends = config.get("eos_token_id")
    return ends if isinstance(ends, list) else [ends]


def _turns(messages: Messages) -> str:
    return f"a chat of the turns {', '.join(role for role, _ in messages) or '(none)'}"
