"""Kernels of prefill and of decode steps, by torch's profiler, on this rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.study.device_breakdown import TracedKernel

DECODE_STEPS: Final = 32
_FIRST_NUMBER: Final = 10**9


def kernels_of_prefill(llm: LLM, prompts: list[list[int]]) -> tuple[list[TracedKernel], int]:
    """The kernels that bring every prompt to its first token, and in how many steps."""
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    num_steps = 0

    def count(_: object) -> None:
        nonlocal num_steps
        num_steps += 1

    kernels = _profiled(llm, lambda: llm.generate(prompts, sampling, on_step=count))
    return kernels, num_steps


def kernels_of_decode(llm: LLM, prompts: list[list[int]]) -> tuple[list[TracedKernel], int]:
    """The kernels of ``DECODE_STEPS`` steps in which every request decodes."""
    sampling = SamplingParams(max_tokens=4 * DECODE_STEPS * llm.groups.layout.pp, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        llm.engine.add(_FIRST_NUMBER + number, prompt, sampling)
    num_tokens = 0
    while num_tokens < 4 * len(prompts):
        num_tokens += len(llm.engine.step())

    def steps() -> None:
        for _ in range(DECODE_STEPS):
            llm.engine.step()

    kernels = _profiled(llm, steps)
    for number in range(len(prompts)):
        llm.engine.abort(_FIRST_NUMBER + number)
    while llm.engine.goes_on():
        llm.engine.step()
    return kernels, DECODE_STEPS


def _profiled(llm: LLM, work: Callable[[], object]) -> list[TracedKernel]:
    from torch.profiler import ProfilerActivity, profile

    _settle(llm)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        _settle(llm)
    return [
        TracedKernel(
            name=event.name(),
            start_s=event.start_ns() * 1e-9,
            end_s=(event.start_ns() + event.duration_ns()) * 1e-9,
        )
        for event in trace.profiler.kineto_results.events()
        if event.device_type().name == "CUDA" and event.duration_ns()
    ]


def _settle(llm: LLM) -> None:
    """All ranks have come so far, and their devices are idle."""
    torch.cuda.synchronize()
    llm.groups.host_gather(None)
