"""An engine that computes nothing, for studies: it answers on time, has a child, and may die.

``python tests/mock_engine.py --port N --die-on LENGTH`` kills itself by a prompt of LENGTH tokens;
its child lives in a session of its own and outlives it unless somebody ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mock_server import MockBehaviour, MockStream


async def serve(options: argparse.Namespace) -> None:
    class Stream(MockStream):
        def on_message_complete(self) -> None:
            prompt = json.loads(self._body or b"{}").get("prompt", ())
            if len(prompt) == options.die_on:
                os.kill(os.getpid(), signal.SIGKILL)
            if b"/v1/" in self._url:
                super().on_message_complete()
            else:
                self._answer_json(200, {})

    behaviour = MockBehaviour(ttft_ms=options.ttft_ms, itl_ms=options.itl_ms)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(behaviour, [0]), "127.0.0.1", options.port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=5.0)
    parser.add_argument("--die-on", type=int, default=-1)
    parser.add_argument("--children", type=Path, help="write the child's id here")
    arguments = parser.parse_args()
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    if arguments.children:
        with arguments.children.open("a") as file:
            file.write(f"{child.pid}\n")
    asyncio.run(serve(arguments))
