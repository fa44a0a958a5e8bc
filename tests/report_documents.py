"""A document of every kind that a report is made of, from made-up results."""

from __future__ import annotations

import asyncio
import copy
import functools
from typing import Any

from mock_server import MockBehaviour, start_mock
from weft.bench.serving.arrivals import synthetic
from weft.bench.serving.figures import ServiceLimits
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.result import ServeResult
from weft.bench.serving.runner import Load, RunOutcome, run_load
from weft.closed_form.schedule import closed_form
from weft.report import compared_rows
from weft.vocabulary.comparison import compare
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.workload import Workload

TIMELINE = [
    {"rank": 0, "name": "layer 0", "kind": "compute", "start_us": 0.0, "end_us": 5.0},
    {"rank": 0, "name": "sum", "kind": "all_reduce", "start_us": 5.0, "end_us": 9.5},
]


def schedule(layout: str, engine: str = "vllm-v0", decode: int = 128) -> Schedule:
    workload = Workload(decode_tokens=decode)
    return closed_form(load_spec("llama-3.1-8b"), Layout.parse(layout), workload, engine)


def import_document() -> dict[str, Any]:
    expected, actual = schedule("tp2", "vllm"), schedule("tp2", "vllm", decode=32)
    times = {"min": 1.0, "median": 2.0, "max": 3.0, "total": 4.0}
    imported = actual.to_dict()
    for row in imported["collectives"]:
        row |= {"duration_us": times, "wait_us": None, "transfer_us": None, "bound": "upper"}
    return imported | {
        "source": "import",
        "conformance": {
            "engine": "vllm",
            "explanation": "fewer decode steps than asked for",
            "rows": [row.to_dict() for row in compare(expected, actual)],
        },
        "time_share": [{"step": "decode 1", "kinds_us": {"compute": 90.0, "all_reduce": 10.0}}],
        "waiting": [{"rank": 0, "wait_us": 3.0, "transfer_us": 4.0}],
        "timeline": TIMELINE,
        "unexplained": [{"name": "ncclDevKernel", "count": 2}],
    }


def study_document() -> dict[str, Any]:
    layouts = []
    for name in ("1", "tp2", "tp2xpp2"):
        sources = {source: schedule(name) for source in ("run", "dry_run", "closed_form")}
        layouts.append(
            {
                "layout": sources["run"].to_dict()["layout"],
                "ttft_ms": 100.0,
                "tpot_ms": 10.0,
                "e2e_ms": 1370.0,
                "schedules": {source: one.to_dict() for source, one in sources.items()},
                "rows": compared_rows(sources),
                "timeline": TIMELINE,
            }
        )
    published = {"published": schedule("tp4"), "closed_form": schedule("tp4")}
    return {
        "schema": "weft.study/1",
        "machine": {"cpu": "some CPU", "cores": 2},
        "workload": {"prompt_tokens": 128, "decode_tokens": 128, "batch": 1},
        "layouts": layouts,
        "published": [{"model": "llama-3.1-8b", "layout": "tp4", "rows": compared_rows(published)}],
        "checks": {"passed": 30, "total": 30},
    }


def bench_document() -> dict[str, Any]:
    times = {"min_us": 1.0, "median_us": 2.0, "max_us": 3.0, "algbw_gb_s": 4.0, "busbw_gb_s": 6.0}
    rows = [
        {"algorithm": name, "bytes": size, "dtype": dtype, **times, "wrong": 0}
        for name in ("ring", "one-shot")
        for size in (8192, 65536)
        for dtype in ("bfloat16", "float32")
    ]
    return {"schema": "weft.bench.allreduce/1", "machine": {"gpus": 4}, "rows": rows}


def plan_document() -> dict[str, Any]:
    interval = {"value": 5.0, "low": 4.0, "high": 6.0}
    plans = [
        {"layout": "tp4", "batch": 8, "ttft_ms": 80.0, "tpot_ms": interval, "on_front": True}
        | {"throughput_per_gpu": 300.0, "memory_gib": 20.5, "breakdown_us": {"compute": 4000.0}},
        {"layout": {"tp": 2, "pp": 2}, "ttft_ms": 80.0, "tpot_ms": 7.0, "throughput_per_gpu": 9.0},
    ]
    return {
        "schema": "weft.plan/1",
        "model": "llama-3.1-70b",
        "objective": "latency",
        "workload": {"batch": 8},
        "plans": plans,
        "rejected": [{"layout": "tp3", "reason": "does not divide the 64 attention heads"}],
    }


def scoreboard_document() -> dict[str, Any]:
    row = {"quantity": "TPOT (ms)", "predicted": 5.0, "low": 4.0, "high": 6.0}
    rows = [row | {"name": "tp2", "measured": 5.5}, row | {"name": "tp4", "measured": 7.0}]
    return {"schema": "weft.scoreboard/1", "rows": rows}


def prediction_document() -> dict[str, Any]:
    interval = {"value": 5.0, "low": 4.0, "high": 6.0}
    parts = ("matmul", "attention", "elementwise", "fixed", "communication", "waiting")
    phase = {f"{part}_ms": 1.0 for part in parts} | {
        "collectives": [{"op": "all_reduce", "message_bytes": 8192, "count": 65, "time_us": 5.0}]
    }
    return {
        "schema": "weft.prediction/1",
        "model": "llama-3.1-8b",
        "layout": "tp2",
        "engine": "vllm",
        "workload": {"batch": 1},
        "accelerator": "h200-sxm",
        "fabric": "h200-nvlink",
        **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s"), interval),
        "communication_share": 0.25,
        "memory": {"weights_gb": 8.0, "fits": True},
        "prefill": phase,
        "decode": phase,
        "provenance": {"h200-sxm.matmul": {"value": 780.0, "origin": "measured"}},
    }


DOCUMENTS = {
    "schedule": lambda: schedule("tp2xpp2").to_dict(),
    "import": import_document,
    "study": study_document,
    "bench": bench_document,
    "plan": plan_document,
    "scoreboard": scoreboard_document,
    "prediction": prediction_document,
}


PART = {
    "mean_ms": 4.0,
    "communication_ms": 1.0,
    "share": 0.25,
    "by": [{"phase": "decode", "op": "all_reduce", "mean_ms": 1.0, "share": 0.25}],
}


async def _measured() -> tuple[dict[str, Any], RunOutcome]:
    server, url = await start_mock(MockBehaviour(ttft_ms=4, itl_ms=2, fail_every=9))
    target = Target(endpoint=parse_url(url), model="mock")
    load = Load(specs=synthetic(20, 8, 5), concurrency=4, timeout_s=20)
    outcome = await run_load(target, load)
    server.close()
    await asyncio.sleep(0.05)
    settings = {"kind": "closed", "rate_per_s": None, "concurrency": 4}
    limits = ServiceLimits(ttft_ms=1e4)
    result = ServeResult(
        target=target, load=load, outcome=outcome, limits=limits, settings=settings
    )
    return result.to_dict(), outcome


@functools.cache
def measured() -> tuple[dict[str, Any], RunOutcome]:
    result, outcome = asyncio.run(_measured())
    return result | {"communication": {"ttft": PART, "tpot": PART}}, outcome


def bench() -> dict[str, Any]:
    return copy.deepcopy(measured()[0])


LOAD = Workload(prompt_tokens=128, decode_tokens=32, batch=8)
SCHEMA = "weft.study.engines/1"


def metric(p50: float) -> dict[str, Any]:
    return {name: {"value": p50 * by, "low": None, "high": None} for name, by in
            (("p50", 1.0), ("p90", 1.2), ("p95", 1.3), ("p99", 1.5))}  # fmt: skip


def load(tpot: float, rate: float, **how: float) -> dict[str, Any]:
    figures = {"ttft_ms": metric(tpot * 5), "tpot_ms": metric(tpot), "e2e_ms": metric(tpot * 36)}
    through = {"requests_per_s": rate, "output_tokens_per_s": 32 * rate}
    result = {"definitions": {"weft": figures}, "throughput": through}
    return {"concurrency": None, "rate_per_s": None, **how, "result": result}


def case(engine: str, layout: str, tpot: float, **more: Any) -> dict[str, Any]:
    parsed = Layout.parse(layout)
    schedule = "vllm" if engine.startswith("vllm") else "weft"
    sent = closed_form(load_spec("llama-3.1-8b"), parsed, LOAD, schedule).to_dict()
    phase = {
        "steps": 16,
        "compute_us": 4e3,
        "communication_us": 3e3,
        "waiting_us": 2e3,
        "idle_us": 1e3,
    }
    trace = {"conforms": True, "verdict": "conforms", "explanation": "all rows",
             "phases": [{"phase": name} | phase for name in ("prefill", "decode")]}  # fmt: skip
    return {
        "engine": engine,
        "layout": layout,
        "workload": "chat",
        "ranks": parsed.world_size,
        "status": "done",
        "reason": None,
        "expected": {key: sent[key] for key in ("workload", "collectives", "totals")},
        "predicted": {"tpot_ms": {"value": tpot * 1.1, "low": tpot, "high": 2 * tpot}},
        "loads": [load(tpot, 1, concurrency=1), load(2 * tpot, 50 / tpot, concurrency=8),
                  load(5 * tpot, 80 / tpot, rate_per_s=9.0)],
        "trace": trace if parsed.world_size > 1 else None,
    } | more  # fmt: skip


def study(**more: Any) -> dict[str, Any]:
    cases = [
        case("weft", "1", 12.0),
        case("weft", "tp2", 7.0),
        case("weft", "pp2", 13.0),
        case("weft-library", "tp2", 8.0),
        case("vllm", "tp2", 7.5),
        case("vllm", "tp4", 5.0),
        case("vllm", "pp4", 14.0),
        case("vllm", "tp2xpp2", 8.0),
        case("vllm", "pp2", 1, status="failed", reason="not ready", loads=[], trace=None),
    ]
    return {
        "schema": SCHEMA,
        "model": "llama-3.1-8b",
        "limits_ms": {"tpot_ms": 30.0},
        "cases": cases,
    } | more
