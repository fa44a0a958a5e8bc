"""Attention of a step's rows over the cache's blocks alone, prompts and decodes alike.

Everything that differs from step to step lies on the device, so a CUDA graph can hold it. Each
block of the grid takes one piece (some rows of one sequence) and one key-value head with the
query heads that share it, and goes through the positions that its rows see.

Shapes: T token rows, H query heads, K key-value heads, D head_dim, P cache slots. The memory of
a cache [P, K, D] is used as [blocks, K, block size, D] (see decode_attention.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options

_QUERIES = 64
"""Queries (rows times heads of a group) that a block of the grid holds."""
_LOWEST: tl.constexpr = tl.constexpr(-1e30)


def rows_of_a_piece(num_heads: int, num_kv_heads: int) -> int:
    """Rows that one piece may have."""
    heads: int = triton.next_power_of_2(num_heads // num_kv_heads)
    return max(1, _QUERIES // heads)


@triton.jit
def _paged_attention(
    qkv_ptr, keys_ptr, values_ptr, table_ptr, pieces_ptr, out_ptr, table_stride, scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    piece_ptr = pieces_ptr + tl.program_id(0) * 4
    num_rows = tl.load(piece_ptr + 1).to(tl.int32)
    if num_rows == 0:
        return
    kv_head = tl.program_id(1)
    blocks_ptr = table_ptr + tl.load(piece_ptr + 2) * table_stride
    first_position = tl.load(piece_ptr + 3).to(tl.int32)
    query = tl.arange(0, ROWS * BLOCK_GROUP)
    row, member = query // BLOCK_GROUP, query % BLOCK_GROUP
    real = (row < num_rows) & (member < GROUP)
    token_row = tl.load(piece_ptr) + tl.minimum(row, num_rows - 1)
    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    wide = tl.arange(0, BLOCK_D)[None, :]
    inside_head = wide < D
    element = keys_ptr.dtype.element_ty
    queries = tl.load(
        qkv_ptr + token_row[:, None] * ((NUM_HEADS + 2 * NUM_KV_HEADS) * D)
        + head[:, None] * D + wide, mask=inside_head, other=0.0,
    )  # fmt: skip
    queries = (queries.to(tl.float32) * scale).to(element)
    position = first_position + tl.minimum(row, num_rows - 1)
    stop = first_position + num_rows
    start = 0
    if WINDOW > 0:
        start = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_TOKENS * BLOCK_TOKENS

    maximum = tl.full([ROWS * BLOCK_GROUP], _LOWEST, tl.float32)
    total = tl.zeros([ROWS * BLOCK_GROUP], tl.float32)
    acc = tl.zeros([ROWS * BLOCK_GROUP, BLOCK_D], tl.float32)
    offsets = tl.arange(0, BLOCK_TOKENS)
    for first_token in range(start, stop, BLOCK_TOKENS):
        token = first_token + offsets
        if BLOCK_SIZE % BLOCK_TOKENS == 0:
            block = tl.load(blocks_ptr + first_token // BLOCK_SIZE).to(tl.int64)
        else:
            known = token < stop
            block = tl.load(blocks_ptr + token // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        at = ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE) * D
        here = (token < stop)[:, None] & inside_head
        keys = tl.load(keys_ptr + at[:, None] + wide, mask=here, other=0.0)
        seen = token[None, :] <= position[:, None]
        if WINDOW > 0:
            seen = seen & (token[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, tl.dot(queries, tl.trans(keys)), float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        shrink = tl.exp(maximum - higher)
        weights = tl.exp(scores - higher[:, None])
        values = tl.load(values_ptr + at[:, None] + wide, mask=here, other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(element), values)
        maximum = higher
    out_at = out_ptr + token_row[:, None] * (NUM_HEADS * D) + head[:, None] * D + wide
    mixed = (acc / total[:, None]).to(element)
    tl.store(out_at, mixed, mask=real[:, None] & inside_head)


def paged_attention(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    pieces: torch.Tensor,
    *,
    block_size: int,
    window: int | None = None,
) -> torch.Tensor:
    """Projections qkv [T, (H + 2 K) D], queries turned already -> [T, H D].

    keys, values [P, K, D]: the cache, which holds the rows' own keys and values; table [.., ..]
    int32: block numbers of each request; pieces [.., 4] int64: first row, number of rows (0:
    nothing to do), request, position of the first row. Rows of no piece are left as they are.
    """
    num_kv_heads, head_dim = keys.shape[1:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    block_group = triton.next_power_of_2(group)
    rows = rows_of_a_piece(num_heads, num_kv_heads)
    out = qkv.new_empty((qkv.shape[0], num_heads * head_dim))
    _paged_attention[(len(pieces), num_kv_heads)](
        qkv, keys, values, table, pieces, out, table.stride(0), head_dim**-0.5,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim), GROUP=group, BLOCK_GROUP=block_group, ROWS=rows,
        BLOCK_SIZE=block_size, BLOCK_TOKENS=64, WINDOW=window or 0,
        num_warps=4, num_stages=2, **launch_options(qkv),
    )  # fmt: skip
    return out
