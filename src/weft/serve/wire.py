"""What goes between the HTTP process and the leaders of the replicas, and how they meet.

``multiprocessing.connection``: framed, pickled messages over TCP, both sides proving that
they know a key which only the processes of this run have. Once they have, the HTTP process
moves the same frames in its event loop.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from weft.engine.request import FinishReason, SamplingParams, TokenLogprobs
from weft.serve.engine_client import EngineLimits, EngineStats, StepTimes

MEETING_VARIABLE: Final = "WEFT_SERVE_MEETING"
_HEADER: Final = struct.Struct("!i")


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Start a request."""

    number: int
    prompt: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, kw_only=True)
class Abort:
    """Forget a request."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Leave."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Begin to time every collective, or end it and send what was timed."""

    start: bool


Command = Submit | Abort | Profile | Stop


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A replica is up."""

    replica: int
    num_replicas: int
    limits: EngineLimits


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The engine does not take a request, or could not go on with it."""

    number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One step's tokens (number, token id, finish reason); none: a sign of life.

    ``logprobs`` of the tokens of requests that want them, by number; ``prompt_logprobs`` with a request's
    first token, and ``cached``: how many of its prompt's tokens were found in the cache.
    """

    tokens: tuple[tuple[int, int, FinishReason | None], ...]
    rejected: tuple[Rejected, ...]
    stats: EngineStats
    logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    cached: Mapping[int, int] = field(default_factory=dict)
    profile: tuple[StepTimes, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MeetingPoint:
    """Where the HTTP process waits for the leaders."""

    host: str
    port: int
    key: bytes

    def variable(self) -> str:
        """As an environment variable of the ranks."""
        return f"{self.host} {self.port} {self.key.hex()}"

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> MeetingPoint | None:
        text = (os.environ if environment is None else environment).get(MEETING_VARIABLE)
        if not text:
            return None
        host, port, key = text.split()
        return MeetingPoint(host=host, port=int(port), key=bytes.fromhex(key))


def new_key() -> bytes:
    return secrets.token_bytes(32)


def send_at_once(sock: socket.socket) -> None:
    """No waiting for the other side's acknowledgement: a message may be 40 ms late otherwise."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def socket_of(connection: Connection) -> socket.socket:
    """The connection's socket, sending at once; both must be closed."""
    sock = socket.socket(fileno=os.dup(connection.fileno()))
    send_at_once(sock)
    return sock


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message of a peer that has proved the key."""
    (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    return pickle.loads(await reader.readexactly(size))  # noqa: S301


def send(writer: asyncio.StreamWriter, message: Command) -> None:
    """Queue a message; what is waiting is bounded by the requests that may be open."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(_HEADER.pack(len(data)) + data)
