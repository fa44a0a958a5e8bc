"""A server with the fake engine on a real socket, for the tests of the HTTP layer."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fake_engine import FakeEngine
from weft.engine.tokenizer import ByteTokenizer, Tokenizer
from weft.serve.app import ServerSettings, create_app
from weft.serve.chat import ChatTemplate
from weft.serve.engine_client import EngineLostError
from weft.serve.http_server import HttpServer, listen


@dataclass(kw_only=True)
class Harness:
    """A running server."""

    engine: FakeEngine
    settings: ServerSettings
    url: str = ""
    server: HttpServer = field(init=False)
    loop: asyncio.AbstractEventLoop = field(init=False)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    drain_s: float = 0.0,
    tokenizer: Tokenizer | None = None,
    **settings: object,
) -> Iterator[Harness]:
    """Serve in a thread until the block ends."""
    tokenizer = tokenizer or ByteTokenizer()
    options = ServerSettings(model_name="embedded", **settings)  # type: ignore[arg-type]
    harness = Harness(engine=engine or FakeEngine(), settings=options)
    app = create_app(harness.engine, tokenizer, ChatTemplate(tokenizer), options)
    listener = listen("127.0.0.1", 0)
    harness.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = harness.server = HttpServer(app, harness.engine, drain_s=drain_s)

    def run() -> None:
        with suppress(EngineLostError):
            server.run_on(listener)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        harness.loop = harness.engine.loop
        yield harness
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def call(
    server: Harness, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text[:1] == b"{" else {"text": text}
