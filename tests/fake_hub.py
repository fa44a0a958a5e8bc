"""The part of the Hugging Face hub's protocol that downloads use, over a folder, on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@dataclass(kw_only=True)
class FakeHub:
    """A hub with one model ``name``, whose files are those of ``folder``."""

    name: str
    folder: Path
    url: str = ""
    files_sent: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, bytes]:
        if path in (f"api/models/{self.name}", f"api/models/{self.name}/revision/main"):
            files = [{"rfilename": str(one)} for one in self._files]
            card = {"id": self.name, "sha": COMMIT, "siblings": files}
            return 200, json.dumps(card).encode()
        if path.startswith(f"api/models/{self.name}/tree/"):
            return 200, json.dumps([self._entry(one) for one in self._files]).encode()
        start = f"{self.name}/resolve/"
        file = self.folder / path.removeprefix(start).partition("/")[2]
        if path.startswith(start) and file.is_file():
            return 200, file.read_bytes()
        return 404, b"{}"

    @property
    def _files(self) -> list[Path]:
        found = (one for one in sorted(self.folder.rglob("*")) if one.is_file())
        return [one.relative_to(self.folder) for one in found]

    def _entry(self, path: Path) -> dict[str, object]:
        data = (self.folder / path).read_bytes()
        return {"type": "file", "path": str(path), "size": len(data), "oid": etag(data)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send(send_body=False)

    def do_GET(self) -> None:
        self._send(send_body=True)

    def _send(self, *, send_body: bool) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        status, body = self.server.hub.answer(path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{etag(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if send_body:
            self.wfile.write(body)
        if send_body and "/resolve/" in path and status == 200:
            self.server.hub.files_sent.append(path.rpartition("/")[2])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_hub(name: str, folder: Path) -> Iterator[FakeHub]:
    """Serve in a thread until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub = FakeHub(
        name=name, folder=folder, url=f"http://127.0.0.1:{server.server_port}"
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()
