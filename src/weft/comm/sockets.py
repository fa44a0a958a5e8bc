"""Slices between machines: batched point-to-point calls of torch.distributed (gloo)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from weft.allreduce.errors import lost_rank_error

Message = tuple[int, torch.Tensor]
"""A group rank and the tensor that goes to or comes from it."""

_AGREE_TAG = 1
_DATA_TAG = 2


class SocketLink:
    """What one rank of a group sends to and receives from ranks of other nodes."""

    def __init__(
        self, group: dist.ProcessGroup, rank: int, names: Sequence[int], timeout_s: float
    ) -> None:
        self._group, self._rank, self._names = group, rank, tuple(names)
        self._timeout = timedelta(seconds=timeout_s)

    def agree(self, low: torch.Tensor, high: torch.Tensor, rail: Sequence[int], epoch: int) -> None:
        """Lower ``low`` and raise ``high`` (int64) to the extremes over the ranks of ``rail``.

        Dissemination: in round k each place tells the one 2^k further; log2 rounds.
        """
        place, size = rail.index(self._rank), len(rail)
        distance = 1
        while distance < size:
            mine = torch.cat((low, high))
            theirs = torch.empty_like(mine)
            after, before = rail[(place + distance) % size], rail[(place - distance) % size]
            self.exchange(
                [(after, mine)], [(before, theirs)], "agreement between nodes", epoch, _AGREE_TAG
            )
            other_low, other_high = theirs.chunk(2)
            torch.minimum(low, other_low, out=low)
            torch.maximum(high, other_high, out=high)
            distance *= 2

    def exchange(
        self,
        sends: Sequence[Message],
        receives: Sequence[Message],
        step: str,
        epoch: int,
        tag: int = _DATA_TAG,
    ) -> None:
        """Send and receive all of these; LostRankError names the first peer that fails."""
        group, failing = self._group, -1
        works = []
        try:
            for failing, tensor in receives:
                works.append((failing, dist.irecv(tensor, group=group, group_src=failing, tag=tag)))
            for failing, tensor in sends:
                works.append((failing, dist.isend(tensor, group=group, group_dst=failing, tag=tag)))
            for failing, work in works:  # noqa: B007
                assert work is not None
                work.wait(self._timeout)
        except RuntimeError as error:
            missing = [self._names[failing]]
            raise lost_rank_error(self._names[self._rank], missing, step, epoch) from error
