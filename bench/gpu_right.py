"""Section `correctness` of bench/gpu.py: a GPU's paths beside float64 and torch in the same type, and repeated."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest import mock

import torch
from kernels import linear_logprob, paged_attention
from kernels.paged_attention import paged_attention_plain
from torch import Tensor

from bench import common
from bench.gpu_tools import BLOCK_SIZE, DEVICE, DTYPE, GPU, TINY, DecodingStep, Section, normal, random_model, shape
from nanoqwenlong import generate
from nanoqwenlong.attention import StemAttention, buckets, stem_attention_plain
from nanoqwenlong.generate import Generator
from nanoqwenlong.kvcache import blocks_for
from nanoqwenlong.paged import Paged


def correctness(s: Section) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        with s.attempt(f"linear_logprob, {name}"):
            right_logprob(s, name, dtype)
        with s.attempt(f"paged_attention, {name}"):
            right_paged(s, name, dtype)
    with s.attempt("StemAttention"):
        right_stem(s)
    with s.attempt("decoding"):
        right_decoding(s)


def compare(s: Section, what: str, names: Sequence[str], ours: Callable, torchs: Callable, exact: Sequence[Tensor]
            ) -> None:
    """How far ours and torch's own are from float64, relative, in the norm; ours must be at most twice as far."""
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
    plain = Paged(step.cache, step.tables, step.lengths)

    def ours():
        return [step.run(paged_attention, dtype)]

    def torchs():
        return [plain(0, step.queries[:len(step.tables)], *step.cache.read(0, plain.slot_mapping))]

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


def right_decoding(s: Section) -> None:
    """Greedy answers in float32: KernelPaged with its CUDA graph, SharedPaged, Paged; then the graph's bits."""
    c = s.pick(shape(4, 256, 8, 2, 512, 1000, tied=False, D=64), TINY)
    model, new, each = random_model(c, torch.float32, std=0.1), s.pick(32, 4), 4
    prompts = [common.random_ids(SimpleNamespace(vocab=c.vocab_size), length, seed=length)
               for length in s.pick((500, 333, 64, 20), (40, 17, 30, 5))]
    blocks = sum(blocks_for(len(prompt), BLOCK_SIZE) + each * (blocks_for(new, BLOCK_SIZE) + 2) for prompt in prompts)

    def greedy(step: type = generate.Step, **options) -> list[int]:
        with mock.patch.object(generate, "Step", step):
            groups = Generator(model, blocks, BLOCK_SIZE, **options).sample(prompts, each, 0.0, max_new_tokens=new)
        return [token for group in groups for completion in group.completions for token in completion.ids]

    found = greedy(kernels=True)
    for name, options in (("SharedPaged", {"kernels": False}), ("Paged", {"shared": False})):
        others = greedy(**options)
        s.row(f"KernelPaged and {name}: of {len(found)} greedy tokens other", sum(map(int.__ne__, found, others)), "",
              "none", 0, most=1.0, must=True)
    seen = {}

    def recording(kind: type) -> type:
        class Recording(kind):
            def __call__(self):
                logits = super().__call__()
                seen.setdefault(kind, []).append(logits.clone())
                return logits
        return Recording

    for kind in (generate.Step, Eager):
        greedy(recording(kind), kernels=True)
    different = sum(not torch.equal(*pair) for pair in zip(seen[generate.Step], seen[Eager], strict=True))
    if GPU:
        s.row(f"CUDA graph and none: of {new} steps with other logits", different, "", "none", 0, most=1.0, must=True)
    else:
        s.note("CUDA graph: needs a GPU")


class Eager(generate.Step):
    """A step that is never recorded."""

    def __call__(self) -> Tensor:
        return self._forward()
