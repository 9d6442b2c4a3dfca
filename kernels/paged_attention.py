"""Attention of one decoding step, over keys and values that lie in blocks. What answers share is read once.

A step is a list of segments: a run of tokens, and the neighbouring answers that all read it. A stem is a segment of all
answers of a group, a tail is a segment of one answer. The query heads that read a key-value head (G answers x H / K
heads) are the rows of one matrix, and each block of keys is loaded once for all of them. Long segments are split, so
that a few of them fill a GPU. A second kernel merges the parts in float32:

    s_j   = q k_j / sqrt(D)                                        the score of key j
    lse_i = log sum_j exp(s_j)                                     over the keys of part i
    out_i = sum_j exp(s_j - lse_i) v_j
    lse   = log sum_i exp(lse_i),   out = sum_i exp(lse_i - lse) out_i

Legend: S answers, H query heads, K key-value heads, D head width, M segments of at most B blocks, P parts of an answer.
The kernels take logarithms to the base 2, for which a GPU has an instruction.
"""

import math
from typing import NamedTuple

import torch

from .backend import tl, triton, wide

Tensor = torch.Tensor


class Segments(NamedTuple):
    """M segments: the stems or the tails of a decoding step, the same for all layers. Each answer is in one of them."""
    rows: Tensor                        # (M, 3) int32: first answer, number of answers, tokens
    block_tables: Tensor                # (M, B) int32: the blocks in which the tokens lie
    answers: int                        # of the largest segment
    split: int                          # tokens of one part
    num_parts: int                      # enough for the longest segment


def paged_attention_plain(q, keys, values, block_size: int, stems: Segments, tails: Segments) -> Tensor:
    """q (S, H, D), keys and values (K, slots, D) -> (S, H, D), like q. Each answer reads all of its past by itself."""
    slots = [[] for _ in q]                                                    # where the past of each answer lies
    for segments in (stems, tails):
        for (first, answers, tokens), table in zip(segments.rows.tolist(), segments.block_tables.long()):
            token = torch.arange(tokens, device=q.device)
            for past in slots[first:first + answers]:
                past.append(table[token // block_size] * block_size + token % block_size)
    out = torch.empty_like(q)
    repeat = q.shape[1] // len(keys)
    for answer, query in enumerate(q.to(wide(q.dtype))):
        past = torch.cat(slots[answer])
        k = keys[:, past].to(query.dtype).repeat_interleave(repeat, 0)         # (H, length, D)
        v = values[:, past].to(query.dtype).repeat_interleave(repeat, 0)
        scores = k @ query[:, :, None] * q.shape[2] ** -0.5                    # (H, length, 1)
        out[answer] = (scores.softmax(1) * v).sum(1)
    return out


@triton.jit
def _part(q, keys, values, segments, tables, out, lse, answers, split, q_stride, heads_stride, table_stride, out_stride,
          lse_stride, scale, BLOCK_SIZE: tl.constexpr, REPEAT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
          ROWS: tl.constexpr, KEYS: tl.constexpr):
    """One program per segment and tile of its rows, part, key-value head. A row is one of an answer's REPEAT heads."""
    tiles = tl.cdiv(answers * REPEAT, ROWS)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.load(segments + segment * 3).to(tl.int64)
    count = tl.load(segments + segment * 3 + 1)
    begin = tl.program_id(1) * split
    end = tl.minimum(begin + split, tl.load(segments + segment * 3 + 2))
    kv_head = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    used = row < count * REPEAT
    answer = first + row // REPEAT
    head = kv_head * REPEAT + row % REPEAT
    d = tl.arange(0, WIDTH)
    query = tl.load(q + (answer * q_stride + head * D)[:, None] + d, mask=used[:, None] & (d < D), other=0.0)
    keys += kv_head * heads_stride
    values += kv_head * heads_stride
    tables += segment * table_stride
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, end, KEYS):
        token = start + tl.arange(0, KEYS)
        inside = token < end
        block = tl.load(tables + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        place = (block * BLOCK_SIZE + token % BLOCK_SIZE)[:, None] * D + d
        present = inside[:, None] & (d < D)
        k = tl.load(keys + place, mask=present, other=0.0)
        v = tl.load(values + place, mask=present, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale    # (ROWS, KEYS), to the base 2
        scores = tl.where(inside, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))                            # finite: the first key is inside
        keep = tl.exp2(top - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * keep + tl.sum(weights, 1)
        mixed = mixed * keep[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    out += tl.program_id(1).to(tl.int64) * out_stride
    lse += tl.program_id(1).to(tl.int64) * lse_stride
    place = answer * (tl.num_programs(2) * REPEAT) + head                      # of (S, H)
    empty = total == 0                                                         # no keys: an lse of -inf, and no output
    total = tl.where(empty, 1.0, total)
    tl.store(out + place[:, None] * D + d, mixed / total[:, None], mask=(used & ~empty)[:, None] & (d < D))
    tl.store(lse + place, top + tl.log2(total), mask=used)


@triton.jit
def _merge(parts, lse, out, P, part_stride, lse_stride, D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """One program per answer and head. A part without keys weighs nothing, whatever it holds."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    top = -float("inf")
    for start in range(0, P, PARTS):
        part = (start + tl.arange(0, PARTS)).to(tl.int64)
        top = tl.maximum(top, tl.max(tl.load(lse + part * lse_stride + row, mask=part < P, other=-float("inf")), 0))
    total = 0.0
    mixed = tl.zeros([WIDTH], tl.float32)
    for start in range(0, P, PARTS):
        part = (start + tl.arange(0, PARTS)).to(tl.int64)
        logs = tl.load(lse + part * lse_stride + row, mask=part < P, other=-float("inf"))
        weights = tl.where(logs == -float("inf"), 0.0, tl.exp2(logs - top))
        piece = tl.load(parts + (part * part_stride + row * D)[:, None] + d,
                        mask=(weights > 0)[:, None] & (d < D), other=0.0)
        total += tl.sum(weights, 0)
        mixed += tl.sum(weights[:, None] * piece, 0)
    tl.store(out + row * D + d, (mixed / total).to(out.dtype.element_ty), mask=d < D)


def tile(dtype: torch.dtype, rows: int) -> tuple[int, int]:
    """Rows and keys of a program. float32 uses no tensor cores, but small tiles that fit into the registers."""
    if dtype == torch.float32:
        return 16, 16
    return (16, 64) if rows <= 16 else (64, 64)


def paged_attention_triton(q, keys, values, block_size: int, stems: Segments, tails: Segments) -> Tensor:
    """paged_attention_plain in one launch for the stems, one for the tails and one to merge."""
    (S, H, D), K = q.shape, len(keys)
    if keys.stride() != values.stride() or keys.stride()[1:] != (D, 1):
        raise ValueError(f"keys and values need equal strides, slot by slot: {keys.stride()}, {values.stride()}")
    q, repeat, width = q.contiguous(), H // K, max(16, triton.next_power_of_2(D))
    parts = torch.empty(stems.num_parts + tails.num_parts, S, H, D, dtype=torch.float32, device=q.device)
    lse = parts.new_empty(parts.shape[:3])
    begin = 0
    for segments in (stems, tails):
        num_rows = segments.answers * repeat
        rows, keys_at_once = tile(q.dtype, num_rows)
        grid = len(segments.rows) * triton.cdiv(num_rows, rows), segments.num_parts, K
        _part[grid](q, keys, values, segments.rows, segments.block_tables, parts[begin:], lse[begin:], segments.answers,
                    segments.split, q.stride(0), keys.stride(0), segments.block_tables.stride(0), parts.stride(0),
                    lse.stride(0), D ** -0.5 / math.log(2), BLOCK_SIZE=block_size, REPEAT=repeat, D=D, WIDTH=width,
                    ROWS=rows, KEYS=keys_at_once, num_warps=4, num_stages=3)
        begin += segments.num_parts
    out = torch.empty_like(q)
    _merge[(S * H,)](parts, lse, out, len(parts), parts.stride(0), lse.stride(0), D=D, WIDTH=width, PARTS=16,
                     num_warps=4)
    return out
