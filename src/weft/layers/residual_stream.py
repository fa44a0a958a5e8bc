"""The residual stream between blocks: whole on every rank, or split by token.

These classes, the exchange of experts (expert_exchange.py) and norms over all heads
(shared_norm.py) are the only places where a layer meets communication. A block
(attention or MLP) takes whole token rows and returns a partial sum; the stream
reduces it. With plain tensor parallelism that is one all-reduce; with Megatron
sequence parallelism a reduce-scatter, and an all-gather before the next block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional as F

from weft.comm.communicator import Communicator
from weft.layers.norm import BlockNorm, RMSNorm, add_rms_norm


class ResidualStream(Protocol):
    """How partial sums [T, h] enter the stream and how blocks read it."""

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:
        """Stream rows -> all ``num_tokens`` rows, for a block that needs them."""

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        """Partial sums of all rows -> stream rows."""

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce, add to ``residual``, normalise: (normalised rows, new residual)."""

    def num_rows(self, num_tokens: int) -> int:
        """Rows of the stream that this rank holds."""


class ReplicatedStream:
    """Every rank of the group holds all rows."""

    def __init__(self, tp: Communicator) -> None:
        self._tp = tp

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:  # noqa: ARG002
        return x

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        return self._tp.all_reduce(partial, site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None or type(norm) is not RMSNorm:
            return norm.add(self._tp.all_reduce(partial, site), residual)
        normed = self._tp.all_reduce_residual_rms_norm(
            partial, residual, norm.weight, norm.eps, site, add_norm=add_rms_norm
        )
        return normed, residual

    def num_rows(self, num_tokens: int) -> int:
        return num_tokens


class SequenceParallelStream:
    """Each rank holds an equal share of the rows, padded with zero rows to a multiple of tp.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
    Models", section 4.2.2.
    """

    def __init__(self, sp: Communicator) -> None:
        self._sp = sp

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:
        return self._sp.all_gather(x, 0, site)[:num_tokens]

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        padding = -partial.shape[0] % self._sp.size
        return self._sp.reduce_scatter(F.pad(partial, (0, 0, 0, padding)), site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return norm.add(self.reduce(partial, site), residual)

    def num_rows(self, num_tokens: int) -> int:
        return -(-num_tokens // self._sp.size)


class RowShareStream:
    """Around a block of experts: each rank of the group takes its equal share of the rows.

    Between blocks the rows are where ``is_split`` says: already split by token (sequence
    parallelism; then nothing has to move), or whole on every rank, in which case an
    all-gather puts the finished shares together. Rows are padded to a multiple of tp, and to
    those of the replica with most of them where replicas share experts.
    """

    def __init__(self, tp: Communicator, *, is_split: bool) -> None:
        self._tp, self._is_split = tp, is_split

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:  # noqa: ARG002
        share = self.num_rows(num_tokens)
        whole = share if self._is_split else share * self._tp.size
        padded = F.pad(x, (0, 0, 0, whole - len(x)))
        if self._is_split:
            return padded
        return padded[self._tp.rank * share : (self._tp.rank + 1) * share]

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        return partial if self._is_split else self._tp.all_gather(partial, 0, site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.reduce(partial, site)
        return norm.add(rows if residual is None else rows[: len(residual)], residual)

    def num_rows(self, num_tokens: int) -> int:
        return -(-num_tokens // self._tp.size)


class JoinedRows:
    """Rows of the replicas that share experts, together on every rank of theirs (SGLang).

    By a sum in which the others' rows are zero, or by gathering each rank's share. The replicas
    have as many rows each.
    """

    def __init__(self, tp: Communicator, ep: Communicator, sums: Callable[[int], bool]) -> None:
        """Sums: whether so many rows are put together by a sum."""
        self.tp, self.ep, self._sums = tp, ep, sums

    def own(self, every: torch.Tensor) -> torch.Tensor:
        """This replica's rows of all."""
        return every.chunk(self.ep.size // self.tp.size)[self.ep.rank // self.tp.size]

    def summed(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        """Partial sums [T, h] of this replica -> the rows of all."""
        every = partial.new_zeros((self.ep.size // self.tp.size * len(partial), partial.shape[1]))
        self.own(every).copy_(partial)
        return self.ep.all_reduce(every, site)

    def join(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        """The same, padded to equal shares."""
        padded = F.pad(partial, (0, 0, 0, -len(partial) % self.tp.size))
        if self._sums(self.ep.size // self.tp.size * len(padded)):
            return self.summed(padded, site)
        return self.ep.all_gather(self.tp.reduce_scatter(padded, site), 0, site)

    def part(self, every: torch.Tensor, site: str) -> torch.Tensor:
        """Partial sums of all rows -> this replica's, with their padding."""
        if self._sums(len(every)):
            return self.own(self.ep.all_reduce(every, site))
        return self.tp.all_gather(self.ep.reduce_scatter(every, site), 0, site)


class JoiningStream:
    """Around the attention: what it computed goes on with the rows of all replicas."""

    def __init__(self, rows: JoinedRows) -> None:
        self._rows = rows

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:  # noqa: ARG002
        return x

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        return self._rows.join(partial, site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One rank of the replica adds the residual, which is then this replica's rows of the sum."""
        if residual is not None and self._rows.tp.rank == 0:
            partial = partial + residual
        normed, every = norm.add(self.reduce(partial, site), None)
        return normed, self._rows.own(every)[: len(partial)]

    def num_rows(self, num_tokens: int) -> int:
        return num_tokens


class LeavingStream:
    """Around a feed-forward block that has the rows of all replicas."""

    def __init__(self, rows: JoinedRows) -> None:
        self._rows = rows

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:  # noqa: ARG002
        return x

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        return self._rows.part(partial, site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.reduce(partial, site)
        return norm.add(rows if residual is None else rows[: len(residual)], residual)

    def num_rows(self, num_tokens: int) -> int:
        return num_tokens


class ScatteredStream:
    """Around the attention before experts: sums are scattered, each rank goes on with its rows.

    is_split: whether the stream comes as shares of the rows, from experts in the layer before.
    vLLM's DeepSeek layers with experts over replicas.
    """

    def __init__(self, tp: Communicator, *, is_split: bool) -> None:
        self._tp, self._is_split = tp, is_split

    def enter(self, x: torch.Tensor, num_tokens: int, site: str) -> torch.Tensor:
        return self._tp.all_gather(x, 0, site)[:num_tokens] if self._is_split else x

    def reduce(self, partial: torch.Tensor, site: str) -> torch.Tensor:
        padding = -len(partial) % self._tp.size
        return self._tp.reduce_scatter(F.pad(partial, (0, 0, 0, padding)), site)

    def reduce_and_norm(
        self, partial: torch.Tensor, residual: torch.Tensor | None, norm: BlockNorm, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.reduce(partial, site)
        if residual is not None and not self._is_split:
            share = len(hidden)
            padded = F.pad(residual, (0, 0, 0, share * self._tp.size - len(residual)))
            residual = padded[self._tp.rank * share : (self._tp.rank + 1) * share]
        return norm.add(hidden, residual)

    def num_rows(self, num_tokens: int) -> int:
        return -(-num_tokens // self._tp.size)

    def whole(
        self, hidden: torch.Tensor, residual: torch.Tensor, num_tokens: int, site: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of a block's output and of the residual -> all rows of both, in one call."""
        both = self._tp.all_gather(torch.cat((hidden, residual), dim=1), 0, site)[:num_tokens]
        first, second = both.chunk(2, dim=1)
        return first.contiguous(), second.contiguous()
