"""The large objects of the scripts, each made from a few settings. Only scripts and tools import this file."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch

from . import parallel
from .errors import ConfigError
from .generate import Generator
from .model import Qwen
from .pretrained.digest import model_digests
from .pretrained.tokenizer import Tokenizer
from .reward.judge import Complete, Judge
from .reward.judge_server import Server


def judge(where: str, model: str = "", key: str = "", seed: int = 0, device: str | torch.device = "cpu",
          dtype: torch.dtype = torch.float32, prepare: Callable | None = None, kv_blocks: int = 4096,
          max_new_tokens: int = 256, **limits) -> Judge:
    """The judge at `where`: the URL of a server, or the directory of a Hugging Face model.

    model, key, limits: for a server. The name of the model there, its key, and the other arguments of `Server`.
    device, dtype, prepare: for a directory, as in Qwen.from_pretrained.
    kv_blocks: for a directory. The default holds about a hundred usual prompts at once, and the longest one that any
    tokenizer makes. The blocks take memory only while the judge is asked.

    All ranks call it alike. Raises ConfigError if `where` is neither, and ModelError if the directory is invalid."""
    if "://" in str(where):
        server = Server(where, model, key, max_new_tokens=max_new_tokens, **limits)
        return Judge(server, server.name, seed)
    if not Path(where).is_dir():
        raise ConfigError(f"--judge {where} is neither a URL nor a model's directory: give a URL like "
                          "http://localhost:8000/v1, or the directory of a Hugging Face model")
    if model:
        raise ConfigError(f"--judge {where} is a directory, so the model's name {model!r} has no meaning: give a URL, "
                          "or leave the name out")
    tokenizer = Tokenizer(where)
    generator = Generator(Qwen.from_pretrained(where, dtype, device, prepare), num_blocks=kv_blocks)
    digest = parallel.on_all_ranks(lambda: identity(Path(where)) if parallel.rank() == 0 else "",
                                   "cannot read the judge")[0]
    return Judge(completer(generator, tokenizer, max_new_tokens), f"{Path(where).resolve().name} {digest}", seed)


def completer(generator: Generator, tokenizer: Tokenizer, max_new_tokens: int) -> Complete:
    """A function from prompts to a model's replies, all sampled at once and greedily. Several ranks share the work.

    Two tokens with nearly the same probability may fall differently in another batch (see Generator)."""
    def complete(prompts: list[str]) -> list[str]:
        prompt_ids = [tokenizer.chat([("user", prompt)]) for prompt in prompts]
        groups = generator.sample(prompt_ids, temperature=0, max_new_tokens=max_new_tokens, eos_ids=tokenizer.eos_ids)
        return [tokenizer.decode(group.completions[0].ids) for group in groups]
    return complete


def identity(directory: Path) -> str:
    """A SHA-256 over all files that decide what a model answers, in hexadecimal."""
    lines = [f"{name} {digest}\n" for name, digest in model_digests(directory).items()]
    return sha256("".join(lines).encode()).hexdigest()
