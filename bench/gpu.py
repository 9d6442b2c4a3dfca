"""On a GPU: whether the kernels are right, and how far everything is from its limit.

    limits        the best of this GPU, measured: bytes copied and read per second, matrix products in bfloat16
    correctness   the kernels' paths compared with float64 and torch, a CUDA graph with none, repeated runs bit by bit
    head          log-probs and their gradient, compared with the bare matrix products, naive torch, TRL, Liger
    paged         attention of a decoding step over shuffled blocks, compared with the speed of the memory
    parts         attention of an update, compared with torch's back ends
    mixture       the experts of a layer of Qwen3-30B-A3B, compared with their products alone and transformers' ways
    update        the gradient of a group at 7B and at 1.5B, as a share of the matrix rate
    decode        64 answers to 8 prompts of 60,000 tokens: time per step, compared with reading everything once

A section runs in its own process and has its own time limit. It reports each result at once, so an error ends only that
section. A section fails if something in it broke or was wrong. A missed goal is reported, but is no failure. Writes
gpu.md and gpu.json. bench/gpu.sh runs the tests of the kernels first.

    python -m bench.gpu
    python -m bench.gpu --sections limits paged decode
    python -m bench.gpu --tiny --out runs/tiny        means nothing, but runs on a CPU too
"""

import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from bench import common
from bench.gpu_right import correctness
from bench.gpu_tools import (
    BLOCK_SIZE,
    DEVICE,
    DTYPE,
    GPU,
    LARGE,
    MIXTURE,
    SMALL,
    TINY,
    TINY_MIXTURE,
    DecodingStep,
    Section,
    between,
    finish,
    mark,
    markdown,
    measured,
    normal,
    random_model,
    seconds,
    wall,
    watch,
)
from kernels import grouped_linear, linear_logprob, logprob, paged_attention
from kernels.flash import attention, part, part_backward
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanoqwenlong import generate, group_pass
from nanoqwenlong.engine.cuda_step import CudaDecoder
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained.config import ModelConfig
from nanoqwenlong.pretrained.mixture import Mixture

BACK_ENDS = {"FLASH_ATTENTION": True, "CUDNN_ATTENTION": True, "EFFICIENT_ATTENTION": False}  # knows shared key heads


@dataclass(frozen=True)
class Config:
    out: str = "runs/gpu"               # directory of gpu.md and gpu.json
    sections: tuple[str, ...] = ("limits", "correctness", "head", "paged", "parts", "mixture", "update",
                                 "decode")
    seconds: int = 300                  # for all sections. Sections that would begin later are left out
    tiny: bool = False                  # tiny shapes, on any device


# Operations, by the formulas of bench/growth.py. What is computed twice counts once.

def stem_work(c: ModelConfig, P: int) -> tuple[float, float]:
    """Parameters times tokens, and head width times pairs of query and key. The last layer makes keys and values only.
    """
    keys_values = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    L = c.num_hidden_layers
    return (layer_size(c) * (L - 1) + keys_values) * P, c.num_attention_heads * c.head_dim * (L - 1) * P**2 / 2


def branch_work(c: ModelConfig, P: int, R: int, G: int) -> tuple[float, float]:
    L = c.num_hidden_layers
    return layer_size(c) * L * G * R, c.num_attention_heads * c.head_dim * L * G * (P * R + R**2 / 2)


def layer_size(c: ModelConfig) -> int:
    heads = 2 * (c.num_attention_heads + c.num_key_value_heads)
    return c.hidden_size * (heads * c.head_dim + 3 * c.intermediate_size)


# The sections

def memory_row(s: Section, what: str, touched: float, took: float) -> None:
    copy = s.limits.get("copy")
    s.row(f"{what}, {took * 1e3:.3g} ms", touched / took / 1e9, "GB/s", "copy", copy and copy / 1e9)


def matrix_row(s: Section, what: str, operations: float, took: float, least: float | None = None) -> None:
    matrix = s.limits.get("matrix")
    s.row(what, operations / took / 1e12, "TFLOP/s", "matrix product", matrix and matrix / 1e12, least=least)


def limits(s: Section) -> None:
    with s.attempt("memory"):
        x = normal(s.pick(2**30, 2**16), dtype=torch.float32)
        y = torch.empty_like(x)
        for name, what, call, touched in (("copy", "a copy, read and written", lambda: y.copy_(x), 2 * x.nbytes),
                                          ("read", "a sum, read", lambda: x.sum(), x.nbytes)):
            rate = touched / seconds(call)
            s.send(("limit", (name, rate)))
            s.row(what, rate / 1e12, "TB/s")
        del x, y
    with s.attempt("matrix product"):
        n = s.pick(8192, 64)
        a, b = normal(n, n, dtype=torch.bfloat16), normal(n, n, dtype=torch.bfloat16)
        c = torch.empty_like(a)
        rate = 2 * n**3 / seconds(lambda: torch.mm(a, b, out=c))
        s.send(("limit", ("matrix", rate)))
        s.row(f"product of {n} x {n}, bfloat16", rate / 1e12, "TFLOP/s")


def head(s: Section) -> None:
    N, C, V, B = s.pick((8192, 4096, 151_936, 8), (24, 16, 50, 2))
    hidden, weight = normal(N, C).requires_grad_(), normal(V, C, std=2 / C**0.5).requires_grad_()
    targets, advantages = torch.randint(V, (N,), device=DEVICE), normal(B, dtype=torch.float32)
    each, chunk = advantages.repeat_interleave(N // B), s.pick(max(1, logprob.CHUNK_LOGITS // V), 10)
    sides = {"ours": lambda: (each * linear_logprob(hidden, weight, targets, 1.0, chunk)[0]).sum(),
             "naive torch": lambda: (each * -F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
                                     ).sum()}
    if find_spec("trl"):
        def trl():
            from trl.kernels.chunked_logprob import ChunkedLogProbFunction
            return (each * ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32_768, None, 1.0,
                                                        ("entropy",))[0]).sum()
        sides["TRL"] = trl
    if find_spec("liger_kernel"):
        def liger():
            from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
            fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, temperature=1.0,
                                             loss_type="cispo", epsilon_high=5.0)
            return fused(hidden.unflatten(0, (B, -1)), weight, targets.view(B, -1),
                         torch.ones(B, N // B, device=DEVICE), advantages)[0]
        sides["Liger, no entropy"] = liger
    if hasattr(F, "linear_cross_entropy"):
        sides["F.linear_cross_entropy, no entropy"] = lambda: (
            each * -F.linear_cross_entropy(hidden, weight, targets, reduction="none")).sum()

    with s.attempt("row kernels"):
        row_kernels(s, chunk, V)
    found = {}
    for name, loss in sides.items():
        with s.attempt(name, peer=name != "ours"):
            found[name] = measured(lambda: torch.autograd.grad(loss(), (hidden, weight)))
    if not (ours := found.pop("ours", None)):
        return
    what = f"{N} x {C} x {V}, forward and backward"
    with s.attempt("bare products"):
        bare = bare_products(hidden.detach(), weight.detach(), chunk)
        s.row(what, ours[0] * 1e3, "ms", "its products alone", bare * 1e3, most=1.4)
    for name, (took, _) in found.items():
        s.row(what, ours[0] * 1e3, "ms", name, took * 1e3)
    if GPU:
        s.row("memory on top of the inputs", ours[1] / 1e9, "GB", "the goal", 4.0, most=1.0)
        for name, (_, extra) in found.items():
            s.row("memory on top of the inputs", ours[1] / 1e9, "GB", name, extra / 1e9)


def bare_products(h: Tensor, w: Tensor, chunk: int) -> float:
    """Seconds of the matrix products of kernels.linear_logprob alone."""
    h, w = logprob.as_multiplied(h), logprob.as_multiplied(w)
    pieces = [slice(start, start + chunk) for start in range(0, len(h), chunk)]
    logits = torch.empty(chunk, len(w), dtype=logprob.wide(h.dtype), device=DEVICE)
    dz = normal(chunk, len(w), dtype=h.dtype)
    dh, dw = (torch.zeros(x.shape, dtype=logits.dtype, device=DEVICE) for x in (h, w))

    def products() -> None:
        for piece in pieces + pieces[:-1]:
            logprob.multiply(h[piece], w.T, 1.0, out=logits[:len(h[piece])])
        for piece in pieces:
            logprob.multiply(dz[:len(h[piece])], w, 1.0, out=dh[piece])
            logprob.multiply(dz[:len(h[piece])].T, h[piece], 1.0, out=dw, add=True)
    return seconds(products)


def row_kernels(s: Section, n: int, V: int) -> None:
    """The two passes over a chunk of logits, compared with the speed of the memory."""
    logits, targets = normal(n, V, dtype=torch.float32), torch.randint(V, (n,), device=DEVICE)
    rows, g = torch.empty(4, n, device=DEVICE), normal(n, dtype=torch.float32)
    dz = torch.empty(n, V, dtype=DTYPE, device=DEVICE)
    statistics, gradient = ((logprob.statistics_triton, logprob.gradient_triton) if GPU else
                            (logprob.statistics_plain, logprob.gradient_plain))
    for name, work, touched in (
            ("statistics", lambda: statistics(logits, targets, rows), logits.nbytes),
            ("gradient", lambda: gradient(logits, targets, rows, g, None, dz), logits.nbytes + dz.nbytes)):
        memory_row(s, f"{name} of {n} x {V} logits", touched, seconds(work))


def paged(s: Section) -> None:
    tokens, tail = s.pick((60_000, 1000), (64, 5))
    few, many = s.pick(((12, 2, 128), (28, 4, 128)), ((4, 2, 16), (8, 2, 16)))
    for heads, prompts, G in ((few, 8, 8), (few, 8, 16), (many, 8, 8), (few, 1, 8)):
        what = f"{prompts} x {tokens} tokens, G={G}, {heads[0]}/{heads[1]} heads"
        with s.attempt(what):
            step = DecodingStep(heads, [tokens] * prompts, G, tail)
            memory_row(s, what, step.touched, seconds(lambda: step.run(paged_attention, DTYPE)))
            del step


def parts(s: Section) -> None:
    H, K, D = s.pick((28, 4, 128), (4, 2, 16))
    T, P = s.pick((8192, 20_000), (16, 40))
    what = f"{T} branch tokens on a stem of {P}"
    with s.attempt(what):
        q, k, v, grad = (normal(1, *size, D) for size in ((T, H), (P, K), (P, K), (T, H)))
        out, lse = part(q, k, v)
        ours = seconds(lambda: part(q, k, v)), seconds(lambda: part_backward(grad, q, k, v, out, lse))
        back_ends(s, what, "attention.part", ours, 4 * H * D * T * P, (q, k, v), grad, causal=False)
        del q, k, v, grad, out, lse
    for P in s.pick((20_000, 60_000), (40,)):
        what = f"a stem of {P} on itself"
        with s.attempt(what):
            q, k, v, grad = (normal(1, P, heads, D) for heads in (H, K, K, H))
            ours = attention_times(lambda q, k, v: attention(q, k, v, causal=True), (q, k, v), grad)
            back_ends(s, what, "attention", ours, 2 * H * D * P**2, (q, k, v), grad, causal=True)
            del q, k, v, grad


def attention_times(function: Callable, inputs: Sequence[Tensor], grad: Tensor) -> tuple[float, float]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return seconds(lambda: function(*leaves)), seconds(
        lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))


def back_ends(s: Section, what: str, name: str, ours: tuple[float, float], operations: float, inputs: Sequence[Tensor],
              grad: Tensor, causal: bool) -> None:
    """Our times compared with the matrix rate and with every back end of scaled_dot_product_attention."""
    ways = ("forward", operations), ("backward", 2.5 * operations)
    for took, (way, work) in zip(ours, ways):
        matrix_row(s, f"{what}, {way}: {name}", work, took)
    if not GPU:
        return s.note(f"{what}, back ends: needs a GPU")
    for backend, knows_shared in BACK_ENDS.items():
        with s.attempt(f"{what}, {backend}", peer=True), sdpa_kernel(getattr(SDPBackend, backend)):
            q, k, v = inputs
            if not knows_shared:
                k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
            times = attention_times(lambda q, k, v: F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal,
                enable_gqa=knows_shared).transpose(1, 2), (q, k, v), grad)
            for mine, took, (way, work) in zip(ours, times, ways):
                s.row(f"{what}, {way}: {name}", work / mine / 1e12, "TFLOP/s", backend, work / took / 1e12)


def mixture(s: Section) -> None:
    """8,192 tokens of an update, forward and backward, and 64 tokens of a decoding step, forward."""
    c, counts = s.pick((MIXTURE, (8192, 64)), (TINY_MIXTURE, (16, 4)))
    C, E, k, width = c.hidden_size, c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size
    ours = Mixture(c).to(DEVICE, DTYPE)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.02)
    sides = {"ours": ours}
    for way in ("eager", "grouped_mm"):
        with s.attempt(f"transformers, {way}", peer=True):
            sides[f"transformers, {way}"] = transformers_mixture(c, way, ours)
    for tokens, backward in zip(counts, (True, False)):
        what = f"mixture, {tokens} tokens, {'forward and backward' if backward else 'forward'}"
        x, found = normal(1, tokens, C).requires_grad_(backward), {}
        slope = torch.randn_like(x)
        for name, layer in sides.items():
            def once():
                with torch.set_grad_enabled(backward):
                    out = layer(x[0])[None] if layer is ours else layer(x)
                    return torch.autograd.grad(out, (x, *layer.parameters()), slope) if backward else out
            with s.attempt(f"{what}, {name}", peer=name != "ours"):
                found[name] = seconds(once)
        if not (mine := found.pop("ours", None)):
            continue
        with s.attempt(f"{what}, products", peer=True):
            rows, ends = normal(tokens * k, C), torch.linspace(0, tokens * k, E + 1, device=DEVICE)[1:].long()
            rows.requires_grad_(backward)

            def products():
                with torch.set_grad_enabled(backward):
                    half = grouped_linear(rows, ours.experts.gate_up_proj, ends)[:, :width]
                    out = grouped_linear(half.contiguous(), ours.experts.down_proj, ends)
                    return torch.autograd.grad(out, (rows, *ours.experts.parameters()), rows.detach()
                                               ) if backward else out
            s.row(what, mine * 1e3, "ms", "its products alone, all experts alike", seconds(products) * 1e3, most=1.4)
        for name, took in found.items():
            s.row(what, mine * 1e3, "ms", name, took * 1e3)
        if backward:
            matrix_row(s, what, 6 * tokens * k * 3 * width * C, mine)
        else:
            memory_row(s, what, sum(parameter.nbytes for parameter in ours.parameters()), mine)


def transformers_mixture(c: ModelConfig, way: str, like: Mixture) -> torch.nn.Module:
    """transformers' block with the same weights. `way` says how it computes its experts."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
    block = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(
        hidden_size=c.hidden_size, num_experts=c.num_experts, num_experts_per_tok=c.num_experts_per_tok,
        moe_intermediate_size=c.moe_intermediate_size, norm_topk_prob=True, experts_implementation=way))
    block = block.to(DEVICE, DTYPE)
    block.load_state_dict(like.state_dict())
    return block


def update(s: Section) -> None:
    for name, full, P in (("7B", LARGE, 20_000), ("1.5B", SMALL, 60_000)):
        c, (P, R, G) = s.pick((full, (P, 1000, 8)), (TINY, (40, 6, 3)))
        what = f"{name}, P={P} R={R} G={G}"
        with s.attempt(what):
            model = random_model(c, DTYPE)
            model.checkpointing = True
            group, advantages = common.random_group(SimpleNamespace(vocab=c.vocab_size), G, P, R)
            advantages = advantages.to(DEVICE)

            def loss(rows, logprobs, entropy):
                return -(advantages[list(rows)].repeat_interleave(R) * logprobs).sum() / group.num_tokens

            def gradient():
                model.zero_grad(set_to_none=True)
                group_pass.backward(model, group.stem, group.branches, loss)

            weights = sum(parameter.nbytes for parameter in model.parameters())
            took, extra = measured(gradient)
            parameters, pairs = map(sum, zip(stem_work(c, P), branch_work(c, P, R, G)))
            useful = 6 * parameters + 14 * pairs + 6 * G * R * c.vocab_size * c.hidden_size
            matrix_row(s, f"{what}: {took:.3g} s", useful, took, least=0.45)
            if GPU:
                s.row(f"{what}: peak memory, weights and gradients included", (weights + extra) / 1e9, "GB")
            del model, loss, gradient


def decode(s: Section) -> None:
    c, tokens, G, new = s.pick((SMALL, 60_000, 8, 96), (TINY, 64, 2, 12))
    with s.attempt("model"):
        model = random_model(c, DTYPE)
        for prompts in (8, 1):
            what = f"{prompts} x {tokens} tokens, {prompts * G} answers"
            with s.attempt(what):
                decode_steps(s, what, model, prompts, tokens, G, new)


def decode_steps(s: Section, what: str, model: Qwen, prompts: int, tokens: int, G: int, new: int) -> None:
    """A third of the steps to warm up, a third with the CUDA graph, and a third without it."""
    c = model.config
    prefilled, marks, stamps = [], [], []

    class Watched(Generator):
        def _prefill(self, spans):
            if spans:
                prefilled.append(wall(lambda: super(Watched, self)._prefill(spans)))

    class Timed(CudaDecoder):
        def step(self, attend):
            start = mark()
            if len(marks) < new * 2 // 3:
                logits = super().step(attend)
            else:
                logits = self.forward(attend)
            marks.append((start, mark()))
            return logits

    def stamp(prompt: int, sample: int, token: int) -> None:
        if prompt == sample == 0:
            stamps.append(time.perf_counter())

    blocks = prompts * (blocks_for(tokens, BLOCK_SIZE) + G * (blocks_for(new, BLOCK_SIZE) + 2))
    generator = Watched(model, blocks, BLOCK_SIZE, kernels=True)
    ids = common.random_ids(SimpleNamespace(vocab=c.vocab_size), prompts, tokens)
    generator.sample([prompt[:tokens // 2] for prompt in ids[:1]], n=G, max_new_tokens=2)
    prefilled.clear()
    with mock.patch.object(generate, "CudaDecoder", Timed):
        generator.sample(ids, n=G, max_new_tokens=new, on_token=stamp)
    finish()
    assert len(marks) == new, "not all answers ran together: the pool is too small"
    forward = [between(*pair) for pair in marks]
    whole = [after - before for before, after in zip(stamps, stamps[1:])]      # the step after each stamp
    with_graph, without = slice(new // 3, new * 2 // 3 - 1), slice(new * 2 // 3, new - 1)

    held = prompts * tokens + prompts * G * new // 2
    touched = sum(parameter.nbytes for parameter in model.parameters()) + (
        2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * model.lm_head.weight.element_size() * held)
    memory = max((s.limits[name] for name in ("copy", "read") if name in s.limits), default=None)
    floor = memory and touched / memory * 1e3
    beside = "weights, keys and values read once"
    s.row(f"{what}: step, CUDA graph", median(whole[with_graph]) * 1e3, "ms", beside, floor, most=1.5)
    s.row(f"{what}: its forward pass alone", median(forward[with_graph]) * 1e3, "ms", beside, floor)
    s.row(f"{what}: step, no graph", median(whole[without]) * 1e3, "ms", beside, floor)
    s.row(f"{what}: its forward pass alone, no graph", median(forward[without]) * 1e3, "ms", beside, floor)
    parameters, pairs = stem_work(c, tokens)
    matrix_row(s, f"{what}: prefill, {sum(prefilled):.3g} s", prompts * (2 * parameters + 4 * pairs), sum(prefilled))


SECTIONS = {"limits": (limits, 40), "correctness": (correctness, 90), "head": (head, 60), "paged": (paged, 60),
            "parts": (parts, 60), "mixture": (mixture, 40), "update": (update, 100),
            "decode": (decode, 100)}                                           # seconds at most


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for package in ("torch", "triton", "transformers", "trl", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def main(cfg: Config) -> None:
    if unknown := set(cfg.sections) - SECTIONS.keys():
        raise ConfigError(f"--sections {' '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    if not GPU and not cfg.tiny:
        raise ConfigError("there is no GPU here; --tiny runs the sections at tiny shapes")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    device, today = torch.cuda.get_device_name() if GPU else "CPU", datetime.date.today().isoformat()
    text = f"# {device}, {today}\n\n{', '.join(' '.join(pair) for pair in versions().items())}\n"
    print(text)
    start, found, at_best = time.monotonic(), {}, {}
    for name in cfg.sections:
        section, bound = SECTIONS[name]
        bound = min(bound, start + cfg.seconds - time.monotonic())
        found[name] = watch(section, cfg.tiny, at_best, bound) if bound >= 5 else {
            "rows": [], "notes": [], "failures": ["left out, the time is up"], "seconds": 0.0}
        print(markdown(name, found[name]), flush=True)
        text += "\n" + markdown(name, found[name])
        line = json.dumps({"bench": "gpu", "versions": versions(), "date": today, "device": device, "config": {
            key: value for key, value in asdict(cfg).items() if key != "out"}, **common.rounded({"sections": found})})
        (out / "gpu.md").write_text(text, encoding="utf-8")    # after every section: what is known is kept
        (out / "gpu.json").write_text(line + "\n", encoding="utf-8")
    print(line)
    if failed := [name for name in found if found[name]["failures"]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
