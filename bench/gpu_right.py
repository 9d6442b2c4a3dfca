"""Section `correctness` of bench/gpu.py: a GPU's paths compared with float64 and torch, and repeated."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest import mock

import torch
from bench import common
from bench.gpu_tools import (
    BLOCK_SIZE,
    DEVICE,
    DTYPE,
    GPU,
    TINY,
    TINY_MIXTURE,
    DecodingStep,
    Section,
    normal,
    random_model,
    shape,
)
from kernels import grouped_linear, linear_logprob, paged_attention
from kernels.flash import attention
from kernels.paged_attention import paged_attention_plain
from torch import Tensor

from nanoqwenlong import generate
from nanoqwenlong.attention import StemAttention, buckets, stem_attention_plain
from nanoqwenlong.engine.cuda_step import CudaDecoder, KernelPaged, is_capturable
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.records import Group


def correctness(s: Section) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        with s.attempt(f"linear_logprob, {name}"):
            right_logprob(s, name, dtype)
        with s.attempt(f"paged_attention, {name}"):
            right_paged(s, name, dtype)
    with s.attempt("StemAttention"):
        right_stem(s)
    with s.attempt("grouped_linear"):
        right_grouped(s)
    with s.attempt("decoding"):
        right_decoding(s)
    with s.attempt("decoding, mixture"):
        right_mixture(s)


def compare(s: Section, what: str, names: Sequence[str], ours: Callable, torchs: Callable, exact: Sequence[Tensor]
            ) -> None:
    """The relative distance of ours and torch's from float64, in the norm. Ours must be at most twice as far."""
    for name, mine, own, right in zip(names, ours(), torchs(), exact, strict=True):
        far, own_far = (float((x.double() - right).norm() / right.norm()) for x in (mine, own))
        s.row(f"{what}, {name}: error", far, "", "torch", own_far, most=2.0, must=True)


def repeats(s: Section, what: str, call: Callable) -> None:
    first, different, times = call(), 0, s.pick(50, 3)
    for _ in range(times - 1):
        different += not all(map(torch.equal, first, call()))
    s.row(f"{what}: of {times} repeats with other bits", different, "", "none", 0, most=1.0, must=True)


def right_logprob(s: Section, name: str, dtype: torch.dtype) -> None:
    N, C, V = s.pick((2048, 1024, 20_000), (24, 16, 50))
    hidden, weight = normal(N, C, dtype=dtype), normal(V, C, dtype=dtype, std=2 / C**0.5)
    targets = torch.randint(V, (N,), device=DEVICE)
    slopes = normal(2, N, dtype=torch.float64)

    def plain(h, w):
        logits = h @ w.T
        log_p = (logits.to(torch.promote_types(h.dtype, torch.float32)) / 0.7).log_softmax(-1)
        return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    def all_of(function, h, w):
        h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
        values = function(h, w)
        loss = sum((value * slope.to(value.dtype)).sum() for value, slope in zip(values, slopes))
        return [*(value.detach() for value in values), *torch.autograd.grad(loss, (h, w))]

    def ours():
        return all_of(lambda h, w: linear_logprob(h, w, targets, 0.7, N // 3), hidden, weight)

    compare(s, f"linear_logprob {name}", ["log-prob", "entropy", "d hidden", "d weight"], ours,
            lambda: all_of(plain, hidden, weight), all_of(plain, hidden.double(), weight.double()))
    repeats(s, f"linear_logprob {name}", ours)


def right_paged(s: Section, name: str, dtype: torch.dtype) -> None:
    heads, prompts, tail = s.pick(((12, 2, 128), (4000, 528, 16), 300), ((4, 2, 16), (48, 16), 5))
    step = DecodingStep(heads, prompts, 5, tail, dtype)

    def ours():
        return [step.run(paged_attention, dtype)]

    def torchs():
        """Each answer attends to all of its past alone."""
        outputs = []
        for query, table, length in zip(step.queries, step.tables, step.lengths):
            keys, values = step.cache.read(0, step.cache.slots([table], length))           # (1, length, K, D)
            outputs.append(attention(query[None, None], keys, values, causal=False)[0, 0])
        return [torch.stack(outputs)]

    compare(s, f"paged_attention {name}", ["output"], ours, torchs, [step.run(paged_attention_plain, torch.float64)])
    repeats(s, f"paged_attention {name}", ours)


def right_stem(s: Section) -> None:
    (H, K, D), P, lengths = s.pick(((12, 2, 128), 1500, [300, 257, 300, 64]), ((4, 2, 16), 20, [5, 3, 6]))
    T = sum(lengths)
    inputs = [normal(*size, D) for size in ((T, H), (T, K), (T, K), (P, K), (P, K))]
    slope = normal(T, H, D, dtype=torch.float64)

    def all_of(function, dtype):
        leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(dtype))]

    def plain(*leaves):
        return stem_attention_plain(*leaves, lengths)

    batch = buckets(lengths, DEVICE)
    compare(s, "StemAttention", ["output", "dq", "dk", "dv", "dk of the stem", "dv of the stem"],
            lambda: all_of(lambda *leaves: StemAttention.apply(*leaves, batch), DTYPE),
            lambda: all_of(plain, DTYPE), all_of(plain, torch.float64))
    repeats(s, "StemAttention, forward", lambda: [StemAttention.apply(*inputs, batch)])


def right_grouped(s: Section) -> None:
    """The products of a mixture by torch's grouped_mm in bfloat16. Some experts get no token. The memory of their
    gradients holds NaN before, which would show if it were left there."""
    E, C, N, S = s.pick((128, 2048, 1536, 8192), (8, 32, 48, 40))
    x, weight, slope = normal(S, C, dtype=torch.bfloat16), normal(E, N, C, dtype=torch.bfloat16), normal(S, N)
    cuts = torch.randint(S + 1, (E // 2 - 1,), device=DEVICE).sort().values
    ends = torch.cat([cuts, cuts.new_tensor([S])]).repeat_interleave(2)       # every second expert has no token

    def all_of(dtype, grouped):
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in (x, weight)]
        out = grouped_linear(*leaves, ends, grouped)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(dtype))]

    def ours():
        blocks = [torch.full_like(weight, float("nan")) for _ in range(4)]    # what the allocator will give out again
        del blocks
        return all_of(torch.bfloat16, grouped=True)

    compare(s, "grouped_linear bfloat16", ["output", "dx", "d weight"], ours, lambda: all_of(torch.bfloat16, False),
            all_of(torch.float64, False))
    s.row("grouped_linear bfloat16: numbers other than 0 in gradients of experts without a token",
          int((ours()[2][1::2] != 0).sum()), "", "none", 0, most=1.0, must=True)
    repeats(s, "grouped_linear bfloat16", ours)


def greedy_answers(s: Section, model: Qwen, new: int) -> Callable:
    """greedy(decoder, options of the Generator) -> the Groups of 4 answers of `new` tokens to each of 4 prompts."""
    each = 4
    prompts = [common.random_ids(SimpleNamespace(vocab=model.config.vocab_size), length, seed=length)
               for length in s.pick((500, 333, 64, 20), (40, 17, 30, 5))]
    blocks = sum(blocks_for(len(prompt), BLOCK_SIZE) + each * (blocks_for(new, BLOCK_SIZE) + 2) for prompt in prompts)

    def greedy(decoder: type = CudaDecoder, **options) -> list[Group]:
        with mock.patch.object(generate, "CudaDecoder", decoder):
            return Generator(model, blocks, BLOCK_SIZE, **options).sample(prompts, each, 0.0, max_new_tokens=new)
    return greedy


def tokens(groups: Sequence[Group]) -> list[int]:
    return [token for group in groups for completion in group.completions for token in completion.ids]


@torch.no_grad()
def argmax(model: Qwen, groups: Sequence[Group]) -> list[int]:
    """The model's most probable token at each position of the answers, from one pass over each whole sequence."""
    best = []
    for group in groups:
        for completion in group.completions:
            logits = model.logits(torch.tensor(group.prompt_ids + completion.ids, device=DEVICE))          # (T, V)
            best += logits[len(group.prompt_ids) - 1:-1].argmax(-1).tolist()
    return best


def right_decoding(s: Section) -> None:
    """Greedy answers in float32: KernelPaged with its CUDA graph, SharedPaged, whole passes. Then the graph bit by bit.
    """
    c, new = s.pick(shape(4, 256, 8, 2, 512, 1000, tied=False, D=64), TINY), s.pick(32, 4)
    model = random_model(c, torch.float32, std=0.1)
    greedy = greedy_answers(s, model, new)
    groups = greedy(kernels=True)
    found = tokens(groups)
    for name, others in (("SharedPaged", tokens(greedy(kernels=False))), ("whole sequences", argmax(model, groups))):
        s.row(f"KernelPaged and {name}: of {len(found)} greedy tokens other", sum(map(int.__ne__, found, others)), "",
              "none", 0, most=1.0, must=True)
    right_graph(s, "CUDA graph and none", greedy, new)


def right_mixture(s: Section) -> None:
    """A mixture of experts in bfloat16: a recorded step, bit by bit."""
    c, new = s.pick(shape(4, 256, 8, 2, 512, 1000, tied=False, D=64, E=64, k=8), TINY_MIXTURE), s.pick(32, 4)
    model = random_model(c, torch.bfloat16, std=0.1)
    if GPU and not is_capturable(model):
        s.note("a mixture's decoding steps are not recorded on this GPU: torch's grouped_mm waits")
    right_graph(s, "CUDA graph and none, mixture", greedy_answers(s, model, new), new)


def right_graph(s: Section, what: str, greedy: Callable, new: int) -> None:
    """The logits of every step, with and without recording."""
    seen = {}

    def recording(kind: type) -> type:
        class Recording(kind):
            def step(self, attend):
                logits = super().step(attend)
                seen.setdefault(kind, []).append(logits.clone())
                return logits
        return Recording

    for kind in (CudaDecoder, Eager):
        greedy(recording(kind), kernels=True)
    different = sum(not torch.equal(*pair) for pair in zip(seen[CudaDecoder], seen[Eager], strict=True))
    if GPU:
        s.row(f"{what}: of {new} steps with other logits", different, "", "none", 0, most=1.0, must=True)
    else:
        s.note(f"{what}: needs a GPU")


class Eager(CudaDecoder):
    """Its steps are never recorded."""

    def step(self, attend: KernelPaged) -> Tensor:
        return self.forward(attend)
