"""A ``weft serve`` process of its own, for the tests that need real ranks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_S = 120


class Server:
    """A ``weft serve`` process and its address."""

    def __init__(self, model: Path | str, *arguments: str) -> None:
        fixed = ["--device", "cpu", "--port", "0", "--served-name", "tiny"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weft", "serve", str(model), *fixed, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.url = ""
        while not self.url.startswith("http://"):
            self.lines.append(line := self.process.stderr.readline())
            assert line, self.lines
            self.url = line.strip()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            wait_until(lambda: self.get("/ready", timeout_s=START_S)[0] == 200, START_S)
        except BaseException:
            self.end()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            self.lines.extend(self.process.stderr)

    def get(self, path: str, body: Any = None, timeout_s: float = 60) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, decoded(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, decoded(error.read())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found is not None
        return float(found[1])

    def descendants(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            listed = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(todo.pop())],
                capture_output=True,
                text=True,
                check=False,
            )
            children = [int(pid) for pid in listed.stdout.split()]
            found += children
            todo += children
        return found

    def end(self) -> int:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._reader.join(10)
        self.process.stderr.close()
        return self.process.wait(10)


def decoded(text: bytes) -> Any:
    return json.loads(text) if text.startswith(b"{") else text.decode()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.05)
    return time.monotonic() - started
