"""A linear map per group of rows: the experts of a mixture, each over the tokens that chose it.

Legend: S rows sorted by group, N outputs, C inputs, E groups, some of them empty. Group e: rows ends[e - 1] to ends[e].

    out[s] = x[s] W[e]^T,      dx[s] = dout[s] W[e],      dW[e] = dout[rows of e]^T x[rows of e]

On a Hopper or Blackwell GPU in bfloat16, each is one call of torch's grouped_mm, which a CUDA graph can capture.
Elsewhere grouped_mm is a loop that fetches `ends` (pytorch issue 169970), faster than ours only on a CPU in float32.
It does not take float64, or rows of no multiple of 16 bytes.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

import kernels

Tensor = torch.Tensor


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor, grouped: bool | None = None) -> Tensor:
    """x (S, C), weight (E, N, C), ends (E,) non-decreasing integers up to S -> (S, N), differentiable in x and weight.
    grouped: whether torch's grouped_mm computes it (None: where it is faster)."""
    if grouped is None:
        widths = weight.shape[1:]
        fast_on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and are_aligned(x.dtype, *widths)
        grouped = not kernels.PLAIN and (fast_on_cpu or is_one_call(x.device, x.dtype, *widths))
    return GroupedLinear.apply(x, weight, ends, grouped)


def is_one_call(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Whether torch multiplies rows of these widths in one kernel, without fetching anything from the GPU."""
    possible = not kernels.PLAIN and device.type == "cuda" and dtype == torch.bfloat16 and are_aligned(dtype, *widths)
    return possible and torch.cuda.get_device_capability(device)[0] in (9, 10)


def are_aligned(dtype: torch.dtype, *widths: int) -> bool:
    return not any(width * dtype.itemsize % 16 for width in widths)


class GroupedLinear(torch.autograd.Function):
    """Our own backward pass: torch would keep a gradient as large as `weight` for every group of a loop."""
    @staticmethod
    def forward(ctx, x, weight, ends, grouped):
        ctx.save_for_backward(x, weight, ends)
        ctx.grouped = grouped
        return rows_grouped(x, weight.mT, ends) if grouped else rows_plain(x, weight.mT, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        rows, weights = (rows_grouped, weights_grouped) if ctx.grouped else (rows_plain, weights_plain)
        dx = rows(grad, weight, ends) if ctx.needs_input_grad[0] else None
        dw = weights(grad, x, ends) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def rows_plain(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x (S, C), weight (E, C, N) -> (S, N)"""
    out = x.new_empty(len(x), weight.shape[2])
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[group], out=out[start:end])
        start = end
    return out


def weights_plain(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """grad (S, N), x (S, C) -> (E, N, C), zero for an empty group"""
    out = x.new_empty(len(ends), grad.shape[1], x.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(grad[start:end].T, x[start:end], out=out[group])
        start = end
    return out


def rows_grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(x, weight, offs=ends.int())


def weights_grouped(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """weights_plain in one call. torch's kernel leaves anything in an empty group on a GPU (pytorch issue 172439)."""
    out = F.grouped_mm(grad.T, x, offs=ends.int())
    sizes = torch.diff(ends, prepend=ends.new_zeros(1))
    return out.masked_fill_((sizes == 0)[:, None, None], 0) if x.is_cuda else out
