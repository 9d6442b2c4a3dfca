"""grouped_linear, as a loop and in torch's one call, against one linear map per row in float64."""

import sys

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from kernels import grouped_linear

SPLITS = {"even": [3, 3, 3], "the first empty": [0, 4, 5], "the last empty": [4, 5, 0],
          "the middle empty": [4, 0, 0, 5], "all in one": [0, 9, 0], "all in the first": [9, 0], "one group": [5],
          "no rows": [0, 0, 0], "one row": [0, 1, 0], "one each": [1, 1, 1, 1]}
FORMS = [(False, torch.float64, 1e-14), (False, torch.float32, 1e-6), (False, torch.bfloat16, 2**-7),
         (True, torch.float32, 1e-6), (True, torch.bfloat16, 2**-7)]           # grouped_mm knows no float64


def inputs(sizes: list[int], dtype: torch.dtype, N: int = 8, C: int = 16, seed: int = 0):
    """x (S, C), weight (E, N, C), what the gradient of the output is (S, N), ends (E,)"""
    g = torch.Generator().manual_seed(seed)
    x, weight, grad = (torch.randn(*shape, generator=g).to(dtype) for shape in (
        (sum(sizes), C), (len(sizes), N, C), (sum(sizes), N)))
    return x, weight, grad, torch.tensor(sizes).cumsum(0)


def ours(x, weight, grad, ends, grouped):
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    out = grouped_linear(x, weight, ends, grouped)
    out.backward(grad)
    return out.detach(), x.grad, weight.grad


def row_by_row(x, weight, grad, ends):
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    group = torch.searchsorted(ends, torch.arange(len(x)), right=True).tolist()
    out = torch.stack([F.linear(row, weight[e]) for row, e in zip(x, group)]) if len(x) else x @ weight[0].T
    out.backward(grad.double())
    return out.detach(), x.grad, weight.grad


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("grouped, dtype, bar", FORMS)
def test_values_and_gradients_equal_a_linear_map_per_row(grouped, dtype, bar, split):
    """Relative to the largest; an empty group's gradient is zero to the last bit."""
    sizes = SPLITS[split]
    case = inputs(sizes, dtype)
    found = ours(*case, grouped)
    for a, b in zip(found, row_by_row(*case), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert not a.numel() or (a.double() - b).abs().max() <= bar * max(1, b.abs().max())
    for e, size in enumerate(sizes):
        assert found[2][e].any() == (size > 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 9))
def test_any_split_of_any_size(sizes, N, C):
    case = inputs(sizes, torch.float64, N, C)
    for a, b in zip(ours(*case, False), row_by_row(*case), strict=True):
        assert a.shape == b.shape and (not a.numel() or (a - b).abs().max() <= 1e-13)


@pytest.mark.parametrize("grouped, dtype", [(False, torch.float64), (True, torch.float32)])
def test_a_gradient_that_does_not_lie_in_rows(grouped, dtype):
    """Of a sum (one number, expanded) and of a transposed product."""
    x, weight, grad, ends = inputs([2, 0, 4], dtype)
    for other in (torch.ones((), dtype=dtype).expand_as(grad), grad.T.contiguous().T):
        assert not other.is_contiguous()
        for a, b in zip(ours(x, weight, other, ends, grouped), ours(x, weight, other.contiguous(), ends, grouped)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [[2, 0, 3], [0, 2]])
def test_gradcheck(sizes):
    x, weight, _, ends = inputs(sizes, torch.float64, 3, 4)
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, ends), (x.requires_grad_(),
                                                                             weight.requires_grad_()))


@pytest.mark.parametrize("grouped", [False, True])
def test_only_what_is_asked_for_is_computed(grouped, monkeypatch):
    module, made = sys.modules["kernels.grouped_linear"], []
    for name in ("rows_plain", "weights_plain", "rows_grouped", "weights_grouped"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, function=function: (made.append(name),
                                                                                       function(*args))[1])
    x, weight, grad, ends = inputs([2, 3], torch.float32)
    form = "grouped" if grouped else "plain"
    for wanted, calls in (((True, False), ["rows", "rows"]), ((False, True), ["rows", "weights"])):
        made.clear()
        pair = [t.clone().requires_grad_(w) for t, w in zip((x, weight), wanted)]
        grouped_linear(*pair, ends, grouped).backward(grad)
        assert made == [f"{call}_{form}" for call in calls] and [t.grad is not None for t in pair] == [*wanted]


def test_the_loop_is_taken_on_a_cpu(monkeypatch):
    """Whatever the dtype: there torch's call is a loop as well, or not to be had."""
    def fail(*args):
        raise AssertionError("grouped_mm on a CPU")
    monkeypatch.setattr(sys.modules["kernels.grouped_linear"], "rows_grouped", fail)
    for dtype, C in ((torch.float64, 16), (torch.bfloat16, 16), (torch.float32, 6)):     # 6: 24 bytes, not of 16
        x, weight, _, ends = inputs([2, 3], dtype, C=C)
        grouped_linear(x, weight, ends)
