"""Time to the first token and per token of the engine, beside what memory allows.

Method: generate 1 token and ``decode_tokens`` tokens for a batch of random prompts, best of
several; TTFT is the time of 1 token, TPOT the rest divided by the rest of the tokens. The
least bytes that a decode step must read, over the bandwidth of a copy on the same device,
are the roofline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from weft.bench.decode_bench import DecodeBench, DecodeCase
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.step_bytes import weight_bytes
from weft.vocabulary.layout import Layout

SCHEMA: Final = "weft.bench-decode/1"
PROFILE_TOKENS: Final = 256
COPY_BYTES: Final = {"cuda": 4 << 30, "cpu": 64 << 20}


@dataclass(frozen=True, kw_only=True)
class DecodeResult:
    """One case. step_gb: what a token's steps must read, summed over the pipeline stages."""

    model: str
    layout: str
    batch: int
    prompt_tokens: int
    decode_tokens: int
    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float
    step_gb: float
    memory_gb_s: float
    roofline_ms: float
    roofline_share: float


def run_cases(
    bench: DecodeBench, model: str, layout: Layout, config: dict[str, Any]
) -> dict[str, Any]:
    """What every rank does; the ``weft.bench-decode/1`` object, with this rank's times."""
    cases, profiles = bench.cases, {}
    with LLM(model, layout, **config | limits_for(cases, bench.decode, layout)) as llm:
        copy_gb_s, results = copy_bandwidth_gb_s(llm.groups.device), []
        for case in cases:
            results.append(
                measure(
                    llm,
                    case,
                    decode_tokens=bench.decode,
                    repeats=bench.repeats,
                    copy_gb_s=copy_gb_s,
                )
            )
            if bench.profile:
                profiles[case.name] = profile(llm, case)
        found = document(results, llm, copy_gb_s)
    return found | ({"profiles": profiles} if bench.profile else {})


def measure(
    llm: LLM, case: DecodeCase, *, decode_tokens: int, repeats: int, copy_gb_s: float
) -> DecodeResult:
    """Times of one case on this rank (ranks differ by the reading of a few ids)."""
    prompts = _prompts(case, llm.engine.spec.vocab_size)
    _time_s(llm, prompts, min(8, decode_tokens))
    first_s = min(_time_s(llm, prompts, 1) for _ in range(repeats))
    all_s = min(_time_s(llm, prompts, decode_tokens) for _ in range(repeats))
    tpot_s = (all_s - first_s) / (decode_tokens - 1)
    context = case.prompt_tokens + decode_tokens // 2
    step_gb = sum(_bytes_of_stages(llm, case.batch, context)) / 1e9
    return DecodeResult(
        model=llm.engine.spec.name,
        layout=llm.groups.layout.name,
        batch=case.batch,
        prompt_tokens=case.prompt_tokens,
        decode_tokens=decode_tokens,
        ttft_ms=first_s * 1e3,
        tpot_ms=tpot_s * 1e3,
        tokens_per_s=case.batch / tpot_s,
        step_gb=step_gb,
        memory_gb_s=step_gb / tpot_s,
        roofline_ms=step_gb / copy_gb_s * 1e3,
        roofline_share=step_gb / copy_gb_s / tpot_s,
    )


def limits_for(cases: Sequence[DecodeCase], decode_tokens: int, layout: Layout) -> dict[str, Any]:
    """The engine's limits that just hold the cases: batch, graphs and, on a CPU, the cache."""
    batches = {-(-case.batch // layout.pp) for case in cases}
    longest = max(case.batch * (case.prompt_tokens + decode_tokens + 64) for case in cases)
    return {
        "max_batch_requests": max(batches),
        "graph_batches": tuple(sorted(batches)),
        "cache_tokens": longest + PROFILE_TOKENS * max(case.batch for case in cases),
    }


def copy_bandwidth_gb_s(device: torch.device) -> float:
    """Bytes read and written by the fastest of five copies, over its time."""
    source = torch.ones(COPY_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        _synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times) / 1e9


def profile(llm: LLM, case: DecodeCase, *, num_steps: int = 16) -> list[dict[str, Any]]:
    """Kernels of one decode step of this rank: calls and microseconds a step, longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    prompts = _prompts(case, llm.engine.spec.vocab_size)
    for number, prompt in enumerate(prompts):
        llm.engine.add(
            10**9 + number, prompt, SamplingParams(max_tokens=PROFILE_TOKENS, ignore_eos=True)
        )
    done = 0
    while done < 4 * llm.groups.layout.pp * len(prompts):
        done += len(llm.engine.step())
    _synchronize(llm.groups.device)
    activity = ProfilerActivity.CUDA if llm.groups.device.type == "cuda" else ProfilerActivity.CPU
    with torch_profile(activities=[activity]) as trace:
        for _ in range(num_steps):
            llm.engine.step()
        _synchronize(llm.groups.device)
    for number in range(len(prompts)):
        llm.engine.abort(10**9 + number)
    while llm.engine.has_work:
        llm.engine.step()
    return _by_kernel(trace, num_steps)


def _by_kernel(trace: Any, num_steps: int) -> list[dict[str, Any]]:
    rows = []
    for event in trace.key_averages():
        total_us = getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total
        rows.append(
            {
                "kernel": event.key[:100],
                "calls": event.count / num_steps,
                "us": total_us / num_steps,
            }
        )
    return sorted(rows, key=lambda row: -row["us"])


def document(results: list[DecodeResult], llm: LLM, copy_gb_s: float) -> dict[str, Any]:
    """The JSON form: the rows and the machine they were measured on."""
    on_gpu = llm.groups.device.type == "cuda"
    return {
        "schema": SCHEMA,
        "machine": {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "ranks": llm.groups.layout.world_size,
            "nodes": llm.groups.layout.nodes,
            "torch": torch.__version__,
            "copy_gb_s": copy_gb_s,
        },
        "all_reduce": "library" if llm.groups.reducer is None else llm.groups.reducer.name,
        "rows": [asdict(result) for result in results],
    }


def _prompts(case: DecodeCase, vocab_size: int) -> list[list[int]]:
    generator = random.Random(case.batch)  # noqa: S311 - not a secret
    return [
        [generator.randrange(vocab_size) for _ in range(case.prompt_tokens)]
        for _ in range(case.batch)
    ]


def _time_s(llm: LLM, prompts: list[list[int]], num_tokens: int) -> float:
    _synchronize(llm.groups.device)
    start = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    return time.perf_counter() - start


def _bytes_of_stages(llm: LLM, batch: int, context: int) -> list[float]:
    """Least bytes a rank of each stage reads for one token of every sequence of a group."""
    runner, layout = llm.engine.runner, llm.groups.layout
    of_group = -(-batch // llm.engine.scheduler.num_groups)
    own = weight_bytes(runner.stage, of_group)
    own += of_group * context * runner.cache_bytes_per_position
    gathered = llm.groups.host_gather((llm.groups.stage, own))
    return [max(size for at, size in gathered if at == stage) for stage in range(layout.pp)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
