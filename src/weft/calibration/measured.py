"""Measured runs that come with the package, each with its method."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from weft.errors import FileFormatError
from weft.prediction.engine_profile import AllReduceRule
from weft.prediction.machines import machine_named
from weft.prediction.own_tables import measurements
from weft.prediction.prediction import Machine
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

Role = Literal["fitted", "tuned", "test", "compared"]


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One measured batch: what ran, and its TTFT and TPOT in ms (None = not given).

    role: fitted (the engine profile was fitted to it), tuned (a constant was chosen with
    it), test (never used) or compared (shown, never used: contradicts itself, or is another
    engine's). all_reduce: the rule that this run had instead of its engine's own.
    """

    source: str
    method: str
    role: Role
    engine: str
    accelerator: str
    fabric: str
    model: str
    layout: Layout
    workload: Workload
    ttft_ms: float | None
    tpot_ms: float | None
    all_reduce: AllReduceRule | None = None

    @property
    def name(self) -> str:
        load = self.workload
        layout = self.layout.name
        if self.layout.stage_layers:
            layout += f" ({'+'.join(map(str, self.layout.stage_layers))} layers)"
        if self.all_reduce:
            layout += f" {self.all_reduce}"
        return f"{self.model} {layout} {load.prompt_tokens}/{load.decode_tokens} x{load.batch}"


def h200_runs() -> list[MeasuredRun]:
    """Runs of vLLM 0.25.1 on 4 H200: the rows that the ``vllm`` profile is fitted to."""
    data = measurements("h200x4")["vllm"]
    return [
        MeasuredRun(
            source="h200x4",
            method=data["method"],
            role="fitted",
            engine=data["engine"],
            accelerator=data["accelerator"],
            fabric=data["fabric"],
            model=row["model"],
            layout=Layout(tp=row["tp"], pp=row["pp"]),
            workload=Workload(
                prompt_tokens=row["prompt"], decode_tokens=data["decode_tokens"], batch=row["batch"]
            ),
            ttft_ms=row["ttft_ms"],
            tpot_ms=row["tpot_ms"],
        )
        for row in data["rows"]
    ]


def weft_runs() -> list[MeasuredRun]:
    """Runs of weft on 4 H200: the ``weft`` profile is fitted to TP1 and TP2 of the 8B model.

    The cost of a pipeline stage was chosen with its PP2. The others (TP4, PP4, TP2 x PP2, 70B,
    NCCL instead of weft's all-reduce) are unseen by both.
    """
    data = measurements("weft_h200x4")
    return [
        MeasuredRun(
            source="weft h200x4",
            method=data["method"],
            role=row["role"],
            engine=data["engine"],
            accelerator=data["accelerator"],
            fabric=data["fabric"],
            model=row["model"],
            layout=replace(Layout.parse(row["layout"]), stage_layers=_stage_layers(row)),
            workload=Workload(
                prompt_tokens=row["prompt"],
                decode_tokens=row.get("decode", data["decode_tokens"]),
                batch=row["batch"],
            ),
            ttft_ms=row["ttft_ms"],
            tpot_ms=row["tpot_ms"],
            all_reduce=row.get("all_reduce"),
        )
        for row in data["rows"]
    ]


def _stage_layers(row: dict[str, Any]) -> tuple[int, ...] | None:
    return tuple(row["stage_layers"]) if "stage_layers" in row else None


def runs_from_file(path: Path) -> list[MeasuredRun]:
    """Own measured batches: ``{"schema": "weft.measured/1", "method": ..., "rows": [...]}``.

    A row names engine, accelerator, fabric, model, layout (short name), nodes, prompt, decode,
    batch, ttft_ms and tpot_ms (null where not measured). FileFormatError says what is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != "weft.measured/1":
            raise FileFormatError(f"`runs` {path}: schema is not 'weft.measured/1'")
        return [_own_run(row, path.stem, str(document["method"])) for row in document["rows"]]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"`runs` {path}: cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"`runs` {path}: missing or wrong field {error}") from None


def _own_run(row: dict[str, Any], source: str, method: str) -> MeasuredRun:
    return MeasuredRun(
        source=source,
        method=method,
        role="test",
        engine=row["engine"],
        accelerator=row["accelerator"],
        fabric=row["fabric"],
        model=row["model"],
        layout=replace(Layout.parse(row["layout"]), nodes=row.get("nodes", 1)),
        workload=Workload(
            prompt_tokens=row["prompt"], decode_tokens=row["decode"], batch=row["batch"]
        ),
        ttft_ms=row["ttft_ms"],
        tpot_ms=row["tpot_ms"],
    )


def published_runs() -> list[MeasuredRun]:
    """Published service times of vLLM V0 on H100 nodes of four: compared, never fitted."""
    data = measurements("published_h100x8")
    return [
        MeasuredRun(
            source="published",
            method=data["method"],
            role="compared",
            engine=data["engine"],
            accelerator=data["accelerator"],
            fabric=data["fabric"],
            model=row["model"],
            layout=Layout(tp=row["tp"], pp=row["pp"], nodes=row["nodes"]),
            workload=Workload(prompt_tokens=128, decode_tokens=128, batch=1),
            ttft_ms=row["ttft_ms"],
            tpot_ms=row["tpot_ms"],
        )
        for row in data["rows"]
    ]


def machine_of_run(run: MeasuredRun, base: Machine | None = None) -> Machine:
    """The machine that a measured run names (``base`` instead, where given), with its all-reduce."""
    machine = base or machine_named(run.engine, run.accelerator, run.fabric)
    if run.all_reduce is None:
        return machine
    profile = replace(machine.profile, all_reduce=run.all_reduce, fused_kernels=0)
    return replace(machine, profile=profile)
