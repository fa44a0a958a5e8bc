"""How much load the client of weft bench serve drives from one core without being late.

    python benchmarks/serve_client_lag.py --rate 1000 --seconds 10

Starts the mock server in a process of its own on core --server-core, drives it from core
--client-core with 32-token streams, and prints the client's send lag and processor time.
--real-time runs both under SCHED_FIFO (root only), so that other work on the machine does
not count. Exit code 1 if the 99th percentile of the lag is above 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from serve_common import MOCK_SERVER, command, machine, write
from weft.bench.serving.arrivals import at_random, synthetic
from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.figures import ServiceLimits, figures
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.result import to_json
from weft.bench.serving.runner import Load, RunOutcome, run_load
from weft.bench.serving.session import run_event_loop, warm_up

MOST_LAG_MS = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--client-core", type=int, default=0)
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    server = subprocess.Popen(
        [
            sys.executable,
            str(MOCK_SERVER),
            "--ttft-ms",
            "20",
            "--itl-ms",
            "10",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    _place(server.pid, options.server_core, options.real_time)
    _place(0, options.client_core, options.real_time)
    specs = at_random(
        synthetic(int(options.rate * options.seconds), 64, options.tokens), options.rate
    )
    target, load = Target(endpoint=parse_url(url), model="mock"), Load(specs=specs, timeout_s=30)
    try:
        run_event_loop(warm_up(target, load, 50))
        outcome = run_event_loop(run_load(target, load))
    finally:
        server.terminate()
        if options.real_time:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    document = to_json(target, load, outcome, ServiceLimits(), settings={})
    client, vllm = (
        document["client"],
        figures(outcome.records, DEFINITIONS["vllm"], ServiceLimits(), outcome.duration_s),
    )
    result = {
        "what": "the client of weft bench serve on one core, against the mock server",
        "command": command(),
        **machine("uvloop", "httptools"),
        "scheduling": "SCHED_FIFO" if options.real_time else "normal",
        "arrivals_per_s": round(_arrivals_per_s(outcome), 1),
        "completed": f"{document['requests']['completed']} of {len(specs)}",
        "tokens_per_stream": options.tokens,
        "send_lag_ms": _rounded(client["send_lag_ms"]),
        "event_loop_lag_ms": _rounded(client["event_loop_lag_ms"]),
        "cpu_us_per_request": round(client["cpu_us_per_request"], 1),
        "cpu_share_of_a_core": round(client["cpu_share_of_a_core"], 3),
        "ttft_ms": {"mock": 20} | _percentiles(vllm["ttft_ms"]),
        "tpot_ms": {"mock": 10} | _percentiles(vllm["tpot_ms"]),
    }
    write(options.output, result)
    print(json.dumps(result, indent=1))
    return 0 if client["send_lag_ms"]["p99"] <= MOST_LAG_MS else 1


def _arrivals_per_s(outcome: RunOutcome) -> float:
    """Requests by the time from the start to the last one's sending."""
    return len(outcome.records) / (max(one.sent_s for one in outcome.records) - outcome.start_s)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _percentiles(summary: dict[str, Any]) -> dict[str, float]:
    return {name: round(summary[name]["value"], 3) for name in ("p50", "p99")}


def _place(pid: int, core: int, real_time: bool) -> None:
    os.sched_setaffinity(pid, {core})
    if real_time:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(10))


if __name__ == "__main__":
    sys.exit(main())
