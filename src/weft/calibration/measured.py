"""Measured runs that come with the package, each with its method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from weft import api
from weft.errors import FileFormatError
from weft.prediction.engine_profile import AllReduceRule, profile_named
from weft.prediction.own_tables import measurements
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Estimate
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

Role = Literal["fitted", "test"]


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What ran, and its TTFT and TPOT in ms (None = not given): a batch, or a server's clients.

    role: fitted (the engine profile was fitted to it) or test (never used). all_reduce: the rule that this run had instead of its engine's own.
    concurrency: clients of a server that each wait for their answer, ``requests`` in all, of which
    the times are the medians.
    """

    source: str
    method: str
    role: Role
    engine: str
    accelerator: str
    fabric: str | None
    model: str
    layout: Layout
    workload: Workload
    ttft_ms: float | None
    tpot_ms: float | None
    all_reduce: AllReduceRule | None = None
    weights: str | None = None
    concurrency: int | None = None
    requests: int | None = None

    @property
    def name(self) -> str:
        load = self.workload
        layout = self.layout.name
        if self.layout.stage_layers:
            layout += f" ({'+'.join(map(str, self.layout.stage_layers))} layers)"
        if self.all_reduce:
            layout += f" {self.all_reduce}"
        if self.weights:
            layout += f" {self.weights}"
        many = f"{self.concurrency} clients" if self.concurrency else f"x{load.batch}"
        return f"{self.model} {layout} {load.prompt_tokens}/{load.decode_tokens} {many}"

    def ask(self, machine: Machine | None = None) -> tuple[Estimate, Estimate]:
        """TTFT and TPOT as a user is told them; ``machine``: another engine and device, for fits."""
        profile = machine.profile if machine else profile_named(self.engine)
        if self.all_reduce is not None:
            profile = replace(profile, all_reduce=self.all_reduce, fused_kernels=0)
        asked: dict[str, Any] = {
            "engine": profile,
            "accelerator": machine.accelerator if machine else self.accelerator,
            "fabric": self.fabric,
            "weights": self.weights,
            "nodes": self.layout.nodes,
        }
        if self.concurrency is None:
            batch = api.predict_latency(self.model, self.layout, self.workload, **asked)
            return batch.ttft_ms, batch.tpot_ms
        asked |= {"concurrency": self.concurrency, "requests": self.requests}
        served = api.predict_serving(self.model, self.layout, self.workload, **asked)
        ttft, tpot = served.ttft_ms, served.tpot_ms
        return ttft.mean.scaled(ttft.p50 / ttft.value), tpot.mean.scaled(tpot.p50 / tpot.value)


def h200_runs() -> list[MeasuredRun]:
    """Runs of vLLM 0.25.1 on 4 H200: the rows that the ``vllm`` profile is fitted to."""
    return runs_of("h200x4", measurements("h200x4")["vllm"], "fitted")


def weft_runs() -> list[MeasuredRun]:
    """Runs of weft on 4 H200: the ``weft`` profile is fitted to TP1, TP2 and PP2 of the 8B model.

    The others (TP4, PP4, TP2 x PP2, 70B, NCCL instead of weft's all-reduce) are unseen.
    """
    return runs_of("weft h200x4", measurements("weft_h200x4"))


def server_runs() -> list[MeasuredRun]:
    """Closed loops of weft and vLLM on 2 H200: the servers are fitted to TP1, TP2 is unseen."""
    return runs_of("servers h200x2", measurements("servers_h200x2"))


def runs_of(source: str, document: Mapping[str, Any], role: Role = "test") -> list[MeasuredRun]:
    """Runs of a document with ``rows``; what a row leaves out is the document's."""
    common = {key: value for key, value in document.items() if isinstance(value, str | int)}
    return [_run(source, {"role": role, "method": "", **common, **row}) for row in document["rows"]]


def _run(source: str, row: Mapping[str, Any]) -> MeasuredRun:
    layers = row.get("stage_layers")
    layout = Layout.parse(row["layout"])
    return MeasuredRun(
        source=source,
        method=str(row["method"]),
        role=row["role"],
        engine=row["engine"],
        accelerator=row["accelerator"],
        fabric=row.get("fabric"),
        model=row["model"],
        layout=replace(layout, nodes=row.get("nodes", 1), stage_layers=layers and tuple(layers)),
        workload=Workload(
            prompt_tokens=row["prompt"], decode_tokens=row["decode"], batch=row.get("batch", 1)
        ),
        ttft_ms=row["ttft_ms"],
        tpot_ms=row["tpot_ms"],
        all_reduce=row.get("all_reduce"),
        weights=row.get("weights"),
        concurrency=row.get("concurrency"),
        requests=row.get("requests"),
    )


def runs_from_file(path: Path) -> list[MeasuredRun]:
    """Own measured batches: ``{"schema": "weft.measured/1", "method": ..., "rows": [...]}``.

    A row names engine, accelerator, model, layout (short name), prompt, decode, batch, ttft_ms and
    tpot_ms (null where not measured), and may name fabric, nodes, weights, stage_layers, and
    concurrency and requests of a server. FileFormatError says what is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != "weft.measured/1":
            raise FileFormatError(f"`runs` {path}: schema is not 'weft.measured/1'")
        return runs_of(path.stem, {key: document[key] for key in ("method", "rows")})
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"`runs` {path}: cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"`runs` {path}: missing or wrong field {error}") from None
