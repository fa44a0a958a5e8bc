"""One case on a server that is ready: its loads, its profiled window, what should have happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from weft.bench.serving.arrivals import at_random, synthetic
from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.result import ServeResult
from weft.bench.serving.runner import Load, run_load
from weft.bench.serving.session import benchmark, first_model, run_event_loop
from weft.bench.serving.sweep import Sweep, SweepPoint
from weft.closed_form.schedule import closed_form
from weft.errors import EnvironmentUnavailable, WeftError
from weft.study.engines import traces
from weft.study.engines.plan import SHARES, EngineCase, EnginesPlan
from weft.study.engines.server import EngineFailed, EngineServer
from weft.vocabulary.files import write_file
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

Predict = Callable[[EngineCase, Workload, int, int], dict[str, Any] | None]
"""(case, workload, open requests, requests in all) -> the times of ``weft predict``."""
Tell = Callable[[str], None]
_WARM_UP: Final = 4
_FLUSH_S: Final = 300.0
_DEATH_S: Final = 2.0
"""How long a server whose requests fail may take to be seen dead."""


def run_case(
    plan: EnginesPlan, case: EngineCase, server: EngineServer, model: str, folder: Path, tell: Tell
) -> dict[str, Any]:
    """Loads and profile; raises EngineFailed where the server does not do its part."""
    workload = plan.workloads[case.workload]
    target = Target(
        endpoint=parse_url(server.url),
        model="" if server.process is None else "model",
        token_ids_below=load_spec(plan.model).vocab_size,
        temperature=0.0,
    )
    try:
        if not target.model:
            target = replace(target, model=run_event_loop(first_model(target)))
        loads = list(_loads(plan, workload, target, server, tell))
        profile = _profile(plan, case, target, server, model, folder, tell)
    except EnvironmentUnavailable as error:
        server.check(_DEATH_S)
        raise EngineFailed(str(error)) from None
    return {"loads": loads, "trace": profile}


def _loads(
    plan: EnginesPlan, workload: Workload, target: Target, server: EngineServer, tell: Tell
) -> Iterator[dict[str, Any]]:
    """Closed loops, then open ones at the rates asked for, or at shares of the best closed one."""
    best, alone_holds = 0.0, True
    for open_requests in plan.loops(workload):
        tell(f"{open_requests} open requests")
        found = _load(plan, workload, target, server, concurrency=open_requests, rate=None)
        if plan.sweep and open_requests == 1:
            alone_holds = _holds(found)
        best = max(best, found["result"]["throughput"]["requests_per_s"] or 0.0)
        yield found
    if plan.sweep and not alone_holds:
        return
    if plan.sweep:
        yield from _to_the_knee(plan, workload, target, server, tell, start=SHARES[-1] * best)
        return
    rates = plan.rates if plan.rates is not None else tuple(share * best for share in SHARES)
    for rate in rates:
        tell(f"{rate:.3g} requests/s")
        yield _load(plan, workload, target, server, concurrency=None, rate=rate)


def _holds(load: dict[str, Any]) -> bool:
    return SweepPoint(load=1, result=load["result"]).holds


def _to_the_knee(
    plan: EnginesPlan,
    workload: Workload,
    target: Target,
    server: EngineServer,
    tell: Tell,
    *,
    start: float,
) -> Iterator[dict[str, Any]]:
    """``weft bench serve --sweep rate``; beyond the knee a failed request is one that misses."""

    def measure(rate: float) -> SweepPoint:
        tell(f"{rate:.3g} requests/s")
        found = _load(plan, workload, target, server, concurrency=None, rate=rate, may_fail=True)
        return SweepPoint(load=rate, result=found["result"])

    for point in Sweep(kind="rate", measure=measure).run(start):
        yield {"concurrency": None, "rate_per_s": point.load, "result": point.result}


def _load(
    plan: EnginesPlan,
    workload: Workload,
    target: Target,
    server: EngineServer,
    *,
    concurrency: int | None,
    rate: float | None,
    may_fail: bool = False,
) -> dict[str, Any]:
    count = plan.requests_of(concurrency)
    specs = synthetic(count, workload.prompt_tokens, workload.decode_tokens)
    specs = specs if rate is None else at_random(specs, rate)
    load = Load(
        specs=specs,
        concurrency=concurrency,
        duration_s=plan.seconds,
        timeout_s=plan.answer_s,
    )
    warm_up = min(_WARM_UP, concurrency or 1)
    target, outcome, _ = run_event_loop(benchmark(target, load, num_warm_up=warm_up))
    server.check()
    result = ServeResult(target=target, load=load, outcome=outcome, limits=plan.limits).to_dict()
    requests = result["requests"]
    if (requests["failed"] and not may_fail) or not requests["completed"]:
        error = next(iter(requests["errors"]), "nothing was sent")
        raise EngineFailed(
            f"{requests['failed']} of {requests['offered']} requests failed: {error}"
        )
    result["definitions"] = {"weft": result["definitions"][DEFINITIONS["weft"].name]}
    return {"concurrency": concurrency, "rate_per_s": rate, "result": result}


def _profile(
    plan: EnginesPlan,
    case: EngineCase,
    target: Target,
    server: EngineServer,
    model: str,
    folder: Path,
    tell: Tell,
) -> dict[str, Any] | None:
    """The window's summary; with ``failed`` where the traces cannot be read, None without a window."""
    if server.process is None or not plan.profiled_requests or case.layout.world_size == 1:
        return None
    tell("profile")
    for old in folder.iterdir():
        old.unlink()
    workload = plan.workloads[case.workload]
    tokens = min(plan.profiled_tokens, workload.decode_tokens)
    server.post("/start_profile", _FLUSH_S)
    specs = synthetic(plan.profiled_requests, workload.prompt_tokens, tokens)
    load = Load(specs=specs, concurrency=plan.profiled_requests, timeout_s=plan.answer_s)
    outcome = run_event_loop(run_load(target, load, first_index=1 << 41))
    server.post("/stop_profile", _FLUSH_S)
    if failed := [one.error for one in outcome.records if one.error]:
        raise EngineFailed(f"a profiled request failed: {failed[0]}")
    window = {"requests": plan.profiled_requests, "decode_tokens": tokens}
    tell("import")
    try:
        files = traces.collect(folder, case.layout.world_size, server)
        imported = traces.read(files, model, case.layout, case.engine.schedule)
    except WeftError as error:
        return window | {"failed": str(error)}
    write_file(folder / "import.json", imported.to_dict())
    return window | traces.summary(imported)


def expected(plan: EnginesPlan, case: EngineCase) -> dict[str, Any]:
    """What the whole batch of the workload should send by the engine's schedule."""
    spec, workload = load_spec(plan.model), plan.workloads[case.workload]
    schedule = closed_form(spec, case.layout, workload, case.engine.schedule)
    document = schedule.to_dict()
    return {key: document[key] for key in ("workload", "collectives", "totals")}
