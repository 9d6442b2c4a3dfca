"""Log-prob and entropy of target tokens, straight from hidden states.

For a position with hidden state h (C,), head W (V, C), temperature t and target y, with z = W h / t:

    top     = max z             log_sum = log sum_j exp(z_j - top)             log p_j = z_j - top - log_sum
    logprob = log p_y           entropy = -sum_j p_j log p_j = log_sum - sum_j p_j (z_j - top)

and, for gradients g of the logprob and e of the entropy,

    dz_j    = g (1[j = y] - p_j) - e p_j (log p_j + entropy)          dW = sum dz h^T / t          dh = W^T dz / t

Positions go through in chunks, and the backward pass computes each chunk's logits again. Between torch's products lies
one pass over each row: `statistics`, or `gradient` in the backward pass. Products keep their float32 accumulators,
because logits rounded to bfloat16 are off by 1e-2. top + log_sum would lose digits of log_sum, so both are kept.

Legend: N positions, n in a chunk, C hidden size, V vocabulary. `rows` (4, n) is logprob, entropy, top and log_sum.
"""

import torch
from torch.autograd.function import once_differentiable

from .backend import tl, triton, wide

Tensor = torch.Tensor
CHUNK_LOGITS = 1024 * 151_936           # in one chunk: 1,024 positions of Qwen2.5, 0.6 GB in float32
IN_CACHE = 2**19                        # logits the reference works on at once, so that they stay in a CPU's cache
LOWEST = -1e4                           # a floor for log-probs: its exponential is 0 in float64 too


def statistics_plain(logits: Tensor, targets: Tensor, rows: Tensor) -> None:
    """logits (n, V), targets (n,) -> rows (4, n). A logit of -inf is an impossible token."""
    for piece in _slices(len(logits), IN_CACHE // logits.shape[1]):
        z = logits[piece]
        logprob, entropy, top, log_sum = rows[:, piece]
        torch.amax(z, -1, out=top)
        d = (z - top[:, None]).clamp_(min=LOWEST)
        p = d.exp()
        total = p.sum(-1)
        torch.log(total, out=log_sum)
        torch.sub(log_sum, d.mul_(p).sum(-1) / total, out=entropy)
        torch.sub(z.gather(-1, targets[piece, None])[:, 0] - top, log_sum, out=logprob)


def gradient_plain(logits: Tensor, targets: Tensor, rows: Tensor, d_logprob: Tensor, d_entropy: Tensor | None,
                   out: Tensor) -> None:
    """Writes dz (n, V) into `out`, which may be the logits themselves. d_entropy None: the entropy is not used."""
    for piece in _slices(len(logits), IN_CACHE // logits.shape[1]):
        g = d_logprob[piece, None]
        _, entropy, top, log_sum = rows[:, piece, None]
        log_p = torch.sub(logits[piece], top).sub_(log_sum)
        if d_entropy is None:
            dz = log_p.exp_().mul_(-g)
        else:
            slope = (log_p.clamp(min=LOWEST) + entropy).mul_(d_entropy[piece, None]).add_(g)
            dz = log_p.exp_().mul_(slope).neg_()
        out[piece] = dz.scatter_add_(-1, targets[piece, None], g)


@triton.jit
def _floored(x):
    return tl.where(x < -1e4, -1e4, x)                                         # LOWEST; a NaN stays one


@triton.jit
def _statistics(logits, targets, rows, stride, rows_stride, V, BLOCK: tl.constexpr):
    """One program per row. Each of the BLOCK lanes keeps sums relative to its own top: total = sum exp(z - top) and
    weighted = sum exp(z - top) (z - top). At the end the lanes are merged."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    rows += row
    top = tl.full([BLOCK], -3e38, logits.dtype.element_ty)
    total = tl.zeros_like(top)
    weighted = tl.zeros_like(top)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < V, other=-float("inf"))
        higher = tl.maximum(top, z)
        fall = _floored(top - higher)
        d = _floored(z - higher)
        keep = tl.exp(fall)
        p = tl.exp(d)
        weighted = keep * (weighted + total * fall) + p * d
        total = keep * total + p
        top = higher
    highest = tl.max(top, 0)
    fall = _floored(top - highest)
    keep = tl.exp(fall)
    weighted_sum = tl.sum(keep * (weighted + total * fall), 0)
    total_sum = tl.sum(keep * total, 0)
    log_sum = tl.log(total_sum)
    target = tl.load(logits + tl.load(targets + row))
    tl.store(rows, target - highest - log_sum)
    tl.store(rows + rows_stride, log_sum - weighted_sum / total_sum)
    tl.store(rows + 2 * rows_stride, highest)
    tl.store(rows + 3 * rows_stride, log_sum)


@triton.jit
def _gradient(logits, targets, rows, d_logprob, d_entropy, out, stride, rows_stride, out_stride, V,
              BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    rows += row
    out += row * out_stride
    target = tl.load(targets + row)
    g = tl.load(d_logprob + row)
    entropy = tl.load(rows + rows_stride)
    top = tl.load(rows + 2 * rows_stride)
    log_sum = tl.load(rows + 3 * rows_stride)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        log_p = tl.load(logits + column, mask=column < V, other=0.0) - top - log_sum
        slope = g
        if d_entropy is not None:
            slope += tl.load(d_entropy + row) * (_floored(log_p) + entropy)
        dz = -slope * tl.exp(log_p)
        dz = tl.where(column == target, dz + g, dz)
        tl.store(out + column, dz.to(out.dtype.element_ty), mask=column < V)


def statistics_triton(logits, targets, rows) -> None:
    _statistics[(len(logits),)](logits, targets, rows, logits.stride(0), rows.stride(0), logits.shape[1], BLOCK=2048,
                                num_warps=8)


def gradient_triton(logits, targets, rows, d_logprob, d_entropy, out) -> None:
    _gradient[(len(logits),)](logits, targets, rows, d_logprob, d_entropy, out, logits.stride(0), rows.stride(0),
                              out.stride(0), logits.shape[1], BLOCK=2048, num_warps=8)


class LinearLogprob(torch.autograd.Function):
    """hidden (N, C), weight (V, C), targets (N,) -> logprobs (N,), entropy (N,), at most `chunk` positions at a time.
    The backward pass begins with the last chunk, whose logits are kept. So with one chunk no product is repeated."""
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk, statistics, gradient):
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.gradient = 1 / temperature, gradient
        h, w, targets = as_multiplied(hidden), as_multiplied(weight), targets.contiguous()
        N = len(h)
        ctx.size = -(-N // max(1, -(-N // chunk)))                             # of each chunk but the last
        ctx.logits = torch.empty(ctx.size, len(w), dtype=wide(h.dtype), device=h.device)
        rows = ctx.logits.new_empty(4, N)
        for piece in _slices(N, ctx.size):
            logits = product(h[piece], w.T, ctx.scale, out=ctx.logits[:len(h[piece])])
            statistics(logits, targets[piece], rows[:, piece])
        ctx.save_for_backward(hidden, weight, targets, rows)
        return rows[0].clone(), rows[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprob, d_entropy):
        hidden, weight, targets, rows = ctx.saved_tensors
        h, w = as_multiplied(hidden), as_multiplied(weight)
        d_logprob = torch.zeros_like(rows[0]) if d_logprob is None else d_logprob.contiguous()
        buffer, ctx.logits = ctx.logits, None
        is_ready = buffer is not None                                          # not in a second backward pass
        buffer = buffer if is_ready else rows.new_empty(ctx.size, len(w))
        dz_buffer = buffer if h.dtype == buffer.dtype else torch.empty_like(buffer, dtype=h.dtype)
        dh = rows.new_empty(h.shape) if ctx.needs_input_grad[0] else None
        dw = rows.new_zeros(w.shape) if ctx.needs_input_grad[1] else None
        for piece in reversed(_slices(len(h), ctx.size)):
            n = piece.stop - piece.start
            logits, dz = buffer[:n], dz_buffer[:n]
            if not is_ready:
                product(h[piece], w.T, ctx.scale, out=logits)
            is_ready = False
            d_entropies = None if d_entropy is None else d_entropy[piece].contiguous()
            ctx.gradient(logits, targets[piece], rows[:, piece], d_logprob[piece], d_entropies, out=dz)
            if dh is not None:
                product(dz, w, ctx.scale, out=dh[piece])
            if dw is not None:
                product(dz.T, h[piece], ctx.scale, out=dw, add=True)
        return dh, dw, None, None, None, None, None


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size or 1)]


def as_multiplied(x: Tensor) -> Tensor:
    """x in the type of the products. On a CPU, bfloat16 products do not keep their accumulators."""
    return x if x.is_cuda else x.to(wide(x.dtype))


def linear_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (N, C), weight (V, C) -> logits (N, V) for the sampler, in float32 at least, as exact as the trainer's.
    Without gradient. On a CPU, narrow weights are widened some rows at a time, in a buffer that stays in its cache."""
    dtype = wide(hidden.dtype)
    if hidden.dtype == dtype:
        return torch.nn.functional.linear(hidden, weight)
    if hidden.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=dtype)
    hidden, (V, C) = hidden.to(dtype), weight.shape
    logits = hidden.new_empty(len(hidden), V)
    pieces = _slices(V, IN_CACHE // 2 // C)
    buffer = hidden.new_empty(pieces[0].stop, C)
    for piece in pieces:
        rows = weight[piece]
        wider = buffer[:len(rows)].copy_(rows)
        torch.mm(hidden, wider.T, out=logits[:, piece])
    return logits


def product(a: Tensor, b: Tensor, scale: float, out: Tensor, add: bool = False) -> Tensor:
    """out = scale a b, or with `add` out += scale a b, summed in the dtype of out."""
    options = {} if a.dtype == out.dtype else {"out_dtype": out.dtype}
    return torch.addmm(out, a, b, **options, beta=int(add), alpha=scale, out=out)
