"""Rows to the ranks that hold their experts, and sums back, by the library's all-to-all.

The library's way gives every rank all rows. weft's kernels (exchange_kernels.py) send a row only
where it has an expert. Shapes: R token rows of this rank, n ranks, h hidden size, k experts a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from weft.vocabulary.conventions import bytes_of_dispatched_row
from weft.vocabulary.routes import Routes

if TYPE_CHECKING:
    from weft.kernels.reducer import Reducer


def dispatched_shape(rows: torch.Tensor, routes: Routes, num_ranks: int) -> tuple[int, int]:
    """Bytes that there is room for: of all rows with their choices, to and from every rank."""
    width = bytes_of_dispatched_row(rows.shape[1] * rows.element_size(), routes.ids.shape[1])
    return num_ranks * len(rows), width


def dispatch(
    reducer: Reducer, rows: torch.Tensor, routes: Routes, site: str
) -> tuple[torch.Tensor, Routes]:
    """See Reducer.dispatch: every row to every rank, with its choices behind it."""
    parts = [rows, routes.weights, routes.ids.int()]
    packed = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
    got = _all_to_all(reducer, packed.repeat(reducer.num_ranks, 1), site)
    widths = [part.shape[1] * part.element_size() for part in parts]
    there, weights, ids = (
        part.contiguous().view(like.dtype)
        for part, like in zip(got.split(widths, dim=1), parts, strict=True)
    )
    share = routes.nobody // reducer.num_ranks
    here = range(reducer.rank * share, (reducer.rank + 1) * share)
    return there, Routes(ids=ids.long(), weights=weights, nobody=routes.nobody).among(here)


def combine(reducer: Reducer, partial: torch.Tensor, site: str) -> torch.Tensor:
    """See Reducer.combine: all sums back, added in rank order."""
    returned = _all_to_all(reducer, partial, site).view(reducer.num_ranks, -1, partial.shape[1])
    return returned.sum(dim=0)


def _all_to_all(reducer: Reducer, tensor: torch.Tensor, site: str) -> torch.Tensor:
    """Equal parts of dimension 0 change places: part i goes to rank i."""
    result = torch.empty_like(tensor)
    with reducer.peers.named("all_to_all", site):
        dist.all_to_all_single(result, tensor.contiguous(), group=reducer.group)
    return result
