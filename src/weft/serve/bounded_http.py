"""uvicorn's HTTP protocol with what it leaves open: how large and how slow headers may be."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weft.serve.errors import error_body

MOST_HEADER_BYTES: Final = 64 << 10
HEADERS_S: Final = 10.0


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request line and headers beyond 64 KiB (431) or ten seconds (408)."""

    _num_header_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives while headers are incomplete."""
        if self._timer is None and self._is_idle:
            self._expect_headers()
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._num_header_bytes > MOST_HEADER_BYTES:
            self._refuse(431, f"the headers are larger than {MOST_HEADER_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._num_header_bytes = 0
        self._timer = self.loop.call_later(
            HEADERS_S, self._refuse, 408, f"the headers were not complete within {HEADERS_S:g} s"
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        if not self._num_header_bytes:
            self.transport.close()
            return
        body = json.dumps(error_body(status, message)).encode()
        head = (
            f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """In the shape of every other refusal."""
        self._refuse(400, msg)
