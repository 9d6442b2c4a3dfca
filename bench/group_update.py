"""The gradient of one group: ours against transformers with the repeated prompt.

    ours                        group_pass.backward: stem and branches
    transformers, one batch     the prompt repeated G times, one forward and backward of G rows
    transformers, one by one    the same in micro-batches of one row, the least memory for a repeated prompt

All compute -sum_i A_i sum_t logprob_it / num_tokens of the same random prompt, answers and advantages, in float32.
transformers runs at its best: SDPA, no padding, no mask, no cache, logits of the answers only. The check is that all
gradients agree, tensor by tensor. Peak memory does not count the loaded model, but counts the gradients.

The last line gives the share of the machine's matrix-product rate that our update reaches. It counts useful operations:
those of tokens that are there, the prompt once, three times the forward pass, and nothing that is computed again. The
rate is that of a product of 1,024 x 1,024 matrices, measured beside every run, in CPU time.

    python -m bench.group_update
    python -m bench.group_update --model DIR --prompt 298 --answer 39
    python -m bench.group_update --prompt 4096 --answer 256 --checkpointing
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from bench import common

from nanoqwenlong import group_pass
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least

TOLERANCE = 1e-4                        # float32 over thousands of positions. An error in the method is far larger


@dataclass(frozen=True)
class Config:
    prompt: int = 2048                  # P, tokens
    answer: int = 128                   # R, tokens of each answer
    group_size: int = 8                 # G
    max_tokens: int = 16384             # in one forward pass of ours
    checkpointing: bool = False         # activation checkpointing of the layers, on all sides
    rounds: int = 3                     # each side runs once a round
    model: str = ""                     # a directory. Without one: a random Qwen2, untied, of this shape
    hidden: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 1408
    vocab: int = 1000
    initializer_range: float = 0.05


def ours(cfg: Config, directory: str) -> dict[str, Callable]:
    model = Qwen.from_pretrained(directory, dtype=torch.float32)
    model.checkpointing = cfg.checkpointing

    def update(prompt: int, answer: int) -> None:
        group, advantages = common.random_group(cfg, cfg.group_size, prompt, answer)
        model.zero_grad(set_to_none=True)
        group_pass.backward(model, group.stem, group.branches, common.policy_gradient(group, advantages),
                            max_tokens=cfg.max_tokens)

    def share() -> dict:
        """The share of the product rate that useful operations reach."""
        rates, start = [common.product_rate()], time.process_time()
        update(cfg.prompt, cfg.answer)
        seconds = time.process_time() - start
        rates.append(common.product_rate())
        return {"share": useful_operations(model, cfg) / seconds / (sum(rates) / 2)}

    return {**side(model, update, cfg), "share": share}


def useful_operations(model, cfg: Config) -> float:
    """Forward and backward: three times the products of the stem and the answers, of their attention, and of the head.
    The stem's last layer computes keys and values only."""
    c, P, R = model.config, cfg.prompt - 1, cfg.group_size * cfg.answer
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    keys_values = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    weights = layer * (c.num_hidden_layers * (P + R) - P) + keys_values * P + c.hidden_size * c.vocab_size * R
    pairs = c.num_hidden_layers * (P * P / 2 + R * (P + cfg.answer / 2)) - P * P / 2
    return 3 * (2 * weights + 4 * c.num_attention_heads * c.head_dim * pairs)


def repeated(cfg: Config, directory: str, rows_at_once: int) -> dict[str, Callable]:
    """transformers, `rows_at_once` rows of prompt and answer in one forward pass."""
    model = common.transformers_model(directory)
    if cfg.checkpointing:
        model.train()                                                                        # required by transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def update(prompt: int, answer: int) -> None:
        group, advantages = common.random_group(cfg, cfg.group_size, prompt, answer)
        targets = torch.tensor([c.ids for c in group.completions])                           # (G, R)
        stem = torch.tensor(group.prompt_ids).expand(len(targets), -1)
        ids = torch.cat([stem, targets[:, :-1]], dim=1)                                      # (G, P + R - 1)
        model.zero_grad(set_to_none=True)
        for rows in torch.arange(len(ids)).split(rows_at_once):
            logits = model(ids[rows], use_cache=False, logits_to_keep=answer).logits         # (rows, R, V)
            logprobs = logits.log_softmax(-1).gather(-1, targets[rows, :, None])[..., 0]
            (-(advantages[rows, None] * logprobs).sum() / group.num_tokens).backward()

    return side(model, update, cfg)


def side(model, update: Callable, cfg: Config) -> dict[str, Callable]:
    """Warms up on a few tokens. Returns one run, and a function that saves its gradients."""
    from safetensors.torch import save_file
    update(8, 4)
    model.zero_grad(set_to_none=True)
    return {"run": lambda: update(cfg.prompt, cfg.answer),
            "save": lambda path: save_file({name: p.grad for name, p in model.named_parameters()}, path)}


def main(cfg: Config) -> None:
    at_least(cfg, prompt=2, answer=1, group_size=1, rounds=1, max_tokens=1)
    with common.model_of(cfg) as (directory, cfg, shape), tempfile.TemporaryDirectory() as saved:
        sides = {"ours": (ours, cfg, directory),
                 "transformers, one batch": (repeated, cfg, directory, cfg.group_size),
                 "transformers, one by one": (repeated, cfg, directory, 1)}
        with common.processes(sides) as asks:
            results, _ = common.take_turns(asks, cfg.rounds)
            files = {name: Path(saved, f"{place}.safetensors") for place, name in enumerate(asks)}
            for name, ask in asks.items():
                ask("save", str(files[name]))
            share = median(asks["ours"]("share")["share"] for _ in range(cfg.rounds))
        differences = {name: common.largest_difference(files["ours"], files[name]) for name in list(files)[1:]}
    print(f"one group's gradient: P={cfg.prompt} R={cfg.answer} G={cfg.group_size}, {shape}, fp32, one thread")
    print(f"our update reaches {share:.0%} of the rate of a matrix product, in useful operations")
    check = {f"gradient of {name!r} off by": float(f"{value:.2g}") for name, value in differences.items()}
    check["passed"] = all(value < TOLERANCE for value in differences.values())
    common.report("group_update", cfg, results, check, share_of_product_rate=share)


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
