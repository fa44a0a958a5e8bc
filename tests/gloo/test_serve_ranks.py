"""``weft serve`` with real ranks: same tokens as the library, clear errors, no leftovers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_process import Server, wait_until

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [100] * 20]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without tokenizer files: its answers are token ids, so they can be compared."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> list[str]:
    import weft.engine.llm as library
    from weft.engine.request import SamplingParams

    with library.LLM(str(model), device="cpu", weights="dummy") as llm:
        done = llm.generate(PROMPTS, SamplingParams(max_tokens=12, ignore_eos=True))
    return ["".join(f"{token} " for token in one.token_ids) for one in done]


def completions(server: Server, **fields: Any) -> tuple[int, Any]:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    return server.get("/v1/completions", body | {"prompt": PROMPTS} | fields)


@pytest.mark.parametrize("layout", [[], ["--dp", "2"], ["--pp", "2"]])
def test_answers_are_the_librarys(model, layout, expected):
    server = Server(model, "--weights", "dummy", "--max-batch-tokens", "8", *layout)
    try:
        status, answer = completions(server)
        assert status == 200, answer
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert len(answer["choices"][0]["text"].split()) == 12
        sampled = [
            completions(server, temperature=1.0, seed=5, prompt=[7])[1]["choices"][0]["text"]
            for _ in range(2)
        ]
        assert sampled[0] == sampled[1]
    finally:
        children = server.descendants()
        assert server.end() == 0, server.lines
    assert children
    wait_until(lambda: not any(map(alive, children)), 10)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="class")
def two_ranks(model: Path) -> Iterator[Server]:
    server = Server(model, "--weights", "dummy", "--tp", "2", "--drain", "2")
    yield server
    server.end()


class TestTwoRanks:
    """One server with tp 2; the last test kills one of its ranks."""

    def test_answers(self, two_ranks, expected):
        assert [c["text"] for c in completions(two_ranks)[1]["choices"]] == expected

    def test_a_client_that_goes_away_frees_its_slot(self, two_ranks):
        body = {"model": "tiny", "prompt": [7], "max_tokens": 1500, "ignore_eos": True}
        request = urllib.request.Request(
            two_ranks.url + "/v1/completions",
            json.dumps(body | {"stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            response.readline()
            wait_until(lambda: two_ranks.metric("weft_engine_running") == 1, 20)
        wait_until(lambda: two_ranks.metric("weft_engine_running") == 0, 20)
        assert two_ranks.metric("weft_engine_cache_use") == 0

    def test_communication_is_measured(self, two_ranks):
        completions(two_ranks, max_tokens=70)
        assert 0 < two_ranks.metric("weft_engine_communication_share") < 1

    def test_the_profile_has_every_step_and_its_collectives(self, two_ranks):
        assert two_ranks.get("/start_profile", {})[0] == 200
        completions(two_ranks, prompt=[7, 8], max_tokens=5)
        status, profile = two_ranks.get("/stop_profile", {})
        assert status == 200
        (steps,) = profile["replicas"]
        assert [step["phase"] for step in steps] == ["prefill"] + ["decode"] * 4
        for step in steps:
            inside_s = step["in_calls_s"]["all_reduce"]
            assert 0 < inside_s < step["end_s"] - step["start_s"]

    def test_a_killed_rank_gives_clear_errors(self, two_ranks):
        body = {"model": "tiny", "prompt": [7], "max_tokens": 2000, "ignore_eos": True}
        request = urllib.request.Request(
            two_ranks.url + "/v1/completions",
            json.dumps(body | {"stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            response.readline()
            ranks = two_ranks.descendants()
            os.kill(ranks[-1], signal.SIGKILL)
            took_s = wait_until(lambda: two_ranks.get("/ready")[0] == 503, 10)
            rest = response.read().decode()
        assert took_s < 10
        assert "killed by SIGKILL" in rest
        assert rest.endswith("data: [DONE]\n\n")
        status, answer = completions(two_ranks)
        assert status == 503
        assert answer["error"]["code"] == "engine_unavailable"
        assert two_ranks.get("/v1/models")[0] == 200
        two_ranks.process.wait(20)
        said = "".join(two_ranks.lines)
        assert two_ranks.end() == 3, said
        assert "killed by SIGKILL" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("drain", ["0", "1"])
def test_open_streams_end_with_the_drain_and_without_a_traceback(model, drain):
    server = Server(model, "--weights", "dummy", "--drain", drain)
    body = {"model": "tiny", "prompt": [7], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        server.url + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    half = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    with urllib.request.urlopen(request, timeout=60) as response:
        response.readline()
        started = time.monotonic()
        server.process.terminate()
        rest = response.read().decode()
    assert "shutting down" in rest
    assert rest.endswith("data: [DONE]\n\n")
    assert server.end() == 0
    assert time.monotonic() - started < 15
    assert half.recv(100).startswith(b"HTTP/1.1 503")
    half.close()
    assert "Traceback" not in "".join(server.lines)


def test_what_the_ranks_refuse_is_one_line_and_their_exit_code(model):
    done = subprocess.run(
        [sys.executable, "-m", "weft", "serve", str(model), "--port", "0", "--device", "cuda"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.count("weft: error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "none"], "--weights 'none'"),
        (["--max-batch", "0"], "--max-batch 0"),
        (["--max-waiting", "-1"], "--max-waiting -1"),
        (["--max-prompt", "0"], "--max-prompt 0"),
        (["--cache-tokens", "1"], "--cache-tokens 1"),
        (["--max-batch-tokens", "0"], "--max-batch-tokens 0"),
        (["--stream-interval", "0"], "--stream-interval 0"),
        (["--drain", "-1"], "--drain -1"),
        (["--max-body-mb", "0"], "--max-body-mb 0"),
        (["--stall", "0"], "--stall 0"),
        (["--tp", "3"], "tp"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, capsys):
    from weft.cli.main import run

    assert run(["serve", "embedded", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_port_in_use(capsys):
    from weft.cli.main import run
    from weft.serve.http_server import listen

    taken = listen("127.0.0.1", 0)
    try:
        assert run(["serve", "embedded", "--port", str(taken.getsockname()[1])]) == 3
    finally:
        taken.close()
    assert "in use" in capsys.readouterr().err
