"""Server-sent events: bytes in, the ``data`` of each complete event out."""

from __future__ import annotations


class EventParser:
    r"""Incremental parser of one ``text/event-stream`` body.

    Bytes may be cut anywhere. Lines end with ``\\n``, ``\\r\\n`` or ``\\r``; comments and
    fields other than ``data`` are dropped; several ``data`` lines of one event are joined
    with ``\\n`` (HTML Living Standard, section 9.2.6).
    """

    __slots__ = ("_after_return", "_data", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._after_return = False

    def feed(self, received: bytes) -> list[bytes]:
        """The data of every event that ``received`` completes, oldest first."""
        if self._after_return and received:
            received = received.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in received:
            self._after_return = received.endswith(b"\r")
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._tail + received).split(b"\n")
        self._tail = lines.pop()
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._data.append(b"")
        return events
