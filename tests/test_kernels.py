"""linear_logprob against float64, grpo_loss against known answers and its own promises."""

import math
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from kernels import grpo_loss, linear_logits, linear_logprob, logprob

F64 = torch.float64


# linear_logprob

def inputs(N, C=16, V=61, dtype=F64, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(N, C, generator=g, dtype=F64), torch.randn(V, C, generator=g, dtype=F64) * scale
    return hidden.to(dtype), weight.to(dtype), torch.randint(V, (N,), generator=g)


def plain(hidden, weight, targets, temperature, dtype=F64):
    """log_softmax and gather of the whole logits, in `dtype`: values, and gradients of a loss that uses both."""
    h, w = hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
    logprobs = (h @ w.T / temperature).log_softmax(-1)
    return backward(logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1), h, w)


def ours(hidden, weight, targets, temperature, **options):
    h, w = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    return backward(*linear_logprob(h, w, targets, temperature, **options), h, w)


def backward(values, entropy, h, w):
    places = torch.arange(1, len(values) + 1)
    (values.sin() * places + 0.5 * entropy.square()).sum().backward()
    return values.detach(), entropy.detach(), h.grad, w.grad


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("N, chunk", [(1, 2048), (2, 1), (31, 8), (32, 8), (33, 8), (33, 2048)])
def test_logprob_entropy_and_gradients_equal_log_softmax(N, chunk, temperature):
    case = inputs(N)
    for a, b in zip(ours(*case, temperature, chunk=chunk), plain(*case, temperature), strict=True):
        assert a.dtype == F64 and (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max())


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("logits, tall", [(50, 7), (200, 7), (600, 33), (61 * 33 - 1, 20), (61 * 33, 1)])
def test_blocks_of_some_positions_and_some_words_equal_log_softmax(logits, tall, dtype, monkeypatch):
    """In each block some targets are among the words and others are not. Narrow weights are widened three rows at a
    time. Twice backward: the second time no block is ready."""
    monkeypatch.setattr(logprob, "BLOCK_LOGITS", logits)
    monkeypatch.setattr(logprob, "TALL", tall)
    monkeypatch.setattr(logprob, "IN_CACHE", 96)
    hidden, weight, targets = inputs(33, dtype=dtype)
    exact = plain(hidden, weight, targets, 0.6)
    bar = 1e-12 if dtype == F64 else 1e-4
    for a, b, coarse in zip(ours(hidden, weight, targets, 0.6), exact, (1, 1, 100, 100), strict=True):
        assert (a - b).abs().max() <= (bar if dtype == F64 else bar * coarse) * max(1.0, b.abs().max())
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    values, _ = linear_logprob(h, w, targets, 0.6)
    once = torch.autograd.grad(values.sum(), (h, w), retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(values.sum(), (h, w))))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 25), st.integers(1, 5), st.integers(1, 120), st.integers(1, 14),
       st.integers(2, 40), st.sampled_from([F64, torch.float32, torch.bfloat16]), st.sampled_from([1.0, 0.6, 1.7]),
       st.sampled_from([None, 1, 5, 99]), st.data())
@example(2, 1, 1, 1, 1, 2, F64, 1.0, None, None)
@example(12, 25, 5, 1, 1, 2, torch.bfloat16, 0.6, None, None)
@example(12, 25, 5, 60, 12, 9, F64, 1.7, None, None)
@example(12, 25, 5, 320, 14, 40, torch.float32, 1.7, None, None)
def test_blocks_of_any_size_of_a_tied_weight_equal_log_softmax(N, V, C, logits, tall, in_cache, dtype, temperature,
                                                               chunk, data):
    """The hidden states are rows of the head, which holds a gradient already. Many targets are the first or last word
    of a block. Values are as exact as the products. Gradients in bfloat16 are rounded three times: as the head's, as
    the hidden states', and as their sum."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BLOCK_LOGITS", logits), ("TALL", min(tall, logits)), ("IN_CACHE", in_cache)):
            patch.setattr(logprob, name, value)
        chunk = chunk and min(chunk, logits)
        _, v = logprob.block_sizes(N, V, whole_rows=False, chunk=chunk)
        borders = sorted({word for start in range(0, V, v) for word in (start - 1, start, V - 1) if word >= 0})
        draw = data.draw if data else lambda strategy: [borders[place % len(borders)] for place in range(N)]
        word = st.one_of(st.sampled_from(borders), st.integers(0, V - 1))
        targets, ids = (torch.tensor(draw(st.lists(word, min_size=N, max_size=N))) for _ in range(2))
        start = torch.randn(V, C, generator=torch.Generator().manual_seed(V), dtype=F64).to(dtype)
        tied, exact = start.clone().requires_grad_(), start.to(F64, copy=True).requires_grad_()
        tied.grad, exact.grad = start.clone(), start.double()
        logprobs = (exact[ids] @ exact.T / temperature).log_softmax(-1)
        wanted = backward(logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1), exact,
                          exact)[:3]
        results = backward(*linear_logprob(tied[ids], tied, targets, temperature, chunk=chunk), tied, tied)[:3]
    largest = max(1.0, float((exact[ids] @ exact.T / temperature).detach().abs().max()))
    eps = torch.finfo(logprob.wide(dtype)).eps
    for a, b, rounding in zip(results, wanted, (eps, eps, max(eps, 3 * torch.finfo(dtype).eps / 2)), strict=True):
        assert (a - b).abs().max() <= (64 * eps * largest + rounding) * max(1.0, largest * N, float(b.abs().max()))


@pytest.mark.parametrize("N, V", [(1, 10), (312, 49_152), (4096, 151_936), (16_384, 1000), (16_384, 151_936)])
def test_a_block_holds_at_most_what_it_may(N, V):
    """All logits are one block if they may be, so nothing is computed twice. If not, the head is read rarely."""
    n, v = logprob.block_sizes(N, V, whole_rows=False)
    assert min(n, N) * min(v, V) <= logprob.BLOCK_LOGITS and n >= min(N, logprob.TALL)
    assert N * V > logprob.BLOCK_LOGITS or n >= N and v >= V


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("V, scale", [(2, 1.0), (1000, 1.0), (32_000, 0.5)])
def test_float32_is_as_exact_as_torch(V, scale, blocks, monkeypatch):
    """Error against float64 at most that of torch's own float32, plus two units in the last place of the logits."""
    monkeypatch.setattr(logprob, "BLOCK_LOGITS", 10 * -(-V // blocks))
    case = inputs(24, V=V, dtype=torch.float32, scale=scale)
    exact, torchs = plain(*case, 0.7), plain(*case, 0.7, dtype=torch.float32)
    ulp = 2 * torch.finfo(torch.float32).eps * (case[0] @ case[1].T / 0.7).abs().max()
    for a, b, true in zip(ours(*case, 0.7, chunk=10), torchs, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - true).abs().max() <= (b - true).abs().max() + ulp * max(1.0, true.abs().max())


def test_bfloat16_inputs_give_float32_outputs():
    hidden, weight, targets = inputs(9, dtype=torch.bfloat16)
    logprobs, entropy, *gradients = ours(hidden, weight, targets, 1.0)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients)
    exact = plain(hidden, weight, targets, 1.0)
    assert (logprobs - exact[0]).abs().max() <= 2**-8 * (hidden.double() @ weight.double().T).abs().max() * 2


def test_known_answers():
    """Equal logits; two logits; one huge logit."""
    logprobs, entropy = linear_logprob(torch.zeros(1, 3, dtype=F64), torch.ones(7, 3, dtype=F64), torch.tensor([4]))
    assert abs(float(logprobs) + math.log(7)) <= 1e-15 and abs(float(entropy) - math.log(7)) <= 1e-15
    weight = torch.tensor([[math.log(3)], [0.0]], dtype=F64)                   # p = 3/4, 1/4
    logprobs, entropy = linear_logprob(torch.ones(2, 1, dtype=F64), weight, torch.tensor([0, 1]))
    assert (logprobs - torch.tensor([0.75, 0.25], dtype=F64).log()).abs().max() <= 1e-15
    assert abs(float(entropy[0]) - (2 * math.log(2) - 0.75 * math.log(3))) <= 1e-15
    halved, _ = linear_logprob(torch.ones(1, 1, dtype=F64), weight, torch.tensor([0]), temperature=0.5)
    assert abs(float(halved) - math.log(0.9)) <= 1e-15                         # p = 9/10: the logits are divided
    weight[0] = 1e4
    for dtype in (torch.float32, F64):
        logprobs, entropy = linear_logprob(torch.ones(2, 1, dtype=dtype), weight.to(dtype), torch.tensor([0, 1]))
        assert logprobs.tolist() == [0.0, -1e4] and entropy.tolist() == [0.0, 0.0]


def test_nothing_in_nothing_out():
    hidden, weight, targets = inputs(0)
    logprobs, entropy = linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert logprobs.shape == entropy.shape == (0,) and logprobs.dtype == F64
    (logprobs.sum() + entropy.sum()).backward()
    assert not weight.grad.any()


def test_strided_inputs():
    hidden, weight, targets = inputs(12, C=16)
    case = hidden.T.contiguous().T, weight.repeat(1, 2)[:, ::2].contiguous()[:, :16], targets.repeat(2)[::2]
    for a, b in zip(ours(*case, 1.0, chunk=5), plain(*case, 1.0), strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max())


@pytest.mark.parametrize("wrong", [-1, 61])
def test_targets_outside_the_vocabulary_are_refused(wrong):
    hidden, weight, targets = inputs(3)
    targets[1] = wrong
    with pytest.raises(IndexError, match=rf"target 1 is token {wrong}, outside the vocabulary of 61 \(0 to 60\)"):
        linear_logprob(hidden, weight, targets)


def test_linear_logprob_passes_gradcheck():
    hidden, weight, targets = inputs(5, C=3, V=7)
    assert torch.autograd.gradcheck(lambda h, w: linear_logprob(h, w, targets, 0.8, chunk=2),
                                    (hidden.requires_grad_(), weight.requires_grad_()), eps=1e-6, atol=1e-7)


# grpo_loss: known answers (float64, computed apart from this project; shared/TRAPS.md 3.5)

OLD = torch.tensor([-1, -2, -.5, -.7, -1.2, -3], dtype=F64)                    # two sequences of three, the last token
NEW = OLD + torch.tensor([.1, -.4, .3, .5, -.1, 0], dtype=F64)                 # of the first being masked
MASK = torch.tensor([1, 1, 0, 1, 1, 1], dtype=F64)
A = 0.7071057811879616
ADVANTAGES = torch.tensor([A, A, A, -A, -A, -A], dtype=F64)
WEIGHTS = {"grpo": MASK / torch.tensor([4, 4, 4, 6, 6, 6]), "dapo": MASK / 5, "dr_grpo": MASK / 8}


@pytest.mark.parametrize("name, kl_coef, expected", [
    ("grpo", 0, 0.104925334140), ("dapo", 0, 0.251456393485), ("dr_grpo", 0, 0.157160245928),
    ("grpo", 0.01, 0.105447809045), ("dapo", 0.01, 0.252021142393), ("dr_grpo", 0.01, 0.157513213995)])
def test_loss_has_the_known_value(name, kl_coef, expected):
    loss, _ = grpo_loss(NEW, OLD, ADVANTAGES, WEIGHTS[name], ref_logprobs=OLD - 0.2, kl_coef=kl_coef)
    assert abs(float(loss) - expected) <= 1e-11


def test_gradient_has_the_known_value():
    new = NEW.clone().requires_grad_()
    grpo_loss(new, OLD, ADVANTAGES, WEIGHTS["dapo"])[0].backward()
    expected = torch.tensor([-0.156294549074, -0.094797435960, 0, 0.233164068416, 0.127963153866, 0.141421156238])
    assert torch.allclose(new.grad, torch.tensor(expected.tolist(), dtype=F64), rtol=0, atol=1e-7)
    exact = [-A * math.exp(.1) / 5, -A * math.exp(-.4) / 5, 0, A * math.exp(.5) / 5, A * math.exp(-.1) / 5, A / 5]
    assert (new.grad - torch.tensor(exact, dtype=F64)).abs().max() <= 1e-15


@pytest.mark.parametrize("low, high", [(0.2, 0.28), (0.2, 0.2), (0.1, 0.5)])
def test_the_ratio_is_clipped_at_either_end_of_its_own_range(low, high):
    """On a grid of ratios: min(r, 1 + high) where the advantage is +1, max(r, 1 - low) where it is -1."""
    for ratio in (0.5, 0.79, 0.81, 0.89, 0.91, 1.0, 1.19, 1.21, 1.27, 1.29, 1.49, 1.51, 3.0):
        new, one = torch.tensor([math.log(ratio)], dtype=F64), torch.ones(1, dtype=F64)
        for sign, expected in ((1, -min(ratio, 1 + high)), (-1, max(ratio, 1 - low))):
            loss, sums = grpo_loss(new, 0 * one, sign * one, one, clip_low=low, clip_high=high)
            assert abs(float(loss) - expected) <= 1e-15
            clipped = int(sums["clipped_high"]), int(sums["clipped_low"])
            assert clipped == (int(sign > 0 and ratio > 1 + high), int(sign < 0 and ratio < 1 - low))


def test_sums_count_tokens_and_clipped_tokens():
    log_ratio = torch.tensor([0.1, 0.3, -0.1, -0.3, 0.3, -0.3, 0.3, 0.0], dtype=F64)
    advantages = torch.tensor([1, 1, -1, -1, -1, 1, 1, 0], dtype=F64)          # clipped: the 2nd high, the 4th low
    weights = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1], dtype=F64)                # the 7th would be, but it is masked
    ref = torch.full((8,), 0.5, dtype=F64)
    _, sums = grpo_loss(log_ratio, torch.zeros(8, dtype=F64), advantages, weights, ref_logprobs=ref)
    assert (int(sums["num_tokens"]), int(sums["clipped_low"]), int(sums["clipped_high"])) == (7, 1, 1)
    d = [0.5 - float(x) for x, w in zip(log_ratio, weights) if w]
    assert abs(float(sums["kl"]) - sum(math.exp(x) - x - 1 for x in d)) <= 1e-12


@pytest.mark.parametrize("advantage, ratio, dual_clip, loss, slope, clipped", [
    (-1, 5, 3, 3, 0, 1), (-1, 2, 3, 2, 2, 0), (-1, 5, math.inf, 5, 5, 0), (-2, 5, 3, 6, 0, 1), (-1, 0.5, 3, 0.8, 0, 0),
    (1, 5, 3, -1.28, 0, 0), (1, 0.5, 3, -0.5, -0.5, 0), (0, 5, 3, 0, 0, 0)])
def test_the_dual_clip_bounds_what_a_bad_token_can_cost(advantage, ratio, dual_clip, loss, slope, clipped):
    """At most dual_clip |A|, without a gradient beyond; it never touches good tokens."""
    new, one = torch.tensor([math.log(ratio)], dtype=F64, requires_grad=True), torch.ones(1, dtype=F64)
    found, sums = grpo_loss(new, 0 * one, advantage * one, one, dual_clip=dual_clip)
    found.backward()
    assert abs(float(found.detach()) - loss) <= 1e-14 and abs(float(new.grad) - slope) <= 1e-14
    assert int(sums["clipped_dual"]) == clipped


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, 0.0, -3.0, math.nan])
def test_a_dual_clip_that_is_not_above_one_is_refused(dual_clip):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="above 1"):
        grpo_loss(one, one, one, one, dual_clip=dual_clip)


def test_the_entropy_of_tokens_that_count_is_summed_up():
    one, entropy = torch.ones(4, dtype=F64), torch.tensor([0.25, 1.5, math.nan, 2.0], dtype=F64)
    weights = torch.tensor([0.1, 0.2, 0.0, 0.3], dtype=F64)
    assert float(grpo_loss(one, one, one, weights, entropy=entropy)[1]["entropy"]) == 3.75
    assert float(grpo_loss(one, one, one, weights)[1]["entropy"]) == 0


# grpo_loss: properties

def column(size, low=-4.0, high=4.0):
    floats = st.lists(st.floats(low, high, allow_subnormal=False), min_size=size, max_size=size)
    return floats.map(lambda x: torch.tensor(x, dtype=F64))


@st.composite
def cases(draw, masked=True):
    """(logprobs, old, advantages, weights, ref)"""
    n = draw(st.integers(1, 8))
    weights = draw(column(n, 0.01, 1.0))
    if masked:
        weights = weights * torch.tensor(draw(st.lists(st.sampled_from((0.0, 1.0)), min_size=n, max_size=n)))
    old = draw(column(n, -8, 0))
    return old + draw(column(n, -1, 1)), old, draw(column(n)), weights, old + draw(column(n, -1, 1))


def value_and_gradient(logprobs, old, advantages, weights, ref=None, **options):
    logprobs = logprobs.clone().requires_grad_()
    loss, sums = grpo_loss(logprobs, old, advantages, weights, ref_logprobs=ref, **options)
    loss.backward()
    return loss.detach(), logprobs.grad, sums


def ours_of(case, **options):
    logprobs, old, advantages, weights, ref = case
    return value_and_gradient(logprobs, old, advantages, weights, ref, **options)


properties = settings(max_examples=60, deadline=None)


@properties
@given(cases(), st.sampled_from((torch.nan, torch.inf, -torch.inf)), st.integers(0, 4))
def test_tokens_of_weight_zero_may_hold_anything_and_get_no_gradient(case, junk, where):
    loss, gradient, sums = ours_of(case, kl_coef=0.1)
    masked = case[3] == 0
    dirty = [torch.where(masked, junk, x) if i in (where, 4 - where) and i != 3 else x for i, x in enumerate(case)]
    again, dirty_gradient, dirty_sums = ours_of(dirty, kl_coef=0.1)
    assert torch.equal(loss, again) and torch.equal(gradient, dirty_gradient)
    assert all(torch.equal(sums[name], dirty_sums[name]) for name in sums)
    assert (gradient[masked] == 0).all() and loss.isfinite()


@properties
@given(cases())
def test_clipped_tokens_have_exactly_no_gradient_and_the_others_the_ratios(case):
    logprobs, old, advantages, weights, _ = case
    _, gradient, sums = value_and_gradient(logprobs, old, advantages, weights, clip_low=0.2, clip_high=0.28)
    ratio = (logprobs - old).exp()
    clipped = ((ratio > 1.28) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    assert (gradient[clipped] == 0).all()
    assert torch.allclose(gradient, torch.where(clipped, 0.0, -weights * advantages * ratio), rtol=1e-12, atol=1e-300)
    assert int(sums["clipped_low"] + sums["clipped_high"]) == int((clipped & (weights != 0)).sum())


@properties
@given(cases())
def test_on_policy_gradient_is_the_plain_policy_gradient(case):
    logprobs, _, advantages, weights, _ = case
    loss, gradient, _ = value_and_gradient(logprobs, logprobs, advantages, weights)
    assert torch.allclose(gradient, -weights * advantages, rtol=1e-14, atol=1e-300)
    assert torch.allclose(loss, -(weights * advantages).sum(), rtol=1e-14, atol=1e-14)


@properties
@given(cases(masked=False))
def test_kl_is_never_negative_and_zero_only_where_equal(case):
    logprobs, old, advantages, weights, ref = case
    for i in range(len(weights)):
        one = [x[i:i + 1] for x in case]
        kl = float(ours_of(one)[2]["kl"])
        assert kl >= 0 and (kl > 0 or abs(float(ref[i] - logprobs[i])) < 1e-7)
    assert ours_of((logprobs, old, advantages, weights, logprobs))[2]["kl"] == 0
    with_kl, without = ours_of(case, kl_coef=0.5)[1], ours_of(case)[1]
    derivative = 1 - (ref - logprobs).exp()
    assert torch.allclose(with_kl - without, 0.5 * weights * derivative, rtol=1e-9, atol=1e-12)


@properties
@given(cases())
def test_gradient_is_bounded_for_positive_advantages(case):
    logprobs, old, advantages, weights, _ = case
    _, gradient, _ = value_and_gradient(logprobs, old, advantages.abs(), weights)
    assert (gradient.abs() <= advantages.abs() * 1.28 * weights * (1 + 1e-12)).all()


@properties
@given(cases(), st.integers(0, 8))
def test_splitting_into_microbatches_does_not_change_the_sum(case, cut):
    whole = ours_of(case, kl_coef=0.1)
    parts = [ours_of([x[piece] for x in case], kl_coef=0.1) for piece in (slice(cut), slice(cut, None))]
    assert torch.allclose(parts[0][0] + parts[1][0], whole[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat([parts[0][1], parts[1][1]]), whole[1])
    for name in whole[2]:
        assert torch.allclose((parts[0][2][name] + parts[1][2][name]).to(F64), whole[2][name].to(F64), rtol=1e-12)


def test_a_huge_log_ratio_stays_finite():
    for difference in (-1000.0, 1000.0):
        for sign in (-1.0, 1.0):
            loss, gradient, _ = value_and_gradient(*(torch.tensor([x]) for x in (difference, 0.0, sign, 1.0, 0.0)),
                                                   kl_coef=0.1)
            assert loss.isfinite() and gradient.isfinite().all()


def test_grpo_loss_passes_gradcheck():
    """Away from the corners of clip and min."""
    ref = OLD - 0.2
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, OLD, ADVANTAGES, WEIGHTS["grpo"], ref_logprobs=ref,
                                                        kl_coef=0.3)[0], NEW.clone().requires_grad_())


# linear_logits

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_the_samplers_logits_are_not_rounded(dtype):
    hidden, weight, _ = inputs(5, dtype=dtype)
    logits, exact = linear_logits(hidden, weight), hidden.double() @ weight.double().T
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    assert (logits - exact).abs().max() <= 8 * torch.finfo(logits.dtype).eps * exact.abs().max()


@pytest.mark.parametrize("V", [1, 8, 61])
def test_the_sampler_widens_a_few_rows_of_the_head_at_a_time(V, monkeypatch):
    """One piece, a full one, and several with a shorter last one. A weight that changes in place counts at once."""
    monkeypatch.setattr(logprob, "IN_CACHE", 2 * 16 * 8)                       # eight rows of 16
    hidden, weight, _ = inputs(5, V=V, dtype=torch.bfloat16)
    for _ in range(2):
        exact = hidden.double() @ weight.double().T
        assert (linear_logits(hidden, weight) - exact).abs().max() <= 1e-5 * exact.abs().max()
        weight.mul_(-3)


# PLAIN

class OnGPU:
    """A device that says it is a GPU."""

    type = "cuda"


def test_plain_makes_every_function_run_its_reference(monkeypatch):
    """As if the tensors were on a GPU: the kernels run, and with PLAIN the references instead."""
    import kernels
    from kernels import backend, flash, use_triton
    grouped, loss, logprob, paged = (sys.modules[f"kernels.{name}"] for name in
                                     ("grouped_linear", "grpo_loss", "logprob", "paged_attention"))
    monkeypatch.setattr(backend, "AVAILABLE", True)
    monkeypatch.setattr(kernels, "use_triton", lambda device: use_triton(OnGPU))
    monkeypatch.setattr(flash, "_installed", lambda device, dtype: "cuda")
    ran = []

    def watch(owner, name, stand_in=None):
        function = stand_in or getattr(owner, name)

        def watched(*args, **kwargs):
            ran.append(name)
            return function(*args, **kwargs)
        monkeypatch.setattr(owner, name, watched)

    watch(loss, "grpo_loss_triton", loss.grpo_loss_plain)
    watch(loss, "grpo_loss_plain")
    watch(logprob, "statistics_triton", logprob.statistics_plain)
    watch(logprob, "statistics_plain")
    watch(paged, "paged_attention_plain", lambda *args: "plain")
    watch(paged, "paged_attention_triton", lambda *args: "triton")
    watch(grouped, "rows_plain")
    watch(grouped, "rows_grouped")
    watch(flash, "part_plain")
    watch(flash, "part_backward_plain")
    watch(torch.ops.aten, "_flash_attention_forward", lambda *args: (args[0], args[0][..., 0].transpose(1, 2)))
    watch(torch.ops.aten, "_flash_attention_backward", lambda grad, q, k, v, *args: (q, k, v))
    hidden, weight, targets = inputs(4)
    x = torch.randn(1, 4, 2, 8)

    def run_all():
        ran.clear()
        grpo_loss(*[torch.ones(4)] * 4)
        linear_logprob(hidden, weight, targets)
        kernels.paged_attention(x[0], x[0], x[0], 16, None, None)
        kernels.grouped_linear(torch.randn(4, 8), torch.randn(2, 8, 8), torch.tensor([1, 4]))
        out, lse = flash.part(x, x, x)
        flash.part_backward(x, x, x, x, out, lse)
        return list(ran)

    assert run_all() == ["grpo_loss_triton", "statistics_triton", "paged_attention_triton", "rows_grouped",
                         "_flash_attention_forward", "_flash_attention_backward"]
    monkeypatch.setattr(kernels, "PLAIN", True)
    assert run_all() == ["grpo_loss_plain", "statistics_plain", "paged_attention_plain", "rows_plain", "part_plain",
                         "part_backward_plain"]
    assert not kernels.is_one_call(torch.device("cuda"), torch.bfloat16, 64)
    assert not use_triton(torch.device("cuda")) and flash.flash_backend(torch.device("cpu"), F64) == ""
