"""The streams and the exchange of experts that a layout asks for."""

from __future__ import annotations

from weft.comm.groups import ProcessGroups
from weft.errors import LayoutError
from weft.layers.expert_exchange import (
    AllToAllExperts,
    DeepExperts,
    ExpertExchange,
    GatheredExperts,
    LocalExperts,
    Sent,
)
from weft.layers.residual_stream import (
    JoinedRows,
    LeavingStream,
    ReplicatedStream,
    ResidualStream,
    RowShareStream,
    ScatteredStream,
    SequenceParallelStream,
)
from weft.layers.shared_norm import NormSums
from weft.models.decoder import StepState, Streams
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.model_spec import ModelSpec


def open_streams(spec: ModelSpec, groups: ProcessGroups, conventions: Conventions) -> Streams:
    """How this rank's rows travel."""
    is_split = groups.layout.sp > 1
    residual: ResidualStream = (
        SequenceParallelStream(groups.sp) if is_split else ReplicatedStream(groups.tp)
    )
    if not spec.is_moe:
        return Streams(residual=residual, mlp=residual, norm_sums=NormSums(groups.tp))
    state = StepState()
    if conventions.joins_rows(spec, groups.layout):
        return _joined(spec, groups, conventions, state)
    exchange = _exchange(spec, groups, conventions, state)
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
        state=state,
    )


def _joined(
    spec: ModelSpec, groups: ProcessGroups, conventions: Conventions, state: StepState
) -> Streams:
    """SGLang's attention data parallelism."""
    _check_dry(groups, conventions)
    row_bytes = spec.hidden_size * element_bytes(spec.dtype)

    def sums(num_rows: int) -> bool:
        size = num_rows * row_bytes
        return conventions.sums_rows(groups.layout, size, has_prompts=state.has_prompts)

    residual = ReplicatedStream(groups.tp)
    exchange = _exchange(spec, groups, conventions, state)
    rows = JoinedRows(groups.tp, groups.ep, sums)
    return Streams(
        residual=residual,
        mlp=LeavingStream(rows) if exchange.adds_up else residual,
        experts=exchange,
        norm_sums=NormSums(groups.tp),
        joined=rows,
        state=state,
    )


def _check_dry(groups: ProcessGroups, conventions: Conventions) -> None:
    if groups.device.type != "meta":
        raise LayoutError(
            f"`ep` {groups.layout.ep}: how engine {conventions.name} exchanges rows between replicas "
            "is described, not run; set `conventions` weft or vllm, or take a dry run"
        )


def _exchange(
    spec: ModelSpec, groups: ProcessGroups, conventions: Conventions, state: StepState
) -> ExpertExchange:
    exchange, experts = conventions.exchange_of(groups.layout), spec.num_experts
    if exchange == "all_to_all":
        return AllToAllExperts(groups.ep, experts)
    if exchange == "all_gather":
        return GatheredExperts(groups.ep, experts)
    layout = groups.layout
    if exchange == "deepep":
        _check_dry(groups, conventions)

        def sends(rows: int) -> tuple[Sent, ...]:
            return conventions.deepep_shapes(spec, layout.ep, rows, has_prompts=state.has_prompts)

        return DeepExperts(groups.ep, experts, sends)
    if exchange != "joined" and layout.ep not in (1, layout.tp):
        raise LayoutError(
            f"`ep` {layout.ep}: with engine {conventions.name} weft's ranks hold whole experts or a "
            f"slice of all; set `ep` {layout.tp} or 1, or `conventions` weft"
        )
    share = experts // layout.ep
    return LocalExperts(range(groups.ep.rank * share, (groups.ep.rank + 1) * share))
