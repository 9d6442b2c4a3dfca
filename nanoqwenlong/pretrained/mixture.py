"""A mixture of experts in place of an MLP: each token goes through the k experts its router likes best (Qwen3-MoE).

Legend: T tokens, C hidden size, E experts, k of them for each token, so T k pairs of a token and an expert.
"""

import torch
import torch.nn.functional as F
from kernels import grouped_linear
from torch import nn

from .config import ModelConfig

Tensor = torch.Tensor


class Mixture(nn.Module):
    """x (T, C) -> (T, C). load (E,): how often each expert was chosen in passes with a gradient since the last
    take_loads. Dummy calls, which have one token, do not count. Under checkpointing every choice counts twice."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate = nn.Linear(c.hidden_size, c.num_experts, bias=False)
        self.experts = Experts(c)
        self.k = c.num_experts_per_tok
        self.normalised = c.norm_topk_prob
        self.load: Tensor | None = None

    def forward(self, x):
        # 1. Route: the k experts of each token, and their shares in its output.
        wide = torch.promote_types(x.dtype, torch.float32)
        shares, chosen = self.gate(x).softmax(-1, dtype=wide).topk(self.k)     # (T, k) each
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        # 2. Sort the pairs by expert. Expert e gets the rows ends[e - 1] to ends[e].
        by_expert, order = chosen.flatten().sort(stable=True)                  # (T k,) each
        experts = torch.arange(self.gate.out_features, device=x.device)
        ends = torch.searchsorted(by_expert, experts, right=True)              # (E,)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        place = place.view_as(chosen)                                          # (T, k), the inverse of order
        if torch.is_grad_enabled() and len(x) > 1:
            load = torch.diff(ends, prepend=ends.new_zeros(1))
            self.load = load if self.load is None else self.load + load
        # 3. Run the experts and sum the k outputs of each token.
        rows = Dispatch.apply(x, order, place)                                 # (T k, C)
        shares = shares.flatten().gather(0, order)[:, None].to(x.dtype)        # (T k, 1)
        return Combine.apply(self.experts(rows, shares, ends), order, place)


def take_loads(model: nn.Module) -> list[list[int]]:
    """Each mixture layer's load (E,), which begins anew. Empty for a dense model, or if there were no tokens."""
    loads = []
    for module in model.modules():
        if isinstance(module, Mixture):
            loads.append([0] * model.config.num_experts if module.load is None else module.load.tolist())
            module.load = None
    return loads if any(map(any, loads)) else []


class Experts(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(c.num_experts, c.hidden_size, c.moe_intermediate_size))

    def forward(self, x, shares, ends):
        """x (T k, C) sorted by expert, shares (T k, 1), ends (E,) of each expert's rows -> (T k, C). The shares go in
        before the last product, so that its output need not be kept."""
        gate, up = grouped_linear(x, self.gate_up_proj, ends).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate) * up * shares, self.down_proj, ends)


class Dispatch(torch.autograd.Function):
    """x (T, C) -> (T k, C): the row of each pair's token, in the `order` (T k,) of the pairs by expert. place (T, k) is
    the inverse of order. Unlike the gradient of an index on a GPU, this one has the same bits every time."""
    @staticmethod
    def forward(ctx, x, order, place):
        ctx.save_for_backward(order, place)
        return x.index_select(0, order // place.shape[1])

    @staticmethod
    def backward(ctx, grad):
        return Combine.apply(grad, *ctx.saved_tensors), None, None


class Combine(torch.autograd.Function):
    """The transpose of Dispatch: rows (T k, C) -> (T, C), the sum over each token's pairs."""
    @staticmethod
    def forward(ctx, rows, order, place):
        ctx.save_for_backward(order, place)
        return F.embedding_bag(place, rows, mode="sum")

    @staticmethod
    def backward(ctx, grad):
        return Dispatch.apply(grad, *ctx.saved_tensors), None, None
