"""One token a row: the largest logit, or a draw from the softmax of logits / temperature.

A draw is a race: token i arrives at clock_i / p_i, where clock_i is exponential, and the first one
wins (the Gumbel-max trick). Clocks are counted, not taken from a stream: hashes of the request's
seed, the token's index in the output and the candidate's id. So they depend on neither batch nor
layout, a part of the vocabulary can race alone, and the device needs nothing from the host.

Most clocks are never looked at. The first of BLOCK exponential clocks is exponential itself, at
a place that is uniform, and the others wait afresh from then on; so one hash bounds what a block of
the vocabulary can reach, and only the blocks that could hold the winner are opened. On GPUs
layers/fused/argmax.py runs the same race over all of them in one kernel.

Shapes: N rows, V columns. The hashes are splitmix64 (Steele et al. 2014) for a row's key and
lowbias32 (Wellons 2018) for what it counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from weft.engine.request import NO_TOKEN
from weft.engine.sampling_table import SamplingTable
from weft.layers import fused

BLOCK: Final = 32
_OF_BLOCK: Final = 1 << 30
_PLACE: Final = 3 << 29
_AT_ONCE: Final = 16


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Whose tokens are drawn: request rows [N] int32 of ``table`` and context lengths [N] int32."""

    rows: torch.Tensor
    lengths: torch.Tensor
    table: SamplingTable


def best_of_rows(
    logits: torch.Tensor, num_real: int, first_id: int, draws: Draws | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V], of which ``num_real`` columns count -> ids [N] and (score, id) [N, 2] fp32.

    Ids start at ``first_id``; a row whose best score is no finite number has NO_TOKEN. Without
    ``draws`` all rows are greedy.
    """
    if logits.device.type == "cuda" and fused.installed():
        from weft.layers.fused import argmax

        drawn = None
        if draws is not None:
            drawn = (draws.rows, draws.lengths, draws.table.numbers, draws.table.integers)
        return argmax.best_of_rows(logits, num_real, first_id, drawn)
    first_block, blocks = _in_blocks(logits[:, :num_real], first_id)
    tops = blocks.amax(dim=2)
    values, block = tops.max(dim=1)
    places = blocks[torch.arange(len(blocks), device=block.device), block].argmax(dim=1)
    values, ids = values.float(), (first_block + block) * BLOCK + places
    if draws is not None:
        values, ids = _race(blocks, first_block, tops, draws, values, ids)
    ids = ids.masked_fill(~values.isfinite(), NO_TOKEN)
    return ids, torch.stack((values, ids.float()), dim=1)


def _race(
    blocks: torch.Tensor,
    first_block: int,
    tops: torch.Tensor,
    draws: Draws,
    largest: torch.Tensor,
    greedy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [N] and ids [N] of the winners; rows at temperature 0 keep theirs.

    The blocks [N, B, BLOCK] that can reach most by their ``tops`` [N, B] are opened, more of
    them where a block that is still closed could hold the winner.
    """
    rows = draws.rows.long()
    temperature = draws.table.numbers[rows, 0]
    seed, prompt_length = draws.table.integers[rows, :2].T
    key = row_keys(seed, draws.lengths.long() - prompt_length)
    numbers = torch.arange(tops.shape[1], dtype=torch.int32, device=key.device) + first_block
    scale = torch.where(temperature > 0, temperature, 1.0)[:, None]
    reach = tops.float() / scale - block_clock(key, numbers[None]).log_()
    best, ids, count = largest.clone(), greedy.clone(), _AT_ONCE
    still = ((temperature > 0) & largest.isfinite()).nonzero()[:, 0]
    while len(still):
        top, opened = reach[still].topk(min(count, len(numbers)), dim=1)
        scores = blocks[still[:, None], opened].float() / scale[still, :, None]
        scores -= clocks(key[still], numbers[opened]).log_()
        best[still], place = scores.flatten(1).max(dim=1)
        block = numbers[opened].gather(1, place[:, None] // BLOCK)[:, 0]
        ids[still] = block.long() * BLOCK + place % BLOCK
        still = still[(top[:, -1] > best[still]) & (count < len(numbers))]
        count *= 8
    return best, ids


def _in_blocks(logits: torch.Tensor, first_id: int) -> tuple[int, torch.Tensor]:
    """The number of the first block, and [N, B, BLOCK]; -inf where a block is not whole."""
    before = first_id % BLOCK
    after = -(before + logits.shape[1]) % BLOCK
    if before or after:
        logits = torch.nn.functional.pad(logits, (before, after), value=float("-inf"))
    return first_id // BLOCK, logits.reshape(len(logits), -1, BLOCK)


def clocks(key: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Standard exponential clocks [N, C, BLOCK] fp32 of rows [N] in blocks [N or 1, C] int32."""
    places = torch.arange(BLOCK, dtype=torch.int32, device=key.device)
    ids = blocks[..., None] * BLOCK + places
    first = _hashed(key, blocks + _PLACE) & (BLOCK - 1)
    waits = _exponential(_hashed(key, ids.flatten(1)).view(len(key), -1, BLOCK))
    waits.masked_fill_(first[..., None] == places, 0)
    return waits.add_(block_clock(key, blocks)[..., None])


def block_clock(key: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The first of the BLOCK clocks of each of the blocks [N or 1, C]: fp32 [N, C]."""
    return _exponential(_hashed(key, blocks + _OF_BLOCK)).mul_(1 / BLOCK)


def row_keys(seed: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One key a row [N] for seeds and token indices [N], all int64."""
    return _splitmix(_splitmix(seed) + index)


def _exponential(bits: torch.Tensor) -> torch.Tensor:
    below = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(-(2.0**-31))
    return below.log1p_().neg_()


def _hashed(key: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """32 bits [N, C] for keys [N] int64 and numbers [N or 1, C] int32."""
    low, high = _as_int32(key)[:, None], _as_int32(key >> 32)[:, None]
    return _lowbias(_lowbias(counted ^ low) ^ high)


def _splitmix(x: torch.Tensor) -> torch.Tensor:
    x = x - 0x61C8864680B583EB
    x = (x ^ _shifted(x, 30, 64)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27, 64)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31, 64)


def _lowbias(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 16, 32)).mul_(0x7FEB352D)
    x = x.bitwise_xor_(_shifted(x, 15, 32)).mul_(-0x7B935975)
    return x.bitwise_xor_(_shifted(x, 16, 32))


def _shifted(x: torch.Tensor, count: int, num_bits: int) -> torch.Tensor:
    """To the right, with zeros coming in."""
    return (x >> count).bitwise_and_((1 << (num_bits - count)) - 1)


def _as_int32(x: torch.Tensor) -> torch.Tensor:
    """The low 32 bits."""
    return (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).int()
