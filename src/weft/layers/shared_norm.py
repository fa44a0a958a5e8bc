"""Norms of queries and keys over the heads of all ranks (MiniMax-M2).

With the residual stream and the exchange of experts the third place where a layer meets
communication: one all-reduce of two sums a row, in fp32, as vLLM does.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.comm.communicator import Communicator
from weft.layers.linear import Placement
from weft.layers.shards import Piece, rows_of

Share = tuple[str, int, int, int]
"""Name, size of the whole, which of how many parts."""


class NormSums:
    """Sums of the rows' squares over the tensor-parallel group."""

    def __init__(self, tp: Communicator) -> None:
        self._tp = tp

    def mean(self, means: torch.Tensor, site: str) -> torch.Tensor:
        """Means [T, 2] of each rank's equal share -> of the whole, in place."""
        return self._tp.all_reduce(means.div_(self._tp.size), site)


class SharedNorm(nn.Module):
    """Projections [T, queries | keys | values] of a rank -> the same, queries and keys normalised.

    Key heads that several ranks hold count on each; the sums are averages, so that is no harm.
    """

    def __init__(
        self, queries: Share, keys: Share, eps: float, sums: NormSums | None, where: Placement
    ) -> None:
        super().__init__()
        self._eps, self._sums, self._site = eps, sums, queries[0].removeprefix("model.")
        self.weights = nn.ParameterList([_weight(*share, where) for share in (queries, keys)])
        self._sizes = [len(weight) for weight in self.weights]

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        assert self._sums is not None
        both = qkv[:, : sum(self._sizes)].float().split(self._sizes, dim=1)
        means = torch.stack([part.square().mean(dim=1) for part in both], dim=1)
        scales = (self._sums.mean(means, self._site) + self._eps).rsqrt().split(1, dim=1)
        normed = [
            (part * scale).to(qkv) * weight
            for part, scale, weight in zip(both, scales, self.weights, strict=True)
        ]
        return torch.cat((*normed, qkv[:, sum(self._sizes) :]), dim=1)


def _weight(name: str, size: int, part: int, num_parts: int, where: Placement) -> nn.Parameter:
    start, stop = rows_of(size, part, num_parts)
    piece = Piece(source=f"{name}.weight", shape=(size,), dim=0, start=start, stop=stop)
    return where.parameter((stop - start,), [piece])
