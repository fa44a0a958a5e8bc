"""The streams and the exchange of experts that a layout asks for."""

from __future__ import annotations

from weft.comm.groups import ProcessGroups
from weft.errors import LayoutError
from weft.layers.expert_exchange import (
    AllToAllExperts,
    ExpertExchange,
    GatheredExperts,
    LocalExperts,
)
from weft.layers.residual_stream import (
    ReplicatedStream,
    ResidualStream,
    RowShareStream,
    ScatteredStream,
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
    scatters = conventions.scatters_rows(spec, groups.layout)
    shares_rows = not isinstance(exchange, LocalExperts)
    mlp = RowShareStream(groups.tp, is_split=is_split or scatters) if shares_rows else residual
    whole, split = (ScatteredStream(groups.tp, is_split=one) for one in (False, True))
    return Streams(
        residual=residual,
        mlp=mlp,
        experts=exchange,
        norm_sums=NormSums(groups.tp),
        scattered=(whole, split) if scatters else None,
    )


def _exchange(spec: ModelSpec, groups: ProcessGroups, conventions: Conventions) -> ExpertExchange:
    exchange, experts = conventions.exchange_of(groups.layout), spec.num_experts
    if exchange == "all_to_all":
        return AllToAllExperts(groups.ep, experts)
    if exchange == "all_gather":
        return GatheredExperts(groups.ep, experts)
    layout = groups.layout
    if layout.ep not in (1, layout.tp):
        raise LayoutError(
            f"`ep` {layout.ep}: with engine {conventions.name} weft's ranks hold whole experts or a "
            f"slice of all; set `ep` {layout.tp} or 1, or `conventions` weft"
        )
    share = experts // layout.ep
    return LocalExperts(range(groups.ep.rank * share, (groups.ep.rank + 1) * share))
