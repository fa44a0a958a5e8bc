"""``weft serve``: an OpenAI-compatible server in front of the engine, on any layout."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from weft.cli import options, ranks
from weft.errors import EnvironmentUnavailable
from weft.vocabulary.checks import MOST_SECONDS, check_between, check_limits
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import runnable_model

if TYPE_CHECKING:
    from fastapi import FastAPI

    from weft.launch.elastic import Launch
    from weft.serve.app import ServerSettings
    from weft.serve.engine_client import EngineClient
    from weft.serve.wire import MeetingPoint

CPU_DEFAULTS: Final = {"cache_tokens": 16384, "max_batch_tokens": 64}
_LEAST: Final = {"max_waiting": 0, "max_prompt": 1, "stream_interval": 1, "cache_tokens": 16}
_SECONDS: Final = {"drain": (0, MOST_SECONDS), "stall": (1e-3, MOST_SECONDS)}


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """What clients see of the server."""

    host: Annotated[str, "Address to listen on."] = "127.0.0.1"
    port: Annotated[int, "0 picks a free one, printed on stderr."] = 8000
    served_name: Annotated[str | None, "Model name in the API [MODEL]."] = None
    api_key: Annotated[str | None, "Ask this bearer token of clients.", "WEFT_API_KEY"] = None
    max_prompt: Annotated[int | None, "Longest prompt in tokens."] = None
    max_body_mb: Annotated[float, "Largest request body."] = 8.0
    stream_interval: Annotated[int, "Tokens in one event of a stream."] = 1
    drain: Annotated[float, "Seconds that open requests get to end at shutdown."] = 30.0
    stall: Annotated[float, "Not ready if the engine says nothing for this long (s)."] = 10.0

    def __post_init__(self) -> None:
        check_limits(self, {name: _LEAST[name] for name in ("max_prompt", "stream_interval")})
        check_between(self, _SECONDS | {"max_body_mb": (1e-6, 1e6)})

    def settings(self, model: str) -> ServerSettings:
        from weft.serve.app import ServerSettings

        return ServerSettings(
            model_name=self.served_name or model,
            api_key=self.api_key or None,
            max_body_bytes=int(self.max_body_mb * 2**20),
            max_prompt_tokens=self.max_prompt,
            stream_interval=self.stream_interval,
        )


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How much the engine takes at once."""

    max_batch: Annotated[int, "Requests in one step."] = 256
    max_waiting: Annotated[int, "Requests queued beyond that; then 429."] = 512
    max_batch_tokens: Annotated[
        int | None, "Prompt tokens computed in one step [CPU: 64, GPU: 8192]."
    ] = None
    prefix_caching: Annotated[
        bool, "Share equal beginnings of requests.", "--no-prefix-caching"
    ] = True
    cache_tokens: Annotated[
        int | None, "Positions in the key-value cache [CPU: 16384, GPU: what fits]."
    ] = None

    def __post_init__(self) -> None:
        check_limits(self, {name: _LEAST[name] for name in ("max_waiting", "cache_tokens")})


def serve(
    *,
    context: typer.Context,
    model: options.Model = "embedded",
    http: HttpOptions,
    degrees: options.LayoutOptions,
    place: ranks.RankOptions,
    steps: StepOptions,
    profile_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where /stop_profile leaves a trace a rank, for weft import.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    how: ranks.EngineOptions,
) -> None:
    """Serve MODEL over the OpenAI API (completions, chat, streaming, /metrics, /ready).

    Example: weft serve embedded --tp 2 --port 8000
    """
    layout = degrees.on(place.nnodes)
    source = runnable_model(model)
    layout.check_model(source.spec)
    launch = place.launch_of(layout)
    config = how.config(
        max_batch_requests=steps.max_batch,
        prefix_caching=steps.prefix_caching,
        max_batch_tokens=steps.max_batch_tokens,
        cache_tokens=steps.cache_tokens,
    )

    def work() -> None:
        _work_as_rank(model, layout, place, steps.max_waiting, config, profile_dir)

    start_ranks = partial(place.start, context, layout, work)
    if _has_only_ranks(launch):
        start_ranks()
        return
    _need_packages()
    meeting_host = _meeting_host(launch, place.nnodes)
    app = partial(_app, source.with_tokenizer().directory, http.settings(model))
    _serve_http(context, http, meeting_host, app, start_ranks)


def _has_only_ranks(launch: Launch | None) -> bool:
    """Whether the HTTP process is another one: that of node 0, or of rank 0 under torchrun."""
    from weft.launch.environment import current_rank
    from weft.serve.wire import MeetingPoint

    number = current_rank().rank if launch is None else launch.node_rank
    return MeetingPoint.from_environment() is not None or number > 0


def _meeting_host(launch: Launch | None, nnodes: int) -> str:
    """Where the leaders of the replicas find the HTTP process."""
    if launch is not None:
        return launch.master_address if launch.num_nodes > 1 else "127.0.0.1"
    return os.environ.get("MASTER_ADDR", "127.0.0.1") if nnodes > 1 else "127.0.0.1"


def _serve_http(
    context: typer.Context,
    http: HttpOptions,
    meeting_host: str,
    app: Callable[[EngineClient], FastAPI],
    start_ranks: Callable[[], None],
) -> None:
    """HTTP in this process; the ranks in children, or in this process under torchrun."""
    from weft.launch.environment import is_launched
    from weft.serve.http_server import HttpServer, listen
    from weft.serve.remote_engine import RemoteEngine
    from weft.serve.wire import MEETING_VARIABLE

    listener = listen(http.host, http.port)
    print(f"http://{http.host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    spawn = None if is_launched() else _spawn_ranks(context)
    is_here = meeting_host == "127.0.0.1"
    bind = "127.0.0.1" if is_here else "0.0.0.0"  # noqa: S104 - leaders prove a key
    remote = RemoteEngine(spawn, host=meeting_host, bind=bind, stall_s=http.stall)
    server = HttpServer(app(remote), remote, drain_s=http.drain)
    serve_clients = partial(server.run_on, listener)
    if spawn is not None:
        serve_clients()
        return
    os.environ[MEETING_VARIABLE] = remote.meeting.variable()
    threading.Thread(target=serve_clients, daemon=True).start()
    start_ranks()


def _need_packages() -> None:
    from importlib.util import find_spec

    missing = [
        name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None
    ]
    if missing:
        raise EnvironmentUnavailable(
            f"weft serve needs {', '.join(missing)}: pip install 'weft[serve]'"
        )


def _spawn_ranks(context: typer.Context) -> Any:
    """What starts this same command again as the engine, in a session of its own.

    Ctrl-C then reaches the HTTP process only, which lets open requests end first.
    """
    from weft.serve.wire import MEETING_VARIABLE

    def spawn(meeting: MeetingPoint) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "weft", *context.obj],
            env=os.environ | {MEETING_VARIABLE: meeting.variable()},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    return spawn


def _app(directory: Path | None, settings: ServerSettings, engine: EngineClient) -> FastAPI:
    from weft.engine.tokenizer import find_tokenizer
    from weft.serve.app import create_app
    from weft.serve.chat import ChatTemplate
    from weft.serve.text import IdTokenizer

    tokenizer = find_tokenizer(directory) or IdTokenizer()
    return create_app(engine, tokenizer, ChatTemplate(tokenizer), settings)


def _work_as_rank(
    model: str,
    layout: Layout,
    place: ranks.RankOptions,
    max_waiting: int,
    config: dict[str, Any],
    profile_dir: Path | None,
) -> None:
    from weft.engine.llm import LLM
    from weft.launch.environment import current_rank, pick_device
    from weft.serve.rank_loop import serve_rank
    from weft.serve.wire import MeetingPoint

    if pick_device(place.device, current_rank().local_rank).type == "cpu":
        config = CPU_DEFAULTS | config
    with LLM(model, layout, device=place.device, timeout_s=place.timeout, **config) as llm:
        serve_rank(
            llm.engine, llm.groups, MeetingPoint.from_environment(), max_waiting, profile_dir
        )
