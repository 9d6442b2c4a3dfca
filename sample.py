"""Ask a question about a document. The answer streams to the terminal.

    python sample.py --document examples/notes.txt --question "Which town did we show Tom?"
    python sample.py --model DIR --document FILE --question "..." --json
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nanoqwenlong.ops import flags
from nanoqwenlong.ops.settings import Common, computing_dtype, fixed


@dataclass(frozen=True)
class Config(Common):
    model: str = "assets/nano-rl"       # a Hugging Face directory or hub id
    document: str = ""                  # a UTF-8 text file
    question: str = ""
    temperature: float = 0.0            # 0: greedy
    top_p: float = 1.0
    max_new_tokens: int = fixed(256, least=1)
    seed: int = 0
    json: bool = False                  # print one JSON object: prompt_ids, completion_ids, text, answer, finish_reason


if __name__ == "__main__":
    flags.check(Config, sys.argv[1:])      # before the next imports, which take seconds

import torch

from nanoqwenlong import build, data, rewards
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.errors import ConfigError, DataError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.console import say
from nanoqwenlong.pretrained import hub
from nanoqwenlong.pretrained.template import read_template
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Example


def main(cfg: Config) -> None:
    torch.set_num_threads(cfg.threads)
    if not cfg.document or not cfg.question.strip():
        raise ConfigError("sample.py needs --document FILE and --question \"...\"")
    directory = hub.directory(cfg.model)
    tokenizer = build.prepared(Tokenizer(directory), read_template(cfg.prompt_template), lambda sentence: None)
    model = Qwen.from_pretrained(directory, computing_dtype(cfg), cfg.device)
    try:
        document = Path(cfg.document).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{cfg.document} is not UTF-8 at byte {error.start}") from None
    if not document.strip():
        raise DataError(f"{cfg.document} is empty: there is nothing to ask about")
    question = cfg.question.encode(errors="replace").decode()                  # the terminal may give broken characters
    (example,), _ = data.tokenize([Example("0", document, question, answer="")], tokenizer, sys.maxsize)
    num_blocks = blocks_for(len(example.prompt_ids) + cfg.max_new_tokens, 16)
    (group,) = Generator(model, num_blocks, block_size=16).sample(
        [example.prompt_ids], temperature=cfg.temperature, top_p=cfg.top_p, max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed, eos_ids=tokenizer.eos_ids, on_token=None if cfg.json else Stream(tokenizer))
    (completion,) = group.completions
    if cfg.json:
        text = tokenizer.response(completion.ids)
        say(json.dumps({"prompt_ids": group.prompt_ids, "completion_ids": completion.ids, "text": text,
                        "answer": rewards.extract(text), "finish_reason": completion.finish_reason}))
    else:
        say("" if completion.finish_reason == "stop" else f" [cut off after {cfg.max_new_tokens} tokens]")


class Stream:
    """Prints the text of each token as it is sampled. Bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], ""

    def __call__(self, prompt: int, sample: int, token: int) -> None:
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if not text.endswith("\ufffd"):
            say(text[len(self.shown):], end="")
            self.shown = text


if __name__ == "__main__":
    exits.start(main, Config, {}, sys.argv[1:], leave=exits.exit_process)
