"""Engine: one rank's scheduler and runner, one step at a time.

Every rank of a replica holds an Engine and makes the same calls in the same order
(SPMD); their schedulers agree because they see the same requests and tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from operator import index
from reprlib import repr as short
from typing import Final

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.block_pool import BlockPool
from weft.engine.cache_size import check_host_memory, num_cache_blocks
from weft.engine.config import EngineConfig
from weft.engine.failure import FATAL, describe
from weft.engine.flight import Flight, Launched
from weft.engine.graphs import BATCHES, ROWS, Replay, sizes_up_to
from weft.engine.logprobs import book_logprobs
from weft.engine.ngram import NgramProposer
from weft.engine.request import Request, SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.scheduler import Scheduler
from weft.engine.step import Step
from weft.engine.warm_up import warm_up
from weft.errors import EnvironmentUnavailable, LayoutError, ReplicaLeftError, WorkloadError
from weft.vocabulary.checks import is_list
from weft.vocabulary.conventions import engine_named
from weft.vocabulary.model_source import ModelSource
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import check_speculation

_LEAVES: Final = 2
"""What a replica says that steps no more; 1 is work, 0 none."""


class Engine:
    """Requests in, tokens out, one step at a time."""

    def __init__(self, source: ModelSource, groups: ProcessGroups, config: EngineConfig) -> None:
        spec = config.applied_to(source.spec)
        groups.layout.check_model(spec)
        if groups.layout.dcp > 1:
            raise LayoutError(
                f"`dcp` {groups.layout.dcp}: weft's engine keeps whole positions on every rank; vLLM and "
                "SGLang run it, predictions and dry runs know it; for a run set `dcp` 1"
            )
        self.spec, self.groups, self.config = spec, groups, config
        if groups.device.type == "cpu":
            itemsize = getattr(torch, spec.dtype).itemsize
            check_host_memory(spec, groups.layout, config, itemsize)
        speculation = config.speculation
        if speculation is not None:
            check_speculation(spec, speculation)
        conventions = engine_named(config.conventions)
        self.runner = StageRunner(spec, groups, conventions, speculation)
        directory = source.directory if config.weights == "auto" else None
        self.runner.load(directory, config.seed, rounds=spec.formats != source.spec.formats)
        num_groups = groups.layout.pp if conventions.micro_batches else 1
        block_size = config.block_size or self.runner.preferred_block_size
        pool = BlockPool(num_cache_blocks(self.runner, groups, config, block_size), block_size)
        self.runner.allocate(
            num_blocks=pool.num_blocks,
            block_size=block_size,
            max_length=min(spec.max_position, pool.capacity_tokens),
            max_rows=config.max_batch_requests * num_groups,
        )
        self.scheduler = Scheduler(
            pool,
            max_batch_tokens=config.max_batch_tokens,
            max_batch_requests=config.max_batch_requests,
            num_groups=num_groups,
            prefix_caching=config.prefix_caching and not spec.has_state,
            proposer=None if speculation is None else NgramProposer(speculation.num_drafts),
        )
        if self.runner.can_capture and config.graphs is not False:
            most = config.max_batch_tokens + config.max_batch_requests
            self.runner.capture(
                config.graph_batches or sizes_up_to(config.max_batch_requests, BATCHES, exact=True),
                sizes_up_to(most, ROWS),
            )
        on_gpu = groups.device.type == "cuda"
        can_overlap = on_gpu and speculation is None
        self._overlap = can_overlap if config.overlap is None else config.overlap
        self._flight = Flight(self.runner, groups)
        self._unread: deque[Launched] = deque()
        self._ticks = 0
        self._is_joined = groups.layout.joins_replicas
        self._is_going: bool | None = None
        self.recorder: Recorder | None = None
        self._lost: Exception | None = None
        if on_gpu:
            warm_up(self)

    def make_request(self, number: int, prompt: Sequence[int], sampling: SamplingParams) -> Request:
        """A request for ``queue``; WorkloadError where it cannot run."""
        token_ids = self._checked(prompt)
        check_positions(self.spec, len(token_ids), sampling.max_tokens)
        self.scheduler.check(len(token_ids), sampling.max_tokens)
        eos = () if sampling.ignore_eos else self.spec.eos_token_ids
        stop_ids = frozenset((*eos, *sampling.stop_token_ids))
        sampling.check_vocabulary(self.spec.vocab_size, stop_ids)
        if sampling.seed is None:
            sampling = replace(sampling, seed=_mixed(self.config.seed, number))
        return Request(
            number=number,
            prompt=token_ids,
            sampling=sampling,
            stop_ids=stop_ids,
        )

    def queue(self, request: Request) -> None:
        """Let a request take part from the next step on."""
        self._check_alive()
        self.scheduler.add(request)

    def add(self, number: int, prompt: Sequence[int], sampling: SamplingParams) -> Request:
        """Make a request and queue it."""
        request = self.make_request(number, prompt, sampling)
        self.queue(request)
        return request

    def abort(self, number: int) -> None:
        """Forget a request before its end."""
        self.scheduler.abort(number)

    def close(self) -> None:
        """Give back what the engine holds; it cannot be used afterwards."""
        self._lost = self._lost or EnvironmentUnavailable("it was closed")
        self.runner.close()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._unread) or not self._flight.is_empty

    def goes_on(self) -> bool:
        """Whether there is a step to do, here or on a replica that shares the experts.

        Replicas that do step together: each of them calls this before every ``step``.
        """
        if not self._is_joined:
            return self.has_work
        (most,) = self.groups.most_of_replicas(self.has_work)
        if most == _LEAVES:
            raise ReplicaLeftError("a replica that shares experts has left")
        self._is_going = bool(most)
        return self._is_going

    def leave(self) -> None:
        """Tell replicas that share experts, at their next ``goes_on``, that this one steps no more."""
        if self._is_joined:
            self.groups.most_of_replicas(_LEAVES)

    def step(self) -> list[Request]:
        """Go on until one more step is read; returns the requests that went on or ended by it.

        With ``overlap`` the next step is launched first, so that the device has work while
        the ids are read; a request that ended by a stop token costs one idle row then.
        Where a step fails its requests end with the reason ``error`` and the engine goes on;
        what the ranks cannot recover from together is raised, and ends the engine.
        """
        self._check_alive()
        try:
            return self._step()
        except FATAL as error:
            self._lost = error
            self.end_all(str(error))
            raise
        except Exception as error:  # noqa: BLE001 - every rank runs the same host code, and fails alike
            return self.end_all(describe(error))

    def end_all(self, error: str) -> list[Request]:
        """End every request with an error; what is under way is dropped when it comes."""
        ended = self.scheduler.end_all("error")
        for request in ended:
            request.error = request.error or error
        return ended

    def _step(self) -> list[Request]:
        going, self._is_going = self._is_going, None
        while self.goes_on() if going is None else going:
            launched = self._launch()
            most_unread = 1 if self._overlap and launched else 0
            if len(self._unread) > most_unread:
                return self._read()
            going = None
        return []

    def _launch(self) -> bool:
        """One tick of the pipeline, with a new step where there is one."""
        group = self._ticks % self.groups.layout.pp
        self._ticks += 1
        new = None
        if group < self.scheduler.num_groups:
            chunks = self.scheduler.schedule(group)
            if chunks:
                new = Launched(step=Step.of(chunks))
        if self._is_joined:
            new = self._together(new)
        left = self._flight.tick(new, self.recorder)
        if left is not None:
            self._unread.append(left)
        return new is not None

    def _together(self, new: Launched | None) -> Launched | None:
        """The step as the replicas agree on it; an idle one where only others have one.

        They bring equally many rows to the experts, so all take a graph of one size, or none does.
        """
        eager = self.recorder is not None and self.recorder.eager
        mine = (
            (0, 0)
            if new is None
            else (new.step.num_tokens, self.runner.replay_of(new.step, eager=eager))
        )
        most, replay = self.groups.most_of_replicas(*mine)
        if not most:
            return None
        if new is None:
            new = Launched(step=Step.idle(self.runner.tables.spare_row))
        new.step.num_everywhere, new.step.replay = most, Replay(replay)
        return new

    def _read(self) -> list[Request]:
        launched = self._unread.popleft()
        ids = launched.read_ids()
        self.groups.check()
        sampling = launched.step.sampling
        kept = self.scheduler.finish(sampling, ids)
        found = launched.read_logprobs()
        book_logprobs(sampling, kept, launched.step.prompt_rows, found)
        return [chunk.request for chunk in kept]

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise EnvironmentUnavailable(f"the engine has ended: {self._lost}")

    def _checked(self, prompt: Sequence[int]) -> list[int]:
        """The token ids of a prompt, as Python integers inside the vocabulary."""
        try:
            if not is_list(prompt) or bool in map(type, prompt):
                raise TypeError
            token_ids = [index(token) for token in prompt]
        except TypeError:
            raise WorkloadError(
                f"prompt {short(prompt)}: must be a list of token ids, whole numbers"
            ) from None
        if not token_ids:
            raise WorkloadError("the prompt is empty: give at least one token")
        wrong = next((token for token in token_ids if not 0 <= token < self.spec.vocab_size), None)
        if wrong is not None:
            raise WorkloadError(
                f"token id {wrong}: outside the vocabulary of {self.spec.name} "
                f"(0 to {self.spec.vocab_size - 1})"
            )
        return token_ids


def check_positions(spec: ModelSpec, prompt_tokens: int, decode_tokens: int) -> None:
    """Raise WorkloadError where a request is longer than the model's positions."""
    if prompt_tokens + decode_tokens > spec.max_position:
        raise WorkloadError(
            f"prompt {prompt_tokens} + decode {decode_tokens} tokens exceed the "
            f"{spec.max_position} positions of {spec.name}"
        )


def _mixed(seed: int, number: int) -> int:
    return (seed << 32) + number
