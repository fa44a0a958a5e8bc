"""Attention over positions that several ranks hold (decode context parallelism).

The ranks of a group hold the same key-value heads, each its share of the positions. Queries are
gathered, every rank attends over what it has, and what the ranks found is added up with the
weights that the sums of their softmaxes give (vLLM, v1/attention/ops/dcp.py: cp_lse_ag_out_rs).

Shapes: T token rows, H query heads of this rank, D head_dim, V size of a value, c ranks.
"""

from __future__ import annotations

import torch

from weft.comm.communicator import Communicator


class SharedPositions:
    """The exchange of one group."""

    def __init__(self, group: Communicator) -> None:
        self._group = group

    def gather(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries [T, H, D] -> those of all ranks of the group [T, c H, D]."""
        return self._group.all_gather(queries, 1, "positions")

    def combine(self, outputs: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Outputs [T, c H, V] and log-sum-exps [T, c H] fp32 of own positions -> [T, H, V]."""
        every = self._group.all_gather(sums, 0, "positions").unflatten(0, (self._group.size, -1))
        share = (sums - every.logsumexp(dim=0)).exp().nan_to_num()
        weighed = (outputs * share[..., None]).to(outputs.dtype).transpose(0, 1).contiguous()
        return self._group.reduce_scatter(weighed, "positions").transpose(0, 1)
