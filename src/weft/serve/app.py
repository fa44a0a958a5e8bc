"""The HTTP application: routes, and nothing that needs the engine's process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from weft import __version__
from weft.engine.tokenizer import Tokenizer
from weft.errors import WorkloadError
from weft.serve.answers import AnswerKind, event_stream, whole_answer
from weft.serve.chat import ChatTemplate
from weft.serve.engine_client import EngineClient
from weft.serve.errors import DESCRIBED, ApiError, install_error_handlers
from weft.serve.generation import Generation, start_generation
from weft.serve.metrics import Metrics
from weft.serve.middleware import Guard
from weft.serve.protocol import ChatBody, CompletionBody, GenerationBody, StreamOptions
from weft.serve.token_text import TokenTexts

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_SHORT_TEXT = 2000
_MOST_ENCODERS = 4


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the server answers to and how much it takes."""

    model_name: str
    api_key: str | None = None
    max_body_bytes: int = 8 << 20
    max_prompt_tokens: int | None = None
    stream_interval: int = 1
    """Tokens in one event of a stream."""


class Encoders:
    """Threads that turn text into tokens: a long prompt must not stop everybody's streams.

    A text of a few thousand characters takes less than the change of thread would cost others.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_ENCODERS, thread_name_prefix="encoder")

    async def run(self, encode: Callable[[Any], list[int]], what: Any) -> list[int]:
        """``encode(what)`` in a thread, unless ``what`` is a short text."""
        if isinstance(what, str) and len(what) <= _SHORT_TEXT:
            return encode(what)
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode, what)


class EventStream(StreamingResponse):
    """Server-sent events; who watches the connection is told by ``_abort_on_disconnect``."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self.stream_response(send)


@dataclass(frozen=True, kw_only=True)
class _Service:
    engine: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate
    settings: ServerSettings
    metrics: Metrics
    texts: TokenTexts
    encoders: Encoders

    async def complete(self, request: Request, body: CompletionBody) -> Response:
        self.check_model(body.model)
        prompts = [await self._ids(prompt) for prompt in body.prompts]
        wanted = 16 if body.max_tokens is None else body.max_tokens
        return await self._answer(request, body, prompts, wanted, chat=False)

    async def chat(self, request: Request, body: ChatBody) -> Response:
        self.check_model(body.model)
        wanted = body.max_completion_tokens or body.max_tokens
        encode = partial(self.template.encode, variables=body.template_variables)
        prompt = await self.encoders.run(encode, body.messages)
        return await self._answer(request, body, [prompt], wanted, chat=True)

    async def _answer(
        self,
        request: Request,
        body: GenerationBody,
        prompts: Sequence[Sequence[int]],
        wanted: int | None,
        *,
        chat: bool,
    ) -> Response:
        for prompt in prompts:
            self._check_prompt(prompt)
        generation = start_generation(
            self.engine, self.tokenizer, self.metrics, body, prompts, wanted
        )
        kind = AnswerKind(
            chat=chat,
            model=self.settings.model_name,
            token_ids=body.return_token_ids,
            texts=self.texts,
        )
        watch = asyncio.create_task(_abort_on_disconnect(request, generation))
        if body.stream:
            options = body.stream_options or StreamOptions()
            events = event_stream(kind, generation, options, self.settings.stream_interval)
            return EventStream(_watched(events, generation, watch))
        try:
            return JSONResponse(await whole_answer(kind, generation))
        finally:
            await _end(watch, generation)

    def check_model(self, name: str) -> None:
        if name != self.settings.model_name:
            raise ApiError(
                404,
                f"model {name[:100]!r} is not served here; use {self.settings.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def _ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        try:
            return await self.encoders.run(self.tokenizer.encode, prompt)
        except WorkloadError as error:
            raise ApiError(400, str(error), param="prompt") from None

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        limit = self.settings.max_prompt_tokens
        if not prompt:
            raise ApiError(400, "the prompt is empty: give at least one token", param="prompt")
        if limit is not None and len(prompt) > limit:
            raise ApiError(
                400,
                f"prompt {len(prompt)} tokens: more than the {limit} that this server takes",
                param="prompt",
                code="context_length_exceeded",
            )


async def _abort_on_disconnect(request: Request, generation: Generation) -> None:
    """Give the generation up as soon as the client is gone, also while nothing is sent."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.abort()


async def _watched(
    events: AsyncIterator[bytes], generation: Generation, watch: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    finally:
        await _end(watch, generation)


async def _end(watch: asyncio.Task[None], generation: Generation) -> None:
    generation.abort()
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch


def create_app(
    engine: EngineClient, tokenizer: Tokenizer, template: ChatTemplate, settings: ServerSettings
) -> FastAPI:
    """The application; the engine starts and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()

    app = FastAPI(title="weft", version=__version__, lifespan=lifespan, responses=DESCRIBED)
    metrics = Metrics(engine)
    service = _Service(
        engine=engine,
        tokenizer=tokenizer,
        template=template,
        settings=settings,
        metrics=metrics,
        texts=TokenTexts(tokenizer=tokenizer),
        encoders=Encoders(),
    )
    app.add_middleware(
        Guard,
        api_key=settings.api_key,
        max_body_bytes=settings.max_body_bytes,
    )
    install_error_handlers(app)
    _add_generation_routes(app, service)
    _add_other_routes(app, service)
    _add_profile_routes(app, engine)
    return app


def _add_generation_routes(app: FastAPI, service: _Service) -> None:
    streams: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @app.post("/v1/completions", response_model=None, responses=streams)
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await service.complete(request, body)

    @app.post("/v1/chat/completions", response_model=None, responses=streams)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await service.chat(request, body)


def _add_other_routes(app: FastAPI, service: _Service) -> None:
    started = int(time.time())

    def card() -> dict[str, Any]:
        limits = service.engine.limits
        return {
            "id": service.settings.model_name,
            "object": "model",
            "created": started,
            "owned_by": "weft",
            "max_model_len": limits.max_tokens if limits else None,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return card()

    not_ready: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready, and why"}}

    @app.get("/health", responses=not_ready)
    async def health() -> Response:
        """Whether the HTTP process and its engine can still answer requests, or will soon."""
        return _readiness(service.engine)

    @app.get("/ready", responses=not_ready)
    async def ready() -> Response:
        return _readiness(service.engine)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=_PROMETHEUS)


def _add_profile_routes(app: FastAPI, engine: EngineClient) -> None:
    running = False

    @app.post("/start_profile")
    async def start_profile() -> dict[str, str]:
        nonlocal running
        if running:
            raise ApiError(409, "a profile is already running; stop it first")
        await engine.start_profile()
        running = True
        return {"status": "profiling"}

    @app.post("/stop_profile")
    async def stop_profile() -> dict[str, Any]:
        """Every step of each replica's leader with its time in collectives."""
        nonlocal running
        if not running:
            raise ApiError(409, "no profile is running; start one first")
        running = False
        replicas = await engine.stop_profile()
        return {
            "schema": "weft.serve.profile/1",
            "replicas": [[asdict(step) for step in steps] for steps in replicas],
        }


def _readiness(engine: EngineClient) -> Response:
    trouble = engine.trouble
    if trouble is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": trouble}, 503)
