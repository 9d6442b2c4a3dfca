"""The answers of one group: ours against three ways of transformers.

    ours                   Generator.sample: the prompt is prefilled and stored once
    generate               generate(num_return_sequences=G): the prompt is prefilled and stored G times
    prefilled once         the prompt through the model once, its cache repeated G times, then generate
    continuous batching    generate_batch: paged attention, the G requests may share the blocks of the prompt

Decoding is greedy and without an end token, so all sides must give the same tokens. That is the check. The random model
has wide weights, so an answer has many different tokens, but all G answers of the group are alike. A draw instead of an
argmax costs little compared with the model. Every side returns tokens, and ours also keeps their log-probs. Peak memory
does not count the loaded model, but counts the cache.

    python -m bench.rollout
    python -m bench.rollout --prompt 1024 --new 64
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench import common

from nanoqwenlong.engine.kvcache import blocks_for
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
    # the model: a random Qwen2, untied
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 704
    vocab: int = 1000
    initializer_range: float = 0.08     # wide enough that greedy answers do not repeat one token


def ours(cfg: Config, directory: str) -> dict[str, Callable]:
    model = Qwen.from_pretrained(directory, dtype=torch.float32)
    own = blocks_for(cfg.new, cfg.block_size) + 2                             # blocks of an answer alone
    num_blocks = blocks_for(cfg.prompt, cfg.block_size) + cfg.group_size * own
    generator = Generator(model, num_blocks=num_blocks, block_size=cfg.block_size)

    def sample(prompt: list[int], new: int) -> list:
        (group,) = generator.sample([prompt], n=cfg.group_size, temperature=0.0, max_new_tokens=new)
        return [list(completion.ids) for completion in group.completions]

    return side(sample, cfg)


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
    with tempfile.TemporaryDirectory() as directory:
        common.random_model(directory, cfg)
        sides = {"ours": (ours, cfg, directory), "generate": (generate, cfg, directory),
                 "prefilled once": (prefilled_once, cfg, directory),
                 "continuous batching": (continuous_batching, cfg, directory)}
        with common.processes(sides) as asks:
            results, outcomes = common.take_turns(asks, cfg.rounds)
    print(f"one group's answers: P={cfg.prompt}, {cfg.new} new, G={cfg.group_size}, hidden {cfg.hidden}, "
          f"{cfg.layers} layers, fp32, greedy, one thread")
    check = same_tokens({name: outcome["tokens"] for name, outcome in outcomes.items()}, cfg)
    common.report("rollout", cfg, results, check)


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
