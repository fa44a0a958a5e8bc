"""Layout: how the ranks of a run are arranged over tensor, pipeline and data parallelism.

Rank order follows the engines of the field: tensor-parallel ranks are neighbours
(so they share a node), then pipeline stages, then data-parallel replicas:
``rank = (replica * pp + stage) * tp + tp_rank``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from weft.errors import LayoutError
from weft.vocabulary.checks import check_counts
from weft.vocabulary.model_spec import ModelSpec

GroupKind = Literal["tp", "pp", "sp", "ep", "dp", "dcp", "kv", "world"]

MOST_RANKS: Final = 2**20
MOST_RANKS_HERE: Final = 64
"""Ranks started on one machine: more GPUs it does not have, and CPU ranks cost 0.4 GB each."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism and the machines under them.

    tp: tensor-parallel ranks a stage; pp: pipeline stages; dp: replicas;
    sp: 1, or equal to ``tp`` for Megatron sequence parallelism (activations
    between the blocks are split over the tensor-parallel group by token);
    ep: expert-parallel ranks (divides tp * dp); dcp: tensor-parallel ranks that share the
    positions of a cache (decode context parallelism, divides tp); nodes x gpus_per_node: machines;
    stage_layers: layers of each stage, where the even split is not wanted.
    """

    tp: int = 1
    pp: int = 1
    sp: int = 1
    ep: int = 1
    dp: int = 1
    dcp: int = 1
    nodes: int = 1
    gpus_per_node: int | None = None
    stage_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_counts(self, ("tp", "pp", "sp", "ep", "dp", "dcp", "nodes"), LayoutError)
        if self.world_size > MOST_RANKS:
            raise LayoutError(f"{self.widest}: {self.world_size} ranks, at most {MOST_RANKS}")
        if self.sp not in (1, self.tp):
            raise LayoutError(
                f"`sp` {self.sp}: sequence parallelism shares the tensor-parallel group; "
                f"set `sp` 1 or `sp` {self.tp} (with `tp` {self.tp})"
            )
        if (self.tp * self.dp) % self.ep:
            raise LayoutError(
                f"`ep` {self.ep}: must divide tp x dp = {self.tp * self.dp} (`tp`, `dp`)"
            )
        if self.tp % self.dcp:
            raise LayoutError(f"`dcp` {self.dcp}: must divide `tp` {self.tp}")
        if self.dcp > 1 and self.sp > 1:
            raise LayoutError(
                f"`dcp` {self.dcp}: not together with `sp` {self.sp}, which splits rows over the "
                "same ranks; set `sp` 1"
            )
        self._check_nodes()
        if self.stage_layers is not None and len(self.stage_layers) != self.pp:
            raise LayoutError(
                f"`stage_layers` {','.join(map(str, self.stage_layers))}: "
                f"has {len(self.stage_layers)} stages but `pp` is {self.pp}"
            )

    def _check_nodes(self) -> None:
        if self.world_size % self.nodes:
            raise LayoutError(
                f"`nodes` {self.nodes}: does not divide the {self.world_size} ranks of {self.name}"
            )
        if self.gpus_per_node is not None and self.nodes * self.gpus_per_node != self.world_size:
            raise LayoutError(
                f"`gpus_per_node` {self.gpus_per_node}: {self.nodes} node(s) of "
                f"{self.gpus_per_node} are not the {self.world_size} ranks of {self.name}"
            )

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read a short name: ``1``, ``tp4``, ``tp2xpp2``, ``sp2`` (tp2 with sp2), ``dp2xtp2``."""
        if text in ("1", "tp1"):
            return cls()
        degrees: dict[str, int] = {}
        for part in text.lower().replace("×", "x").split("x"):
            match = re.fullmatch(r"(tp|pp|sp|ep|dp|dcp)([1-9]\d*)", part)
            if not match or match[1] in degrees:
                raise LayoutError(
                    f"layout {text!r}: write it as 1, tp4, pp2, tp2xpp2, sp2 or dp2xtp2"
                )
            degrees[match[1]] = int(match[2])
        if "sp" in degrees:
            degrees.setdefault("tp", degrees["sp"])
        return cls(**degrees)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """Short name, the inverse of :meth:`parse`."""
        parts = [f"dp{self.dp}"] if self.dp > 1 else []
        if self.tp > 1:
            parts.append(f"sp{self.sp}" if self.sp > 1 else f"tp{self.tp}")
        if self.pp > 1:
            parts.append(f"pp{self.pp}")
        if self.ep > 1:
            parts.append(f"ep{self.ep}")
        if self.dcp > 1:
            parts.append(f"dcp{self.dcp}")
        return "x".join(parts) or "1"

    @property
    def widest(self) -> str:
        """The largest degree as an argument and its value."""
        degrees = {"tp": self.tp, "pp": self.pp, "dp": self.dp}
        name = max(degrees, key=lambda name: degrees[name])
        return f"`{name}` {degrees[name]}"

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def joins_replicas(self) -> bool:
        """Whether experts are spread over replicas, which then step together."""
        return self.tp % self.ep != 0

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.nodes

    def rank_of(self, *, stage: int = 0, tp_rank: int = 0, replica: int = 0) -> int:
        return (replica * self.pp + stage) * self.tp + tp_rank

    def stage_of(self, rank: int) -> int:
        return rank // self.tp % self.pp

    def tp_rank_of(self, rank: int) -> int:
        return rank % self.tp

    def replica_of(self, rank: int) -> int:
        return rank // (self.tp * self.pp)

    def node_of(self, rank: int) -> int:
        return rank // self.ranks_per_node

    def groups(self, kind: GroupKind) -> list[tuple[int, ...]]:
        """All groups of one kind, as tuples of global ranks in group order.

        ``sp`` is the same set of ranks as ``tp``, ``dcp`` neighbours among them. ``ep`` groups are consecutive
        ranks among the ``dp x tp`` ranks that hold the same pipeline stage.
        """
        if kind in ("tp", "sp", "dcp"):
            size = self.dcp if kind == "dcp" else self.tp
            starts = range(0, self.world_size, size)
            return [tuple(range(start, start + size)) for start in starts]
        if kind == "pp":
            return [
                tuple(self.rank_of(stage=s, tp_rank=t, replica=d) for s in range(self.pp))
                for d, t in _pairs(self.dp, self.tp)
            ]
        if kind == "dp":
            return [
                tuple(self.rank_of(stage=s, tp_rank=t, replica=d) for d in range(self.dp))
                for s, t in _pairs(self.pp, self.tp)
            ]
        if kind == "world":
            return [tuple(range(self.world_size))]
        return [
            same_stage[start : start + self.ep]
            for same_stage in (self._ranks_of_stage(s) for s in range(self.pp))
            for start in range(0, len(same_stage), self.ep)
        ]

    def group_of(self, kind: GroupKind, rank: int) -> tuple[int, ...]:
        """The one group of ``kind`` that holds ``rank``."""
        return next(group for group in self.groups(kind) if rank in group)

    def _ranks_of_stage(self, stage: int) -> tuple[int, ...]:
        return tuple(
            self.rank_of(stage=stage, tp_rank=t, replica=d) for d, t in _pairs(self.dp, self.tp)
        )

    def layers_of_stages(self, num_layers: int) -> tuple[range, ...]:
        """Layer indices of each stage.

        The even split gives left-over layers to the stages before the last one,
        last first, because the last stage also holds the head (vLLM's rule).
        """
        counts = self.stage_layers or _even_split(num_layers, self.pp)
        if sum(counts) != num_layers or min(counts) < 1:
            raise LayoutError(
                f"`stage_layers` {','.join(map(str, counts))}: must be {self.pp} positive "
                f"numbers that add up to the model's {num_layers} layers"
            )
        ends = [sum(counts[: i + 1]) for i in range(self.pp)]
        return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))

    def check_model(self, spec: ModelSpec) -> None:
        """Raise LayoutError where the model cannot be divided this way."""
        if self.pp > spec.num_layers:
            raise LayoutError(
                f"`pp` {self.pp}: more stages than the {spec.num_layers} layers of {spec.name}"
            )
        self.layers_of_stages(spec.num_layers)
        for what, size in _divided_by_tp(spec, self.ep):
            if size % self.tp:
                choices = ", ".join(map(str, valid_tp(spec)))
                raise LayoutError(
                    f"`tp` {self.tp}: does not divide the {size} {what} of {spec.name}; "
                    f"choose one of {choices}"
                )
        if self.tp % spec.num_kv_heads and spec.num_kv_heads % self.tp:
            raise LayoutError(
                f"`tp` {self.tp}: neither divides nor is a multiple of the "
                f"{spec.num_kv_heads} KV heads of {spec.name}"
            )
        self._check_dcp(spec)
        if self.ep > 1 and (spec.num_experts == 0 or spec.num_experts % self.ep):
            raise LayoutError(
                f"`ep` {self.ep}: does not divide the {spec.num_experts} experts of {spec.name}"
            )

    def _check_dcp(self, spec: ModelSpec) -> None:
        """Ranks that share positions must hold the same heads of the cache."""
        copies = spec.cache_copies(self.tp) if self.dcp > 1 else 0
        if copies % self.dcp:
            raise LayoutError(
                f"`dcp` {self.dcp}: {copies} of `tp` {self.tp} ranks hold the same heads of "
                f"the cache of {spec.name}; choose a divisor of {copies}"
            )

    def check_started(self) -> None:
        """Raise LayoutError where one machine would be given more ranks than it can have."""
        if self.ranks_per_node > MOST_RANKS_HERE:
            raise LayoutError(
                f"{self.widest}: {self.ranks_per_node} ranks on one machine, at most "
                f"{MOST_RANKS_HERE} are started; take more machines, or predict it"
            )

    def check_here(self) -> None:
        """:meth:`check_started`, by a script that starts all of its ranks itself."""
        self.check_started()
        if self.nodes > 1:
            raise LayoutError(
                f"`nodes` {self.nodes}: a script starts ranks on its own machine only; run it "
                "under torchrun or srun on all of them"
            )

    def check_world(self, num_processes: int) -> None:
        """Raise LayoutError where a launcher started another number of processes."""
        if num_processes != self.world_size:
            raise LayoutError(
                f"layout {self.name} needs {self.world_size} ranks but the launcher started "
                f"{num_processes}: change `tp`/`pp`/`dp` or the launcher's process count"
            )


def _pairs(first: int, second: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(first) for j in range(second))


def _even_split(num_layers: int, num_stages: int) -> tuple[int, ...]:
    counts = [num_layers // num_stages] * num_stages
    for index in range(num_layers % num_stages):
        counts[-2 - index] += 1
    return tuple(counts)


def _divided_by_tp(spec: ModelSpec, ep: int = 1) -> list[tuple[str, int]]:
    parts = [("attention heads", spec.num_heads), ("hidden size", spec.hidden_size)]
    parts += dict.fromkeys(part for kind in spec.attentions for part in kind.divided)
    if spec.num_experts == 0 or spec.dense_layers:
        parts.append(("intermediate size", spec.intermediate_size))
    if spec.num_experts and ep == 1:
        parts.append(("expert intermediate size", spec.expert_intermediate_size))
    if spec.shared_expert_size and ep == 1:
        parts.append(("shared expert size", spec.shared_expert_size))
    return parts


def valid_tp(spec: ModelSpec) -> list[int]:
    """Tensor-parallel degrees that divide the model, smallest first."""
    return [
        tp
        for tp in range(1, spec.num_heads + 1)
        if all(size % tp == 0 for _, size in _divided_by_tp(spec))
        and (tp % spec.num_kv_heads == 0 or spec.num_kv_heads % tp == 0)
    ]
