"""Engine: one rank's scheduler and runner, one step at a time.

Every rank of a replica holds an Engine and makes the same calls in the same order
(SPMD); their schedulers agree because they see the same requests and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.batch import build_batch
from weft.engine.block_pool import BlockPool
from weft.engine.request import Request, SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.scheduler import ScheduledStep, Scheduler
from weft.errors import WorkloadError
from weft.vocabulary.conventions import engine_named
from weft.vocabulary.model_source import ModelSource
from weft.vocabulary.model_spec import ModelSpec

Weights = Literal["auto", "dummy"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is built with.

    conventions: whose communication to follow (see vocabulary/conventions.py);
    weights: ``auto`` reads the checkpoint where the model has one, ``dummy`` never;
    dtype: instead of the model's own; seed: of dummy weights and unseeded sampling;
    cache_tokens: positions in the key-value cache; max_batch_*: limits of one step.
    """

    conventions: str = "weft"
    weights: Weights = "auto"
    dtype: str | None = None
    seed: int = 0
    cache_tokens: int = 8192
    block_size: int = 16
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256


class Engine:
    """Requests in, tokens out, one step at a time."""

    def __init__(self, source: ModelSource, groups: ProcessGroups, config: EngineConfig) -> None:
        spec = source.spec if config.dtype is None else replace(source.spec, dtype=config.dtype)
        groups.layout.check_model(spec)
        self.spec, self.groups, self.config = spec, groups, config
        num_blocks = -(-config.cache_tokens // config.block_size) + 1
        self.runner = StageRunner(
            spec,
            groups,
            engine_named(config.conventions),
            max_length=min(spec.max_position, config.cache_tokens),
            num_slots=num_blocks * config.block_size,
        )
        self.runner.load(source.directory if config.weights == "auto" else None, config.seed)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, config.block_size),
            max_batch_tokens=config.max_batch_tokens,
            max_batch_requests=config.max_batch_requests,
        )
        self.recorder: Recorder | None = None

    def add(self, number: int, prompt: Sequence[int], sampling: SamplingParams) -> Request:
        """Queue a request; WorkloadError where it cannot run."""
        self._check_prompt(prompt, sampling)
        eos = () if sampling.ignore_eos else self.spec.eos_token_ids
        if sampling.seed is None:
            sampling = replace(sampling, seed=_mixed(self.config.seed, number))
        request = Request(
            number=number,
            prompt=list(prompt),
            sampling=sampling,
            stop_ids=frozenset((*eos, *sampling.stop_token_ids)),
        )
        self.scheduler.add(request)
        return request

    def abort(self, number: int) -> None:
        """Forget a request before its end."""
        self.scheduler.abort(number)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[Request]:
        """Run one step; returns the requests that got a token (their last output)."""
        step = self.scheduler.schedule()
        with self._recorded(step):
            batch = build_batch(
                step,
                self.runner.rope,
                block_size=self.config.block_size,
                dtype=self.runner.dtype,
                device=self.runner.device,
            )
            sampled = [chunk.request for chunk in step.chunks if chunk.reaches_end]
            ids = self.runner.run(batch, sampled)
            return self.scheduler.finish(step, ids.tolist())

    def _recorded(self, step: ScheduledStep) -> AbstractContextManager[None]:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.step(step.phase, step.num_tokens)

    def _check_prompt(self, prompt: Sequence[int], sampling: SamplingParams) -> None:
        if not prompt:
            raise WorkloadError("the prompt is empty: give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < self.spec.vocab_size), None)
        if wrong is not None:
            raise WorkloadError(
                f"token id {wrong}: outside the vocabulary of {self.spec.name} "
                f"(0 to {self.spec.vocab_size - 1})"
            )
        check_positions(self.spec, len(prompt), sampling.max_tokens)


def check_positions(spec: ModelSpec, prompt_tokens: int, decode_tokens: int) -> None:
    """Raise WorkloadError where a request is longer than the model's positions."""
    if prompt_tokens + decode_tokens > spec.max_position:
        raise WorkloadError(
            f"prompt {prompt_tokens} + decode {decode_tokens} tokens exceed the "
            f"{spec.max_position} positions of {spec.name}"
        )


def _mixed(seed: int, number: int) -> int:
    return (seed << 32) + number
