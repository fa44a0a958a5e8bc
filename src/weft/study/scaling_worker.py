"""One rank of one run of the scaling study: ``python -m weft.study.scaling_worker JOB.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from weft.comm.recorder import Recorder
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.launch.worker import worker
from weft.study.breakdown import RankRecord, TimedCall, TimedStep, breakdown
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload


def measure(job: dict[str, Any]) -> None:
    """Warm up, generate once under the recorder, write the breakdown from rank 0."""
    layout, workload = Layout(**job["layout"]), Workload(**job["workload"])
    length = workload.prompt_tokens + workload.decode_tokens
    with LLM(
        job["model"],
        layout,
        device="cpu",
        weights="dummy",
        conventions=job["engine"],
        all_reduce=job["all_reduce"],
        cache_tokens=workload.batch * (length + 16),
        max_batch_tokens=max(8192, workload.batch * workload.prompt_tokens),
    ) as llm:
        prompts = workload.made_up_prompts(0, llm.engine.spec.vocab_size)
        llm.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
        with llm.recording() as recorder:
            llm.generate(
                prompts, SamplingParams(max_tokens=workload.decode_tokens, ignore_eos=True)
            )
        records = llm.groups.host_gather(record_of(recorder, llm.groups.rank))
        if llm.groups.rank == 0:
            result = summary(records, layout)
            Path(job["output"]).write_text(json.dumps(result), encoding="utf-8")


def record_of(recorder: Recorder, rank: int) -> RankRecord:
    """The recording of one rank, without shapes."""
    return RankRecord(
        rank=rank,
        steps=[
            TimedStep(phase=step.phase, start_s=step.start_s, end_s=step.end_s)
            for step in recorder.steps
        ],
        calls=[
            TimedCall(
                op=call.op,
                group=call.group,
                step=call.step,
                start_s=call.start_s,
                end_s=call.end_s,
            )
            for call in recorder.calls
        ],
    )


def summary(records: list[RankRecord], layout: Layout) -> dict[str, Any]:
    """End to end, and each phase's milliseconds a step."""
    start = min(record.steps[0].start_s for record in records)
    end = max(record.steps[-1].end_s for record in records)
    phases = []
    for phase, time in breakdown(records, layout).items():
        count = time.num_steps
        phases.append(
            {
                "phase": phase,
                "steps": count,
                "step_ms": time.total_ms / count,
                "compute_ms": time.compute_ms / count,
                "communication_ms": time.communication_ms / count,
                "wait_ms": time.wait_ms / count,
                "idle_ms": time.idle_ms / count,
            }
        )
    return {"e2e_ms": (end - start) * 1e3, "phases": phases}


if __name__ == "__main__":
    with worker():
        measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
