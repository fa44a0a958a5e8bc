"""Hold many streams open on ``weft serve`` for minutes: none lost, none mixed, memory stable.

    python benchmarks/serve_soak.py --clients 200 --seconds 120 \\
        --output benchmarks/results/serve_soak.json

Every client asks, at the API's default temperature and with a seed, for one of --prompts answers,
each of which was asked once alone before; the prompts share their beginnings, which the server's
prefix cache finds. A stream that ends early or says anything else counts as wrong. The resident memory of
the server's processes is read every second from the end of the first quarter on (each client
has been served by then) and counts as stable if the last quarter's median is at most 5 % above
the second's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from serve_common import command, machine, weft_server, write
from weft.bench.serving.http_client import ConnectionPool, ServerAddress, parse_url, request_bytes
from weft.bench.serving.sse import EventParser


class Reader:
    """One stream's tokens."""

    def __init__(self) -> None:
        self.tokens, self.error, self.status = 0, None, 0
        self.ids: list[int] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = EventParser()

    def on_status(self, status: int) -> None:
        self.status = status

    def on_bytes(self, body: bytes, now_s: float) -> None:  # noqa: ARG002
        for event in self._parser.feed(body):
            if event == b"[DONE]":
                continue
            document = json.loads(event)
            if document.get("choices"):
                self.ids += document["choices"][0]["token_ids"]
            if document.get("usage"):
                self.tokens = document["usage"]["completion_tokens"]
            if document.get("error"):
                self.error = document["error"]["message"]

    def on_end(self, error: str | None, now_s: float) -> None:  # noqa: ARG002
        self.error = self.error or error
        self.ended.set_result(None)


@dataclass(kw_only=True)
class Soak:
    endpoint: ServerAddress
    model: str
    num_prompts: int
    num_tokens: int
    pool: ConnectionPool
    answers: dict[int, list[int]] = field(default_factory=dict)
    done: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)

    async def ask(self, number: int) -> Reader:
        body = {
            "model": self.model,
            "prompt": [*range(16 * (1 + number % 3)), number % 250, 7, number // 250, number % 13],
            "max_tokens": self.num_tokens,
            "seed": number,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "stream_options": {"include_usage": True},
        }
        data = json.dumps(body).encode()
        reader = Reader()
        self.pool.submit(request_bytes(self.endpoint, "/v1/completions", data, {}), reader)
        await asyncio.wait_for(reader.ended, 300)
        return reader

    async def client(self, first: int, until_s: float) -> None:
        number = first
        while time.monotonic() < until_s:
            number = (number + 1) % self.num_prompts
            reader = await self.ask(number)
            self.done += 1
            self.tokens += reader.tokens
            if reader.error or reader.status != 200 or reader.tokens != self.num_tokens:
                self.wrong.append(f"lost: {reader.status} {reader.error} {reader.tokens} tokens")
            elif reader.ids != self.answers[number]:
                self.wrong.append(f"mixed: prompt {number}")


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096 + sum(tree_bytes(int(child)) for child in children)


async def run(options: argparse.Namespace, url: str, pid: int) -> tuple[Soak, list[float]]:
    endpoint = parse_url(url)
    soak = Soak(
        endpoint=endpoint,
        model=options.model,
        num_prompts=options.prompts,
        num_tokens=options.tokens,
        pool=ConnectionPool(endpoint=endpoint),
    )
    for number in range(options.prompts):
        soak.answers[number] = (await soak.ask(number)).ids
    until_s = time.monotonic() + options.seconds
    clients = [asyncio.create_task(soak.client(first, until_s)) for first in range(options.clients)]
    memory = []
    while time.monotonic() < until_s:
        await asyncio.sleep(1)
        memory.append(round(tree_bytes(pid) / 2**20, 1))
    await asyncio.gather(*clients)
    soak.pool.close()
    return soak, memory


def prefix_hit_rate(url: str) -> float:
    """Of the tokens of requests, the share that was found in the cache."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    asked = float(lines["weft_prefix_asked_tokens_total"])
    return float(lines["weft_prefix_hit_tokens_total"]) / max(asked, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with weft_server(options.model, "--tp", str(options.tp)) as (url, process):
        soak, memory = asyncio.run(run(options, url, process.pid))
        hit_rate = prefix_hit_rate(url)
    quarter = len(memory) // 4
    early, late = (
        statistics.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:])
    )
    stable = late <= 1.05 * early
    document = {
        "what": "concurrent streams on weft serve: whole, their own, and the server's memory",
        "command": command(),
        **machine("fastapi", "uvicorn", "torch"),
        "clients": options.clients,
        "seconds": options.seconds,
        "streams": soak.done,
        "tokens_per_s": round(soak.tokens / options.seconds, 1),
        "prefix_hit_rate": round(hit_rate, 3),
        "wrong": len(soak.wrong),
        "wrong_examples": soak.wrong[:10],
        "memory_mib": {
            "median_of_second_quarter": early,
            "median_of_last_quarter": late,
            "most": max(memory),
            "stable": stable,
            "every_second": memory,
        },
    }
    write(options.output, document)
    print(json.dumps(document | {"memory_mib": f"{early} then {late}, stable {stable}"}, indent=1))
    return 0 if stable and not soak.wrong and soak.done >= options.clients else 1


if __name__ == "__main__":
    sys.exit(main())
