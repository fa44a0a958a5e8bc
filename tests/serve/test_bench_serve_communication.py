"""The join of a server's profile with the requests of a run."""

from __future__ import annotations

import json
import time
from array import array
from typing import Any

import pytest

from serve_harness import serving
from weft.bench.serving.communication import communication
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.cli.main import run


def step(phase: str, start_s: float, end_s: float, **in_calls_s: float) -> dict[str, Any]:
    return {"phase": phase, "start_s": start_s, "end_s": end_s, "in_calls_s": in_calls_s}


def request(sent_s: float, *chunks_s: float) -> RequestRecord:
    offset = time.perf_counter() - time.time()
    return RequestRecord(
        index=0,
        spec=RequestSpec(prompt_tokens=1, output_tokens=len(chunks_s)),
        scheduled_s=sent_s + offset,
        sent_s=sent_s + offset,
        end_s=chunks_s[-1] + offset,
        output_tokens=len(chunks_s),
        chunk_s=array("d", [at_s + offset for at_s in chunks_s]),
        chunk_tokens=array("q", range(1, len(chunks_s) + 1)),
        chunk_content=bytearray([1] * len(chunks_s)),
    )


PROFILE = {
    "schema": "weft.serve.profile/1",
    "replicas": [
        [
            step("prefill", 10.0, 12.0, all_reduce=1.0, all_gather=0.2),
            step("decode", 12.0, 13.0, all_reduce=0.5),
            step("decode", 13.5, 14.5, all_reduce=0.3),
        ]
    ],
}


def by(part: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["phase"], row["op"]): row["mean_ms"] for row in part["by"]}


def test_a_request_takes_its_share_of_each_step():
    joined = communication(PROFILE, [request(11.0, 12.0, 13.0, 14.5)])
    ttft, tpot = joined["ttft"], joined["tpot"]
    assert ttft["mean_ms"] == pytest.approx(1000, abs=1)
    assert by(ttft)["prefill", "all_reduce"] == pytest.approx(500, abs=1)
    assert by(ttft)["prefill", "all_gather"] == pytest.approx(100, abs=1)
    assert ttft["share"] == pytest.approx(0.6, abs=0.002)
    assert tpot["mean_ms"] == pytest.approx(1250, abs=1)
    assert by(tpot)["decode", "all_reduce"] == pytest.approx(400, abs=1)
    assert by(tpot)["prefill", "all_reduce"] == pytest.approx(0, abs=1)


def test_replicas_are_averaged_and_idle_ones_left_out():
    half = [step("decode", 10.0, 20.0, all_reduce=5.0)]
    none = [step("decode", 10.0, 20.0)]
    joined = communication({"replicas": [half, none, []]}, [request(11.0, 12.0, 13.0)])
    assert joined["ttft"]["share"] == pytest.approx(0.25, abs=0.002)


def test_nothing_to_join():
    assert communication({"replicas": [[]]}, [request(1.0, 2.0, 3.0)]) is None
    assert communication(PROFILE, [request(1.0, 2.0)]) is None


def test_the_command_joins(capsys):
    with serving() as server:
        arguments = ["bench", "serve", "--url", server.url, "--concurrency", "2", "--profile"]
        arguments += ["--num-requests", "6", "--output-tokens", "4", "--prompt-tokens", "4"]
        assert run([*arguments, "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["communication"]["tpot"]["share"] == pytest.approx(0.25, abs=0.05)
        assert run(arguments) == 0
        assert "inside collectives" in capsys.readouterr().out


def test_a_server_without_profiler(capsys):
    with serving() as server:
        first = ["bench", "serve", "--url", server.url + "/nowhere", "--model", "embedded"]
        assert run([*first, "--concurrency", "1", "--profile"]) == 3
        assert "status 404" in capsys.readouterr().err
