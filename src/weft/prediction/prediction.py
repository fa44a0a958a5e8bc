"""What a prediction runs on (Machine) and what it says (Prediction), with every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from weft.errors import WorkloadError
from weft.fabric.fabric import Fabric
from weft.prediction.accelerator import Accelerator
from weft.prediction.collectives import Pricing
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.kernels import kernels_of
from weft.prediction.memory import Memory
from weft.prediction.quantity import Estimate
from weft.prediction.step_time import CollectiveTime
from weft.vocabulary.dtypes import MODEL_DTYPES
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.weight_formats import format_named
from weft.vocabulary.workload import Workload

FLOAT8: Final = "float8_e4m3fn"

PARTS: Final = ("matmul", "attention", "elementwise", "fixed", "communication", "waiting")
"""Parts of a :class:`PhaseTime`, in order."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a prediction runs on: devices, links and engine.

    weight_dtype: format of the layers' weights; None is what the model's config.json says.
    cache_dtype: element type of keys and values; None is the model's own.
    """

    accelerator: Accelerator
    fabric: Fabric
    profile: EngineProfile
    weight_dtype: str | None = None
    cache_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.cache_dtype not in (None, FLOAT8, *MODEL_DTYPES):
            raise WorkloadError(
                f"`cache_dtype` {self.cache_dtype}: choose one of {', '.join((FLOAT8, *MODEL_DTYPES))}"
            )
        if self.weight_dtype is not None:
            format_named(self.weight_dtype)

    def stored(self, spec: ModelSpec) -> ModelSpec:
        """The model with its layers' weights in this machine's format."""
        return spec if self.weight_dtype is None else spec.stored_as(self.weight_dtype)

    @cached_property
    def pricing(self) -> Pricing:
        """Prices of collectives, shared by all layouts of this machine."""
        return Pricing(fabric=self.fabric, profile=self.profile)


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """One phase's time in ms by part, along the critical stage.

    prefill: the whole batch; decode: one step. ``waiting_ms`` is what is left of the
    phase: pipeline bubbles, hops, and host time that the device does not hide.
    """

    total_ms: float
    matmul_ms: float
    attention_ms: float
    elementwise_ms: float
    fixed_ms: float
    communication_ms: float
    waiting_ms: float
    collectives: tuple[CollectiveTime, ...]

    @property
    def communication_share(self) -> float:
        return self.communication_ms / self.total_ms


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one batch takes on one layout. Times in ms, throughput in generated tokens/s."""

    spec: ModelSpec
    layout: Layout
    workload: Workload
    machine: Machine
    memory: Memory
    ttft_ms: Estimate
    tpot_ms: Estimate
    e2e_ms: Estimate
    tokens_per_s: Estimate
    prefill: PhaseTime
    decode: PhaseTime

    @property
    def communication_share(self) -> float:
        """Part of the end-to-end time that collectives and hops take."""
        steps = self.workload.num_decode_steps
        spent = self.prefill.communication_ms + steps * self.decode.communication_ms
        return spent / self.e2e_ms.value

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "weft.prediction/1",
            "model": self.spec.name,
            "layout": self.layout.name,
            "nodes": self.layout.nodes,
            "workload": {
                "prompt_tokens": self.workload.prompt_tokens,
                "decode_tokens": self.workload.decode_tokens,
                "batch": self.workload.batch,
            },
            "accelerator": self.machine.accelerator.name,
            "fabric": self.machine.fabric.name,
            "engine": self.machine.profile.name,
            "ttft_ms": self.ttft_ms.to_dict(),
            "tpot_ms": self.tpot_ms.to_dict(),
            "e2e_ms": self.e2e_ms.to_dict(),
            "tokens_per_s": self.tokens_per_s.to_dict(),
            "communication_share": self.communication_share,
            "memory": self.memory.to_dict(),
            "prefill": phase_json(self.prefill),
            "decode": phase_json(self.decode),
            "provenance": provenance(self.machine),
        }


def phase_json(phase: PhaseTime) -> dict[str, Any]:
    """One phase as JSON, with its collectives."""
    return {f"{name}_ms": getattr(phase, f"{name}_ms") for name in (*PARTS, "total")} | {
        "communication_share": phase.communication_share,
        "collectives": [
            {
                "op": item.op,
                "group": item.group,
                "message_bytes": item.message_bytes,
                "count": item.count,
                "algorithm": item.algorithm,
                "time_us": item.time_us,
                "deviation_us": item.deviation_us,
            }
            for item in phase.collectives
        ],
    }


def provenance(machine: Machine) -> dict[str, Mapping[str, Any]]:
    """Every input of the time model with value, spread, origin and source."""
    rows: dict[str, Mapping[str, Any]] = {}
    for owner, quantities in (
        (machine.accelerator.name, machine.accelerator.quantities()),
        (machine.profile.name, machine.profile.quantities()),
    ):
        for name, item in quantities.items():
            rows[f"{owner}.{name}"] = {
                "value": item.value,
                "spread": item.spread,
                "origin": item.origin,
                "source": item.source,
            }
    kernels = kernels_of(machine.accelerator.name, machine.profile.kernel_tables)
    if kernels is not None:
        rows[
            f"{machine.accelerator.name}.kernels of {' or '.join(machine.profile.kernel_tables)}"
        ] = {
            "value": None,
            "spread": None,
            "origin": "measured",
            "source": kernels.source,
        }
    fabric = machine.fabric
    for tier_name in ("intra", "inter"):
        tier = fabric.tier(tier_name)
        for number in ("latency", "bandwidth"):
            unit = "us" if number == "latency" else "gb_s"
            value = getattr(tier, f"{number}_{unit}")
            rows[f"{fabric.name}.{tier_name}.{number}_{unit}"] = {
                "value": value,
                "spread": getattr(tier, f"{number}_uncertainty_{unit}") / value,
                "origin": "measured" if fabric.tables and tier_name == "intra" else "data sheet",
                "source": getattr(tier, f"{number}_source"),
            }
    for table in fabric.tables:
        rows[f"{fabric.name}.{table.algorithm} x{table.ranks} on {table.nodes} node(s)"] = {
            "value": None,
            "spread": None,
            "origin": "measured",
            "source": table.source,
        }
    return rows
