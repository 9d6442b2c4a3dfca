"""How our update and our rollout grow with the group, the prompt and the answers, compared with formulas.

From a base point G (answers), P (prompt tokens) and R (tokens of each answer), one of them grows at a time. Legend: A
parameters in the matrices of a layer, L layers, H heads of width D, V vocabulary, C hidden size. Operations of a shared
prompt:

    update    tokens     6 A (P (L - 1) + G R L), and keys and values in the last layer of the stem
              pairs      14 H D (P^2 / 2 (L - 1) + (G P R + G R^2 / 2) L)
              head       8 G R V C                                    (logits again in the backward pass)
    rollout   tokens     2 A (P (L - 1) + G R L), the same last layer, 2 G R V C of the head
              pairs      4 H D, as above

A repeated prompt would have G (P + R) tokens and G (P + R)^2 / 2 pairs in every layer. The formula for memory grows
with P + G R, the tokens that are there once, on top of the gradients. Nothing is fitted except one scale for each
formula, at the base point. So the distance between points and dashed lines is what arithmetic does not explain: matrix
products and attention have different speeds, decoding reads more than it computes, every step spends time in Python.

Draws a picture, for which it needs matplotlib: pip install '.[plots]'.

    python -m bench.growth
    python -m bench.growth --groups 2 4 --prompts 64 128 --answers 4 8 --out growth.png
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from bench import common

from nanoqwenlong import group_pass
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least

PARTS = ("update", "rollout")


@dataclass(frozen=True)
class Config:
    group_size: int = 8                 # G of the base point
    prompt: int = 2048                  # P of the base point
    answer: int = 128                   # R of the base point
    groups: tuple[int, ...] = (2, 4, 8, 16)
    prompts: tuple[int, ...] = (512, 1024, 2048, 4096)
    answers: tuple[int, ...] = (32, 64, 128, 256)
    max_tokens: int = 16384             # in one forward pass of the update
    block_size: int = 16                # of the cache
    rounds: int = 3                     # every point is run once a round
    out: str = "docs/growth.png"        # the picture
    # the model: a random Qwen2, untied
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 704
    vocab: int = 1000
    initializer_range: float = 0.05


def update(cfg: Config, directory: str, G: int, P: int, R: int) -> dict[str, Callable]:
    """The gradient of one group of random answers."""
    model = Qwen.from_pretrained(directory, dtype=torch.float32)

    def gradient(P: int, R: int) -> None:
        group, advantages = common.random_group(cfg, G, P, R)
        model.zero_grad(set_to_none=True)
        group_pass.backward(model, group.stem, group.branches, common.policy_gradient(group, advantages),
                            max_tokens=cfg.max_tokens)

    gradient(8, 4)
    model.zero_grad(set_to_none=True)
    return {"run": lambda: gradient(P, R)}


def rollout(cfg: Config, directory: str, G: int, P: int, R: int) -> dict[str, Callable]:
    """The G answers to one prompt, sampled at temperature 1."""
    model, prompt = Qwen.from_pretrained(directory, dtype=torch.float32), common.random_ids(cfg, P)
    num_blocks = blocks_for(P, cfg.block_size) + G * (blocks_for(R, cfg.block_size) + 2)
    generator = Generator(model, num_blocks=num_blocks, block_size=cfg.block_size)

    def sample(prompt: list[int], new: int) -> None:
        generator.sample([prompt], n=G, max_new_tokens=new)

    sample(prompt[:8], 2)
    return {"run": lambda: sample(prompt, R)}


def operations(part: str, cfg: Config, G: int, P: int, R: int, shared: bool = True) -> float:
    """Multiplications and additions of one group, by the formulas above."""
    D, L, C = cfg.hidden // cfg.heads, cfg.layers, cfg.hidden
    keys_values = 2 * C * cfg.kv_heads * D
    A = 2 * C * cfg.heads * D + keys_values + 3 * C * cfg.intermediate
    per_parameter, per_pair, per_logit = (6, 14, 8) if part == "update" else (2, 4, 2)
    head = per_logit * G * R * cfg.vocab * C
    if not shared:
        return per_parameter * A * L * G * (P + R) + per_pair * cfg.heads * D * L * G * (P + R) ** 2 / 2 + head
    tokens = (A * (L - 1) + keys_values) * P + A * L * G * R
    pairs = (L - 1) * P**2 / 2 + L * (G * P * R + G * R**2 / 2)
    return per_parameter * tokens + per_pair * cfg.heads * D * pairs + head


def points(cfg: Config) -> dict[str, list[tuple[int, int, int]]]:
    """The (G, P, R) of each panel, in growing order; the base point is in all of them."""
    G, P, R = base = cfg.group_size, cfg.prompt, cfg.answer
    lines = {"G": [(g, P, R) for g in cfg.groups], "P": [(G, p, R) for p in cfg.prompts],
             "R": [(G, P, r) for r in cfg.answers]}
    return {name: sorted({base, *line}) for name, line in lines.items()}


def measure(cfg: Config, directory: str) -> dict[tuple, dict]:
    """{(part, G, P, R): medians and peak}; the points of a panel take turns, each in a process of its own."""
    found = {}
    for line in points(cfg).values():
        sides = {(part, *point): (part_of, cfg, directory, *point) for point in line
                 for part, part_of in zip(PARTS, (update, rollout)) if (part, *point) not in found}
        with common.processes(sides) as asks:
            found |= common.take_turns(asks, cfg.rounds)[0]
    return found


def predict(cfg: Config, found: dict[tuple, dict], gradient_mb: float) -> None:
    """Adds to every point what the formulas say, scaled to be right at the base point, and the repeated prompt's share
    of operations."""
    base = cfg.group_size, cfg.prompt, cfg.answer
    for (part, *point), values in found.items():
        at_base, (G, P, R) = found[part, *base], point
        fixed = gradient_mb if part == "update" else 0.0
        tokens = (P + G * R) / (cfg.prompt + cfg.group_size * cfg.answer)
        values["predicted"] = at_base["median"] * operations(part, cfg, *point) / operations(part, cfg, *base)
        values["predicted_mb"] = fixed + (at_base["peak_mb"] - fixed) * tokens
        values["repeated"] = operations(part, cfg, *point, shared=False) / operations(part, cfg, *point)


def draw(cfg: Config, found: dict[tuple, dict]) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
    figure, rows = pyplot.subplots(2, 3, figsize=(10, 5.5), sharex="col", sharey="row")
    labels = {"G": "answers of a group, G", "P": "prompt tokens, P", "R": "tokens of an answer, R"}
    for place, (name, line) in enumerate(points(cfg).items()):
        sizes = [point["GPR".index(name)] for point in line]
        for axes, value, predicted in zip(rows[:, place], ("median", "peak_mb"), ("predicted", "predicted_mb")):
            for part, colour in zip(PARTS, ("tab:blue", "tab:orange")):
                axes.plot(sizes, [found[part, *point][value] for point in line], "o-", color=colour, label=part)
                axes.plot(sizes, [found[part, *point][predicted] for point in line], "--", color=colour, alpha=0.6,
                          label=f"{part}, by formula")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        held = {"G": cfg.group_size, "P": cfg.prompt, "R": cfg.answer}
        rows[0, place].set_title(", ".join(f"{other} = {size}" for other, size in held.items() if other != name))
        rows[1, place].set_xlabel(labels[name])
    rows[0, 0].set_ylabel("seconds")
    rows[1, 0].set_ylabel("peak MB above the model")
    rows[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(cfg.out, dpi=150)


def main(cfg: Config) -> None:
    at_least(cfg, group_size=1, prompt=2, answer=1, rounds=1, max_tokens=1, block_size=1)
    if find_spec("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib: pip install '.[plots]'")
    if not Path(cfg.out).parent.is_dir():
        raise ConfigError(f"--out {cfg.out}: {Path(cfg.out).parent} is not a directory")
    with tempfile.TemporaryDirectory() as directory:
        common.random_model(directory, cfg)
        gradient_mb = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors")) / common.MB
        found = measure(cfg, directory)
    predict(cfg, found, gradient_mb)
    draw(cfg, found)
    rows = [["", "G", "P", "R", "median s", "by formula", "cpu s", "peak MB", "by formula", "repeated would be"]]
    for (part, *point), v in sorted(found.items(), key=lambda item: (PARTS.index(item[0][0]), item[0])):
        rows.append([part, *map(str, point), v["median"], v["predicted"], common.middle(v["cpu_seconds"]), v["peak_mb"],
                     v["predicted_mb"], f"x {v['repeated']:.2f}"])
    print(f"one group, ours: hidden {cfg.hidden}, {cfg.layers} layers, fp32, one thread")
    print(common.table(rows))
    growth = {part: [found[part, g, cfg.prompt, cfg.answer]["median"] for g in (4, 16)]
              for part in PARTS if {4, 16} <= set(cfg.groups)}
    for part, (four, sixteen) in growth.items():
        print(f"{part} time from G=4 to G=16 at R = P/{cfg.prompt / cfg.answer:g} grows x {sixteen / four:.2f}")
    print(f"wrote {cfg.out}")
    results = [{"part": part, "G": G, "P": P, "R": R, **values}
               for (part, G, P, R), values in found.items()]
    common.json_line("growth", cfg, results=results,
                     growth_from_4_to_16={part: sixteen / four for part, (four, sixteen) in growth.items()})


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
