"""What the graphs of a step read: buffers at fixed addresses, filled in one copy a step.

Token ids that the host does not know yet come from the table of last sampled ids, so a step can
be launched before the ids of the one in front are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from weft.engine.step import Integers, Step
from weft.models.decoder import Boundary


class ReceivedRows:
    """Hidden states that come over a pipeline boundary: ``count`` buffers [most, h]."""

    def __init__(self, most: int, hidden_size: int, count: int, like: torch.Tensor) -> None:
        self.device = like.device
        self._buffers = [like.new_zeros((most, hidden_size)) for _ in range(count)]

    def fill(self, received: Boundary | None) -> None:
        if received is None:
            return
        for buffer, rows in zip(self._buffers, (received.hidden, received.residual), strict=False):
            assert rows is not None
            buffer[: len(rows)].copy_(rows)

    def first(self, size: int) -> Boundary | None:
        """The first rows; None on the first stage."""
        parts = [buffer[:size] for buffer in self._buffers]
        if not parts:
            return None
        return Boundary(hidden=parts[0], residual=parts[1] if len(parts) > 1 else None)


class DecodeInputs:
    """Rows and lengths [most] int32 of the sequences; ``received``: see above."""

    def __init__(self, most: int, received: ReceivedRows, *, spare_row: int) -> None:
        self._spare_row, self.received = spare_row, received
        idle = torch.tensor([spare_row, 1], dtype=torch.int32).repeat_interleave(most)
        self._rows_and_lengths = idle.to(received.device)

    def fill(self, step: Step, size: int, received: Boundary | None) -> None:
        """Enter a step; places past its batch belong to nobody and have length 1."""
        count = len(step.rows)
        values = np.empty(2 * size, dtype=np.int32)
        values[:count], values[count:size] = step.rows, self._spare_row
        values[size : size + count], values[size + count :] = step.context_lengths, 1
        _copy(values, self._rows_and_lengths)
        self.received.fill(received)

    def rows_and_lengths(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rows_and_lengths[:size], self._rows_and_lengths[size : 2 * size]


@dataclass(frozen=True, kw_only=True)
class RowTensors:
    """T token rows on the device, int64.

    token_ids [T]: those that the host knows; fed_rows [T]: the request row whose last sampled id
    is the token instead, or -1; positions, slots [T]; pieces [.., 4]: as in ``paged_attention``.
    """

    token_ids: torch.Tensor
    fed_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    pieces: torch.Tensor


class RowInputs:
    """Rows of prompts and decodes, at most ``most`` of at most ``most_requests`` sequences.

    Rows past those of the step belong to nobody: their keys go to the cache's spare block.
    """

    def __init__(
        self,
        most: int,
        received: ReceivedRows,
        *,
        most_requests: int,
        piece_rows: int,
        block_size: int,
    ) -> None:
        self.received = received
        self._most_requests, self._piece_rows = most_requests, piece_rows
        self._block_size = block_size
        self._packed = torch.zeros(
            4 * (most + self._num_pieces(most)), dtype=torch.int64, device=received.device
        )

    def _num_pieces(self, size: int) -> int:
        """Every sequence has at most one piece that is not full."""
        return min(size, size // self._piece_rows + self._most_requests)

    def fill(self, step: Step, size: int, received: Boundary | None) -> None:
        """Enter a step of at most ``size`` rows."""
        count = step.num_tokens
        packed = np.zeros(4 * (size + self._num_pieces(size)), dtype=np.int64)
        rows = packed[: 4 * size].reshape(4, size)
        rows[1] = -1
        rows[:, :count] = (
            step.token_ids, step.fed_rows, step.positions, step.slots(self._block_size)
        )  # fmt: skip
        pieces = pieces_of(step, self._piece_rows).ravel()
        packed[4 * size : 4 * size + len(pieces)] = pieces
        _copy(packed, self._packed)
        self.received.fill(received)

    def tensors(self, size: int) -> RowTensors:
        """Where a graph of ``size`` rows finds them."""
        rows = self._packed[: 4 * size].view(4, size)
        pieces = self._packed[4 * size : 4 * (size + self._num_pieces(size))].view(-1, 4)
        return RowTensors(
            token_ids=rows[0], fed_rows=rows[1], positions=rows[2], slots=rows[3], pieces=pieces
        )


def pieces_of(step: Step, piece_rows: int) -> Integers:
    """[.., 4]: first row, number of rows, request row and first position of each piece."""
    lengths = step.query_lengths
    counts = -(-lengths // piece_rows)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    skipped = (np.arange(len(sequence)) - np.repeat(counts.cumsum() - counts, counts)) * piece_rows
    first_rows = (lengths.cumsum() - lengths)[sequence] + skipped
    positions = (step.context_lengths - lengths)[sequence] + skipped
    sizes = np.minimum(lengths[sequence] - skipped, piece_rows)
    return np.stack([first_rows, sizes, step.rows[sequence], positions], axis=1)


def _copy(values: np.ndarray, target: torch.Tensor) -> None:
    """Into the front of ``target``, which nobody waits for."""
    staged = torch.from_numpy(values)
    if target.device.type == "cuda":
        staged = staged.pin_memory()
    target[: len(values)].copy_(staged, non_blocking=True)
