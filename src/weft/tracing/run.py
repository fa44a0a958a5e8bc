"""A real run, recorded: the schedule as it was, with times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.tracing.recorded import rows_from_calls
from weft.vocabulary.layout import Layout
from weft.vocabulary.schedule import Collective, Schedule
from weft.vocabulary.workload import Workload

if TYPE_CHECKING:
    from weft.comm.recorder import Recorder
    from weft.engine.llm import LLM


def record_run(llm: LLM, workload: Workload, prompts: list[list[int]]) -> tuple[Schedule, Recorder]:
    """Generate for ``prompts`` under the recorder.

    Returns the schedule (the same on every rank; rows of tensor-parallel rank 0 of the
    first replica of each stage) and this rank's own recording.
    """
    from weft.engine.request import SamplingParams

    sampling = SamplingParams(max_tokens=workload.decode_tokens, ignore_eos=True)
    with llm.recording() as recorder:
        llm.generate(prompts, sampling)
    groups = llm.groups
    mine: list[Collective] = []
    if groups.tp.rank == 0 and groups.replica == 0:
        mine = list(rows_from_calls(recorder.calls, groups.stage, timed=True))
    rows = [row for part in groups.host_gather(mine) for row in part]
    schedule = Schedule(
        source="run",
        engine=llm.engine.config.conventions,
        model=llm.engine.spec,
        layout=groups.layout,
        workload=workload,
        collectives=tuple(sorted(rows, key=lambda row: row.stage)),
    )
    return schedule, recorder


def trace_run(
    model: str, layout: Layout, workload: Workload, engine: str, device: str, timeout_s: float
) -> Schedule:
    """One rank of ``weft trace``: run a made-up batch under the recorder."""
    from weft.engine.llm import LLM

    with LLM(
        model,
        layout,
        device=device,
        timeout_s=timeout_s,
        conventions=engine,
        prefix_caching=False,
        cache_tokens=workload.batch * (workload.prompt_tokens + workload.decode_tokens + 16),
        max_batch_tokens=workload.batch * workload.prompt_tokens,
        max_batch_requests=workload.batch,
    ) as llm:
        prompts = workload.made_up_prompts(0, llm.engine.spec.vocab_size)
        return record_run(llm, workload, prompts)[0]


def timeline_of_step(recorder: Recorder, rank: int, index: int) -> list[dict[str, Any]]:
    """Spans of one step of this rank: the step itself and every call in it, in microseconds."""
    step = recorder.steps[index]
    calls = [call for call in recorder.calls if call.step == index]
    spans: list[tuple[str, str, float, float]] = []
    spans.append(("step", step.phase, step.start_s, step.end_s))
    spans += [(call.op, call.site, call.start_s, call.end_s) for call in calls]
    return [
        {"rank": rank, "kind": kind, "name": name, "start_us": start * 1e6, "end_us": end * 1e6}
        for kind, name, start, end in spans
    ]
