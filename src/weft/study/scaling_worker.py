"""One rank of one run of the scaling study: ``python -m weft.study.scaling_worker JOB.json``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from weft.comm.groups import ProcessGroups, open_groups
from weft.comm.recorder import Recorder
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.launch.environment import current_rank, pick_device
from weft.launch.worker import worker
from weft.study.breakdown import PhaseBreakdown, RankRecord, TimedCall, TimedStep, breakdown
from weft.study.device_breakdown import device_breakdown
from weft.study.device_profile import kernels_of_decode, kernels_of_prefill
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload


def measure(job: dict[str, Any]) -> None:
    """Every workload with every all-reduce on one layout; rank 0 writes the results."""
    layout = Layout(**job["layout"])
    workloads = {name: Workload(**parts) for name, parts in job["workloads"].items()}
    place = current_rank()
    device = pick_device(job["device"], place.local_rank)
    results: list[dict[str, Any]] = []
    with open_groups(layout, rank=place.rank, device=device, all_reduce="library") as plain:
        for all_reduce in job["all_reduces"]:
            with plain.with_all_reduce(all_reduce) as groups:
                llm = open_llm(job, groups, list(workloads.values()))
                for name, workload in workloads.items():
                    result = take_apart(llm, workload)
                    results.append({"workload": name, "all_reduce": all_reduce} | result)
                llm.engine.close()
    if place.rank == 0:
        Path(job["output"]).write_text(json.dumps(results), encoding="utf-8")


def open_llm(job: dict[str, Any], groups: ProcessGroups, workloads: list[Workload]) -> LLM:
    """An engine with room for each of the workloads."""
    most = max(workload.batch for workload in workloads)
    return LLM(
        job["model"],
        groups.layout,
        groups=groups,
        weights="dummy",
        prefix_caching=False,
        conventions=job["engine"],
        cache_tokens=max(w.batch * (w.prompt_tokens + w.decode_tokens + 64) for w in workloads),
        max_batch_requests=-(-most // groups.layout.pp),
        max_batch_tokens=max(8192, *(w.batch * w.prompt_tokens for w in workloads)),
    )


def take_apart(llm: LLM, workload: Workload) -> dict[str, Any]:
    """Warm up, generate, and split the steps of prefill and decode."""
    prompts = workload.made_up_prompts(0, llm.engine.spec.vocab_size)
    llm.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
    method = from_kernels if llm.groups.device.type == "cuda" else from_recording
    return method(llm, prompts, workload)


def from_recording(llm: LLM, prompts: list[list[int]], workload: Workload) -> dict[str, Any]:
    """On a CPU a call ends when its bytes have arrived: generate under the recorder."""
    sampling = SamplingParams(max_tokens=workload.decode_tokens, ignore_eos=True)
    with llm.recording() as recorder:
        llm.generate(prompts, sampling)
    records = llm.groups.host_gather(record_of(recorder, llm.groups.rank))
    return summary(records, llm.groups.layout)


def from_kernels(llm: LLM, prompts: list[list[int]], workload: Workload) -> dict[str, Any]:
    """On a GPU calls are only launched: time the request, then profile prefill and decode."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=workload.decode_tokens, ignore_eos=True))
    torch.cuda.synchronize()
    e2e_ms = (time.perf_counter() - start) * 1e3
    windows = {"prefill": kernels_of_prefill(llm, prompts)}
    if workload.decode_tokens > 1:
        windows["decode"] = kernels_of_decode(llm, prompts)
    phases = []
    for phase, (kernels, num_steps) in windows.items():
        ranks = llm.groups.host_gather(kernels)
        phases.append(row(phase, device_breakdown(ranks, llm.groups.layout, num_steps)))
    return {"e2e_ms": e2e_ms, "phases": phases}


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
    phases = [row(phase, parts) for phase, parts in breakdown(records, layout).items()]
    return {"e2e_ms": (end - start) * 1e3, "phases": phases}


def row(phase: str, parts: PhaseBreakdown) -> dict[str, Any]:
    """Milliseconds a step."""
    count = parts.num_steps
    return {
        "phase": phase,
        "steps": count,
        "step_ms": parts.total_ms / count,
        "compute_ms": parts.compute_ms / count,
        "communication_ms": parts.communication_ms / count,
        "wait_ms": parts.wait_ms / count,
        "idle_ms": parts.idle_ms / count,
    }


if __name__ == "__main__":
    with worker():
        measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
