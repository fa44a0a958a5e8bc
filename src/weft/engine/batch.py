"""Turn a scheduled step into the tensors that the decoder reads."""

from __future__ import annotations

import torch

from weft.engine.scheduler import Chunk, ScheduledStep
from weft.layers.attention import AttentionBatch
from weft.layers.rope import RotaryTable
from weft.models.decoder import StepBatch


def build_batch(
    step: ScheduledStep,
    rope: RotaryTable,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> StepBatch:
    """Flatten the chunks of ``step`` into one batch of token rows."""
    chunks = step.chunks
    ids = [i for c in chunks for i in c.request.tokens[c.start : c.start + c.count]]
    positions = [p for c in chunks for p in range(c.start, c.start + c.count)]
    slots = [s for c in chunks for s in _slots(c, block_size)[c.start : c.start + c.count]]
    ends = torch.tensor([c.count for c in chunks]).cumsum(0).tolist()
    logit_rows = [end - 1 for c, end in zip(chunks, ends, strict=True) if c.reaches_end]
    position_tensor = _integers(positions, device)
    return StepBatch(
        token_ids=_integers(ids, device),
        positions=position_tensor,
        logit_rows=_integers(logit_rows, device),
        attention=AttentionBatch(
            slots=_integers(slots, device),
            context_slots=_context_slots(chunks, block_size, device),
            query_lengths=[c.count for c in chunks],
            context_lengths=[c.start + c.count for c in chunks],
            mask=_decode_mask(chunks, dtype, device),
        ),
        cos_sin=rope.at(position_tensor, dtype),
    )


def _integers(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _slots(chunk: Chunk, block_size: int) -> list[int]:
    """Cache slots of the positions 0..end-1 of a chunk's request."""
    end = chunk.start + chunk.count
    return [
        block * block_size + offset for block in chunk.request.blocks for offset in range(block_size)
    ][:end]


def _context_slots(
    chunks: list[Chunk] | tuple[Chunk, ...], block_size: int, device: torch.device
) -> torch.Tensor:
    rows = [_slots(chunk, block_size) for chunk in chunks]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


def _decode_mask(
    chunks: list[Chunk] | tuple[Chunk, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    lengths = [chunk.start + chunk.count for chunk in chunks]
    if len(set(lengths)) == 1 or any(chunk.count > 1 for chunk in chunks):
        return None
    hidden = torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf"))
    return mask[:, None, None].to(device)
