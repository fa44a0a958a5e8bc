"""Service levels over layouts: serve each in turn, load it, and stand the figures in one table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from weft.bench.serving.arrivals import at_random, synthetic
from weft.bench.serving.figures import ServiceLimits
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.result import to_json
from weft.bench.serving.runner import Load
from weft.bench.serving.session import benchmark, is_ready, run_event_loop
from weft.errors import EnvironmentUnavailable
from weft.vocabulary.layout import Layout

SCHEMA = "weft.study.slo/1"


@dataclass(frozen=True, kw_only=True)
class SloPlan:
    """What is served and how it is loaded, the same for every layout and server."""

    model: str
    prompt_tokens: int
    output_tokens: int
    num_requests: int
    concurrency: int | None
    rate_per_s: float | None
    limits: ServiceLimits
    vocab_size: int
    device: str = "auto"
    weights: str = "auto"
    start_s: float = 300.0
    """Longest wait for a server to be ready."""

    def load(self) -> Load:
        specs = synthetic(self.num_requests, self.prompt_tokens, self.output_tokens)
        if self.rate_per_s is not None:
            specs = at_random(specs, self.rate_per_s)
        return Load(specs=specs, concurrency=self.concurrency)


def layout_options(layout: Layout) -> list[str]:
    """The options of ``weft serve`` that ask for ``layout``."""
    degrees = {"--tp": layout.tp, "--pp": layout.pp, "--sp": layout.sp, "--dp": layout.dp}
    return [word for name, value in degrees.items() if value > 1 for word in (name, str(value))]


@contextmanager
def served(plan: SloPlan, layout: Layout) -> Iterator[str]:
    """A ``weft serve`` of ``layout`` and its URL; ended with the block."""
    command = [sys.executable, "-m", "weft", "serve", plan.model, "--port", "0"]
    command += ["--device", plan.device, "--weights", plan.weights, "--served-name", "model"]
    process = subprocess.Popen(  # noqa: S603
        [*command, *layout_options(layout)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    assert process.stderr is not None
    try:
        url = process.stderr.readline().strip()
        if not url.startswith("http"):
            raise EnvironmentUnavailable(f"layout {layout.name}: {url or 'weft serve ended'}")
        _wait_until_ready(url, process, plan.start_s, layout.name)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


def _wait_until_ready(url: str, process: subprocess.Popen[str], limit_s: float, name: str) -> None:
    deadline = time.monotonic() + limit_s
    target = Target(endpoint=parse_url(url), model="model")
    while not run_event_loop(is_ready(target)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise EnvironmentUnavailable(f"layout {name}: not ready within {limit_s:g} s")
        time.sleep(0.2)


def measure(plan: SloPlan, url: str, *, model: str, profile: bool) -> dict[str, Any]:
    """One server's result, schema ``weft.bench.serve/1``.

    Prompts are token ids for a server of ``model``, words where the server says what it has.
    """
    below = plan.vocab_size if model else None
    target = Target(endpoint=parse_url(url), model=model, token_ids_below=below)
    load = plan.load()
    num_warm_up = min(5, plan.num_requests)
    target, outcome, profiled = run_event_loop(
        benchmark(target, load, num_warm_up=num_warm_up, profile=profile)
    )
    settings = {
        "kind": "open" if plan.rate_per_s else "closed",
        "rate_per_s": plan.rate_per_s,
        "concurrency": plan.concurrency,
        "prompt_tokens": plan.prompt_tokens,
        "output_tokens": plan.output_tokens,
    }
    return to_json(target, load, outcome, plan.limits, settings=settings, profile=profiled)


def run_study(
    plan: SloPlan,
    layouts: Sequence[Layout],
    urls: Sequence[str],
    predict: Callable[[Layout], dict[str, Any]] | None,
) -> dict[str, Any]:
    """Every layout served by weft, then every given server, one after the other."""
    rows = []
    for layout in layouts:
        with served(plan, layout) as url:
            plain = measure(plan, url, model="model", profile=False)
            short = replace(plan, num_requests=min(plan.num_requests, 50))
            joined = measure(short, url, model="model", profile=True)
        row = {"name": layout.name, "result": plain, "communication": joined.get("communication")}
        rows.append(row | {"predicted": predict(layout) if predict else None})
    for url in urls:
        result = measure(plan, url, model="", profile=False)
        rows.append({"name": url, "result": result, "communication": None, "predicted": None})
    return {"schema": SCHEMA, "model": plan.model, "rows": rows}


def table(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Measured medians under weft's definitions beside the predicted ones."""
    return [_row(row) for row in document["rows"]]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    figures = row["result"]["definitions"]["weft"]
    joined, predicted = row["communication"] or {}, row["predicted"] or {}
    cells: dict[str, Any] = {"server": row["name"]}
    for metric in ("ttft", "tpot", "e2e"):
        summary = figures[f"{metric}_ms"]
        cells[f"{metric}_p50_ms"] = summary["p50"]["value"] if summary else None
        cells[f"{metric}_predicted_ms"] = predicted.get(f"{metric}_ms")
    for metric in ("ttft", "tpot"):
        cells[f"{metric}_in_collectives"] = joined.get(metric, {}).get("share")
    cells["requests_per_s"] = row["result"]["throughput"]["requests_per_s"]
    cells["failed"] = row["result"]["requests"]["failed"]
    cells["goodput_share"] = figures.get("goodput", {}).get("share")
    return cells
