"""A mixture of experts, forward and backward: ours against three ways of transformers.

    ours             mixture.Mixture: pairs of token and expert sorted by expert, kernels.grouped_linear
    eager            a loop over the experts, each with the tokens that chose it
    grouped_mm       pairs sorted by expert, torch's grouped_mm
    batched_mm       every pair gets its own copy of its expert's weights, one batched product

First a whole Qwen3-MoE on one sequence: the gradient of a weighted sum of its log-probs. Then the mixture of one layer
alone, for several numbers of tokens, with gradients, and without as in decoding. All sides have the same random weights
and inputs, in float32, and SDPA's attention. The check is that all gradients agree, tensor by tensor, and so do output
and gradients of the mixture. Peak memory does not count the loaded model, but counts the gradients. batched_mm is left
out where the copies of the weights would need more than 2 GB. Four minutes.

    python -m bench.moe
    python -m bench.moe --tokens 4096 --hidden 128
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from bench import common

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least

TOLERANCE = 1e-4                        # relative, float32. An error in the method is far larger
COPIED_BYTES = 2e9                      # batched_mm copies the weights for each pair and layer
LEAST_SECONDS = 0.05                    # a mixture that takes less is run several times


@dataclass(frozen=True)
class Config:
    tokens: int = 2048                  # T, one sequence
    layer_tokens: tuple[int, ...] = (8, 256, 1024, 4096)                        # through one mixture
    rounds: int = 3                     # each side runs once a round
    # the model: a random Qwen3-MoE, untied
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    experts: int = 64                   # E
    chosen: int = 8                     # k, experts of a token
    intermediate: int = 128             # of an expert
    vocab: int = 1000
    initializer_range: float = 0.05


def random_mixture(directory: str, cfg: Config) -> None:
    """Writes transformers' own Qwen3-MoE of the shape in `cfg`."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    common.quiet()
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=cfg.vocab, hidden_size=cfg.hidden, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads, head_dim=cfg.hidden // cfg.heads, num_experts=cfg.experts,
        num_experts_per_tok=cfg.chosen, moe_intermediate_size=cfg.intermediate, norm_topk_prob=True,
        max_position_embeddings=2**17, initializer_range=cfg.initializer_range, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None)).save_pretrained(directory)


def ours(cfg: Config, directory: str) -> dict[str, Callable]:
    model = Qwen.from_pretrained(directory)
    return side(cfg, model, model.logits, model.model.layers[0].mlp)


def theirs(cfg: Config, directory: str, way: str) -> dict[str, Callable]:
    """transformers' model, whose experts go one of its ways."""
    model = common.transformers_model(directory)
    model.set_experts_implementation(way)
    mixture = model.model.layers[0].mlp
    return side(cfg, model, lambda ids: model(ids[None], use_cache=False).logits[0], lambda x: mixture(x[None])[0])


def side(cfg: Config, model: torch.nn.Module, logits: Callable, mixture: Callable) -> dict[str, Callable]:
    """Warm up, then offer the gradient of the model, that of a layer's mixture, and what each left in memory."""
    from safetensors.torch import save_file
    left = {}

    def update(tokens: int) -> None:
        ids = torch.tensor(common.random_ids(cfg, tokens))
        weights = torch.rand(tokens - 1, generator=torch.Generator().manual_seed(1))
        model.zero_grad(set_to_none=True)
        logprobs = logits(ids)[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        (weights * logprobs).mean().backward()

    def layer(tokens: int, backward: bool) -> dict[str, float]:
        """CPU seconds of one pass, of as many as it takes for the clock: short ones would tell what else ran."""
        generator = torch.Generator().manual_seed(2)
        x, slope = (torch.randn(tokens, cfg.hidden, generator=generator) for _ in range(2))
        x.requires_grad_(backward)
        times, start = 0, time.process_time()
        with torch.set_grad_enabled(backward):
            while (took := time.process_time() - start) < LEAST_SECONDS:
                times, x.grad = times + 1, None
                model.zero_grad(set_to_none=True)
                out = mixture(x)
                if backward:
                    out.backward(slope)
        left.clear()
        left.update({"out": out.detach()} | ({"x.grad": x.grad} if backward else {}))
        return {"seconds": took / times}

    def save(path: str) -> None:
        save_file(left | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, path)
        left.clear()

    update(2)
    model.zero_grad(set_to_none=True)
    return {"run": lambda: update(cfg.tokens), "layer": layer, "save": save}


SIDES = {"ours": (ours,), **{way: (theirs, way) for way in ("eager", "grouped_mm", "batched_mm")}}


def compare(asks: dict[str, Callable], directory: str, rounds: int, *call) -> tuple[dict[str, dict], dict[str, float]]:
    """take_turns' results of a call, after one more of each side, and {side: how far what it computes is from ours}."""
    asks = {name: partial(calling, ask, call) for name, ask in asks.items()}
    common.take_turns(asks, 1)
    results, _ = common.take_turns(asks, rounds)
    files = {name: Path(directory, f"{name}.safetensors") for name in asks}
    for name, ask in asks.items():
        ask("save", str(files[name]))
    return results, {name: common.largest_difference(files["ours"], files[name]) for name in list(files)[1:]}


def calling(ask: Callable, call: tuple, function: str, *arguments) -> dict:
    """What take_turns asks for, "run", is `call` here."""
    return ask(*call) if function == "run" else ask(function, *arguments)


def copies(cfg: Config, tokens: int) -> int:
    """Bytes of the weights that batched_mm copies for one layer."""
    return 4 * tokens * cfg.chosen * 3 * cfg.intermediate * cfg.hidden


def main(cfg: Config) -> None:
    at_least(cfg, tokens=2, rounds=1, hidden=2, layers=1, heads=1, kv_heads=1, experts=1, chosen=1, intermediate=1,
             vocab=2, initializer_range=0)
    if cfg.hidden % (2 * cfg.heads) or cfg.heads % cfg.kv_heads:
        raise ConfigError(f"--hidden {cfg.hidden} must be an even multiple of --heads {cfg.heads}, and that a multiple "
                          f"of --kv-heads {cfg.kv_heads}")
    if cfg.chosen > cfg.experts:
        raise ConfigError(f"--chosen {cfg.chosen} is more than --experts {cfg.experts}")
    if min(cfg.layer_tokens, default=1) < 1:
        raise ConfigError(f"--layer-tokens must be at least 1, got {min(cfg.layer_tokens)}")
    layer, off = {}, {name: [] for name in list(SIDES)[1:]}
    with tempfile.TemporaryDirectory() as directory:
        random_mixture(directory, cfg)
        with common.processes({name: (start, cfg, directory, *way) for name, (start, *way) in SIDES.items()}) as asks:
            def run_all(copied: int, *call) -> dict[str, dict]:
                able = {name: ask for name, ask in asks.items() if name != "batched_mm" or copied <= COPIED_BYTES}
                results, differences = compare(able, directory, cfg.rounds, *call)
                for name, difference in differences.items():
                    off[name].append(difference)
                return results

            results = run_all(copies(cfg, cfg.tokens) * cfg.layers, "run")
            for tokens in cfg.layer_tokens:
                for what, backward in (("forward", False), ("and backward", True)):
                    found = run_all(copies(cfg, tokens), "layer", tokens, backward)
                    layer[f"{tokens} tokens, {what}"] = {name: side["median"] for name, side in found.items()}
    print(f"one layer's mixture alone, {cfg.experts} experts of {cfg.intermediate}, {cfg.chosen} for a token, hidden "
          f"{cfg.hidden}, fp32, one thread: ms of CPU time, then how many times ours")
    print(common.table([["", "ours", *(name for name in off), *(f"x {name}" for name in off)], *(
        [what, found["ours"] * 1e3, *(found[name] * 1e3 if name in found else "-" for name in off),
         *(f"{found[name] / found['ours']:.2f}" if name in found else "-" for name in off)]
        for what, found in layer.items())]))
    print(f"a whole model, forward and backward: {cfg.tokens} tokens, {cfg.layers} layers")
    worst = {name: float(torch.tensor(values).max()) for name, values in off.items() if values}    # NaN if there is one
    check = {f"{name!r} off by": float(f"{value:.2g}") for name, value in worst.items()}
    check["passed"] = all(value < TOLERANCE for value in worst.values())
    common.report("moe", cfg, results, check, layer=layer)


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
