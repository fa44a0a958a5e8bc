"""A server with the fake engine on a real socket, for the tests of the HTTP layer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from weft.engine.tokenizer import ByteTokenizer
from weft.serve.app import ServerSettings, create_app
from weft.serve.chat import ChatTemplate
from weft.serve.fake_engine import FakeEngine
from weft.serve.http_server import listen


@dataclass(kw_only=True)
class Harness:
    """A running server."""

    engine: FakeEngine
    settings: ServerSettings
    url: str = ""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(engine: FakeEngine | None = None, **settings: object) -> Iterator[Harness]:
    """Serve in a thread until the block ends."""
    tokenizer = ByteTokenizer()
    options = ServerSettings(model_name="embedded", **settings)  # type: ignore[arg-type]
    harness = Harness(engine=engine or FakeEngine(), settings=options)
    app = create_app(harness.engine, tokenizer, ChatTemplate(tokenizer, None), options)
    listener = listen("127.0.0.1", 0)
    harness.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, lifespan="on")
    )

    def run() -> None:
        asyncio.set_event_loop(harness.loop)
        harness.loop.run_until_complete(server.serve(sockets=[listener]))
        harness.loop.run_until_complete(harness.loop.shutdown_asyncgens())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield harness
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        harness.loop.close()
