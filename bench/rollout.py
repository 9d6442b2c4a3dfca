"""The answers of one group: ours against three ways of transformers.

    ours                   Generator.sample: the prompt is prefilled and stored once
    generate               generate(num_return_sequences=G): the prompt is prefilled and stored G times
    prefilled once         the prompt through the model once, its cache repeated G times, then generate
    continuous batching    generate_batch: paged attention, the G requests may share the blocks of the prompt

Decoding is greedy and without an end token, so all sides must give the same tokens. That is the check. The random model
has wide weights, so an answer has many different tokens, but all G answers of the group are alike. A draw instead of an
argmax costs little compared with the model. Every side returns tokens, and ours also keeps their log-probs. Peak memory
does not count the loaded model, but counts the cache.

The last line compares one decoding step of ours with what its bytes need: all weights and the cached keys and values
once, at the rate at which this machine copies a large tensor. The rate is measured beside every run.

    python -m bench.rollout
    python -m bench.rollout --prompt 1024 --new 64
    python -m bench.rollout --model DIR --dtype bfloat16 --prompt 300 --new 16 --group-size 16 --alone
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from bench import common

from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least


@dataclass(frozen=True)
class Config:
    prompt: int = 4096                  # P, tokens
    new: int = 32                       # tokens of each answer
    group_size: int = 8                 # G
    block_size: int = 16                # of our cache
    rounds: int = 3                     # each side runs once a round
    dtype: str = "float32"              # of ours
    alone: bool = False                 # only ours
    model: str = ""                     # a directory. Without one: a random Qwen2, untied, of this shape
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 704
    vocab: int = 1000
    initializer_range: float = 0.08     # wide enough that greedy answers do not repeat one token


def ours(cfg: Config, directory: str) -> dict[str, Callable]:
    model = Qwen.from_pretrained(directory, dtype=getattr(torch, cfg.dtype))
    own = blocks_for(cfg.new, cfg.block_size) + 2                             # blocks of an answer alone
    num_blocks = blocks_for(cfg.prompt, cfg.block_size) + cfg.group_size * own
    generator = Generator(model, num_blocks=num_blocks, block_size=cfg.block_size)

    def sample(prompt: list[int], new: int, on_token: Callable | None = None) -> list:
        (group,) = generator.sample([prompt], n=cfg.group_size, temperature=0.0, max_new_tokens=new, on_token=on_token)
        return [list(completion.ids) for completion in group.completions]

    def step() -> dict:
        """CPU seconds of a decoding step, and those that its bytes need."""
        times = []

        def stamp(prompt: int, number: int, token: int) -> None:
            if number == cfg.group_size - 1:                                  # the last answer of a step
                times.append(time.process_time())
        sample(common.random_ids(cfg, cfg.prompt), cfg.new, stamp)
        c = model.config
        pairs = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        numbers = sum(p.numel() for p in model.parameters()) + pairs * (cfg.prompt + cfg.group_size * cfg.new // 2)
        seconds = [end - start for start, end in pairwise(times)]
        return {"step": median(seconds), "bytes": numbers * model.dtype.itemsize / common.copy_rate()}

    return {**side(sample, cfg), "step": step}


def generate(cfg: Config, directory: str) -> dict[str, Callable]:
    model = common.transformers_model(directory)

    @torch.no_grad()
    def sample(prompt: list[int], new: int) -> list:
        ids = torch.tensor([prompt])
        out = model.generate(ids.repeat(cfg.group_size, 1), attention_mask=torch.ones_like(ids).repeat(
            cfg.group_size, 1), **greedy(new))
        return out[:, len(prompt):].tolist()

    return side(sample, cfg)


def prefilled_once(cfg: Config, directory: str) -> dict[str, Callable]:
    from transformers import DynamicCache
    model = common.transformers_model(directory)

    @torch.no_grad()
    def sample(prompt: list[int], new: int) -> list:
        cache, ids = DynamicCache(config=model.config), torch.tensor([prompt])
        model.model(ids[:, :-1], past_key_values=cache)                       # without the head
        cache.batch_repeat_interleave(cfg.group_size)
        ids = ids.repeat(cfg.group_size, 1)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **greedy(new))
        return out[:, len(prompt):].tolist()

    return side(sample, cfg)


def continuous_batching(cfg: Config, directory: str) -> dict[str, Callable]:
    from transformers import ContinuousBatchingConfig, GenerationConfig
    model = common.transformers_model(directory)
    page = ContinuousBatchingConfig.page_size
    num_blocks = max(64, (cfg.group_size + 1) * (blocks_for(cfg.prompt + cfg.new, page) + 1))    # room for all copies

    @torch.no_grad()
    def sample(prompt: list[int], new: int) -> list:
        settings = ContinuousBatchingConfig(num_blocks=num_blocks, max_batch_tokens=2048, use_cuda_graph=False)
        generation = GenerationConfig(eos_token_id=-1, **greedy(new))
        generation.num_return_sequences = cfg.group_size                      # its check allows it when sampling only
        out = model.generate_batch([prompt], generation, settings)
        return [request.generated_tokens for request in out.values()]

    return side(sample, cfg)


def greedy(new: int) -> dict:
    return {"do_sample": False, "max_new_tokens": new}


def side(sample: Callable, cfg: Config) -> dict[str, Callable]:
    """Warms up on a few tokens. Returns one run, whose outcome has its tokens."""
    sample(list(range(1, 9)), 2)
    prompt = common.random_ids(cfg, cfg.prompt)
    return {"run": lambda: {"tokens": sample(prompt, cfg.new)}}


def same_tokens(tokens: dict[str, list], cfg: Config) -> dict:
    """Whether every side gave the same tokens in all rows, and how many different ones there were."""
    said = tokens["ours"]
    whole = [len(row) for row in said] == [cfg.new] * cfg.group_size
    different = [name for name, rows in tokens.items() if rows != said]
    return {"tokens compared": cfg.group_size * cfg.new * (len(tokens) - 1), "distinct in an answer": len(set(said[0])),
            "sides that differ": ", ".join(different) or "none", "passed": whole and not different}


def main(cfg: Config) -> None:
    at_least(cfg, prompt=2, new=1, group_size=1, rounds=1, block_size=1)
    if cfg.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {cfg.dtype!r} is not supported here; float32 and bfloat16 are")
    with common.model_of(cfg) as (directory, cfg, shape):
        sides = {"ours": (ours, cfg, directory), "generate": (generate, cfg, directory),
                 "prefilled once": (prefilled_once, cfg, directory),
                 "continuous batching": (continuous_batching, cfg, directory)}
        if cfg.alone:
            sides = {"ours": sides["ours"]}
        with common.processes(sides) as asks:
            results, outcomes = common.take_turns(asks, cfg.rounds)
            steps = [asks["ours"]("step") for _ in range(cfg.rounds)] if cfg.new > 2 else []
    print(f"one group's answers: P={cfg.prompt}, {cfg.new} new, G={cfg.group_size}, {shape}, ours in {cfg.dtype}, "
          "greedy, one thread")
    check = same_tokens({name: outcome["tokens"] for name, outcome in outcomes.items()}, cfg)
    step, needed = (median(found[what] for found in steps or [{what: 0.0}]) for what in ("step", "bytes"))
    if steps:
        print(f"a decoding step of ours takes {step:.3g} CPU seconds, {step / needed:.2f} times what its bytes need")
    common.report("rollout", cfg, results, check, decoding_step={"cpu_seconds": step, "bytes_need": needed})


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
