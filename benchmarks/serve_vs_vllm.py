"""weft bench serve beside vLLM's own bench on one server: same load, alternating, same session.

    python benchmarks/serve_vs_vllm.py --url http://127.0.0.1:8000 --model DIR \
        --vllm-python /path/to/venv/bin/python --rounds 5

Prints the medians of both clients under vLLM's definitions, and each client's own processor
time per request: the slope between a short and a long run against the mock server, so that
imports do not count (--rounds 0 measures this alone).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

VLLM_BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
METRICS = ("mean_ttft_ms", "median_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "median_e2el_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--num-requests", type=int, default=100)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--cpu-requests", type=int, default=1500)
    parser.add_argument("--token-ids-below", type=int, default=0, help="0 sends words")
    parser.add_argument("--together", type=float, default=0.0)
    options = parser.parse_args()
    if options.together:
        _run_together(options)
        return
    results: dict[str, list[dict[str, float]]] = {"weft": [], "vllm": []}
    for number in range(options.rounds):
        order = ("weft", "vllm") if number % 2 == 0 else ("vllm", "weft")
        for client in order:
            results[client].append(_run(client, options, options.num_requests, number)[0])
    for metric in METRICS if options.rounds else ():
        ours, theirs = (
            statistics.median(one[metric] for one in results[client]) for client in ("weft", "vllm")
        )
        print(f"{metric:16} weft {ours:9.3f}  vllm {theirs:9.3f}  {ours / theirs - 1:+.2%}")
    _compare_cpu(options)


def _run_together(options: argparse.Namespace) -> None:
    """Both clients at once, so that whatever disturbs the server disturbs both alike.

    weft's runs for ``--together`` seconds; of both, the requests that started while the
    other one was running are compared (both write times of the same monotonic clock).
    """
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "weft.json", Path(folder) / "vllm.json"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        weft = [*_weft(options, 100_000, 0, ours), "--duration", str(options.together)]
        vllm = [*_vllm(options, options.num_requests, 0, theirs), "--save-detailed"]
        with subprocess.Popen(weft, stdout=subprocess.DEVNULL, env=environment):
            subprocess.run(vllm, check=True, stdout=subprocess.DEVNULL, env=environment)
        files = [json.loads(path.read_text()) for path in (ours, theirs)]
    first = max(min(one["start_times"]) for one in files)
    last = min(max(one["start_times"]) for one in files)
    each = [_window(one, first, last) for one in files]
    print(
        f"{last - first:.1f} s together, {len(each[0]['ttft'])} and {len(each[1]['ttft'])} requests"
    )
    for metric in ("ttft", "tpot", "e2el"):
        for name, figure in (("mean", statistics.fmean), ("median", statistics.median)):
            mine, other = (figure(one[metric]) * 1e3 for one in each)
            print(
                f"{name:6} {metric}_ms weft {mine:9.3f}  vllm {other:9.3f}  {mine / other - 1:+.2%}"
            )


def _window(result: dict[str, list[float]], first: float, last: float) -> dict[str, list[float]]:
    """The times of the requests that started between two moments, seconds."""
    columns = (result[name] for name in ("start_times", "ttfts", "latencies", "output_lens"))
    rows = [row for row in zip(*columns, strict=True) if first <= row[0] <= last]
    return {
        "ttft": [ttft for _, ttft, _, _ in rows],
        "tpot": [(latency - ttft) / (count - 1) for _, ttft, latency, count in rows],
        "e2el": [latency for _, _, latency, _ in rows],
    }


def _compare_cpu(options: argparse.Namespace) -> None:
    """Both clients against the mock server, which answers on time whatever the load."""
    command = [sys.executable, "-m", "weft.bench.serving.mock_server"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    mocked = argparse.Namespace(
        **vars(options) | {"url": server.stdout.readline().strip(), "concurrency": 32}
    )
    try:
        for client in ("weft", "vllm"):
            print(f"client CPU a request: {client} {_cpu_slope_us(client, mocked):.0f} us")
    finally:
        server.terminate()


def _cpu_slope_us(client: str, options: argparse.Namespace) -> float:
    few, many = 100, options.cpu_requests
    short, long = (
        min(_run(client, options, count, seed)[1] for seed in range(3)) for count in (few, many)
    )
    return (long - short) / (many - few) * 1e6


def _run(
    client: str, options: argparse.Namespace, num_requests: int, seed: int
) -> tuple[dict[str, float], float]:
    """The summary under vLLM's definitions and the processor seconds of the whole client."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = (_weft if client == "weft" else _vllm)(options, num_requests, seed, path)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=600,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{client}: {done.stderr[-2000:]}")
        summary = json.loads(path.read_text())
    if summary["completed"] != num_requests:
        sys.exit(f"{client}: {summary['failed']} failed: {done.stdout[-3000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {metric: summary[metric] for metric in METRICS}, cpu_s


def _weft(options: argparse.Namespace, num: int, seed: int, path: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "weft", "bench", "serve", "--url", options.url),
        *("--model", options.model, "--concurrency", str(options.concurrency)),
        *("--num-requests", str(num), "--prompt-tokens", str(options.input_tokens)),
        *("--output-tokens", str(options.output_tokens), "--seed", str(seed)),
        *(("--token-ids-below", str(options.token_ids_below)) if options.token_ids_below else ()),
        *("--warm-up", "4"),
        *("--vllm-output", str(path)),
    ]


def _vllm(options: argparse.Namespace, num: int, seed: int, path: Path) -> list[str]:
    return [
        *(options.vllm_python, "-c", VLLM_BENCH, "--base-url", options.url),
        *("--model", options.model, "--max-concurrency", str(options.concurrency)),
        *("--num-prompts", str(num), "--dataset-name", "random", "--seed", str(seed)),
        *("--random-input-len", str(options.input_tokens), "--num-warmups", "4"),
        *("--random-output-len", str(options.output_tokens), "--ignore-eos"),
        *("--save-result", "--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--result-dir", str(path.parent), "--result-filename", path.name, "--disable-tqdm"),
    ]


if __name__ == "__main__":
    main()
