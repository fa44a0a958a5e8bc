"""The client against the mock server: what goes in comes out, and the command's options."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weft
from mock_server import MockBehaviour, MockStream, start_mock
from weft.bench.serving.arrivals import at_random, synthetic
from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.figures import ServiceLimits, figures
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Api, Target
from weft.bench.serving.records import RequestSpec
from weft.bench.serving.result import SCHEMA, ServeResult
from weft.bench.serving.runner import Load, RunOutcome, run_load
from weft.bench.serving.session import benchmark, run_event_loop
from weft.bench.serving.vllm_format import to_vllm_json
from weft.cli import main
from weft.cli.bench_serve import bench_serve
from weft.cli.option_groups import grouped
from weft.errors import EnvironmentUnavailable

FAST = MockBehaviour(ttft_ms=10.0, itl_ms=5.0)


def against(
    behaviour: MockBehaviour, work: Callable[[Target], Coroutine[Any, Any, Any]], **target: Any
) -> Any:
    async def main() -> Any:
        server, url = await start_mock(behaviour)
        try:
            return await work(Target(endpoint=parse_url(url), model="mock", **target))
        finally:
            server.close()
            await asyncio.sleep(0.05)  # lets the mock's connections end with their clients'

    return run_event_loop(main())


def load_against(behaviour: MockBehaviour, load: Load, **target: Any) -> RunOutcome:
    outcome: RunOutcome = against(behaviour, lambda asked: run_load(asked, load), **target)
    return outcome


def closed(count: int = 24, concurrency: int = 6, **more: Any) -> Load:
    return Load(specs=synthetic(count, 8, 6), concurrency=concurrency, **more)


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("continuous", [True, False])
def test_the_mocks_delays_come_out(api, continuous):
    outcome = load_against(FAST, closed(), api=api, continuous_usage=continuous)
    assert len(outcome.records) == 24
    for record in outcome.records:
        assert record.completed, record.error
        assert record.num_output_tokens == 6
        times = DEFINITIONS["weft"].measure(record)
        assert times.ttft_s >= 0.008
        assert times.e2e_s >= 0.03


class _Stamped(MockStream):
    """The mock, noting when each request was whole and when each chunk was written."""

    def on_message_complete(self) -> None:
        self.written = [time.perf_counter()]
        STAMPS.append(self.written)
        super().on_message_complete()

    def _send_chunk(self) -> None:
        super()._send_chunk()
        self.written.append(time.perf_counter())


STAMPS: list[list[float]] = []


def test_figures_are_those_of_a_server_that_knows_its_times_to_a_percent():
    """TTFT, TPOT and E2E of weft's definition beside what the server itself wrote down."""

    async def run() -> RunOutcome:
        loop = asyncio.get_running_loop()
        behaviour = MockBehaviour(ttft_ms=250, itl_ms=40)
        server = await loop.create_server(lambda: _Stamped(behaviour, [0]), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = Target(endpoint=parse_url(f"http://127.0.0.1:{port}"), model="mock")
        outcome = await run_load(target, Load(specs=synthetic(9, 8, 6), concurrency=3))
        server.close()
        await asyncio.sleep(0.05)
        return outcome

    STAMPS.clear()
    outcome = asyncio.run(run())
    figures_of = figures(outcome.records, DEFINITIONS["weft"], ServiceLimits(), outcome.duration_s)
    known = {
        "ttft_ms": [times[1] - times[0] for times in STAMPS],
        "tpot_ms": [(times[6] - times[1]) / 5 for times in STAMPS],
        "e2e_ms": [times[6] - times[0] for times in STAMPS],
    }
    for metric, seconds in known.items():
        exact = float(np.median(seconds)) * 1e3
        assert figures_of[metric]["p50"]["value"] == pytest.approx(exact, rel=0.01)


def test_role_chunks_split_the_definitions():
    behaviour = MockBehaviour(ttft_ms=40.0, itl_ms=5.0, role_chunk_ms=5.0)
    (record,) = load_against(behaviour, closed(1, 1), api=Api.CHAT).records
    times = {name: definition.measure(record) for name, definition in DEFINITIONS.items()}
    assert times["vllm"].ttft_s < 0.035 < times["aiperf"].ttft_s
    assert times["weft"].ttft_s == times["guidellm"].ttft_s == times["aiperf"].ttft_s


def test_closed_loop_keeps_the_concurrency():
    outcome = load_against(FAST, closed(30, 5))
    edges = sorted(
        [(one.sent_s, 1) for one in outcome.records] + [(one.end_s, -1) for one in outcome.records]
    )
    assert np.cumsum([step for _, step in edges]).max() == 5


def test_open_loop_sends_when_due():
    specs = at_random(synthetic(60, 8, 4), 200.0, seed=1)
    outcome = load_against(FAST, Load(specs=specs))
    for record, spec in zip(outcome.records, specs, strict=True):
        assert record.scheduled_s - outcome.start_s == pytest.approx(spec.at_s)
        assert record.sent_s >= record.scheduled_s


def test_open_loop_with_a_limit_counts_the_wait():
    specs = [RequestSpec(prompt_tokens=1, output_tokens=4, at_s=0.0)] * 6
    outcome = load_against(FAST, Load(specs=specs, concurrency=2))
    last = outcome.records[-1]
    assert last.ready_s - last.scheduled_s > 0.04
    assert (
        DEFINITIONS["weft"].measure(last).ttft_s > DEFINITIONS["vllm"].measure(last).ttft_s + 0.04
    )


def test_refused_and_cut_answers_are_counted():
    outcome = load_against(MockBehaviour(ttft_ms=1, itl_ms=1, fail_every=4), closed(20))
    assert sum(not record.completed for record in outcome.records) == 5
    outcome = load_against(MockBehaviour(ttft_ms=1, itl_ms=1, cut_every=5), closed(20))
    errors = [record.error for record in outcome.records if not record.completed]
    assert len(errors) == 4
    assert all("connection" in error for error in errors)


def test_a_silent_server_is_given_up():
    load = Load(specs=synthetic(3, 1, 4), concurrency=3, timeout_s=0.2)
    started = time.monotonic()
    outcome = load_against(MockBehaviour(ttft_ms=60_000), load)
    assert time.monotonic() - started < 5
    assert all("within 0.2 s" in (record.error or "") for record in outcome.records)


def test_duration_stops_the_sending():
    outcome = load_against(FAST, closed(10_000, 2, duration_s=0.3))
    assert 0 < len(outcome.records) < 200
    timed = Load(specs=at_random(synthetic(10_000, 1, 2), 100.0), duration_s=0.3)
    assert 0 < len(load_against(FAST, timed).records) < 80


def test_nobody_listens():
    target = Target(endpoint=parse_url("http://127.0.0.1:9"), model="x")
    outcome = run_event_loop(run_load(target, closed(3, 1)))
    assert all("cannot connect" in (record.error or "") for record in outcome.records)
    with pytest.raises(EnvironmentUnavailable, match="cannot connect"):
        run_event_loop(benchmark(target, closed(3, 1), num_warm_up=0))
    unnamed = Target(endpoint=parse_url("http://127.0.0.1:9"), model="")
    with pytest.raises(EnvironmentUnavailable, match="`model`"):
        run_event_loop(benchmark(unnamed, closed(3, 1), num_warm_up=0))


async def head_of(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(asyncio.IncompleteReadError):
        return await reader.readuntil(b"\r\n\r\n")
    return b""


def test_fields_that_the_server_rejects_are_left_out():
    async def picky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            if "ignore_eos" in body or "continuous_usage_stats" in body["stream_options"]:
                answer = b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}"
            else:
                events = b'data: {"choices": [{"text": "x"}]}\n\ndata: [DONE]\n\n'
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(events) + events
            writer.write(answer)
        writer.close()

    async def main() -> Any:
        server = await asyncio.start_server(picky, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        target = Target(endpoint=parse_url(url), model="m")
        result = await benchmark(target, closed(4, 2), num_warm_up=2)
        server.close()
        await asyncio.sleep(0.05)
        return result

    target, outcome, _ = asyncio.run(main())
    assert (target.continuous_usage, target.ignore_eos) == (False, False)
    assert all(record.completed for record in outcome.records)


def test_json_and_vllm_file_agree():
    load = closed(20, 4)
    target = Target(endpoint=parse_url("http://h"), model="mock")
    outcome = load_against(MockBehaviour(ttft_ms=5, itl_ms=2, fail_every=10), load)
    limits = ServiceLimits(ttft_ms=1e4)
    result = ServeResult(target=target, load=load, outcome=outcome, limits=limits)
    document = result.to_dict(with_records=True)
    json.dumps(document, allow_nan=False)
    assert document["schema"] == SCHEMA
    assert document["requests"]["failed"] == 2
    assert len(document["records"]) == 20
    assert document["tokens"]["output"] == 18 * 6
    vllm = to_vllm_json(target, load, outcome, limits, rate_per_s=3.0, burstiness=2.0)
    json.dumps(vllm, allow_nan=False)
    ours = document["definitions"]["vllm"]
    for metric, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        assert vllm[f"mean_{name}_ms"] == pytest.approx(ours[f"{metric}_ms"]["mean"]["value"])
        assert vllm[f"p99_{name}_ms"] == pytest.approx(ours[f"{metric}_ms"]["p99"]["value"])
    assert (vllm["completed"], vllm["failed"], vllm["request_rate"]) == (18, 2, 3.0)
    assert len(vllm["itls"][0]) == 5
    assert vllm["max_concurrent_requests"] >= 4


MOCK_SERVER = Path(__file__).parents[1] / "mock_server.py"


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    command = [
        sys.executable,
        str(MOCK_SERVER),
        "--ttft-ms",
        "4",
        "--itl-ms",
        "2",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def run_command(url: str, **options: Any) -> None:
    given = {"url": url, "num_requests": 8, "output_tokens": 4, "warm_up": 2} | options
    command = grouped(bench_serve)
    options = inspect.signature(command).parameters.values()
    defaults = {one.name: one.default for one in options if one.default is not one.empty}
    command(**defaults | given)


def test_the_command_prints_and_writes(mock_url, tmp_path, capsys):
    paths = {name: tmp_path / name for name in ("output", "vllm_output", "report")}
    run_command(mock_url, rate=100.0, goodput="ttft:500", records=True, **paths)
    printed = capsys.readouterr().out
    assert "goodput" in printed
    assert "8 of 8 requests completed" in printed
    assert json.loads(paths["output"].read_text())["target"]["model"] == "mock"
    assert json.loads(paths["vllm_output"].read_text())["completed"] == 8
    assert "<html" in paths["report"].read_text()


def test_the_commands_formats(mock_url, capsys):
    from weft.cli.output import OutputFormat

    run_command(mock_url, concurrency=2, output_format=OutputFormat.JSON, api="chat")
    assert json.loads(capsys.readouterr().out)["requests"]["completed"] == 8
    run_command(mock_url, concurrency=2, output_format=OutputFormat.CSV, token_ids_below=9)
    assert capsys.readouterr().out.startswith("metric,definition,mean,")


def test_the_command_replays_a_trace(mock_url, tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 100 * i, "input_length": 5, "output_length": 3} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_command(mock_url, trace=path, trace_speed=10.0, num_requests=None)
    assert "4 of 4 requests completed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "`concurrency` N"),
        ({"rate": 1.0, "trace": Path("x")}, "exclude"),
        ({"rate": -1.0}, "`rate` -1"),
        ({"concurrency": 0}, "`concurrency` 0"),
        ({"concurrency": 1, "api": "embeddings"}, "`api` embeddings"),
        ({"concurrency": 1, "goodput": "x:1"}, "`goodput`"),
        ({"concurrency": 1, "extra_body": "[]"}, "`extra_body`"),
        ({"concurrency": 1, "extra_body": "{"}, "`extra_body`"),
        ({"concurrency": 1, "warm_up": -1}, "`warm_up`"),
        ({"concurrency": 1, "timeout": 0.0}, "`timeout`"),
        ({"concurrency": 1, "duration": -2.0}, "`duration`"),
        ({"concurrency": 1, "token_ids_below": 5, "api": "chat"}, "`token_ids_below`"),
        ({"concurrency": 1, "num_requests": 0}, "`num_requests` 0"),
    ],
)
def test_wrong_options_are_one_line(options, said, capsys):
    from weft.errors import UserError

    with pytest.raises(UserError, match=said):
        run_command("http://127.0.0.1:9", **options)
    assert capsys.readouterr().out == ""


def test_the_librarys_bench_is_the_command(mock_url, tmp_path, capsys):
    """A bench is a value; its result is what the command writes, but for what was measured."""
    path = tmp_path / "result.json"
    words = ["--url", mock_url, "--concurrency", "2", "--num-requests", "8", "--output-tokens", "4"]
    assert main.run(["bench", "serve", *words, "--stop-at-eos", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    bench = weft.ServeBench(
        url=mock_url, concurrency=2, num_requests=8, output_tokens=4, ignore_eos=False
    )
    found = bench.run().to_dict()
    assert found.keys() == written.keys()
    assert (found["load"], found["target"]) == (written["load"], written["target"])
    assert "8 of 8 requests completed" in capsys.readouterr().out
