"""Many streams at once: each gets its own tokens, all of them, in order."""

from __future__ import annotations

import asyncio
import json

from fake_engine import FakeEngine
from serve_harness import serving
from weft.bench.serving.http_client import ConnectionPool, parse_url, request_bytes
from weft.bench.serving.sse import EventParser

NUM_STREAMS = 200
NUM_TOKENS = 60


class Reader:
    """Collects one stream's text."""

    def __init__(self) -> None:
        self.text, self.status, self.error = "", 0, "not ended"
        self.finished = asyncio.get_running_loop().create_future()
        self._parser = EventParser()

    def on_status(self, status: int) -> None:
        self.status = status

    def on_bytes(self, body: bytes, now_s: float) -> None:
        for event in self._parser.feed(body):
            if event != b"[DONE]":
                self.text += json.loads(event)["choices"][0]["text"]

    def on_end(self, error: str | None, now_s: float) -> None:
        self.error = error
        self.finished.set_result(None)


def test_200_streams_are_whole_and_their_own():
    async def main(url: str) -> list[Reader]:
        endpoint = parse_url(url)
        pool = ConnectionPool(endpoint=endpoint)
        readers = []
        for number in range(NUM_STREAMS):
            body = {
                "model": "embedded",
                "prompt": list(f"<{number:04d}>".encode()),
                "max_tokens": NUM_TOKENS,
                "stream": True,
            }
            readers.append(Reader())
            request = request_bytes(endpoint, "/v1/completions", json.dumps(body).encode(), {})
            pool.submit(request, readers[-1])
        await asyncio.wait_for(asyncio.gather(*(one.finished for one in readers)), 120)
        pool.close()
        await asyncio.sleep(0.1)
        return readers

    with serving(FakeEngine(max_running=64)) as server:
        readers = asyncio.run(main(server.url))
        assert server.engine.stats.running == 0
    for number, reader in enumerate(readers):
        assert (reader.status, reader.error) == (200, None)
        assert reader.text == f"<{number:04d}>" * (NUM_TOKENS // 6)
