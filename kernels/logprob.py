"""Log-prob and entropy of target tokens, straight from hidden states.

For a position with hidden state h (C,), head W (V, C), temperature t and target y, with z = W h / t:

    top     = max z             log_sum = log sum_j exp(z_j - top)             log p_j = z_j - top - log_sum
    logprob = log p_y           entropy = -sum_j p_j log p_j = log_sum - sum_j p_j (z_j - top)

and, for gradients g of the logprob and e of the entropy,

    dz_j    = g (1[j = y] - p_j) - e p_j (log p_j + entropy)          dW = sum dz h^T / t          dh = W^T dz / t

Logits are made in blocks, some positions times some words, and the backward pass computes each block again. A GPU takes
all words of a few positions. A CPU takes some words of all positions, so it reads the head once. Between torch's
products lies one pass over each row of a block: `statistics`, or `gradient` in the backward pass. Products keep their
float32 accumulators, because logits rounded to bfloat16 are off by 1e-2. top + log_sum would lose digits of log_sum, so
both are kept.

Legend: N positions, C hidden size, V vocabulary, a block has n positions and v words. `rows` (4, n) is logprob,
entropy, top and log_sum.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch.autograd.function import once_differentiable

from .backend import tl, triton, wide

Tensor = torch.Tensor
CHUNK_LOGITS = 1024 * 151_936           # of a block on a GPU: 1,024 positions of Qwen2.5, 0.6 GB in float32
BLOCK_LOGITS = 40_000_000               # of a block on a CPU: 160 MB in float32
TALL = 4096                             # positions of a block on a CPU, if not all logits are one block
IN_CACHE = 2**19                        # numbers the reference works on at once, so that they stay in a CPU's cache
LOWEST = -1e4                           # a floor for log-probs: its exponential is 0 in float64 too


def statistics_plain(logits: Tensor, targets: Tensor, rows: Tensor) -> None:
    """logits (n, v), targets (n,) -> rows (4, n). A logit of -inf is an impossible token. If a target is not among the
    words of the block, its logprob is that of another word (see merge)."""
    targets = targets.clamp(0, logits.shape[1] - 1)
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
    """Writes dz (n, v) into `out`, which may be the logits themselves. d_entropy None: the entropy is not used."""
    words = targets.clamp(0, logits.shape[1] - 1)
    d_target = torch.where(targets == words, d_logprob, 0.0)
    for piece in _slices(len(logits), IN_CACHE // logits.shape[1]):
        g = d_logprob[piece, None]
        _, entropy, top, log_sum = rows[:, piece, None]
        log_p = torch.sub(logits[piece], top).sub_(log_sum)
        if d_entropy is None:
            dz = log_p.exp_().mul_(-g)
        else:
            slope = (log_p.clamp(min=LOWEST) + entropy).mul_(d_entropy[piece, None]).add_(g)
            dz = log_p.exp_().mul_(slope).neg_()
        out[piece] = dz.scatter_add_(-1, words[piece, None], d_target[piece, None])


def merge(parts: Tensor, holds: Tensor) -> Tensor:
    """The rows (4, n) of whole positions from those of the P blocks that hold their words (P, 4, n). holds (P, n):
    whether the target is in the block."""
    logprob, entropy, tops, log_sums = parts.unbind(1)                         # (P, n) each
    top = tops.amax(0)
    falls = tops - top
    logs = falls + log_sums
    log_sum = logs.logsumexp(0)
    share = (logs - log_sum).exp()                                             # the probability of the block's words
    mean = (share * (logs - entropy)).sum(0)                                   # of z - top
    target = torch.where(holds, logprob + log_sums + falls, 0.0).sum(0)        # its z - top
    return torch.stack([target - log_sum, log_sum - mean, top, log_sum])


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
    """hidden (N, C), weight (V, C), targets (N,) -> logprobs (N,), entropy (N,), in blocks of at most n positions and v
    words. The backward pass begins with the last block, which is kept. So with one block no product is repeated."""
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, n, v, statistics, gradient):
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.gradient = 1 / temperature, gradient
        h, targets = as_multiplied(hidden), targets.contiguous()
        ctx.positions, ctx.words = _slices(len(h), n), _slices(len(weight), v)
        ctx.size = min(n, len(h)), min(v, len(weight))                         # of the largest block
        ctx.logits = torch.empty(ctx.size, dtype=wide(h.dtype), device=h.device)
        rows = ctx.logits.new_empty(4, len(h))
        for piece in ctx.positions:
            y = targets[piece]
            parts, holds = rows.new_empty(len(ctx.words), 4, len(y)), []
            for part, words in zip(parts, ctx.words):
                logits = _logits(h[piece], weight[words], ctx.scale, ctx.logits)
                statistics(logits, y - words.start, part)
                holds.append((words.start <= y) & (y < words.stop))
            rows[:, piece] = merge(parts, torch.stack(holds)) if len(parts) > 1 else parts[0]
        ctx.save_for_backward(hidden, weight, targets, rows)
        return rows[0].clone(), rows[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprob, d_entropy):
        hidden, weight, targets, rows = ctx.saved_tensors
        h = as_multiplied(hidden)
        d_logprob = torch.zeros_like(rows[0]) if d_logprob is None else d_logprob.contiguous()
        buffer, ctx.logits = ctx.logits, None
        is_ready = buffer is not None                                          # not in a second backward pass
        buffer = buffer if is_ready else rows.new_empty(ctx.size)
        dz_buffer = buffer if h.dtype == buffer.dtype else torch.empty_like(buffer, dtype=h.dtype)
        empty = rows.new_empty if len(h) else rows.new_zeros
        dh = empty(h.shape) if ctx.needs_input_grad[0] else None
        dw = empty(weight.shape) if ctx.needs_input_grad[1] else None
        for piece, words in reversed(list(product(ctx.positions, ctx.words))):
            x, w = h[piece], weight[words]
            logits, dz = buffer[:len(x), :len(w)], dz_buffer[:len(x), :len(w)]
            if not is_ready:
                _logits(x, w, ctx.scale, buffer)
            is_ready = False
            d_entropies = None if d_entropy is None else d_entropy[piece].contiguous()
            ctx.gradient(logits, targets[piece] - words.start, rows[:, piece], d_logprob[piece], d_entropies, out=dz)
            if dh is not None:
                for some, wider in widened(w):
                    add = words.stop < len(weight) or some.start > 0
                    multiply(dz[:, some], wider, ctx.scale, out=dh[piece], add=add)
            if dw is not None:
                multiply(dz.T, x, ctx.scale, out=dw[words], add=piece.stop < len(h))
        return dh, dw, None, None, None, None, None, None


def block_sizes(N: int, V: int, whole_rows: bool, chunk: int | None = None) -> tuple[int, int]:
    """Positions n and words v of a block. whole_rows: as the kernels of a GPU need it. chunk: n, if given."""
    if whole_rows:
        return min(N, chunk or max(1, CHUNK_LOGITS // V)), V
    n = min(N, chunk or max(TALL, BLOCK_LOGITS // V))
    return n, min(V, BLOCK_LOGITS // max(1, n))


def _slices(total: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _logits(h: Tensor, weight: Tensor, scale: float, buffer: Tensor) -> Tensor:
    """scale h weight^T (n, v), in the first rows and columns of the buffer."""
    logits = buffer[:len(h), :len(weight)]
    for words, wider in widened(weight):
        multiply(h, wider.T, scale, out=logits[:, words])
    return logits


def as_multiplied(x: Tensor) -> Tensor:
    """x in the type of the products. On a CPU, bfloat16 products do not keep their accumulators."""
    return x if x.is_cuda else x.to(wide(x.dtype))


def widened(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (words, weight[words] as_multiplied). A copy is made in pieces that stay in a CPU's cache, each in the
    memory of the one before. So the weight is never copied as a whole, and no copy can be out of date."""
    V, C = weight.shape
    if weight.is_cuda or weight.dtype == wide(weight.dtype):
        yield slice(0, V), weight
        return
    pieces = _slices(V, IN_CACHE // 2 // C)
    buffer = weight.new_empty(pieces[0].stop, C, dtype=wide(weight.dtype))
    for words in pieces:
        rows = weight[words]
        yield words, buffer[:len(rows)].copy_(rows)


def linear_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (N, C), weight (V, C) -> logits (N, V) for the sampler, in float32 at least, as exact as the trainer's.
    Without gradient."""
    dtype = wide(hidden.dtype)
    if hidden.dtype == dtype:
        return torch.nn.functional.linear(hidden, weight)
    if hidden.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=dtype)
    logits = hidden.new_empty(len(hidden), len(weight), dtype=dtype)
    return _logits(as_multiplied(hidden), weight, 1.0, logits)


def multiply(a: Tensor, b: Tensor, scale: float, out: Tensor, add: bool = False) -> Tensor:
    """out = scale a b, or with `add` out += scale a b, summed in the dtype of out."""
    options = {} if a.dtype == out.dtype else {"out_dtype": out.dtype}
    return torch.addmm(out, a, b, **options, beta=int(add), alpha=scale, out=out)
