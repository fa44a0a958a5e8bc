"""What a study of engines says: who meets the limits, and what the papers found, seen here or not.

Xu et al., "Characterizing Communication Patterns in Distributed Large Language Model Inference";
Singhania et al. on the communication of multi-node inference: TP has the lowest latency, PP the
least volume, hybrids lie between, and decode steps wait for small all-reduces.
"""

from __future__ import annotations

from collections.abc import Iterator

from weft.report.engines_document import CaseRecord, LoadRecord, Study
from weft.report.text import decimal_bytes, number


def answers(study: Study) -> list[str]:
    """One sentence a workload: the engine and layout to take, by how much, and what bounds it."""
    return [_answer(study, workload) for workload in study.workloads]


def _answer(study: Study, workload: str) -> str:
    cases = [case for case in study.done if case.workload == workload and case.loads]
    if not cases:
        return f"{workload}: no case finished."
    if not study.limits_ms:
        return f"{workload}: {_fastest(cases)}"
    found = [(load, case) for case in cases for load in case.loads if _over(study, load)[0] <= 1]
    if not found:
        return f"{workload}: none meets {_limits(study)}; {_nearest(study, cases)}"
    load, case = max(found, key=lambda pair: pair[0].result.throughput.requests_per_s or 0.0)
    rate = load.result.throughput.requests_per_s or 0.0
    return (
        f"{workload}: {case.place} serves the most within {_limits(study)}: "
        f"{number(round(rate, 3))} requests/s on {case.ranks} ranks; {_margin(study, load)}. "
        f"{_bound(case)}"
    )


def _limits(study: Study) -> str:
    return ", ".join(
        f"{name.removesuffix('_ms').upper()} {number(limit)} ms"
        for name, limit in study.limits_ms.items()
    )


def _over(study: Study, load: LoadRecord) -> tuple[float, str]:
    """The worst 99th percentile over its limit, and whose: within all limits where it is at most 1."""
    ratios = [
        ((load.figures.p99(name) or 0.0) / limit, name) for name, limit in study.limits_ms.items()
    ]
    return max(ratios)


def _margin(study: Study, load: LoadRecord) -> str:
    ratio, name = _over(study, load)
    side = "below" if ratio <= 1 else "above"
    metric = name.removesuffix("_ms").upper()
    return f"its {metric} at the 99th percentile is {abs(1 - ratio):.0%} {side} the limit"


def _nearest(study: Study, cases: list[CaseRecord]) -> str:
    loads = [(load, case) for case in cases for load in case.loads]
    load, case = min(loads, key=lambda pair: _over(study, pair[0])[0])
    return f"nearest is {case.place}: {_margin(study, load)}. {_bound(case)}"


def _fastest(cases: list[CaseRecord]) -> str:
    timed = [(case.alone.median("e2e_ms"), case) for case in cases if case.alone]
    known = [(e2e, case) for e2e, case in timed if e2e is not None]
    if not known:
        return "no times."
    e2e, case = min(known, key=lambda pair: pair[0])
    most = max(cases, key=tokens)
    return (
        f"{case.place} answers a request alone soonest ({number(round(e2e, 1))} ms), "
        f"{most.place} gives the most tokens ({number(round(tokens(most), 1))} a second). {_bound(case)}"
    )


def tokens(case: CaseRecord) -> float:
    load = case.busiest
    return (load.result.throughput.output_tokens_per_s or 0.0) if load else 0.0


def _bound(case: CaseRecord) -> str:
    decode = case.trace.decode if case.trace else None
    if decode is None:
        return "What bounds it was not traced."
    return f"Its decode steps are bound by {decode.bound} ({decode.share(decode.bound):.0%} of the step)."


def findings(study: Study) -> list[dict[str, str]]:
    """Each finding of the papers with what this study says of it, engine by engine."""
    found = []
    for engine in dict.fromkeys(case.engine for case in study.done):
        for workload in study.workloads:
            cases = [c for c in study.done if (c.engine, c.workload) == (engine, workload)]
            where = {"engine": engine, "workload": workload}
            found += [where | row for row in _of_cases(cases)]
    return found


def _of_cases(cases: list[CaseRecord]) -> Iterator[dict[str, str]]:
    for ranks in sorted({case.ranks for case in cases if case.ranks > 1}):
        equal = [case for case in cases if case.ranks == ranks]
        yield from _compared(equal, f"{ranks} ranks")
    for case in cases:
        if _kind(case) == "tp" and case.trace and (decode := case.trace.decode):
            share = decode.share("communication", "waiting")
            name = f"decode of {case.layout} is bound by its all-reduces"
            yield _row(name, share >= 0.5, f"{share:.0%} of a step is communication and waiting")


def _compared(cases: list[CaseRecord], where: str) -> Iterator[dict[str, str]]:
    times = {
        case.layout: time
        for case in cases
        if case.alone and (time := case.alone.median("e2e_ms")) is not None
    }
    volumes = {
        case.layout: case.schedule["totals.volume_bytes"].optional_number() or 0.0 for case in cases
    }
    kinds = {case.layout: _kind(case) for case in cases}
    for name, values, wanted, text in (
        (f"TP has the lowest latency of {where}", times, "tp", lambda ms: f"{ms:,.4g} ms"),
        (f"PP sends the least of {where}", volumes, "pp", decimal_bytes),
    ):
        if wanted in {kinds[layout] for layout in values} and len(values) > 1:
            best = min(values, key=lambda layout: values[layout])
            shown = ", ".join(f"{layout} {text(value)}" for layout, value in values.items())
            yield _row(name, kinds[best] == wanted, shown)
    order = sorted(times, key=lambda layout: times[layout])
    hybrids = [layout for layout in order if kinds[layout] == "hybrid"]
    if hybrids and {"tp", "pp"} <= {kinds[layout] for layout in order}:
        between = order[0] not in hybrids and order[-1] not in hybrids
        yield _row(f"hybrids lie between TP and PP on {where}", between, " < ".join(order))


def _kind(case: CaseRecord) -> str:
    has_tensor, has_pipeline = "tp" in case.layout, "pp" in case.layout
    return "hybrid" if has_tensor and has_pipeline else "tp" if has_tensor else "pp"


def _row(finding: str, confirmed: bool, shown: str) -> dict[str, str]:
    verdict = "confirmed" if confirmed else "contradicted"
    return {"finding": finding, "here": verdict, "figures": shown}
