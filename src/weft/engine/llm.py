"""LLM: the library's front door for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property, partial
from reprlib import repr as short
from threading import Lock
from typing import TYPE_CHECKING, Final, Self, Unpack

from weft.engine.config import EngineConfig, LLMOptions
from weft.engine.request import Completion, Request, SamplingParams
from weft.engine.tokenizer import Tokenizer, find_tokenizer
from weft.errors import StepError, UserError, WorkloadError
from weft.launch.environment import current_rank, pick_device
from weft.launch.own_ranks import OwnRanks, is_joined
from weft.vocabulary.checks import check_seconds, is_list
from weft.vocabulary.conventions import check_all_reduce
from weft.vocabulary.keywords import LayoutDegrees, check_keywords, layout_of
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import runnable_model

if TYPE_CHECKING:
    from weft.comm.groups import ProcessGroups
    from weft.comm.recorder import Recorder
    from weft.engine.engine import Engine

Prompt = str | Sequence[int]
Sampling = SamplingParams | Sequence[SamplingParams] | None
OnStep = Callable[[list[Request]], object]

_OWN: Final = ("model", "layout", "device", "timeout_s", "all_reduce", "groups")


class LLM:
    """A model on a layout, ready to generate.

    With more than one rank it starts them on this machine and ends them with ``close``, at the
    end of a ``with`` and with this process. Under ``torchrun``, ``srun`` or ``weft run`` every
    rank makes the same object and the same calls instead, and gets all completions.

    Example::

        with weft.LLM("embedded", tp=2) as llm:
            llm.generate(["Hello"], weft.SamplingParams(max_tokens=16))
    """

    def __init__(
        self,
        model: str,
        layout: Layout | None = None,
        *,
        device: str = "auto",
        timeout_s: float = 120.0,
        all_reduce: str = "auto",
        groups: ProcessGroups | None = None,
        **options: Unpack[LLMOptions],
    ) -> None:
        """Load ``model`` on ``layout`` (or ``tp=4, pp=2`` and the like).

        device: ``auto``, ``cpu`` or ``cuda``; timeout_s: the longest wait for another rank;
        all_reduce: of the groups that it opens: ``auto`` (weft's where it can be used),
        ``weft`` or ``library`` (nccl's, gloo's); ``groups`` bring their own; other options
        are the fields of EngineConfig.
        Raises UserError for what cannot be, CommunicationError where ranks are missing.
        """
        degrees = LayoutDegrees.__annotations__
        check_keywords(
            "LLM", options, (*_OWN, *degrees, *(one.name for one in fields(EngineConfig)))
        )
        layout = layout_of(layout, {k: v for k, v in options.items() if k in degrees})  # type: ignore[arg-type]
        if not isinstance(model, str):
            raise UserError(f"`model` {model!r}: must be a name or folder, as text")
        check_seconds("timeout_s", timeout_s)
        check_all_reduce(all_reduce)
        config = EngineConfig(**{k: v for k, v in options.items() if k not in degrees})  # type: ignore[arg-type]
        self.layout, self._turn = layout, Lock()
        source = runnable_model(model)
        layout.check_model(source.spec)
        if config.weights != "dummy":
            source = source.with_files()
        self._source = source
        self._ranks: OwnRanks | None = None
        if groups is None and layout.world_size > 1 and not is_joined():
            layout.check_here()
            place = {"device": device, "timeout_s": timeout_s, "all_reduce": all_reduce}
            make = partial(LLM, model, layout, **place, **vars(config))  # type: ignore[arg-type]
            self._ranks = OwnRanks(layout.world_size, make)
            return
        _ = self.tokenizer  # one that cannot be read is refused now
        if groups is None:
            from weft.comm.groups import open_groups

            rank = current_rank()
            layout.check_world(rank.world_size)
            groups = open_groups(
                layout,
                rank=rank.rank,
                device=pick_device(device, rank.local_rank),
                timeout_s=timeout_s,
                all_reduce=all_reduce,
            )
        from weft.engine.engine import Engine

        self._groups, self._engine = groups, Engine(source, groups, config)
        self._next_number = 0

    @property
    def groups(self) -> ProcessGroups:
        """The process groups of this rank; UserError in a script that started its ranks."""
        self._refuse_elsewhere("groups")
        return self._groups

    @property
    def engine(self) -> Engine:
        """The engine of this rank; UserError in a script that started its ranks."""
        self._refuse_elsewhere("engine")
        return self._engine

    def _refuse_elsewhere(self, name: str) -> None:
        if self._ranks is not None:
            raise UserError(
                f"`{name}`: is in the ranks that LLM started; run the script under torchrun, or "
                "ask weft.trace for what a run sends"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own; None where it has none."""
        return find_tokenizer(self._source.directory)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = None,
        *,
        on_step: OnStep | None = None,
    ) -> list[Completion]:
        """Complete every prompt (text or token ids), in order; one call at a time.

        Raises WorkloadError, with nothing begun, where one of them cannot run; StepError
        where a step failed: its requests have ended, and the next call finds a clean engine;
        LostRankError where a rank that was started is gone: all have ended.

        ``on_step`` is called after each step with the requests that got a token. With
        data parallelism each replica takes every dp-th prompt, and only the first is told of.
        """
        with self._alone():
            if self._ranks is not None:
                return self._ranks.call(_generate, prompts, sampling, on_progress=on_step)  # type: ignore[no-any-return]
            requests = self._requests(prompts, sampling)
            mine = requests[self.groups.replica :: self.groups.layout.dp]
            self._finish(mine, on_step)
            return self._collect({request.number: self._outcome(request) for request in mine})

    def _requests(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
    ) -> list[Request]:
        """One request a prompt; a batch that has a bad one is refused whole."""
        if not is_list(prompts):
            raise WorkloadError(f"`prompts` {short(prompts)}: must be a list of prompts")
        each = _sampling_of_each(sampling, len(prompts))
        first = self._next_number
        requests = [
            self.engine.make_request(first + i, self.encode(prompt), params)
            for i, (prompt, params) in enumerate(zip(prompts, each, strict=True))
        ]
        self._next_number += len(prompts)
        return requests

    def _finish(self, requests: Sequence[Request], on_step: OnStep | None) -> None:
        """Step until all have ended; nothing stays queued, whatever is raised."""
        try:
            for request in requests:
                self.engine.queue(request)
            while self.engine.goes_on():
                advanced = self.engine.step()
                if on_step is not None:
                    on_step(advanced)
        finally:
            for request in requests:
                self.engine.abort(request.number)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise WorkloadError(
                "generate() is running already: one call at a time; give it all prompts at once, "
                "or use weft serve"
            )
        try:
            yield
        finally:
            self._turn.release()

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """Token ids of a prompt; token ids pass through."""
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise WorkloadError(
                f"model {self._source.spec.name} has no tokenizer files: give token ids"
            )
        return self.tokenizer.encode(prompt)

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Write down every collective and step while the context is open."""
        with self.groups.recording() as recorder:
            self.engine.recorder = recorder
            try:
                with self.engine.scheduler.prefix.off():
                    yield recorder
            finally:
                self.engine.recorder = None

    def close(self) -> None:
        """Give the engine's resources back and leave the process groups; end own ranks."""
        self.__exit__(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._ranks is not None:
            self._ranks.close()
            return
        self.engine.close()
        if kind is None:
            self.groups.close()
        else:
            self.groups.leave()

    def _outcome(self, request: Request) -> Completion | StepError:
        if request.finish_reason == "error":
            return StepError(request.error)
        return self._completion(request)

    def _completion(self, request: Request) -> Completion:
        assert request.finish_reason is not None
        stopped = request.finish_reason == "stop"
        visible = request.output[:-1] if stopped else request.output
        return Completion(
            prompt_token_ids=tuple(request.prompt),
            token_ids=tuple(request.output),
            text=None if self.tokenizer is None else self.tokenizer.decode(visible),
            finish_reason=request.finish_reason,
            logprobs=tuple(request.logprobs),
            prompt_logprobs=tuple(request.prompt_logprobs),
        )

    def _collect(self, done: dict[int, Completion | StepError]) -> list[Completion]:
        """The completions of all replicas in order; StepError where a request has none."""
        if self.groups.layout.dp > 1:
            for part in self.groups.host_gather(done):
                done = done | part
        completions = []
        for _, outcome in sorted(done.items()):
            if isinstance(outcome, StepError):
                raise outcome
            completions.append(outcome)
        return completions


def _generate(
    llm: LLM, prompts: Sequence[Prompt], sampling: Sampling, tell: OnStep | None = None
) -> list[Completion]:
    """What a rank that LLM started does."""
    return llm.generate(prompts, sampling, on_step=tell)


def _sampling_of_each(sampling: Sampling, count: int) -> list[SamplingParams]:
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * count
    if not isinstance(sampling, Sequence) or any(
        not isinstance(one, SamplingParams) for one in sampling
    ):
        raise WorkloadError(
            f"`sampling` {short(sampling)}: must be SamplingParams, or a list of them"
        )
    if len(sampling) != count:
        raise WorkloadError(f"{len(sampling)} sampling parameters for {count} prompts")
    return list(sampling)
