"""LLM: the library's front door for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from weft.comm.groups import DEFAULT_TIMEOUT_S, ProcessGroups, open_groups
from weft.comm.recorder import Recorder
from weft.engine.config import EngineConfig
from weft.engine.engine import Engine
from weft.engine.request import Completion, Request, SamplingParams
from weft.engine.tokenizer import find_tokenizer
from weft.errors import WorkloadError
from weft.launch.environment import current_rank, pick_device
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import find_model

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
        layout = layout or Layout()
        source = find_model(model)
        layout.check_model(source.spec)
        if config.get("weights") != "dummy":
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
        self.engine = Engine(source, groups, EngineConfig(**config))
        self._next_number = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_step: Callable[[list[Request]], None] | None = None,
    ) -> list[Completion]:
        """Complete every prompt (text or token ids), in order.

        ``on_step`` is called after each step with the requests that got a token. With
        data parallelism each replica takes every dp-th prompt.
        """
        each = self._sampling_of_each(sampling, len(prompts))
        token_ids = [self.encode(prompt) for prompt in prompts]
        first = self._next_number
        self._next_number += len(prompts)
        mine = range(self.groups.replica, len(prompts), self.groups.layout.dp)
        requests = [self.engine.add(first + i, token_ids[i], each[i]) for i in mine]
        while self.engine.has_work:
            advanced = self.engine.step()
            if on_step is not None:
                on_step(advanced)
        done = {i: self._completion(r) for i, r in zip(mine, requests, strict=True)}
        return self._collect(done)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; token ids pass through."""
        if not isinstance(prompt, str):
            return list(prompt)
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
        if kind is None:
            self.close()
        else:
            self.groups.leave()

    def _sampling_of_each(
        self, sampling: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if sampling is None or isinstance(sampling, SamplingParams):
            return [sampling or SamplingParams()] * count
        if len(sampling) != count:
            raise WorkloadError(f"{len(sampling)} sampling parameters for {count} prompts")
        return list(sampling)

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

    def _collect(self, done: dict[int, Completion]) -> list[Completion]:
        if self.groups.layout.dp > 1:
            for part in self.groups.host_gather(done):
                done = done | part
        return [done[i] for i in sorted(done)]
