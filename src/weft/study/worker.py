"""One rank of one layout of a study: ``python -m weft.study.worker JOB.json``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft.comm.recorder import Recorder
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.launch.worker import worker
from weft.tracing.run import record_run, timeline_of_step
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload


def measure(job: dict[str, Any]) -> None:
    """Warm up, generate once under the recorder, and write the result from rank 0."""
    layout, workload = Layout(**job["layout"]), Workload(**job["workload"])
    capacity = workload.batch * (workload.prompt_tokens + workload.decode_tokens + 16)
    with LLM(
        job["model"],
        layout,
        device=job["device"],
        weights="dummy",
        prefix_caching=False,
        conventions=job["engine"],
        cache_tokens=capacity,
        max_batch_tokens=max(8192, workload.batch * workload.prompt_tokens),
    ) as llm:
        prompts = workload.made_up_prompts(0, llm.engine.spec.vocab_size)
        llm.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True))
        started = time.perf_counter()
        schedule, recorder = record_run(llm, workload, prompts)
        times = _times(recorder, started, workload)
        middle = len(recorder.steps) // 2
        spans = llm.groups.host_gather(timeline_of_step(recorder, llm.groups.rank, middle))
        if llm.groups.rank == 0:
            result = times | {
                "layout": {key: value for key, value in asdict(layout).items() if key in _DEGREES},
                "rows": [asdict(row) for row in schedule.collectives],
                "timeline": _from_zero([span for part in spans for span in part]),
            }
            Path(job["output"]).write_text(json.dumps(result), encoding="utf-8")


_DEGREES = ("tp", "pp", "sp", "ep", "dp", "nodes")


def _times(recorder: Recorder, started_s: float, workload: Workload) -> dict[str, float | None]:
    """TTFT ends with the first step; TPOT = (E2E - TTFT) / (decode tokens - 1)."""
    ttft_ms = (recorder.steps[0].end_s - started_s) * 1e3
    e2e_ms = (recorder.steps[-1].end_s - started_s) * 1e3
    decodes = workload.num_decode_steps
    return {
        "ttft_ms": ttft_ms,
        "tpot_ms": (e2e_ms - ttft_ms) / decodes if decodes else None,
        "e2e_ms": e2e_ms,
    }


def _from_zero(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ranks of one machine share a clock; the earliest start becomes zero."""
    zero = min(span["start_us"] for span in spans)
    return [
        span | {"start_us": span["start_us"] - zero, "end_us": span["end_us"] - zero}
        for span in spans
    ]


if __name__ == "__main__":
    with worker():
        measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
