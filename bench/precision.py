"""bfloat16 against float32 in one process on this processor, and AdamW fused against foreach.

    products    a layer's matrices with 1 to 1,000 tokens, in billions of operations a second
    update      group_pass.backward of one group. bfloat16: float32 weights and a copy (parallel.compute_in)
    rollout     the answers of two such groups
    AdamW       one step over all weights

All sides take turns in one process. Seconds are CPU seconds, medians without the first round.

    python -m bench.precision --model DIR
"""

import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from bench import common

from nanoqwenlong import group_pass, parallel
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.precision import bfloat16_speed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Config:
    model: str = "assets/nano-sft"
    prompt: int = 298                   # tokens
    answer: int = 39
    group_size: int = 8
    new_tokens: int = 12                # of each answer of a rollout
    vocab: int = 300                    # ids are below this
    rounds: int = 5


def take_turns(sides: dict, rounds: int) -> dict[str, float]:
    """{name: median CPU seconds} of calls without arguments."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, call in sides.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: median(values[1:]) for name, values in seconds.items()}


def products(c) -> list[list]:
    shapes = {(c.num_attention_heads * c.head_dim, c.hidden_size), (c.intermediate_size, c.hidden_size),
              (c.hidden_size, c.intermediate_size)}
    rows = []
    for n, k in sorted(shapes):
        for tokens in (1, 8, 32, 256, 1000):
            calls = {}
            for name, dtype in DTYPES.items():
                x, weight = torch.ones(tokens, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
                calls[name] = lambda x=x, weight=weight: [F.linear(x, weight) for _ in range(5)]
            seconds = take_turns(calls, 5)
            rate = {name: 5 * 2 * tokens * n * k / value / 1e9 for name, value in seconds.items()}
            rows.append([f"{tokens} x {k} x {n}", *(f"{rate[name]:.0f}" for name in DTYPES),
                         f"{rate['bfloat16'] / rate['float32']:.2f}"])
    return rows


def main(cfg: Config) -> None:
    torch.set_num_threads(1)
    updates, rollouts = {}, {}
    for name, dtype in DTYPES.items():
        model = parallel.compute_in(Qwen.from_pretrained(cfg.model), dtype)
        group, advantages = common.random_group(cfg, cfg.group_size, cfg.prompt, cfg.answer)
        generator = Generator(model, 4096)
        updates[name] = lambda model=model: group_pass.backward(model, group.stem, group.branches,
                                                                common.policy_gradient(group, advantages))
        rollouts[name] = lambda generator=generator: generator.sample(
            [group.prompt_ids] * 2, n=cfg.group_size, max_new_tokens=cfg.new_tokens)
    rows = [[what, *(f"{seconds[name]:.3f}" for name in seconds), f"{first / second:.2f}"]
            for what, sides in (("update", updates), ("rollout", rollouts))
            for seconds in [take_turns(sides, cfg.rounds)] for first, second in [seconds.values()]]
    weights = list(model.parameters())
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    steps = {name: torch.optim.AdamW(weights, lr=1e-6, **{name: True}).step for name in ("foreach", "fused")}
    foreach, fused = take_turns(steps, cfg.rounds).values()
    print(common.table([["operations, 1e9 a second", *DTYPES, "ratio"], *products(model.config)]))
    print(common.table([["CPU seconds", *DTYPES, "ratio"], *rows]))
    print(common.table([["CPU seconds", "foreach", "fused", "ratio"],
                        ["AdamW", f"{foreach:.3f}", f"{fused:.3f}", f"{foreach / fused:.2f}"]]))
    print(f"what --dtype auto measures: bfloat16 is {bfloat16_speed():.2f} times as fast")


if __name__ == "__main__":
    exits.start(main, Config, {}, sys.argv[1:], leave=exits.exit_process)
