"""Attention of a decode step in one kernel: rotate, write the cache, attend, combine.

Each block of the grid takes one sequence, one key-value head (with the query heads that
share it) and one part of the context; the block that finishes last adds the parts up, in
a fixed order. The new key and value come from ``qkv``, the others from the paged cache.

Shapes: B sequences, H query heads, K key-value heads, D head_dim, P cache slots. The memory
of a cache [P, K, D] is used as [blocks, K, block size, D], so that what one head reads of a
block lies together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options, prefetch_row

BLOCKS = 512
"""Blocks of the grid that fill a GPU."""


@triton.jit
def _rotated_head(at, HALF: tl.constexpr, norm_ptr, cos, sin, eps, HAS_NORM: tl.constexpr):
    half = tl.arange(0, HALF)[None, :]
    first = tl.load(at + half).to(tl.float32)
    second = tl.load(at + HALF + half).to(tl.float32)
    if HAS_NORM:
        square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
        first = first * scale * tl.load(norm_ptr + half)
        second = second * scale * tl.load(norm_ptr + HALF + half)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _prefetch(
    keys_ptr, values_ptr, blocks_ptr, start, stop, kv_head,
    NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Bring the first keys and values into the L2 cache: older steps wrote them."""
    token = start + tl.arange(0, BLOCK_TOKENS)
    inside = token < stop
    block = tl.load(blocks_ptr + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    at = ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE) * D
    at = tl.where(inside, at, 0)
    prefetch_row(keys_ptr, at, D)
    prefetch_row(values_ptr, at, D)


@triton.jit(do_not_specialize=["max_splits"])
def _decode_attention(
    qkv_ptr, cos_sin_ptr, query_norm_ptr, key_norm_ptr, keys_ptr, values_ptr,
    table_ptr, rows_ptr, lengths_ptr, out_ptr, partial_ptr, counters_ptr,
    table_stride, eps, scale, max_splits,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, SMALL_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_NORM: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = 2 * HALF
    sequence = tl.program_id(2)
    kv_head = tl.program_id(1)
    split = tl.program_id(0)
    # Lengths, rows and the table do not change within a step: they may be read at once.
    length = tl.load(lengths_ptr + sequence)
    blocks_ptr = table_ptr + tl.load(rows_ptr + sequence).to(tl.int64) * table_stride
    last = length - 1
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(length - WINDOW, 0)
    per_split = tl.cdiv(tl.cdiv(last - lowest, max_splits), BLOCK_TOKENS) * BLOCK_TOKENS
    per_split = tl.maximum(per_split, BLOCK_TOKENS)
    num_splits = tl.maximum(tl.cdiv(last - lowest, per_split), 1)
    if split >= num_splits:
        return
    start = lowest + split * per_split
    stop = tl.minimum(start + per_split, last)

    half = tl.arange(0, HALF)[None, :]
    member = tl.arange(0, BLOCK_GROUP)
    # Rows past the group repeat its last head: their results are not stored.
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    cos = tl.load(cos_sin_ptr + last * D + half)
    sin = tl.load(cos_sin_ptr + last * D + HALF + half)
    if DEPENDENT:
        _prefetch(
            keys_ptr, values_ptr, blocks_ptr, start, stop, kv_head,
            NUM_KV_HEADS, D, BLOCK_SIZE, BLOCK_TOKENS,
        )  # fmt: skip
    begin(DEPENDENT)
    row_ptr = qkv_ptr + sequence.to(tl.int64) * (NUM_HEADS + 2 * NUM_KV_HEADS) * D
    q_first, q_second = _rotated_head(
        row_ptr + head[:, None] * D, HALF, query_norm_ptr, cos, sin, eps, HAS_NORM
    )
    element = keys_ptr.dtype.element_ty
    q_first = (q_first.to(element).to(tl.float32) * scale).to(element)
    q_second = (q_second.to(element).to(tl.float32) * scale).to(element)

    wide = tl.arange(0, D)
    maximum = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, D], tl.float32)
    if split == 0:
        one = tl.zeros([1, 1], tl.int32)
        key_ptr = row_ptr + (NUM_HEADS + kv_head) * D + one
        k_first, k_second = _rotated_head(key_ptr, HALF, key_norm_ptr, cos, sin, eps, HAS_NORM)
        k_first, k_second = k_first.to(element), k_second.to(element)
        value = tl.load(row_ptr + (NUM_HEADS + NUM_KV_HEADS + kv_head) * D + wide)
        block = tl.load(blocks_ptr + last // BLOCK_SIZE).to(tl.int64)
        at = ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + last % BLOCK_SIZE) * D
        tl.store(keys_ptr + at + half, k_first)
        tl.store(keys_ptr + at + HALF + half, k_second)
        tl.store(values_ptr + at + wide, value)
        products = q_first.to(tl.float32) * k_first + q_second.to(tl.float32) * k_second
        maximum = tl.sum(products, axis=1)
        total += 1.0
        acc += value[None, :].to(tl.float32)

    offsets = tl.arange(0, BLOCK_TOKENS)
    for first_token in range(start, stop, BLOCK_TOKENS):
        token = first_token + offsets
        inside = token < stop
        if BLOCK_SIZE % BLOCK_TOKENS == 0 and WINDOW == 0:
            block = tl.load(blocks_ptr + first_token // BLOCK_SIZE).to(tl.int64)
        else:
            block = tl.load(blocks_ptr + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        at = ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE) * D
        k_first = tl.load(keys_ptr + at[:, None] + half, mask=inside[:, None], other=0.0)
        k_second = tl.load(keys_ptr + at[:, None] + HALF + half, mask=inside[:, None], other=0.0)
        scores = tl.dot(q_first, tl.trans(k_first)) + tl.dot(q_second, tl.trans(k_second))
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        shrink = tl.exp(maximum - higher)
        weights = tl.exp(scores - higher[:, None])
        values = tl.load(values_ptr + at[:, None] + wide[None, :], mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(element), values)
        maximum = higher

    own = (member < GROUP)[:, None]
    out_at = out_ptr + sequence.to(tl.int64) * NUM_HEADS * D + head[:, None] * D + wide[None, :]
    if num_splits == 1:
        tl.store(out_at, (acc / total[:, None]).to(element), mask=own)
        return

    pair = (sequence * NUM_KV_HEADS + kv_head).to(tl.int64)
    size: tl.constexpr = SMALL_GROUP * (D + 2)
    mine = partial_ptr + (pair * max_splits + split) * size
    tl.store(mine + member[:, None] * D + wide[None, :], acc, mask=own)
    tl.store(mine + SMALL_GROUP * D + member, maximum, mask=member < GROUP)
    tl.store(mine + SMALL_GROUP * (D + 1) + member, total, mask=member < GROUP)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + pair, 1) != num_splits - 1:
        return
    tl.store(counters_ptr + pair, 0)
    small = tl.arange(0, SMALL_GROUP)
    valid = small < GROUP
    best = tl.full([SMALL_GROUP], float("-inf"), tl.float32)
    weight_sum = tl.zeros([SMALL_GROUP], tl.float32)
    mixed = tl.zeros([SMALL_GROUP, D], tl.float32)
    for first_part in range(0, num_splits, 8):
        part = first_part + tl.arange(0, 8)
        real = (part < num_splits)[:, None] & valid[None, :]
        at = partial_ptr + (pair * max_splits + part)[:, None] * size
        maxima = tl.load(
            at + SMALL_GROUP * D + small[None, :],
            mask=real, other=float("-inf"), cache_modifier=".cg",
        )  # fmt: skip
        totals = tl.load(
            at + SMALL_GROUP * (D + 1) + small[None, :], mask=real, other=0.0, cache_modifier=".cg"
        )
        parts = tl.load(
            at[:, :, None] + small[None, :, None] * D + wide[None, None, :],
            mask=real[:, :, None], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        higher = tl.maximum(best, tl.max(maxima, axis=0))
        higher = tl.where(valid, higher, 0.0)
        keep = tl.where(valid, tl.exp(best - higher), 0.0)
        weights = tl.exp(maxima - higher[None, :])
        weight_sum = weight_sum * keep + tl.sum(weights * totals, axis=0)
        mixed = mixed * keep[:, None] + tl.sum(parts * weights[:, :, None], axis=0)
        best = higher
    weight_sum = tl.where(valid, weight_sum, 1.0)
    out_row = out_ptr + sequence.to(tl.int64) * NUM_HEADS * D + kv_head * GROUP * D
    tl.store(
        out_row + small[:, None] * D + wide[None, :],
        (mixed / weight_sum[:, None]).to(element),
        mask=valid[:, None],
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the work is divided: parts of the context, tokens a turn, warps, pipeline stages."""

    splits: int
    tokens: int = 64
    num_warps: int = 2
    num_stages: int = 2

    @classmethod
    def of(cls, batch: int, num_kv_heads: int) -> Shape:
        """Enough blocks to fill the GPU; measured on an H200 (docs/lab-log.md)."""
        splits = max(1, min(32, BLOCKS // (batch * num_kv_heads)))
        if batch <= 4:
            return cls(splits=splits, tokens=32, num_warps=4)
        return cls(splits=splits)


class DecodeWorkspace:
    """Room for the parts of the context that are added up last; one for all layers."""

    def __init__(
        self, max_batch: int, num_heads: int, num_kv_heads: int, head_dim: int, like: torch.Tensor
    ) -> None:
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.group = num_heads // num_kv_heads
        self.small_group = triton.next_power_of_2(self.group)
        parts = max(Shape.of(n, num_kv_heads).splits * n for n in range(1, max_batch + 1))
        size = parts * num_kv_heads * self.small_group * (head_dim + 2)
        self.partial = torch.empty(size, dtype=torch.float32, device=like.device)
        self.counters = torch.zeros(max_batch * num_kv_heads, dtype=torch.int32, device=like.device)


def decode_attention(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    block_size: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    window: int | None = None,
    shape: Shape | None = None,
) -> torch.Tensor:
    """Projections qkv [B, (H + 2 K) D] of one new token a sequence -> [B, H D].

    keys, values [P, K, D]: the cache, which gets the new row; rows, lengths [B] int32:
    each sequence's row of table [.., ..] int32 (its block numbers) and its positions, the
    new one included; cos_sin [.., D] fp32. Table, rows and lengths must not be written by
    the kernels just in front of this one.
    """
    batch, num_kv_heads, head_dim = qkv.shape[0], workspace.num_kv_heads, workspace.head_dim
    num_heads = num_kv_heads * workspace.group
    out = qkv.new_empty((batch, num_heads * head_dim))
    shape = shape or Shape.of(batch, num_kv_heads)
    query_norm, key_norm = norms or (qkv, qkv)
    _decode_attention[(shape.splits, num_kv_heads, batch)](
        qkv, cos_sin, query_norm, key_norm, keys, values, table, rows, lengths, out,
        workspace.partial, workspace.counters, table.stride(0), eps, head_dim**-0.5, shape.splits,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2,
        GROUP=workspace.group, BLOCK_GROUP=max(16, workspace.small_group),
        SMALL_GROUP=workspace.small_group, BLOCK_SIZE=block_size, BLOCK_TOKENS=shape.tokens,
        WINDOW=window or 0, HAS_NORM=norms is not None,
        num_warps=shape.num_warps, num_stages=shape.num_stages, **launch_options(qkv),
    )  # fmt: skip
    return out
