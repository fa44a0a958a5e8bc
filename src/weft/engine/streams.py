"""The streams and the exchange of experts that a layout asks for."""

from __future__ import annotations

from weft.comm.groups import ProcessGroups
from weft.errors import LayoutError
from weft.layers.expert_exchange import AllToAllExperts, ExpertExchange, LocalExperts
from weft.layers.residual_stream import (
    ReplicatedStream,
    ResidualStream,
    RowShareStream,
    SequenceParallelStream,
)
from weft.layers.shared_norm import NormSums
from weft.models.decoder import Streams
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec


def open_streams(spec: ModelSpec, groups: ProcessGroups, conventions: Conventions) -> Streams:
    """How this rank's rows travel."""
    is_split = groups.layout.sp > 1
    residual: ResidualStream = (
        SequenceParallelStream(groups.sp) if is_split else ReplicatedStream(groups.tp)
    )
    if not spec.is_moe:
        return Streams(residual=residual, mlp=residual, norm_sums=NormSums(groups.tp))
    exchange = _exchange(spec, groups, conventions)
    shares_rows = isinstance(exchange, AllToAllExperts)
    mlp = RowShareStream(groups.tp, is_split=is_split) if shares_rows else residual
    return Streams(residual=residual, mlp=mlp, experts=exchange, norm_sums=NormSums(groups.tp))


def _exchange(spec: ModelSpec, groups: ProcessGroups, conventions: Conventions) -> ExpertExchange:
    layout, experts = groups.layout, spec.num_experts
    if layout.ep == 1:
        return LocalExperts(range(experts))
    if conventions.expert_exchange == "all_to_all":
        return AllToAllExperts(groups.ep, experts)
    if layout.ep != layout.tp:
        raise LayoutError(
            f"`ep` {layout.ep}: engine {conventions.name} adds up its experts over the "
            f"tensor-parallel group; set `ep` {layout.tp} or `conventions` weft"
        )
    share = experts // layout.ep
    return LocalExperts(range(groups.ep.rank * share, (groups.ep.rank + 1) * share))
