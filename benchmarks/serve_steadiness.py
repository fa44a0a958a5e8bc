"""How even streams are: gaps of a few streams alone, and while long prompts arrive.

    python benchmarks/serve_steadiness.py --output benchmarks/results/serve_steadiness.json

Starts ``weft serve embedded`` by its default command (temperature left out: 1) and reads four
streams: alone, then while prompts arrive at once, so many of such a length a case. A gap is the
time between two events of a stream, each one token. In a case with arrivals the gaps are those from the
arrival to the first token of the last prompt. Beside that the share of a step's processor time
outside the model with 256 running requests, one thread, in a process of its own. On two idle cores
it takes under three minutes; bounds: p99 under three times the median alone, under twice the
median while prompts arrive, 10 % of a step outside the model. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from serve_common import command, machine, weft_server, write
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.bench.serving.runner import Load, run_load
from weft.bench.serving.session import run_event_loop

STREAMS = 4
LEAD_S = 1.0
ARRIVALS = [(12, 1900), (1, 1900), (24, 400), (3, 3800)]
MOST_RATIO = {"alone": 3.0, "arrivals": 2.0}
MOST_OUTSIDE = 0.10
RUNNING, CONTEXT, STEPS = 256, 32, 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arrivals", nargs="*", help="NUMBERxTOKENS, e.g. 12x1900")
    parser.add_argument("--no-share", action="store_true", help="leave the step's share out")
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        print(json.dumps(_share(options.share)))
        return 0
    cases = ARRIVALS
    if options.arrivals is not None:
        cases = [(int(n), int(t)) for n, t in (case.split("x") for case in options.arrivals)]
    with weft_server("embedded") as (url, _):
        _run(url, [RequestSpec(prompt_tokens=16, output_tokens=8, at_s=0.0)] * STREAMS, 0)
        rows = [_alone(url)]
        rows += [_arriving(url, *case, 2 + place) for place, case in enumerate(cases)]
    shares = [] if options.no_share else [_in_process(t) for t in (0.0, 1.0)]
    document = {
        "what": "gaps of four streams of weft serve embedded, and a step's share outside the model",
        "command": command(),
        **machine("torch", "uvloop"),
        "rows": rows,
        "step": shares,
    }
    write(options.output, document)
    print(json.dumps(document, indent=1))
    return int(not all(row["within"] for row in (*rows, *shares)))


def _run(url: str, specs: list[RequestSpec], seed: int) -> list[RequestRecord]:
    target = Target(
        endpoint=parse_url(url), model="embedded", temperature=None, seed=seed, token_ids_below=256
    )
    outcome = run_event_loop(run_load(target, Load(specs=specs, timeout_s=1200)))
    failed = [record.error for record in outcome.records if not record.completed]
    if failed:
        sys.exit(f"{len(failed)} requests failed: {failed[0]}")
    return outcome.records


def _alone(url: str) -> dict[str, Any]:
    specs = [RequestSpec(prompt_tokens=64, output_tokens=200, at_s=0.0)] * STREAMS
    records = _run(url, specs, 1)
    begin = max(record.chunk_s[0] for record in records)
    return _row("alone", records, begin, min(record.chunk_s[-1] for record in records))


def _arriving(url: str, number: int, tokens: int, seed: int) -> dict[str, Any]:
    """Streams about as long as the prompts take: 64 rows of prompts a step."""
    length = 120 + 11 * number * tokens // 640
    streams = [RequestSpec(prompt_tokens=64, output_tokens=length, at_s=0.0)] * STREAMS
    prompt = RequestSpec(prompt_tokens=tokens, output_tokens=1, at_s=LEAD_S)
    records = _run(url, streams + [prompt] * number, seed)
    arrived = [record for record in records if record.spec is prompt]
    begin = min(record.sent_s for record in arrived)
    end = max(record.chunk_s[0] for record in arrived)
    streaming = [record for record in records if record.spec is not prompt]
    row = _row("arrivals", streaming, begin, end)
    return row | {"prompts": number, "prompt_tokens": tokens}


def _row(case: str, records: list[RequestRecord], begin: float, end: float) -> dict[str, Any]:
    gaps = [
        later - earlier
        for record in records
        for earlier, later in zip(record.chunk_s, record.chunk_s[1:], strict=False)
        if begin <= later <= end
    ]
    if not gaps:
        sys.exit(f"{case}: no gap between {begin} and {end}")
    median, p99 = (float(np.percentile(gaps, one)) * 1e3 for one in (50, 99))
    row = {
        "case": case,
        "seconds": round(end - begin, 2),
        "gaps": len(gaps),
        "median_ms": round(median, 2),
        "p99_ms": round(p99, 2),
        "longest_ms": round(max(gaps) * 1e3, 2),
        "p99_over_median": round(p99 / median, 2),
        "within": p99 < MOST_RATIO[case] * median,
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _in_process(temperature: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "--share", str(temperature)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def _share(temperature: float) -> dict[str, Any]:
    """Processor time of a step of 256 requests with 32 tokens each, and of its model."""
    import torch

    from weft import LLM
    from weft.engine.request import SamplingParams
    from weft.models.decoder import DecoderStage

    torch.set_num_threads(1)
    spent, forward = [0.0], DecoderStage.forward

    def timed(self: DecoderStage, *inputs: Any, **more: Any) -> Any:
        begun = time.process_time()
        try:
            return forward(self, *inputs, **more)
        finally:
            spent[0] += time.process_time() - begun

    DecoderStage.forward = timed  # type: ignore[method-assign]
    sampling = SamplingParams(temperature=temperature, max_tokens=1000, ignore_eos=True)
    with LLM("embedded", device="cpu", max_batch_requests=RUNNING, cache_tokens=32768) as llm:
        engine = llm.engine
        for number in range(RUNNING):
            engine.add(number, [(7 * number + i) % 250 for i in range(CONTEXT)], sampling)
        while engine.scheduler.num_waiting or not spent[0]:
            engine.step()
        for _ in range(4):
            engine.step()
        spent[0], begun = 0.0, time.process_time()
        for _ in range(STEPS):
            engine.step()
        whole = time.process_time() - begun
    outside = 1 - spent[0] / whole
    return {
        "temperature": temperature,
        "running": RUNNING,
        "context_tokens": f"{CONTEXT} to {CONTEXT + STEPS + 5}",
        "step_cpu_ms": round(whole / STEPS * 1e3, 1),
        "share_outside_the_model": round(outside, 3),
        "within": outside <= MOST_OUTSIDE,
    }


if __name__ == "__main__":
    sys.exit(main())
