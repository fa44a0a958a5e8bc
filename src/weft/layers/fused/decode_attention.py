"""Attention of a decode step in one kernel: rotate, write the cache, attend, combine.

Each block of the grid takes one sequence, one key-value head (with the query heads that
share it) and one part of the context; the block that finishes last adds the parts up, in
a fixed order. The new key and value come from ``qkv``, the others from the paged cache.

Shapes: B sequences, H query heads, K key-value heads, D head_dim, P cache slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options

BLOCK_TOKENS = 64


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
def _decode_attention(
    qkv_ptr, cos_sin_ptr, query_norm_ptr, key_norm_ptr, keys_ptr, values_ptr,
    table_ptr, lengths_ptr, out_ptr, partial_ptr, counters_ptr,
    table_stride, eps, scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, MAX_SPLITS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_NORM: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = 2 * HALF
    sequence = tl.program_id(2)
    kv_head = tl.program_id(1)
    split = tl.program_id(0)
    begin(DEPENDENT)
    length = tl.load(lengths_ptr + sequence)
    last = length - 1
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(length - WINDOW, 0)
    per_split = tl.cdiv(tl.cdiv(last - lowest, MAX_SPLITS), BLOCK_TOKENS) * BLOCK_TOKENS
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
        block = tl.load(table_ptr + sequence * table_stride + last // BLOCK_SIZE)
        slot = block.to(tl.int64) * BLOCK_SIZE + last % BLOCK_SIZE
        at = (slot * NUM_KV_HEADS + kv_head) * D
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
        block = tl.load(
            table_ptr + sequence * table_stride + token // BLOCK_SIZE, mask=inside, other=0
        )
        slot = block.to(tl.int64) * BLOCK_SIZE + token % BLOCK_SIZE
        at = (slot * NUM_KV_HEADS + kv_head) * D
        k_first = tl.load(keys_ptr + at[:, None] + half, mask=inside[:, None], other=0.0)
        k_second = tl.load(keys_ptr + at[:, None] + HALF + half, mask=inside[:, None], other=0.0)
        scores = tl.dot(q_first, tl.trans(k_first)) + tl.dot(q_second, tl.trans(k_second))
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        shrink = tl.exp(maximum - higher)
        weights = tl.exp(scores - higher[:, None])
        values = tl.load(
            values_ptr + at[:, None] + wide[None, :], mask=inside[:, None], other=0.0
        )
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(element), values)
        maximum = higher

    own = (member < GROUP)[:, None]
    out_at = out_ptr + sequence.to(tl.int64) * NUM_HEADS * D + head[:, None] * D + wide[None, :]
    if num_splits == 1:
        tl.store(out_at, (acc / total[:, None]).to(element), mask=own)
        return

    pair = sequence * NUM_KV_HEADS + kv_head
    size: tl.constexpr = BLOCK_GROUP * (D + 2)
    mine = partial_ptr + (pair.to(tl.int64) * MAX_SPLITS + split) * size
    tl.store(mine + member[:, None] * D + wide[None, :], acc)
    tl.store(mine + BLOCK_GROUP * D + member, maximum)
    tl.store(mine + BLOCK_GROUP * (D + 1) + member, total)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + pair, 1) != num_splits - 1:
        return
    tl.store(counters_ptr + pair, 0)
    maximum = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, D], tl.float32)
    for other in range(0, num_splits):
        part = partial_ptr + (pair.to(tl.int64) * MAX_SPLITS + other) * size
        its_maximum = tl.load(part + BLOCK_GROUP * D + member, cache_modifier=".cg")
        its_total = tl.load(part + BLOCK_GROUP * (D + 1) + member, cache_modifier=".cg")
        its_acc = tl.load(part + member[:, None] * D + wide[None, :], cache_modifier=".cg")
        higher = tl.maximum(maximum, its_maximum)
        old, new = tl.exp(maximum - higher), tl.exp(its_maximum - higher)
        total = total * old + its_total * new
        acc = acc * old[:, None] + its_acc * new[:, None]
        maximum = higher
    tl.store(out_at, (acc / total[:, None]).to(element), mask=own)


class DecodeWorkspace:
    """Room for the parts of the context that are added up last; one for all layers."""

    def __init__(
        self, max_batch: int, num_heads: int, num_kv_heads: int, head_dim: int, like: torch.Tensor
    ) -> None:
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.group = num_heads // num_kv_heads
        self.block_group = max(16, triton.next_power_of_2(self.group))
        pairs = max_batch * num_kv_heads
        splits = max(self.splits(batch) * batch for batch in range(1, max_batch + 1))
        size = splits * num_kv_heads * self.block_group * (head_dim + 2)
        self.partial = torch.empty(size, dtype=torch.float32, device=like.device)
        self.counters = torch.zeros(pairs, dtype=torch.int32, device=like.device)

    def splits(self, batch: int) -> int:
        """Parts of the context for a batch: enough blocks to fill the GPU."""
        wanted = 512 // (batch * self.num_kv_heads)
        return max(1, min(64, 1 << max(0, wanted).bit_length() >> 1))


def decode_attention(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    block_size: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    window: int | None = None,
    splits: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
    num_warps: int = 4,
    num_stages: int = 3,
) -> torch.Tensor:
    """qkv [B, (H + 2 K) D] of one new token a sequence -> [B, H D].

    keys, values [P, K, D]: the cache, which gets the new row; table [B, ..] int32: block
    numbers; lengths [B] int32: positions, the new one included; cos_sin [.., D] fp32.
    """
    batch, num_kv_heads, head_dim = qkv.shape[0], workspace.num_kv_heads, workspace.head_dim
    num_heads = num_kv_heads * workspace.group
    out = qkv.new_empty((batch, num_heads * head_dim))
    splits = splits or workspace.splits(batch)
    query_norm, key_norm = norms or (qkv, qkv)
    _decode_attention[(splits, num_kv_heads, batch)](
        qkv, cos_sin, query_norm, key_norm, keys, values, table, lengths, out,
        workspace.partial, workspace.counters, table.stride(0), eps, head_dim**-0.5,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2,
        GROUP=workspace.group, BLOCK_GROUP=workspace.block_group, BLOCK_SIZE=block_size,
        BLOCK_TOKENS=block_tokens, MAX_SPLITS=splits, WINDOW=window or 0,
        HAS_NORM=norms is not None, num_warps=num_warps, num_stages=num_stages,
        **launch_options(qkv),
    )  # fmt: skip
    return out
