"""The Triton kernels against float64: values and gradients at the borders of their blocks, and what they do with
numbers at the edge. On a GPU they run on it, elsewhere in Triton's interpreter (conftest.py).

The bar: twice the error of torch's own computation in the same dtype, and one unit in the last place."""

import ast
import json
import math
import os
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings

pytest.importorskip("triton", exc_type=ImportError)

import kernels
from kernels import Segments, logprob
from kernels.grpo_loss import grpo_loss_plain, grpo_loss_triton
from kernels.logprob import LinearLogprob, gradient_triton, statistics_triton
from kernels.paged_attention import paged_attention_plain, paged_attention_triton

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")     # of NumPy, about infinities
ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
drawn = settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
grpo_loss, paged_attention = (sys.modules[f"kernels.{name}"] for name in ("grpo_loss", "paged_attention"))   # the files


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_as_exact(ours, torchs, exact, ulp):
    """Row by row: an error of at most twice torch's largest, and `ulp`. Infinite where `exact` is."""
    assert ours.shape == exact.shape and torch.isfinite(torchs).all() and torch.isfinite(exact).all()
    error, allowed = ((x.double() - exact).abs().reshape(len(exact), -1).amax(1) for x in (ours, torchs))
    assert (error <= 2 * allowed + ulp).all(), (error, allowed, ulp)            # a NaN is an error too


class Launches:
    """Stands in for a kernel: notes each grid and what it is launched with. In the interpreter, where every program
    takes its time, `last` lets only so many programs run, the last ones of the first axis."""

    def __init__(self, monkeypatch, module, name, last=None):
        self.kernel, self.last, self.launches = getattr(module, name), last, []
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.launch(grid, arguments, constants)

    @property
    def grids(self):
        return [grid for grid, _, _ in self.launches]

    @property
    def arguments(self):
        return self.launches[-1][1]

    def launch(self, grid, arguments, constants):
        self.launches.append((grid, arguments, constants))
        skipped = max(0, grid[0] - self.last) if self.last and DEVICE == "cpu" else 0
        with pytest.MonkeyPatch.context() as patch:
            if skipped:
                from triton.runtime.interpreter import InterpreterBuilder
                place = InterpreterBuilder.set_grid_idx
                dims = InterpreterBuilder.set_grid_dim
                patch.setattr(InterpreterBuilder, "set_grid_dim", lambda self, x, y, z: dims(self, x + skipped, y, z))
                patch.setattr(InterpreterBuilder, "set_grid_idx", lambda self, x, y, z: place(self, x + skipped, y, z))
            self.kernel[(grid[0] - skipped, *grid[1:])](*arguments, **constants)


def huge(directory: Path, size: int, dtype: torch.dtype) -> torch.Tensor:
    """So many zeros. On a CPU they are a file full of holes, and only what is touched takes memory."""
    try:
        if DEVICE == "cuda":
            return torch.zeros(size, dtype=dtype, device=DEVICE)
        return torch.from_file(str(directory / f"{random.random()}"), shared=True, size=size, dtype=dtype)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no room for {size} numbers: {error}")


# linear_logprob: the two kernels

def hard_rows(V, seed=0):
    """Logits that try every way through the kernel. The largest of a lane comes first, last, or not at all."""
    z = torch.randn(12, V, generator=generator(seed))
    far = 2048 if V > 2048 else V - 1                                          # the same lane, one block on
    z[1] *= 20
    z[2, torch.rand(V, generator=generator(seed)) < 0.5] = -torch.inf
    z[2, V // 2] = 0.0
    z[3, V // 3] = 1e4
    z[4, [0, far]] = torch.tensor([1e4, 1e4 - 1])
    z[5, [0, far]] = torch.tensor([1e4 - 1, 1e4])
    z[6] -= 1e4
    z[7] = 3.0
    z[8] = torch.linspace(-40, 40, V)
    z[9] = torch.linspace(40, -40, V)
    z[10, :min(2048, V - 1)] = -1e4
    targets = torch.randint(V, (12,), generator=generator(seed))
    targets[:6] = torch.tensor([0, V - 1, V // 2, V // 3, far, far])
    if V > 1:
        z[11, targets[11]] = -torch.inf
    return z.to(DEVICE), targets.to(DEVICE)


def of_rows(logits, targets, g, e, dtype):
    """What torch makes of them: logprob, entropy and the logits' gradient. -inf becomes a number whose exponential is
    0, so that 0 times its logarithm is 0."""
    z = logits.to(dtype).clamp(min=-1e30).requires_grad_()
    log_p = z.log_softmax(-1)
    values = log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    (gradient,) = torch.autograd.grad(values, z, tuple(x.to(dtype) for x in (g, 0 * g if e is None else e)))
    return *(x.detach() for x in values), gradient


def statistics(logits, targets):
    rows = torch.full((4, len(logits)), torch.nan, device=DEVICE, dtype=logits.dtype)
    statistics_triton(logits, targets, rows)
    return rows


def slopes(n, seed=1):
    return (x.to(DEVICE) for x in torch.randn(2, n, generator=generator(seed)))


VOCABULARIES = [1, 2, 61, 2047, 2048, 2049, 4096, 5000]


@pytest.mark.parametrize("V", VOCABULARIES)
def test_statistics_of_a_row_are_as_exact_as_torchs(V):
    logits, targets = hard_rows(V)
    g, e = slopes(len(logits))
    exact, torchs = (of_rows(logits, targets, g, e, dtype) for dtype in (F64, F32))
    rows = statistics(logits, targets)
    ulp = eps(F32) * exact[0].abs().clamp(min=max(1.0, math.log(V)))
    assert_as_exact(rows[0].clamp(min=-1e30), torchs[0], exact[0], ulp)
    assert_as_exact(rows[1], torchs[1], exact[1], eps(F32) * max(1.0, math.log(V)))
    assert torch.equal(rows[2], logits.amax(1))
    assert_as_exact(rows[3], torchs[1], (logits.double() - logits.double().amax(1, True)).exp().sum(1).log(),
                    eps(F32) * max(1.0, math.log(V)))


@pytest.mark.parametrize("out_dtype, in_place, with_entropy", [
    (F32, False, True), (F32, False, False), (F32, True, True), (BF16, False, True), (BF16, False, False)])
@pytest.mark.parametrize("V", [1, 61, 2048, 2049, 5000])
def test_the_gradient_of_a_row_is_as_exact_as_torchs(V, out_dtype, in_place, with_entropy):
    logits, targets = hard_rows(V)
    g, e = slopes(len(logits))
    e = e if with_entropy else None
    exact, torchs = (of_rows(logits, targets, g, e, dtype)[2] for dtype in (F64, F32))
    out = logits if in_place else torch.full_like(logits, torch.nan, dtype=out_dtype)
    gradient_triton(logits, targets, statistics(logits, targets), g, e, out)
    ulp = eps(F32) * exact.abs().amax(1) * max(1.0, math.log(V))                # of p = exp(log p), log p up to log V
    if out_dtype == F32:
        assert_as_exact(out, torchs, exact, ulp)
    else:                                                                      # rounded once, each number by itself
        assert ((out - exact).abs() <= eps(BF16) / 2 * exact.abs() + 2 * (torchs - exact).abs().amax(1, True)
                + 2 * ulp[:, None]).all()


def test_a_row_as_long_as_qwens_vocabulary():
    V = 151_936
    logits = torch.randn(3, V, generator=generator(0), device="cpu").to(DEVICE) * 3
    logits[1, V - 1] = 30.0
    targets = torch.tensor([0, V - 1, 70_000], device=DEVICE)
    g, e = slopes(3)
    exact, torchs = (of_rows(logits, targets, g, e, dtype) for dtype in (F64, F32))
    rows = statistics(logits, targets)
    for ours, own, true in zip(rows[:2], torchs, exact):
        assert_as_exact(ours, own, true, eps(F32) * math.log(V))
    gradient_triton(logits, targets, rows, g, e, logits)
    assert_as_exact(logits, torchs[2], exact[2], eps(F32))


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 2047, 2048, 2999])
def test_a_row_with_a_nan_becomes_nan_and_its_neighbours_do_not(junk, column):
    logits, targets = hard_rows(3000)
    logits[1, column] = junk
    g, e = slopes(len(logits))
    rows = statistics(logits, targets)
    for with_entropy in (None, e):
        out = torch.zeros_like(logits)
        gradient_triton(logits, targets, rows, g, with_entropy, out)
        assert out[1].isnan().all() and not out[[0, *range(2, 12)]].isnan().any()
    assert rows[[0, 1, 3], 1].isnan().all() and not rows[:, [0, *range(2, 12)]].isnan().any()


def test_a_row_of_which_no_token_can_be_is_nan():
    logits, targets = torch.full((2, 2100), -torch.inf, device=DEVICE), torch.zeros(2, dtype=torch.long, device=DEVICE)
    rows, out = statistics(logits, targets), torch.zeros_like(logits)
    gradient_triton(logits, targets, rows, rows[0], None, out)
    assert rows[:2].isnan().all() and out.isnan().all()


def test_rows_may_lie_apart():
    """Logits, gradient and statistics are pieces of larger tensors; what lies between them stays as it was."""
    logits, targets = hard_rows(300)
    g, e = slopes(len(logits))
    rows = statistics(logits, targets)
    dense = torch.empty_like(logits)
    gradient_triton(logits, targets, rows, g, e, dense)
    wide, out, many = (torch.full(shape, 7.0, device=DEVICE) for shape in ((24, 512), (36, 400), (4, 40)))
    wide[::2, 100:400] = logits
    statistics_triton(wide[::2, 100:400], targets, many[:, 9:21])
    gradient_triton(wide[::2, 100:400], targets, many[:, 9:21], g, e, out[::3, 50:350])
    assert torch.equal(many[:, 9:21], rows) and torch.equal(out[::3, 50:350], dense)
    many[:, 9:21], out[::3, 50:350] = 7.0, 7.0
    assert (many == 7).all() and (out == 7).all()


def test_rows_are_on_the_grids_long_axis_and_reach_beyond_2_31_numbers(monkeypatch, tmp_path):
    """70,000 rows, of which the last begin 2.8e9 numbers after the first. 32 bits would lead elsewhere: to zeros."""
    N, V, apart, middle = 70_000, 5, 40_000, 2**31
    logits, out = (huge(tmp_path, middle + N * apart, dtype).as_strided((N, V), (apart, 1), middle)
                   for dtype in (F32, BF16))
    logits[-2:] = torch.randn(2, V, generator=generator(0)).to(DEVICE)
    targets = torch.ones(N, dtype=torch.long, device=DEVICE)
    rows, g = torch.zeros(4, N, device=DEVICE), torch.ones(N, device=DEVICE)
    launches = [Launches(monkeypatch, logprob, name, last=2) for name in ("_statistics", "_gradient")]
    statistics_triton(logits, targets, rows)
    gradient_triton(logits, targets, rows, g, g, out)
    assert [x.grids for x in launches] == [[(N,)], [(N,)]]
    exact = of_rows(logits[-2:], targets[-2:], g[-2:], g[-2:], F64)
    assert (rows[:2, -2:] - torch.stack(exact[:2])).abs().max() <= 1e-6
    assert (out[-2:] - exact[2]).abs().max() <= eps(BF16)


# linear_logprob: end to end

def head(N, C=16, V=61, dtype=F32, seed=0):
    g = generator(seed)
    hidden, weight = torch.randn(N, C, generator=g), torch.randn(V, C, generator=g)
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), torch.randint(V, (N,), generator=g).to(DEVICE)


def objective(values, entropy):
    places = torch.arange(1, len(values) + 1, device=values.device)
    return (values.sin() * places).sum() + 0.5 * entropy.square().sum()


def by_torch(hidden, weight, targets, temperature, dtype):
    """All the logits at once in `dtype`: logprobs, entropy and the gradients of the objective."""
    h, w = hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
    log_p = (h @ w.T / temperature).log_softmax(-1)
    values = log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    objective(*values).backward()
    return *(x.detach() for x in values), h.grad, w.grad


def by_kernels(hidden, weight, targets, temperature=1.0, chunk=8):
    n, v = chunk, len(weight)
    return LinearLogprob.apply(hidden, weight, targets, temperature, n, v, statistics_triton, gradient_triton)


def all_by_kernels(hidden, weight, targets, temperature=1.0, chunk=8):
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    values = by_kernels(h, w, targets, temperature, chunk)
    objective(*values).backward()
    return *(x.detach() for x in values), h.grad, w.grad


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("N, chunk", [(1, 1), (17, 17), (17, 8), (16, 8), (17, 100), (3, 1)])
def test_log_probs_entropy_and_gradients_from_hidden_states(N, chunk, dtype, temperature):
    case = head(N, dtype=dtype)
    exact, torchs = (by_torch(*case, temperature, kind) for kind in (F64, dtype))
    ours = all_by_kernels(*case, temperature, chunk)
    assert [x.dtype for x in ours] == [torch.promote_types(dtype, F32)] * 2 + [dtype] * 2
    logit = float((case[0].double() @ case[1].double().T / temperature).abs().max())
    for place, (x, own, true) in enumerate(zip(ours, torchs, exact)):
        size = logit if place < 2 else logit * math.log(61) * max(1.0, float(true.abs().max()))
        ulp = eps(dtype if place > 1 else x.dtype) * size * (4 if dtype == F64 else 1)   # whose reference errs too
        assert float((x - true).abs().max()) <= 2 * float((own - true).abs().max()) + ulp


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_log_probs_keep_the_accumulators_of_bfloat16_products(dtype):
    """Log-probs of bfloat16 hidden states are as exact as float32 ones, not rounded as logits."""
    case = [*(x.to(dtype) for x in head(9, dtype=BF16)[:2]), head(9)[2]]
    exact, torchs = by_torch(*case, 1.0, F64), by_torch(*case, 1.0, F32)
    for ours, own, true in zip(by_kernels(*case), torchs, exact):
        assert_as_exact(ours, own, true, eps(F32) * float((case[0].double() @ case[1].double().T).abs().max()))


def test_inputs_may_be_strided():
    """hidden, weight, targets and the gradients that come in, none of them contiguous."""
    hidden, weight, targets = head(12)
    g = torch.randn(2, 24, generator=generator(3)).to(DEVICE)[:, ::2]
    apart = hidden.T.contiguous().T, weight.repeat(1, 2)[:, :16], targets.repeat_interleave(2)[::2]
    assert not any(x.is_contiguous() for x in (*apart, g[0]))
    found = []
    for h, w, y, slope in ((hidden, weight, targets, g.contiguous()), (*apart, g)):
        h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
        values = by_kernels(h, w, y, 0.6, 5)
        found.append([*values, *torch.autograd.grad(values, (h, w), tuple(slope))])
    for dense, strided in zip(*found):
        assert (dense - strided).abs().max() <= 16 * eps(F32) * dense.abs().max()      # logits up to 16


@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_a_second_backward_pass_gives_the_same_bits(chunk):
    hidden, weight, targets = head(11)
    h, w = hidden.requires_grad_(), weight.requires_grad_()
    loss = objective(*by_kernels(h, w, targets, 0.6, chunk))
    first, second = (torch.autograd.grad(loss, (h, w), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_only_the_gradients_that_are_asked_for():
    """Of hidden, of weight, of both; through the log-probs, the entropy, both."""
    case = head(11)
    for used, (wants_h, wants_w) in product([(0,), (1,), (0, 1)], [(True, False), (False, True), (True, True)]):
        found = []
        for run, dtype in ((by_kernels, F32), (None, F64)):
            h, w = (x.to(dtype, copy=True).requires_grad_(wants) for x, wants in zip(case, (wants_h, wants_w)))
            if run:
                values = run(h, w, case[2], 1.0, 4)
            else:
                log_p = (h @ w.T).log_softmax(-1)
                values = log_p.gather(-1, case[2][:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
            sum((values[i] * torch.arange(11, device=DEVICE)).sum() for i in used).backward()
            found.append((h.grad, w.grad))
        for ours, true in zip(*found):
            assert (ours is None) == (true is None)
            assert ours is None or (ours - true).abs().max() <= 1e-5 * true.abs().max()


def test_nothing_in_nothing_out():
    hidden, weight, targets = head(0)
    values = by_kernels(hidden.requires_grad_(), weight.requires_grad_(), targets)
    (values[0].sum() + values[1].sum()).backward()
    assert values[0].shape == values[1].shape == (0,) and hidden.grad.shape == (0, 16) and not weight.grad.any()


def test_a_nan_among_the_hidden_states_stays_in_its_row():
    hidden, weight, targets = head(9)
    hidden[4, 3] = torch.nan
    logprobs, entropy, dh, _ = all_by_kernels(hidden, weight, targets, chunk=4)
    for x in (logprobs, entropy, dh.amax(1)):
        assert x.isnan().tolist() == [place == 4 for place in range(9)]


@pytest.mark.parametrize("wrong, row", [(-1, 0), (61, 2), (10**9, 1)])
def test_targets_outside_the_vocabulary_are_refused_before_a_kernel_reads_there(wrong, row):
    hidden, weight, targets = head(3)
    targets[row:] = wrong
    with pytest.raises(IndexError, match=re.escape(f"target {row} is token {wrong}, outside the vocabulary of 61 (0 to "
                                                   "60)")):
        kernels.linear_logprob(hidden, weight, targets)


# grpo_loss

def tokens(N, seed=0, with_ref=True, with_entropy=True):
    """Arguments as grpo_loss_plain takes them, in float32. Log-ratios are multiples of 1/64: none is at a clip."""
    g = torch.Generator().manual_seed(seed)

    def grid(low, high):
        return torch.randint(64 * low, 64 * high + 1, (N,), generator=g) / 64

    old = grid(-9, 0)
    case = [old + grid(-2, 2), old, torch.randn(N, generator=g), torch.rand(N, generator=g) * (grid(0, 4) > 1),
            old + grid(-2, 2) if with_ref else None, torch.rand(N, generator=g) if with_entropy else None]
    return [x if x is None else x.to(DEVICE) for x in case]


def loss_of(run, case, dtype, clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=0.3):
    """loss, sums, gradient."""
    logprobs, *others = (x if x is None else x.to(dtype) for x in case)
    logprobs = logprobs.detach().clone().requires_grad_()
    loss, sums = run(logprobs, *others, clip_low, clip_high, dual_clip, kl_coef)
    assert loss.requires_grad and not sums.requires_grad
    (loss * 1.7).backward()
    return loss.detach(), sums, logprobs.grad


def assert_same_loss(case, dtype=F32, **objective):
    exact, torchs = (loss_of(grpo_loss_plain, case, kind, **objective) for kind in (F64, dtype))
    ours = loss_of(grpo_loss_triton, case, dtype, **objective)
    assert all(x.dtype == dtype and x.shape == true.shape for x, true in zip(ours, exact))
    added = [(x.double().abs() * (case[3] != 0)).nan_to_num(0, 0, 0).sum() for x in (case[2] * case[3], case[5] if case[
        5] is not None else case[3])]
    size = float(added[0]) * math.exp(2) + float(exact[1][4]) + float(added[1])
    units = eps(dtype) * (4 if dtype == F64 else 1)                            # in float64 the reference errs too
    for x, own, true in zip([*ours[:1], *ours[1]], [*torchs[:1], *torchs[1]], [*exact[:1], *exact[1]]):
        assert abs(float(x) - float(true)) <= 2 * abs(float(own) - float(true)) + units * size
    assert torch.equal(ours[1][:4].double(), exact[1][:4])                      # the counts
    if len(case[0]):
        error, allowed = ((x[2] - exact[2]).abs().max() for x in (ours, torchs))
        assert error <= 2 * allowed + units * exact[2].abs().max()
        assert (ours[2][case[3] == 0] == 0).all()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("N", [0, 1, 2, 1023, 1024, 1025, 2048, 3000])
def test_loss_gradient_and_sums_at_the_borders_of_the_blocks(N, dtype):
    assert_same_loss(tokens(N), dtype)


@pytest.mark.parametrize("dual_clip", [3.0, 1.5, math.inf])
@pytest.mark.parametrize("with_ref, with_entropy, kl_coef", [(True, True, 0.3), (True, False, 0.0), (False, True, 0.3),
                                                             (False, False, 0.0)])
def test_loss_with_and_without_reference_entropy_and_dual_clip(with_ref, with_entropy, kl_coef, dual_clip):
    case = tokens(1500, 1, with_ref, with_entropy)
    assert_same_loss(case, dual_clip=dual_clip, kl_coef=kl_coef)
    sums = loss_of(grpo_loss_triton, case, F32, dual_clip=dual_clip)[1]
    assert (sums[:3] > 0).all() and (sums[3] > 0) == (dual_clip < 10)
    assert (sums[4] > 0) == with_ref and (sums[5] > 0) == with_entropy


@drawn
@given(st.integers(1, 9), st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from((3.0, math.inf)),
       st.sampled_from(((0.2, 0.28), (0.2, 0.2), (0.1, 0.5))), st.sampled_from((0.0, 0.5)))
def test_loss_of_anything_drawn(N, seed, with_ref, with_entropy, dual_clip, clips, kl_coef):
    assert_same_loss(tokens(N, seed, with_ref, with_entropy), dual_clip=dual_clip, clip_low=clips[0],
                     clip_high=clips[1], kl_coef=kl_coef)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("difference", [-1000, -20.5, -20, -19.5, 19.5, 20, 20.5, 1000])
def test_loss_of_log_ratios_at_the_clamp(difference, sign):
    """One by one: beyond +-20 there is no gradient, neither of the ratio nor of the KL term."""
    for with_ref in (False, True):
        case = [torch.full((1,), x, device=DEVICE) for x in (difference - 1.0, -1.0, float(sign), 0.5, -1.0, 0.0)]
        assert_same_loss(case if with_ref else [*case[:4], None, None], dual_clip=math.inf)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_tokens_of_weight_zero_may_hold_anything_in_the_kernel_too(junk):
    case = tokens(1100)
    clean = loss_of(grpo_loss_triton, case, F32)
    masked = case[3] == 0
    for places in ([0], [1], [2], [4], [5], [0, 1, 2, 4, 5]):
        dirty = [torch.where(masked, junk, x) if place in places else x for place, x in enumerate(case)]
        assert all(map(torch.equal, loss_of(grpo_loss_triton, dirty, F32), clean))


@pytest.mark.parametrize("place", range(6))
def test_a_nan_of_a_token_that_counts_reaches_the_loss(place):
    case = tokens(1100)
    case[3] = case[3] + 0.1
    case[place][7] = torch.nan
    loss, sums, gradient = loss_of(grpo_loss_triton, case, F32)
    assert loss.isnan() == (place < 5) and gradient.isnan().nonzero().tolist() == [[7]] * (place in (2, 3))
    assert sums.isnan().tolist() == [False] * 4 + [place in (0, 4), place == 5]


def test_the_loss_takes_strided_inputs():
    case = tokens(1100)
    apart = [torch.stack([x, x + 1], 1)[:, 0] for x in case]
    assert not any(x.is_contiguous() for x in apart)
    logprobs = torch.stack([case[0], case[0]], 1).requires_grad_()
    loss, sums = grpo_loss_triton(logprobs[:, 0], *apart[1:], 0.2, 0.28, 3.0, 0.3)
    (loss * 1.7).backward()
    assert all(map(torch.equal, (loss, sums, logprobs.grad[:, 0]), loss_of(grpo_loss_triton, case, F32)))
    assert not logprobs.grad[:, 1].any()


def test_the_loss_of_more_than_2_31_tokens(monkeypatch, tmp_path):
    """All but the last three have weight 0. One tensor is everything: the ratio is 1, a token's loss -x^2."""
    x = huge(tmp_path, 2**31 + 5, F32)
    x[-3:] = torch.tensor([1.0, 2.0, 3.0])
    launches = Launches(monkeypatch, grpo_loss, "_loss", last=2)
    try:
        loss, sums = grpo_loss_triton(x, x, x, x, None, None, 0.2, 0.28, 3.0, 0.0)
    except RuntimeError as error:
        pytest.skip(f"no room for the gradient: {error}")
    assert launches.grids == [(2**21 + 1,)] and float(loss) == -14 and sums.tolist() == [3, 0, 0, 0, 0, 0]
    assert launches.arguments[6][-4:].tolist() == [0, -1, -4, -9]              # the gradient, -x times the weight


# paged_attention

class Step:
    """A decoding step over a cache in which only what an answer owns is a number.

    `groups`: the tokens of each group's stem and of each answer's tail. Their blocks are shuffled all over the cache.
    `spare` parts and padded segments (no answers, or neither answers nor tokens) come on top of what is needed."""

    def __init__(self, groups, block_size=16, H=2, K=1, D=16, dtype=F32, split=64, seed=0, spare=0,
                 padded=False, size=1, low=False):
        g = torch.Generator().manual_seed(seed)
        lengths = [n for stem, tails in groups for n in (stem, *tails)]
        total = sum(-(-n // block_size) for n in lengths) + 3
        self.free, self.block_size = torch.randperm(total, generator=g).tolist(), block_size
        nobodys = self.free.pop()
        cache = torch.full((2, K, total * block_size, D), torch.nan)
        self.pasts, stems, tails = [], [], []
        for stem, tail_lengths in groups:
            table, shared = self.take(stem)
            stems.append((len(self.pasts), len(tail_lengths), stem, table))
            for n in tail_lengths:
                own_table, own = self.take(n)
                tails.append((len(self.pasts), 1, n, own_table))
                self.pasts.append(shared + own)
        for past in self.pasts:
            cache[:, :, past] = torch.randn(2, K, len(past), D, generator=g)
        q = torch.randn(len(self.pasts), H, D, generator=g) * size
        if low:                                                                # every score is far below 0
            q, cache[0] = q.abs(), -cache[0].abs()
        self.q, self.keys, self.values = (x.to(DEVICE, dtype) for x in (q, *cache))
        if padded:
            stems, tails = ([*x, (0, 0, 0, []), (0, 0, x[0][2], x[0][3])] for x in (stems, tails))
        self.stems, self.tails = (self.segments(x, split, spare, nobodys) for x in (stems, tails))

    def take(self, n):
        table = [self.free.pop() for _ in range(-(-n // self.block_size))]
        return table, [table[i // self.block_size] * self.block_size + i % self.block_size for i in range(n)]

    @staticmethod
    def segments(found, split, spare, nobodys):
        longest = max(len(table) for *_, table in found) + 1
        tables = [table + [nobodys] * (longest - len(table)) for *_, table in found]
        parts = -(-max(n for _, _, n, _ in found) // split) + spare
        ints = dict(dtype=torch.int32, device=DEVICE)
        return Segments(torch.tensor([row[:3] for row in found], **ints), torch.tensor(tables, **ints),
                        max(answers for _, answers, _, _ in found), split, parts)

    def run(self, attention, q=None, keys=None, values=None):
        """What an allocation leaves uninitialized is NaN."""
        torch.use_deterministic_algorithms(True)
        try:
            return attention(self.q if q is None else q, self.keys if keys is None else keys,
                             self.values if values is None else values, self.block_size, self.stems, self.tails)
        finally:
            torch.use_deterministic_algorithms(False)

    def answers(self):
        """Each answer's query (H, D), and its keys and values (H, length, D) in one piece."""
        repeat = self.q.shape[1] // len(self.keys)
        for query, past in zip(self.q, self.pasts):
            yield query, *(x[:, past].repeat_interleave(repeat, 0) for x in (self.keys, self.values))

    def exact(self):
        wide = [[x.double() for x in answer] for answer in self.answers()]
        return torch.stack([((k @ q[:, :, None] / math.sqrt(q.shape[1])).softmax(1) * v).sum(1) for q, k, v in wide])

    def torchs(self):
        return torch.cat([F.scaled_dot_product_attention(q[:, None], k, v)[None, :, 0] for q, k, v in self.answers()])

    def check(self, attention=paged_attention_triton, **changed):
        ours, exact = self.run(attention, **changed), self.exact()
        assert ours.dtype == self.q.dtype and ours.shape == self.q.shape
        size = exact.abs().flatten(1).amax(1)
        if ours.dtype == F32:                                                  # of scores x values, else of results
            size = torch.stack([v.abs().max() * (k @ q[:, :, None]).abs().max().div(math.sqrt(q.shape[1])).clamp(min=1)
                                for q, k, v in self.answers()])
        assert_as_exact(ours, self.torchs(), exact, eps(ours.dtype) * size)
        return self


STEPS = {
    "one answer of one token": dict(groups=[(0, [1])], H=4, K=2),
    "stems, some of them empty": dict(groups=[(0, [5, 17]), (20, [3]), (0, [1])]),
    "a stem of one block": dict(groups=[(16, [1, 1])], H=4, K=2),
    "tails at the borders of tiles": dict(groups=[(7, [1, 15, 16, 17, 31, 32, 33, 63, 64, 65])]),
    "stems at the borders of parts": dict(groups=[(n, [3]) for n in (63, 64, 65, 127, 128, 129)], H=1),
    "a split within a block": dict(groups=[(210, [2, 101])], split=100, block_size=64),
    "blocks of 4": dict(groups=[(37, [1, 6]), (4, [9])], block_size=4),
    "blocks of 64": dict(groups=[(64, [65]), (130, [1, 63])], block_size=64),
    "16 parts": dict(groups=[(120, [4])], split=8),
    "17 parts": dict(groups=[(128, [4])], split=8),
    "35 parts": dict(groups=[(9, [1]), (265, [3])], split=8, H=1),
    "unused parts": dict(groups=[(40, [3, 70])], split=32, spare=17),
    "padded segments": dict(groups=[(40, [3, 70]), (0, [1])], padded=True),
    "several tiles of rows": dict(groups=[(30, [2] * 12), (20, [1])], H=6),
    "65 rows, 13 heads for one": dict(groups=[(30, [2] * 5)], H=13, D=8),
    "two times 7 heads": dict(groups=[(70, [5, 65])], H=14, K=2, D=24),
    "a head width of 64": dict(groups=[(70, [5, 1])], D=64),
    "a head width of 32": dict(groups=[(70, [5, 1])], D=32, H=2, K=2),
    "rows that fill their tiles": dict(groups=[(20, [1] * 8), (9, [2])], H=8, D=8),
    "large scores": dict(groups=[(140, [5, 1]), (0, [30])], size=100),
    "scores far below 0": dict(groups=[(140, [5, 1]), (0, [30])], size=100, low=True),
}


IN_F32 = ("one answer of one token", "tails at the borders of tiles", "blocks of 4", "several tiles of rows",
          "rows that fill their tiles", "large scores", "scores far below 0")


@pytest.mark.parametrize("name, dtype", [*product(STEPS, [BF16]), *product(IN_F32, [F32]), ("large scores", F16)])
def test_attention_over_blocks_equals_softmax_over_all_keys(name, dtype):
    Step(dtype=dtype, **STEPS[name]).check().check(paged_attention_plain)


@drawn
@given(st.lists(st.tuples(st.integers(0, 150), st.lists(st.integers(1, 70), min_size=1, max_size=3)), min_size=1,
                max_size=2), st.sampled_from((4, 16, 64)), st.sampled_from(((2, 2), (4, 2), (6, 1), (7, 1))),
       st.sampled_from((8, 16, 24, 32)), st.sampled_from((F32, BF16, F16)), st.sampled_from((32, 48, 64)),
       st.integers(0, 10**6))
def test_attention_of_any_groups(groups, block_size, heads, D, dtype, split, seed):
    Step(groups, block_size, *heads, D, dtype, split, seed).check().check(paged_attention_plain)


def test_attention_takes_views():
    """One layer of a larger cache, every other head of it, queries in another order of axes."""
    step = Step([(40, [3, 17]), (0, [5])], H=2, K=2)
    cache = torch.full((3, 2, 4, *step.keys.shape[1:]), torch.nan, device=DEVICE)
    cache[1, 0, ::2], cache[1, 1, ::2] = step.keys, step.values
    queries = step.q.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not queries.is_contiguous()
    step.check(keys=cache[1, 0, ::2], values=cache[1, 1, ::2])
    step.check(q=queries)
    tables = [x._replace(block_tables=torch.cat([x.block_tables, x.block_tables], 1)[:, :x.block_tables.shape[1]])
              for x in (step.stems, step.tails)]
    step.stems, step.tails = tables
    step.check()


@pytest.mark.parametrize("layout", ["slots first", "values elsewhere"])
def test_attention_over_keys_in_another_layout_is_right_or_refused(layout):
    step = Step([(40, [3, 17]), (0, [5])], H=2, K=2)
    keys, values = step.keys, step.values
    if layout == "slots first":
        keys, values = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (keys, values))
    else:
        values = torch.stack([values, values], 1)[:, 0]
    try:
        step.check(keys=keys, values=values)
    except ValueError as error:
        assert "keys and values" in str(error)


def test_rows_that_stand_for_nobody_change_nothing():
    """Answers behind the last one, with a tail of no tokens and in no stem; a graph is recorded with room for more."""
    step = Step([(40, [3, 17]), (0, [5])], H=2, K=2)
    expected, count = step.run(paged_attention_triton), len(step.q)
    tails = torch.cat([step.tails.rows, torch.tensor([[count, 1, 0], [count + 1, 1, 0]]).to(step.tails.rows)])
    step.tails = step.tails._replace(rows=tails, block_tables=F.pad(step.tails.block_tables, (0, 0, 0, 2)))
    more = step.run(paged_attention_triton, q=torch.cat([step.q, torch.full_like(step.q[:2], torch.nan)]))
    assert torch.equal(more[:count], expected)


def test_a_nan_key_of_ones_own_reaches_the_answer_and_no_other():
    step = Step([(40, [3, 17]), (9, [5])])
    step.values[:, step.pasts[1][-1]] = torch.nan
    out = step.run(paged_attention_triton)
    assert out.isnan().flatten(1).any(1).tolist() == [False, True, False] and out[1].isnan().all()
    step.keys[:, step.pasts[2][0]] = torch.nan
    assert step.run(paged_attention_triton).isnan().flatten(1).all(1).tolist() == [False, True, True]


def test_segments_are_on_the_grids_long_axis(monkeypatch):
    """The second and third axis of a grid end at 65,535."""
    part, merge = (Launches(monkeypatch, paged_attention, name) for name in ("_part", "_merge"))
    step = Step([(70, [2, 1, 1]), (0, [1])], H=4, K=2)
    step.run(paged_attention_triton)
    assert part.grids == [(2, 2, 2), (4, 1, 2)] and merge.grids == [(16,)]


def test_a_segment_of_more_than_65535_tokens(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(paged_attention, "tile", lambda dtype, rows: (16, 4096))           # to be done in time
    Step([(70_000, [1])], H=1, K=1, D=8, dtype=BF16, split=35_001, block_size=64).check()


@pytest.mark.parametrize("far", ["slots", "heads"])
def test_keys_beyond_2_31_numbers(far, tmp_path):
    """The cache begins in the middle of a larger one: 32 bits would lead there, to zeros."""
    step = Step([(40, [3, 17]), (0, [5])], H=3, K=3, dtype=BF16)
    middle, D, heads = 2**31, step.q.shape[2], 1_200_000_000                   # the third head is beyond it
    away = 0
    if far == "slots":
        away = middle // D // step.block_size + 1                              # blocks before the first that is used
        heads = (away * step.block_size + step.keys.shape[1]) * D
    spread = []
    for x in (step.keys, step.values):
        size = (3, away * step.block_size + x.shape[1], D)
        room = huge(tmp_path, middle + 2 * heads + size[1] * D, BF16).as_strided(size, (heads, D, 1), middle)
        room[:, away * step.block_size:] = x
        spread.append(room)
    step.stems, step.tails = (x._replace(block_tables=x.block_tables + away) for x in (step.stems, step.tails))
    check = step.run(paged_attention_triton, keys=spread[0], values=spread[1])
    step.stems, step.tails = (x._replace(block_tables=x.block_tables - away) for x in (step.stems, step.tails))
    assert torch.equal(check, step.run(paged_attention_triton))


def test_parts_beyond_2_31_numbers(monkeypatch, tmp_path):
    """The third part lies 2.4e9 numbers after the first, in what one kernel writes and the other reads."""
    step, apart, middle = Step([(80, [3, 17]), (0, [5])], split=32), 1_200_000_000, 2**31
    part, merge = (Launches(monkeypatch, paged_attention, name) for name in ("_part", "_merge"))
    expected = step.run(paged_attention_triton).clone()
    parts, lse, out, P, *_ = merge.arguments
    assert P == 4 and torch.equal(out, expected)
    far, far_lse = (huge(tmp_path, middle + 4 * apart, F32).as_strided(x.shape, (apart, *x.stride()[1:]), middle)
                    for x in (parts, lse))
    for (grid, arguments, constants), begin in zip(part.launches, (0, 3)):
        arguments = [*arguments[:5], far[begin:], far_lse[begin:], *arguments[7:]]
        part.kernel[grid](*arguments[:12], apart, apart, *arguments[14:], **constants)
    ((grid, arguments, constants),) = merge.launches
    out.zero_()
    merge.kernel[grid](far, far_lse, out, P, apart, apart, *arguments[6:], **constants)
    assert torch.equal(out, expected)


# of all of them

def test_runs_give_the_same_bits():
    step, case, loss_case = Step([(20, [3])], H=1, split=16), head(2), tokens(1100)
    for run in (lambda: [step.run(paged_attention_triton)], lambda: all_by_kernels(*case, chunk=1),
                lambda: loss_of(grpo_loss_triton, loss_case, F32)):
        first = run()
        again = 49 if DEVICE == "cuda" else 4                                  # chance has no part in the interpreter
        assert all(all(map(torch.equal, first, run())) for _ in range(again))


def test_no_kernel_adds_up_in_an_order_of_chance():
    for path in (ROOT / "kernels").glob("*.py"):
        called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                  if isinstance(node, ast.Call)}
        assert not [name for name in called if "atomic" in name], path.name


# what the compiler makes of them

def launched_kernels() -> set[str]:
    """Functions of kernels/ that are a @triton.jit and get a grid."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "kernels").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    jitted = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)}
    return {node.value.id.strip("_") for node in nodes if isinstance(node, ast.Subscript) and isinstance(
        node.value, ast.Name) and node.value.id in jitted}


@pytest.mark.parametrize("archs", [(90,), pytest.param((80, 100), marks=pytest.mark.full)])
def test_every_kernel_compiles_for_every_gpu_without_spilling(archs):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "bench.compile", "--archs", *map(str, archs)], cwd=ROOT, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])["kernels"]
    names = launched_kernels()
    assert {(k["kernel"], k["arch"]) for k in found} == set(product(names, archs)) and len(names) >= 5
    products = [k["products"] for k in found if (k["kernel"], k["dtype"]) == ("part", "bfloat16")]
    assert len(products) == 4 * len(archs) and all(products)
    assert all(k["stack"] == 0 for k in found if k["dtype"] == "bfloat16")
    assert all(k["shared"] <= (163 if k["arch"] == 80 else 227) * 1024 for k in found)


def test_bench_compile_notices_each_fault():
    from bench.compile import faults
    good = dict(kernel="part", dtype="bfloat16", arch=80, registers=255, stack=0, shared=163 * 1024, products=1)
    assert faults(good) == [] and faults({**good, "products": 0, "dtype": "float32"}) == []
    for wrong, text in ((dict(registers=256), "registers"), (dict(stack=8), "8 bytes of registers spilled"), (
            dict(shared=163 * 1024 + 1), "shared memory"), (dict(products=0), "no tensor-core product")):
        (fault,) = faults({**good, **wrong})
        assert text in fault
    assert len(faults({**good, "stack": 1, "products": 0})) == 2
    assert faults({**good, "arch": 90, "shared": 227 * 1024}) == []
