"""10,000 hostile requests against ``weft serve embedded``: no 5xx, no crash, nothing left over.

    python benchmarks/serve_hostile.py --output benchmarks/results/serve_hostile.json

Starts the server with a real engine and runs tests/serve/test_serve_hostile.py against it:
requests that schemathesis makes from the server's OpenAPI description (right and wrong ones),
broken bodies and broken HTTP. The counts are of the statuses that came back. The cache bounds what
a request without ``max_tokens`` is answered with, which would otherwise take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serve_common import command, machine, weft_server, write

TESTS = Path(__file__).parents[1] / "tests" / "serve" / "test_serve_hostile.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with (
        weft_server("embedded", "--tp", str(options.tp), "--cache-tokens", "1024") as (url, server),
        tempfile.TemporaryDirectory() as folder,
    ):
        counts = Path(folder) / "counts.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(TESTS), "-p", "no:cacheprovider"],
            check=False,
            cwd=TESTS.parents[2],
            env=os.environ
            | {
                "WEFT_HOSTILE_EXAMPLES": str(options.requests),
                "WEFT_HOSTILE_URL": url,
                "WEFT_HOSTILE_COUNTS": str(counts),
            },
        )
        alive = server.poll() is None
        statuses: dict[str, int] = json.loads(counts.read_text())
    total = sum(statuses.values())
    document = {
        "what": "hostile requests to weft serve embedded: answers by kind of request and status",
        "command": command(),
        **machine("fastapi", "uvicorn", "pydantic", "schemathesis", "hypothesis", "torch"),
        "requests": total,
        "server_errors": sum(n for kind, n in statuses.items() if kind.split()[-1][0] == "5"),
        "server_alive_ready_and_empty_afterwards": alive and done.returncode == 0,
        "answers": dict(sorted(statuses.items())),
        "seconds": round(time.monotonic() - started, 1),
    }
    write(options.output, document)
    print(json.dumps(document, indent=1))
    return 0 if alive and done.returncode == 0 and total >= options.requests else 1


if __name__ == "__main__":
    sys.exit(main())
