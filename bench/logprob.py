"""Log-prob, entropy and policy gradient from hidden states: ours against torch, TRL, Liger and linear_cross_entropy.

    ours                    kernels.linear_logprob
    naive torch             all logits at once, log_softmax, gather, and the entropy from the same log_softmax
    TRL                     trl.kernels.chunked_logprob, and the entropy, 4,096 words of the vocabulary at a time
    Liger                   LigerFusedLinearGRPOLoss, the whole loss in one function, without entropy
    linear_cross_entropy    torch's own (since 2.13), 128 tokens at a time, without entropy and temperature

All compute -sum_i A_i sum_t logprob_it / num_tokens from the same random inputs in float32, and its gradients in the
hidden states and in the head's weight. These are the gradients of GRPO if the policy has not changed since it answered.
The entropy is only reported, without a gradient. linear_cross_entropy gets hidden states divided by the temperature.
The check is that loss, both gradients, and the entropy where there is one, agree with ours. Peak memory is the highest
of the whole run, without the inputs and both gradients. What a side holds only before it makes the head's gradient is
hidden below that: naive torch has three blocks of all logits then, and one later.

A second table shows how that memory grows with the tokens, at a smaller hidden size to save time, with the same check.
Each number has its own process. naive torch is left out where its logits would need more than 8 GB. Libraries that are
not installed are left out everywhere: pip install '.[bench]'. This needs about 10 GB of memory and six minutes.

    python -m bench.logprob
    python -m bench.logprob --tokens 1024 --vocab 32000 --temperature 1.0 --memory-tokens 256 2048
"""

import ctypes
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from bench import common
from kernels import linear_logprob
from torch.nn import functional as F

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least

TOLERANCE = 1e-4                        # relative, float32. An error in the method is far larger
SPREAD = 2.0                            # standard deviation of the logits before the temperature
VOCAB_CHUNK = 4096                      # of TRL. Its trainer's 32,768 takes more time and memory on a CPU
TOKEN_CHUNK = 128                       # of linear_cross_entropy. Its own choice here is one token at a time
NAIVE_BLOCKS, NAIVE_BYTES = 3, 8e9      # how often naive torch holds all logits, and its limit


@dataclass(frozen=True)
class Config:
    tokens: int = 256                   # N, of all answers
    answer: int = 128                   # R, tokens of each answer
    temperature: float = 0.7
    rounds: int = 3                     # each side runs once a round
    # the head: Qwen2.5-0.5B's
    hidden: int = 896
    vocab: int = 151936
    # the second table
    memory_tokens: tuple[int, ...] = (256, 1024, 4096)
    memory_hidden: int = 256


def ours(cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    def loss(hidden, weight, targets, advantages):
        logprobs, entropy = linear_logprob(hidden.flatten(0, 1), weight, targets.flatten(), cfg.temperature)
        return policy_gradient(logprobs, advantages), entropy
    return side(cfg, tokens, width, loss)


def naive(cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    def loss(hidden, weight, targets, advantages):
        logprobs = (hidden.flatten(0, 1) @ weight.T / cfg.temperature).log_softmax(-1)       # (N, V)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return policy_gradient(logprobs.gather(-1, targets.reshape(-1, 1)), advantages), entropy
    return side(cfg, tokens, width, loss)


def trl(cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def loss(hidden, weight, targets, advantages):
        logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden.flatten(0, 1), weight, None, targets.flatten(), cfg.temperature, VOCAB_CHUNK, None, 1.0,
            ("entropy",))
        return policy_gradient(logprobs, advantages), entropy
    return side(cfg, tokens, width, loss)


def liger(cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    """Its gradients are made in the forward pass, one answer at a time. On-policy "dapo" has the same gradient as
    "cispo", but a value that is -mean A whatever the log-probs are; "cispo" with no clipping near 1 is our loss."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, temperature=cfg.temperature,
                                     loss_type="cispo", epsilon_high=5.0)

    def loss(hidden, weight, targets, advantages):
        return fused(hidden, weight, targets, torch.ones(targets.shape), advantages)[0], None
    return side(cfg, tokens, width, loss)


def linear_cross_entropy(cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=TOKEN_CHUNK)

    def loss(hidden, weight, targets, advantages):
        logprobs = -F.linear_cross_entropy(hidden.flatten(0, 1) / cfg.temperature, weight, targets.flatten(),
                                           reduction="none", options=options)
        return policy_gradient(logprobs, advantages), None
    return side(cfg, tokens, width, loss)


def policy_gradient(logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """logprobs of B answers of R tokens each, one after the other, advantages (B,) -> ()."""
    return -(advantages[:, None] * logprobs.reshape(len(advantages), -1)).sum() / logprobs.numel()


def side(cfg: Config, tokens: int, width: int, loss: Callable) -> dict[str, Callable]:
    """Make the inputs, warm up on one token of each answer, then offer one run, and the tensors it left.

    loss(hidden (B, R, C), weight (V, C), targets (B, R), advantages (B,)) -> loss (), entropy (B * R,) or None."""
    from safetensors.torch import save_file
    generator = torch.Generator().manual_seed(0)
    shape = tokens // cfg.answer, cfg.answer
    weight = torch.randn(cfg.vocab, width, generator=generator).mul_(SPREAD / width**0.5).requires_grad_()
    hidden = torch.randn(*shape, width, generator=generator)
    targets = torch.randint(cfg.vocab, shape, generator=generator)
    advantages = torch.randn(shape[0], generator=generator)
    left = {}

    def update(length: int) -> dict:
        left.clear()
        weight.grad = None
        mine = hidden[:, :length].detach().requires_grad_()
        value, entropy = loss(mine, weight, targets[:, :length], advantages)
        value.backward()
        left.update(loss=value.detach(), d_hidden=mine.grad, d_weight=weight.grad)
        if entropy is not None:
            left["entropy"] = entropy.detach()
        return {"left": list(left)}

    update(1)
    left.clear()
    weight.grad = None
    return {"run": lambda: update(cfg.answer),
            "save": lambda path, names: save_file({name: left[name] for name in names}, path)}


def returning(set_up: Callable, cfg: Config, tokens: int, width: int) -> dict[str, Callable]:
    """The same side, whose freed blocks go back to the system at once: its peak is what it holds, and not what glibc
    keeps for later. It takes a little longer."""
    with suppress(AttributeError):                                                           # another C library
        ctypes.CDLL(None).mallopt(-3, 2**16)                                                 # M_MMAP_THRESHOLD
    return set_up(cfg, tokens, width)


SIDES = {"ours": ours, "naive torch": naive, "TRL": trl, "Liger, no entropy": liger,
         "linear_cross_entropy, no entropy": linear_cross_entropy}
PACKAGES = {"TRL": "trl", "Liger, no entropy": "liger-kernel"}


def installed() -> dict[str, Callable]:
    """The sides that can run here. Each other one gets a line."""
    missing = {name: f"needs {package}: pip install '.[bench]'" for name, package in PACKAGES.items()
               if find_spec(package.replace("-", "_")) is None}
    if not hasattr(F, "linear_cross_entropy"):
        missing["linear_cross_entropy, no entropy"] = f"torch {torch.__version__} does not have it"
    for name, reason in missing.items():
        print(f"left out: {name} ({reason})")
    return {name: set_up for name, set_up in SIDES.items() if name not in missing}


def compare(cfg: Config, sides: dict[str, Callable], tokens: int, width: int, rounds: int
            ) -> tuple[dict[str, dict], dict[str, float]]:
    """take_turns' results, peaks above the gradients, and {peer: how far what it computes is from ours}."""
    differences = {}
    with (tempfile.TemporaryDirectory() as directory,
          common.processes({name: (set_up, cfg, tokens, width) for name, set_up in sides.items()}) as asks):
        results, last = common.take_turns(asks, rounds)
        mine, theirs = Path(directory, "mine.safetensors"), Path(directory, "theirs.safetensors")
        for name in list(asks)[1:]:
            asks["ours"]("save", str(mine), last[name]["left"])
            asks[name]("save", str(theirs), last[name]["left"])
            differences[name] = common.largest_difference(mine, theirs)
    for found in results.values():
        found["peak_mb"] -= 4 * (tokens + cfg.vocab) * width / common.MB
    return results, differences


def main(cfg: Config) -> None:
    at_least(cfg, answer=1, rounds=1, hidden=1, vocab=2, memory_hidden=1)
    for flag, counts in (("--tokens", [cfg.tokens]), ("--memory-tokens", cfg.memory_tokens)):
        wrong = [count for count in counts if count < 1 or count % cfg.answer]
        if wrong:
            raise ConfigError(f"{flag} {wrong[0]} is not a multiple of --answer {cfg.answer}")
    if not 0 < cfg.temperature < float("inf"):
        raise ConfigError(f"--temperature must be above 0, got {cfg.temperature}")
    sides, sizes = installed(), sorted(set(cfg.memory_tokens))
    results, differences = compare(cfg, sides, cfg.tokens, cfg.hidden, cfg.rounds)
    differences, memory = {name: [value] for name, value in differences.items()}, {name: {} for name in sides}
    for tokens in sizes:
        able = {name: partial(returning, set_up) for name, set_up in sides.items()
                if name != "naive torch" or NAIVE_BLOCKS * 4 * tokens * cfg.vocab <= NAIVE_BYTES}
        found, off = compare(cfg, able, tokens, cfg.memory_hidden, rounds=1)
        for name in found:
            memory[name][tokens] = found[name]["peak_mb"]
        for name in off:
            differences[name].append(off[name])
    print(f"log-probs and policy gradient: {cfg.tokens} tokens, hidden {cfg.hidden}, vocabulary {cfg.vocab}, "
          f"temperature {cfg.temperature:g}, fp32, one thread")
    print(f"peak MB by number of tokens, hidden {cfg.memory_hidden}")
    print(common.table([["", *map(str, sizes)],
                        *([name, *(found.get(size, "-") for size in sizes)] for name, found in memory.items())]))
    for few, many in zip(sizes, sizes[1:]):
        print(f"ours from {few} to {many} tokens: {memory['ours'][many] / max(memory['ours'][few], 1e-9) - 1:+.1%}")
    worst = {name: float(torch.tensor(values).max()) for name, values in differences.items()}     # NaN if there is one
    check = {f"{name!r} off by": float(f"{value:.2g}") for name, value in worst.items()}
    check["passed"] = all(value < TOLERANCE for value in worst.values())
    common.report("logprob", cfg, results, check, memory=memory,
                  packages=tuple(package for name, package in PACKAGES.items() if name in sides))


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
