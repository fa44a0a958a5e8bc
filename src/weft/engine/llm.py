"""LLM: the library's front door for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from reprlib import repr as short
from threading import Lock
from typing import Any, Self

from weft.comm.groups import DEFAULT_TIMEOUT_S, ProcessGroups, open_groups
from weft.comm.recorder import Recorder
from weft.engine.config import EngineConfig
from weft.engine.engine import Engine
from weft.engine.request import Completion, Request, SamplingParams
from weft.engine.tokenizer import find_tokenizer
from weft.errors import StepError, UserError, WorkloadError
from weft.launch.environment import current_rank, pick_device
from weft.vocabulary.checks import check_seconds, is_list
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import runnable_model

Prompt = str | Sequence[int]


class LLM:
    """A model on a layout, ready to generate.

    With more than one rank, every rank makes the same object and the same calls
    (under ``weft run``, ``torchrun`` or ``srun``); all of them get all completions.

    Example::

        llm = weft.LLM("embedded")
        llm.generate(["Hello"], weft.SamplingParams(max_tokens=16))
    """

    def __init__(
        self,
        model: str,
        layout: Layout | None = None,
        *,
        device: str = "auto",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        all_reduce: str = "auto",
        groups: ProcessGroups | None = None,
        **config: Any,
    ) -> None:
        """Load ``model``; ``config`` are the fields of EngineConfig.

        all_reduce: of the groups that it opens: ``auto`` (weft's where it can be used),
        ``weft`` or ``library`` (nccl's, gloo's); ``groups`` bring their own.
        Raises UserError for what cannot be, CommunicationError where ranks are missing.
        """
        layout = Layout() if layout is None else layout
        if not isinstance(layout, Layout):
            raise UserError(f"`layout` {layout!r}: must be a Layout, such as weft.Layout(tp=2)")
        if not isinstance(model, str):
            raise UserError(f"`model` {model!r}: must be a name or folder, as text")
        check_seconds("timeout_s", timeout_s)
        engine_config = EngineConfig.of(config)
        source = runnable_model(model)
        layout.check_model(source.spec)
        if engine_config.weights != "dummy":
            source = source.with_files()
        if groups is None:
            place = current_rank()
            layout.check_world(place.world_size)
            groups = open_groups(
                layout,
                rank=place.rank,
                device=pick_device(device, place.local_rank),
                timeout_s=timeout_s,
                all_reduce=all_reduce,
            )
        self.groups = groups
        self.tokenizer = find_tokenizer(source.directory)
        self.engine = Engine(source, groups, engine_config)
        self._next_number = 0
        self._turn = Lock()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_step: Callable[[list[Request]], None] | None = None,
    ) -> list[Completion]:
        """Complete every prompt (text or token ids), in order; one call at a time.

        Raises WorkloadError, with nothing begun, where one of them cannot run; StepError
        where a step failed: its requests have ended, and the next call finds a clean engine.

        ``on_step`` is called after each step with the requests that got a token. With
        data parallelism each replica takes every dp-th prompt.
        """
        with self._alone():
            requests = self._requests(prompts, sampling)
            mine = requests[self.groups.replica :: self.groups.layout.dp]
            self._finish(mine, on_step)
            return self._collect({request.number: self._outcome(request) for request in mine})

    def _requests(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
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

    def _finish(
        self, requests: Sequence[Request], on_step: Callable[[list[Request]], None] | None
    ) -> None:
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
                f"model {self.engine.spec.name} has no tokenizer files: give token ids"
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
        """Give the engine's resources back and leave the process groups."""
        self.engine.close()
        self.groups.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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


def _sampling_of_each(
    sampling: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
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
