"""weft serve beside vLLM's server on GPUs: default commands, one client, cases in turn.

    PYTHONPATH=src:VLLM python benchmarks/serve_vs_vllm_gpu.py --phase tp1 prefix --output OUT.json
    PYTHONPATH=src:VLLM python benchmarks/serve_vs_vllm_gpu.py --phase tp2 --output OUT.json
    PYTHONPATH=src:VLLM python benchmarks/serve_vs_vllm_gpu.py --phase tp4 --output OUT.json

Phases of one layout share the two servers.

VLLM is a folder with vLLM and what it needs; nothing is fetched. Each phase fits nine minutes on
its GPUs and adds its part to the file. Both servers are started by their own default commands, with
dummy weights and a word-level tokenizer that this script makes: on GPUs of their own at the same
time where there are enough, else one after the other. Every case runs on one server, then on the
other, in closed loop, ``--rounds`` times, the first server changing; no prompt is sent twice.
Temperature "default" sends none, which both servers take as 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_common import command, machine, make_word_model, wait_ready, write
from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.figures import ServiceLimits, figures
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.prompts import MOONCAKE_BLOCK_TOKENS
from weft.bench.serving.records import RequestSpec
from weft.bench.serving.runner import Load, run_load
from weft.bench.serving.session import run_event_loop

MODELS = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "small": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
}
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "NCCL_NVLS_ENABLE": "0",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
PREFIX_METRICS = {
    "weft": ("weft_prefix_hit_tokens_total", "weft_prefix_asked_tokens_total"),
    "vllm": ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
}
PREFIX_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    clients: int
    prompt_tokens: int = 512
    output_tokens: int = 128
    temperature: float | None = None
    shared_tokens: int = 0

    @property
    def num_requests(self) -> int:
        return 40 if self.clients == 1 else max(128, 3 * self.clients)

    def specs(self) -> list[RequestSpec]:
        blocks = tuple(range(self.shared_tokens // MOONCAKE_BLOCK_TOKENS))
        spec = RequestSpec(
            prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens, block_ids=blocks
        )
        return [spec] * self.num_requests


def phase(clients: list[int]) -> list[Case]:
    loops = [Case(clients=n, temperature=t) for n in clients for t in (None, 0.0)]
    return [Case(clients=1, prompt_tokens=128, output_tokens=16), *loops]


SHARED = PREFIX_BLOCKS * MOONCAKE_BLOCK_TOKENS
PHASES: dict[str, tuple[int, list[Case]]] = {
    "tp1": (1, phase([16, 64, 256])),
    "tp2": (2, phase([32, 128])),
    "tp4": (4, phase([32, 128])),
    "prefix": (
        1,
        [
            Case(clients=64, prompt_tokens=SHARED + 64, shared_tokens=SHARED, temperature=t)
            for t in (None, 0.0)
        ],
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", nargs="+", choices=PHASES, required=True)
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--servers", nargs="+", default=["weft", "vllm"], choices=["weft", "vllm"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of weft")
    parser.add_argument("--clients", type=int, nargs="+", help="only cases of so many clients")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--until", type=float, default=510, help="no case starts after (s)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    degrees = {PHASES[name][0] for name in options.phase}
    if len(degrees) > 1:
        parser.error("phases of one layout at a time")
    cases = [
        (name, case)
        for name in options.phase
        for case in PHASES[name][1]
        if not options.clients or case.clients in options.clients
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = make_word_model(Path(folder) / "model", MODELS[options.model])
        rows = _measure(options, degrees.pop(), cases, model, started + options.until)
    document = _added_to(options.output, options, rows)
    write(options.output, document)
    print(json.dumps(document, indent=1))
    return 0


def _measure(
    options: argparse.Namespace,
    tp: int,
    cases: list[tuple[str, Case]],
    model: str,
    until_s: float,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    together = 2 * tp <= _num_gpus()
    if not together:
        for name in options.servers:
            with _server(name, model, tp, 0, options.device) as url:
                for turn in range(options.rounds):
                    for phase_name, case in cases:
                        _add(rows, phase_name, turn, name, url, model, case, until_s)
        return rows
    with ExitStack() as stack:
        started = [
            stack.enter_context(_started(name, model, tp, place * tp, options.device))
            for place, name in enumerate(options.servers)
        ]
        urls = {name: _ready(*one) for name, one in zip(options.servers, started, strict=True)}
        for turn in range(options.rounds):
            for place, (phase_name, case) in enumerate(cases):
                names = options.servers[:: -1 if (turn + place) % 2 else 1]
                for name in names:
                    _add(rows, phase_name, turn, name, urls[name], model, case, until_s)
    return rows


def _add(
    rows: list[dict[str, Any]],
    phase_name: str,
    turn: int,
    name: str,
    url: str,
    model: str,
    case: Case,
    until_s: float,
) -> None:
    if time.monotonic() > until_s:
        print(f"no time left for {name} {case}", file=sys.stderr, flush=True)
        return
    row = _case(
        name, url, model, case, seed=1 + len(rows) + 1000 * sorted(PHASES).index(phase_name)
    )
    rows.append({"phase": phase_name, "round": turn} | row)
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


def _case(name: str, url: str, model: str, case: Case, seed: int) -> dict[str, Any]:
    """Warm-up and the loop, each with prompts of its own."""
    served = model if name == "vllm" else "model"
    warm, target = (
        Target(endpoint=parse_url(url), model=served, temperature=case.temperature, seed=one)
        for one in (-seed, seed)
    )
    few = Load(specs=case.specs()[: min(case.clients, 16)], concurrency=case.clients, timeout_s=300)
    run_event_loop(run_load(warm, few))
    before = _counters(name, url)
    load = Load(specs=case.specs(), concurrency=case.clients, timeout_s=300)
    outcome = run_event_loop(run_load(target, load))
    hits, asked = (now - then for now, then in zip(_counters(name, url), before, strict=True))
    found = figures(outcome.records, DEFINITIONS["weft"], ServiceLimits(), outcome.duration_s)
    gaps = figures(outcome.records, DEFINITIONS["vllm"], ServiceLimits(), outcome.duration_s)
    tokens = sum(one.num_output_tokens for one in outcome.records if one.completed)

    def ms(part: dict[str, Any], metric: str, which: str) -> float | None:
        return round(part[metric][which]["value"], 3) if part.get(metric) else None

    return {
        "server": name,
        "clients": case.clients,
        "prompt_tokens": case.prompt_tokens,
        "shared_prefix_tokens": case.shared_tokens,
        "output_tokens": case.output_tokens,
        "temperature": "default" if case.temperature is None else case.temperature,
        "completed": f"{sum(one.completed for one in outcome.records)} of {case.num_requests}",
        "seconds": round(outcome.duration_s, 2),
        "output_tokens_per_s": round(tokens / outcome.duration_s, 1),
        "ttft_ms_p50": ms(found, "ttft_ms", "p50"),
        "ttft_ms_p99": ms(found, "ttft_ms", "p99"),
        "tpot_ms_p50": ms(found, "tpot_ms", "p50"),
        "itl_ms_p50": ms(gaps, "itl_ms", "p50"),
        "itl_ms_p99": ms(gaps, "itl_ms", "p99"),
        "itl_per_token_ms_p99": ms(found, "itl_ms", "p99"),
        "prefix_hit_rate": round(hits / asked, 4) if asked else None,
        "client_cpu_share": round(outcome.cpu_s / outcome.duration_s, 3),
    }


def _counters(name: str, url: str) -> tuple[float, ...]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = (
        re.findall(rf"^{re.escape(one)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        for one in PREFIX_METRICS[name]
    )
    return tuple(sum(map(float, values)) for values in found)


Started = tuple[str, str, "subprocess.Popen[bytes]", Path]


@contextmanager
def _started(name: str, model: str, tp: int, first_gpu: int, device: str) -> Iterator[Started]:
    """A server by its default command on ``tp`` GPUs from ``first_gpu`` on, not yet ready."""
    port = _free_port()
    gpus = ",".join(str(first_gpu + one) for one in range(tp))
    if name == "vllm":
        words = ["vllm.entrypoints.openai.api_server", "--model", model, "--load-format", "dummy"]
        words += ["--tensor-parallel-size", str(tp)] if tp > 1 else []
    else:
        words = ["weft", "serve", model, "--weights", "dummy", "--served-name", "model"]
        words += ["--tp", str(tp)] if tp > 1 else []
        words += ["--device", device] if device != "cuda" else []
    log = Path(tempfile.gettempdir()) / f"{name}_tp{tp}.log"
    environment = os.environ | VLLM_ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": gpus}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *words, "--port", str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield name, f"http://127.0.0.1:{port}", process, log
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _ready(name: str, url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    try:
        wait_ready(url, "/health", process, 400)
    except SystemExit:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    print(f"{name} is ready", file=sys.stderr, flush=True)
    return url


@contextmanager
def _server(name: str, model: str, tp: int, first_gpu: int, device: str) -> Iterator[str]:
    with _started(name, model, tp, first_gpu, device) as started:
        yield _ready(*started)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _added_to(
    path: Path | None, options: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The document with this phase's rows in place of its earlier ones, and the ratios."""
    document: dict[str, Any] = {"runs": [], "rows": []}
    if path is not None and path.exists():
        document = json.loads(path.read_text())
    kept = [row for row in document["rows"] if row["phase"] not in options.phase]
    rows = kept + rows
    runs = [*document["runs"], {"command": command(), **machine("torch", "uvloop")}]
    return {
        "what": "weft serve beside vLLM's server: default commands, one client, cases in turn",
        "model": options.model,
        "runs": runs,
        "vllm": _version("vllm"),
        "rows": rows,
        "weft_over_vllm": _ratios(rows),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("phase", "clients", "prompt_tokens", "shared_prefix_tokens", "temperature")
    figures_of = ("output_tokens_per_s", "ttft_ms_p50", "itl_ms_p99", "tpot_ms_p50")
    found = []
    for key in dict.fromkeys(tuple(row[one] for one in keys) for row in rows):
        both = {
            name: [
                row for row in rows if row["server"] == name and tuple(row[k] for k in keys) == key
            ]
            for name in ("weft", "vllm")
        }
        if not all(both.values()):
            continue
        ratio = {}
        for figure in figures_of:
            mine, other = (
                sum(row[figure] or 0 for row in both[name]) / len(both[name])
                for name in ("weft", "vllm")
            )
            ratio[figure] = round(mine / other, 3) if other else None
        found.append(dict(zip(keys, key, strict=True)) | ratio)
    return found


if __name__ == "__main__":
    sys.exit(main())
