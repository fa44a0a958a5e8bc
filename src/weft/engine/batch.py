"""Turn a step's host arrays into the tensors that the decoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from weft.engine.step import Step, context_slots
from weft.layers.attention import PlainAttention
from weft.layers.rope import RotaryTables
from weft.layers.shared_positions import SharedPositions
from weft.models.decoder import Batch


@dataclass(kw_only=True)
class RequestTables:
    """What the device knows of running requests, by row; the last row belongs to nobody.

    last_ids [rows + 1] int64: each one's last sampled token; blocks [rows + 1, ..] int32:
    its cache blocks (only where kernels read them).
    """

    last_ids: torch.Tensor
    blocks: torch.Tensor | None = None

    @property
    def spare_row(self) -> int:
        return len(self.last_ids) - 1

    def update(self, step: Step) -> None:
        """Enter the cache blocks that a step brings."""
        if self.blocks is None or not len(step.new_blocks):
            return
        rows, places, blocks = step.new_blocks.T
        flat = rows * self.blocks.shape[1] + places
        where, what = to_device(self.blocks.device, flat, blocks)
        self.blocks.view(-1).index_copy_(0, where, what.int())


class BatchBuilder(Protocol):
    """Makes a step's batch on the device."""

    def build(self, step: Step, tables: RequestTables) -> Batch: ...


class PlainBatches:
    """Batches for torch's own attention (any device, any type)."""

    def __init__(
        self,
        ropes: RotaryTables,
        *,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        shared: SharedPositions | None = None,
    ) -> None:
        self._ropes, self._block_size, self._shared = ropes, block_size, shared
        self._dtype, self._device = dtype, device

    def build(self, step: Step, tables: RequestTables) -> Batch:
        positions, slots, logit_rows, rows = to_device(
            self._device,
            step.positions,
            step.slots(self._block_size),
            step.logit_rows,
            step.rows,
        )
        return Batch(
            token_ids=token_ids_of(step, tables),
            logit_rows=logit_rows,
            attention=PlainAttention(
                angles=self._ropes.at(positions, self._dtype),
                positions=positions,
                rows=rows,
                slots=slots,
                context_slots=self._context_slots(step),
                query_lengths=step.query_lengths.tolist(),
                context_lengths=step.context_lengths.tolist(),
                mask=self._mask(step),
                shared=self._shared,
            ),
        )

    def _context_slots(self, step: Step) -> torch.Tensor:
        lengths = step.context_lengths
        padded = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
        for row, blocks, length in zip(padded, step.blocks, lengths, strict=True):
            row[:length] = context_slots(blocks, length, self._block_size)
        return torch.from_numpy(padded).to(self._device)

    def _mask(self, step: Step) -> torch.Tensor | None:
        lengths = torch.from_numpy(step.context_lengths)
        if step.query_lengths.max() > 1 or bool((lengths == lengths[0]).all()):
            return None
        hidden = torch.arange(int(lengths.max()))[None] >= lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill(hidden, float("-inf"))
        return mask[:, None, None].to(self._device)


def token_ids_of(step: Step, tables: RequestTables) -> torch.Tensor:
    """Token ids [T] on the device: the host's, and the last sampled ones of decodes."""
    device = tables.last_ids.device
    if not step.num_decodes:
        return to_device(device, step.token_ids)[0]
    fed = np.where(step.fed_rows < 0, tables.spare_row, step.fed_rows)
    if step.num_decodes == step.num_tokens:
        return tables.last_ids[to_device(device, fed)[0]]
    ids, rows, is_fed = to_device(device, step.token_ids, fed, step.fed_rows >= 0)
    return torch.where(is_fed.bool(), tables.last_ids[rows], ids)


def to_device(device: torch.device, *arrays: npt.NDArray[Any]) -> tuple[torch.Tensor, ...]:
    """The arrays (of one dimension) as int64 tensors, moved in one copy that nobody waits for.

    Each begins at a multiple of 16 bytes: for other addresses Triton would compile kernels anew.
    """
    starts = np.cumsum([0, *(len(array) + len(array) % 2 for array in arrays)])
    host = np.zeros(starts[-1], dtype=np.int64)
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + len(array)] = array
    packed = torch.from_numpy(host)
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    elif device.type != "cpu":
        packed = packed.to(device)
    return tuple(
        packed[start : start + len(array)] for start, array in zip(starts, arrays, strict=False)
    )
