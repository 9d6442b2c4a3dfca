"""Attention to a stem and to what follows it: the parts and their merge against the plain twins and the formula."""

import itertools
import random

import hypothesis.strategies as st
import kernels
import pytest
import torch
from hypothesis import given, settings
from kernels import flash
from kernels.flash import attention, merge, part, part_backward, part_backward_plain, part_plain

import nanoqwenlong.attention as attention_module
from nanoqwenlong.attention import Packed, StemAttention, buckets, stem_attention_plain

HEADS = [(4, 4), (4, 2), (6, 1)]                                               # H, K


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def family(P, lengths, H, K, D=8, scale=1.0):
    """q, k, v of the branches, and the stem's k and v; with gradients."""
    T = sum(lengths)
    shapes = [(T, H, D), (T, K, D), (T, K, D), (P, K, D), (P, K, D)]
    return [normal(*shape, seed=i, scale=scale).requires_grad_() for i, shape in enumerate(shapes)]


def values_and_gradients(function, tensors, last):
    out = function(*tensors, last)
    return [out, *torch.autograd.grad((out * normal(*out.shape, seed=9)).sum(), tensors)]


@pytest.mark.parametrize("H, K", HEADS)
@pytest.mark.parametrize("lengths", [[1], [5], [3, 3, 3], [1, 9, 2, 2, 7], [40, 1, 1, 1]])
@pytest.mark.parametrize("P", [1, 7, 600])
def test_stem_attention_equals_its_twin(P, lengths, H, K):
    """Values and all five gradients; scores up to +-50, so that one part often weighs nothing beside the other."""
    for scale in (1.0, 4.0):
        tensors = family(P, lengths, H, K, scale=scale)
        fast = values_and_gradients(StemAttention.apply, tensors, buckets(lengths))
        plain = values_and_gradients(stem_attention_plain, tensors, lengths)
        for a, b in zip(fast, plain, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


def test_stem_attention_passes_gradcheck():
    assert torch.autograd.gradcheck(lambda *tensors: StemAttention.apply(*tensors, buckets([1, 4, 3])),
                                    family(5, [1, 4, 3], 4, 2), eps=1e-6, atol=1e-6)


def test_the_twin_is_the_formula():
    """Each token's softmax written out: the stem, then its own branch up to itself."""
    P, lengths, H, K = 5, [1, 4, 3], 4, 2
    q, k, v, stem_k, stem_v = family(P, lengths, H, K)
    out, token = stem_attention_plain(q, k, v, stem_k, stem_v, lengths), 0
    for start, length in zip(itertools.accumulate(lengths, initial=0), lengths):
        for end in range(start + 1, start + length + 1):
            keys, values = torch.cat([stem_k, k[start:end]]), torch.cat([stem_v, v[start:end]])
            for h in range(H):
                weights = (keys[:, h // 2] @ q[token, h] / 8 ** 0.5).softmax(0)
                assert (weights @ values[:, h // 2] - out[token, h]).abs().max() <= 1e-12
            token += 1
    assert token == len(q)


@pytest.mark.parametrize("H, K", HEADS)
@pytest.mark.parametrize("causal, masked", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_part_equals_its_twin_and_torch(H, K, causal, masked, dtype, bar):
    q, k, v = (normal(3, 6, heads, 8, seed=heads + i, dtype=dtype, scale=3.0) for i, heads in enumerate((H, K, K)))
    mask = torch.zeros(3, 1, 1, 6, dtype=dtype)
    mask[0, ..., :2], mask[2, ..., 3:] = -torch.inf, -torch.inf
    mask = mask if masked else None
    found, twin = part(q, k, v, causal, mask), part_plain(q, k, v, causal, mask)
    for a, b in zip(found, twin, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= bar * (1 + b.abs().max())
    if not masked:
        assert (found[0] - attention(q, k, v, causal)).abs().max() <= bar * 10


@pytest.mark.parametrize("H, K", HEADS)
@pytest.mark.parametrize("causal", [False, True])
def test_part_backward_equals_its_reference(H, K, causal):
    """Of a part whose lse and out were merged with another part."""
    q, k, v = (normal(3, 6, heads, 8, seed=heads + i) for i, heads in enumerate((H, K, K)))
    out, lse = part_plain(q, k, v, causal)
    other = normal(3, 6, H, 8, seed=20), normal(3, 6, H, 1, seed=21)
    merged, merged_lse = merge(out, lse, *other), torch.logaddexp(lse, other[1])
    grad = normal(3, 6, H, 8, seed=22)
    arguments = grad, q, k, v, merged, merged_lse, causal
    for a, b in zip(part_backward(*arguments), part_backward_plain(*arguments), strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


@pytest.mark.parametrize("causal", [False, True])
def test_part_backward_in_bfloat16_is_the_exact_one_rounded_once(causal):
    q, k, v, grad = (normal(3, 6, heads, 8, seed=heads + i).bfloat16() for i, heads in enumerate((4, 2, 2, 4)))
    out, lse = part(q, k, v, causal)
    rounded = part_backward(grad, q, k, v, out, lse, causal)
    exact = part_backward_plain(*(x.double() for x in (grad, q, k, v, out, lse)), causal)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.bfloat16 and (a - b).abs().max() <= 2**-8 * b.abs().max()


def test_plain_attention_also_sees_keys_that_come_before_the_queries(monkeypatch):
    q, k, v = normal(2, 3, 4, 8), normal(2, 9, 2, 8, seed=1), normal(2, 9, 2, 8, seed=2)
    ours = attention(q, k, v, causal=True)
    monkeypatch.setattr(kernels, "PLAIN", True)
    assert (attention(q, k, v, causal=True) - ours).abs().max() <= 1e-12


@pytest.mark.parametrize("shift", [0.0, 40.0, -40.0, 1000.0])
def test_merged_parts_are_the_softmax_over_all_keys(shift):
    """Also when one part outweighs the other by more than exp can hold."""
    q, k, v = normal(2, 3, 4, 8), normal(2, 30, 4, 8, seed=1), normal(2, 30, 4, 8, seed=2)
    k[:, 10:] += shift * q.mean((0, 1, 2))
    whole, lse = part_plain(q, k, v)
    (out_1, lse_1), (out_2, lse_2) = (part(q, k[:, keys], v[:, keys]) for keys in (slice(0, 10), slice(10, 30)))
    assert (merge(out_1, lse_1, out_2, lse_2) - whole).abs().max() <= 1e-12
    assert (torch.logaddexp(lse_1, lse_2) - lse).abs().max() <= 1e-11 * (1 + lse.abs().max())
    nothing = torch.zeros_like(out_1), torch.full_like(lse_1, -torch.inf)
    assert torch.equal(merge(*nothing, out_2, lse_2), out_2) and torch.equal(merge(out_2, lse_2, *nothing), out_2)


def test_merge_keeps_bf16_out_of_the_sum():
    out_1, out_2 = (normal(50, 8, seed=i).bfloat16() for i in (1, 2))
    lse_1, lse_2 = normal(50, 1, seed=3, dtype=torch.float32), normal(50, 1, seed=4, dtype=torch.float32)
    exact = merge(out_1.double(), lse_1.double(), out_2.double(), lse_2.double())
    found = merge(out_1, lse_1, out_2, lse_2)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_buckets_cover_every_token_once_and_waste_little(lengths):
    found, x = buckets(lengths), torch.arange(sum(lengths) * 6).view(-1, 2, 3)
    assert [bucket.start for bucket in found] == [0] + [bucket.end for bucket in found[:-1]]
    assert sum(bucket.S for bucket in found) == len(lengths) and found[-1].end == sum(lengths)
    sequences = iter(x.split(lengths))
    for bucket in found:
        (padded,) = bucket.pad(x)
        assert padded.shape == (bucket.S, bucket.n, 2, 3)
        assert torch.equal(bucket.unpad(padded), x[bucket.start:bucket.end])
        assert bucket.S * bucket.n <= 1.25 * (bucket.end - bucket.start)
        for row, sequence in zip(padded, sequences):
            assert torch.equal(row[:len(sequence)], sequence) and not row[len(sequence):].any()


@pytest.mark.parametrize("stem", [False, True])
def test_packed_sequences_do_not_see_each_other(stem):
    """What stands in one sequence leaves the others' values alone, and gets no gradient from them."""
    rng = random.Random(0)
    for _ in range(20):
        lengths = [rng.randint(1, 9) for _ in range(rng.randint(2, 6))]
        q, k, v, stem_k, stem_v = family(6, lengths, 4, 2)
        packed = Packed([0, *itertools.accumulate(lengths)], [(stem_k, stem_v)] if stem else None)
        (out,) = (packed(0, q, k, v).split(lengths)[-1],)
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        before = sum(lengths[:-1])
        assert not any(g[:before].any() for g in gradients) and all(g[before:].any() for g in gradients[1:])


# On a GPU

def flash_on_gpu(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug):
    """aten._flash_attention_forward by its documented layout, computed by the twin: (B, n, H, D), lse (B, H, n)."""
    assert (cu_q, cu_k, max_q, max_k, dropout, debug) == (None, None, q.shape[1], k.shape[1], 0.0, False)
    out, lse = part_plain(q, k, v, causal)
    return out, lse[..., 0].transpose(1, 2), torch.zeros(2), torch.empty(0), torch.empty(0)


def flash_backward_on_gpu(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused):
    """aten._flash_attention_backward likewise: weights from the given lse, row sums from the given out."""
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.is_contiguous() and rng_state.shape == (2,)
    assert (max_q, max_k, dropout) == (q.shape[1], k.shape[1], 0.0)
    repeat = q.shape[2] // k.shape[2]
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(repeat, 2)) * q.shape[-1] ** -0.5
    weights = (scores - lse[..., None]).exp()
    if causal:
        weights = weights.tril()
    d_weights = torch.einsum("bihd,bjhd->bhij", grad, v.repeat_interleave(repeat, 2))
    d_scores = weights * (d_weights - (grad * out).sum(-1).transpose(1, 2)[..., None]) * q.shape[-1] ** -0.5
    dq = torch.einsum("bhij,bjhd->bihd", d_scores, k.repeat_interleave(repeat, 2))
    dk, dv = (torch.einsum("bhij,bihd->bjhd", x, y).unflatten(2, (-1, repeat)).sum(3)
              for x, y in ((d_scores, q), (weights, grad)))
    return dq, dk, dv


def test_the_way_to_a_gpus_flash_kernels(monkeypatch):
    """There is no GPU in most tests, so the kernels are stood in for; what torch says about their shapes is checked."""
    for module in (flash, attention_module):
        monkeypatch.setattr(module, "flash_backend", lambda device, dtype: "cuda")
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_on_gpu)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", flash_backward_on_gpu)
    generator, lengths = torch.Generator().manual_seed(0), [1, 4, 5, 30, 2]
    q, k, v, stem_k, stem_v = (torch.randn(n, heads, 8, generator=generator, dtype=torch.float64, requires_grad=True)
                               for n, heads in ((42, 6), (42, 2), (42, 2), (17, 2), (17, 2)))
    found = []
    for out in (StemAttention.apply(q, k, v, stem_k, stem_v, buckets(lengths)),
                stem_attention_plain(q, k, v, stem_k, stem_v, lengths)):
        found.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v, stem_k, stem_v))])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12


def test_what_torch_says_about_its_flash_kernels():
    """None for the offsets of sequences of equal length, fewer key-value heads, the shape of lse: on meta tensors."""
    q, k = (torch.empty(2, n, heads, 64, dtype=torch.bfloat16, device="meta") for n, heads in ((5, 8), (9, 2)))
    out, lse, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(q, k, k, None, None, 5, 9, 0.0, False,
                                                                             False)
    assert out.shape == q.shape and lse.shape == (2, 8, 5) and lse.dtype == torch.float32
    gradients = torch.ops.aten._flash_attention_backward(q, q, k, k, out, lse, None, None, 5, 9, 0.0, False, rng_state,
                                                         unused)
    assert [g.shape for g in gradients] == [q.shape, k.shape, k.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_branches_behind_a_stem_on_a_gpu(dtype):
    """Against float64, at most twice the error of the twin in the same type, and a unit in the last place."""
    generator, lengths = torch.Generator().manual_seed(0), [100, 130, 64, 1]
    case = [torch.randn(n, heads, 64, generator=generator) for n, heads in ((295, 6), (295, 2), (295, 2), (500, 2),
                                                                            (500, 2))]

    def run(function, dtype):
        inputs = [x.to("cuda", dtype).requires_grad_() for x in case]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    def ours(q, k, v, *stem):
        return Packed([0, 100, 230, 294, 295], [stem], "cuda")(0, q, k, v)

    def twin(*inputs):
        return stem_attention_plain(*inputs, lengths)

    for a, b, true in zip(run(ours, dtype), run(twin, dtype), run(twin, torch.float64), strict=True):
        ulp = torch.finfo(dtype).eps * true.abs().max()
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + ulp


@pytest.mark.parametrize("capability, installed, dtype, kernels, said", [
    ((9, 0), False, torch.bfloat16, "cuda", "flash-attention 2"), ((9, 0), True, torch.float16, "cuda", "attention 3"),
    ((8, 6), True, torch.bfloat16, "cuda", "flash-attention 2"), ((7, 5), False, torch.float16, "", "scaled_dot"),
    ((9, 0), True, torch.float32, "", "scaled_dot")])
def test_the_choice_for_a_gpu_is_made_once_and_said(monkeypatch, capsys, capability, installed, dtype, kernels, said):
    activated = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(flash, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
    flash._installed.cache_clear()
    try:
        assert [flash.flash_backend(torch.device("cuda", 0), dtype) for _ in range(3)] == [kernels] * 3
    finally:
        flash._installed.cache_clear()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("attention") and said in line
    assert activated == (["FA3"] if "attention 3" in said else [])
    assert flash.flash_backend(torch.device("cpu"), dtype) == "cpu" and not capsys.readouterr().out
