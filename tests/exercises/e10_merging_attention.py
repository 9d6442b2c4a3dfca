"""Merging attention"""

import torch
from hypothesis import strategies as st

FILE = "kernels/flash.py"
WRITE = ("part_plain", "merge")
TESTS = ["tests/test_attention.py", "-k", "merge or part_equals or twin"]
TRAIN = None

CASES = st.fixed_dictionaries({"seed": st.integers(0, 999), "keys": st.tuples(st.integers(1, 4), st.integers(1, 4)),
                               "queries": st.integers(1, 3), "size": st.sampled_from([1.0, 30.0, 2000.0])})


def inputs(seed, keys, queries, size):
    """q (1, queries, 4, 8), and k and v (1, both parts, 2, 8): two query heads for each head of keys."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, T, H, 8, generator=generator, dtype=torch.float64, requires_grad=True).mul(scale)
            for T, H, scale in ((queries, 4, size), (sum(keys), 2, 1.0), (sum(keys), 2, 1.0))]


def in_parts(m, q, k, v, cut):
    parts = [m.part_plain(q, k[:, piece], v[:, piece]) for piece in (slice(cut), slice(cut, None))]
    return m.merge(*parts[0], *parts[1])


def answer(m, seed, keys, queries, size):
    q, k, v = inputs(seed, keys, queries, size)
    return in_parts(m, q, k, v, keys[0]), m.part_plain(q, k, v)[1]


def whole(q, k, v):
    """Attention over all keys by torch, with its gradients."""
    k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def equals_joint_attention(m, seed, keys, queries, size):
    """Two parts, merged, are the attention over all keys, also for scores so large that exp overflows"""
    q, k, v = inputs(seed, keys, queries, size)
    assert torch.allclose(in_parts(m, q, k, v, keys[0]), whole(q, k, v), rtol=0, atol=1e-9)


def order_is_irrelevant(m, seed, keys, queries):
    """The order of the parts does not matter"""
    q, k, v = inputs(seed, keys, queries, 3.0)
    first, second = m.part_plain(q, k[:, :1], v[:, :1]), m.part_plain(q, k[:, 1:], v[:, 1:])
    assert torch.allclose(m.merge(*first, *second), m.merge(*second, *first), rtol=0, atol=1e-12)


def an_empty_part_changes_nothing(m, seed, keys, queries):
    """A part without keys has lse = -inf: merged with it, the other part stays as it is"""
    out, lse = m.part_plain(*inputs(seed, keys, queries, 1.0))
    nothing = torch.full_like(lse, -torch.inf)
    assert torch.equal(m.merge(out, lse, torch.zeros_like(out), nothing), out)


def gradients(m, seed, keys, queries):
    """The gradients of q, k and v are those of the attention over all keys"""
    q, k, v = inputs(seed, keys, queries, 1.0)
    ours = torch.autograd.grad(in_parts(m, q, k, v, 1).sin().sum(), (q, k, v))
    theirs = torch.autograd.grad(whole(q, k, v).sin().sum(), (q, k, v))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(ours, theirs))


LAWS = (equals_joint_attention, order_is_irrelevant, an_empty_part_changes_nothing, gradients)
WRONG = (
    ("both parts count the same, however many keys they have", "torch.sigmoid(lse_1 - lse_2)",
     "torch.full_like(lse_1, 0.5)"),
    ("the parts are swapped: each gets the other one's share", "torch.sigmoid(lse_1 - lse_2)",
     "torch.sigmoid(lse_2 - lse_1)"),
    ("exp(lse) is computed without subtracting the largest one, so it overflows", "torch.sigmoid(lse_1 - lse_2)",
     "lse_1.exp() / (lse_1.exp() + lse_2.exp())"),
    ("the parts are added, not averaged with shares", "out_1 * share + out_2 * (1 - share)", "out_1 + out_2"),
    ("the sum of exp is returned without the logarithm", "return _regroup(out, q).to(q.dtype), _regroup(lse, q)",
     "return _regroup(out, q).to(q.dtype), _regroup(lse, q).exp()"))
