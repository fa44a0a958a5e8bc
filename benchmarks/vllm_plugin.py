"""vLLM beside vLLM with weft's all-reduce in it: TPOT, TTFT and greedy tokens, dummy weights.

Every case is a process of its own, in turn: stock vLLM, vLLM with the plugin, and (for tokens)
vLLM with NCCL alone. The plugin is seen through the installed weft, or through a folder with its
entry points that this script makes.

    python benchmarks/vllm_plugin.py --models llama-3.1-8b:4,llama-3.1-8b:2 --out plugin.json
    python benchmarks/vllm_plugin.py --models llama-3.1-8b:4 --cases stock,weft,nccl --tokens

TPOT is (time of 129 tokens - time of 1) / 128, the least of three; TTFT the least of three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
SHAPES = {
    "llama-3.1-8b": (32, 4096, 14336, 32),
    "llama-3.1-70b": (80, 8192, 28672, 64),
    "tiny": (2, 256, 512, 8),
}
CASES = {
    "stock": {},
    "weft": {"WEFT_ALL_REDUCE": "1"},
    "nccl": {"PLUGIN_BENCH_NCCL": "1"},
}
ENTRY_POINTS = "[vllm.general_plugins]\nweft = weft.plugins.entry:vllm\n"


def main() -> None:
    options = arguments()
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for model in options.models.split(",")
            for row in compare(Path(folder), model, options)
        ]
    document = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
    Path(options.out).write_text(json.dumps(document, indent=1))
    summary(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="llama-3.1-8b:4", help="NAME:TP,...")
    parser.add_argument("--cases", default="stock,weft")
    parser.add_argument("--batches", default="1x128,8x1024,32x1024", help="BATCHxPROMPT,...")
    parser.add_argument("--tokens", action="store_true", help="compare greedy tokens too")
    parser.add_argument("--limit", type=int, default=240, help="seconds a case may take")
    parser.add_argument("--out", default="plugin.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--tp", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(folder: Path, model: str, options: argparse.Namespace) -> list[dict[str, object]]:
    name, tp = model.split(":")
    config = write_model(folder, name)
    entry = write_entry_points(folder)
    return [run(case, config, entry, name, int(tp), options) for case in options.cases.split(",")]


def run(
    case: str, config: Path, entry: Path, name: str, tp: int, options: argparse.Namespace
) -> dict[str, object]:
    """One engine in a process group of its own, ended whatever happens."""
    path = f"{entry}:{SOURCE}:{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, __file__, "--worker", str(config), "--tp", str(tp)]
    command += ["--batches", options.batches, *(["--tokens"] if options.tokens else [])]
    environment = os.environ | {"PYTHONPATH": path} | CASES[case]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(options.limit)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        log.seek(0)
        output = log.read()
    lines = output.splitlines()
    result = next((line[7:] for line in lines if line.startswith("RESULT ")), None)
    row: dict[str, object] = {"model": name, "tp": tp, "case": case}
    row["weft_says"] = [line[-300:] for line in lines if "weft: " in line][:4]
    row["seconds"] = round(time.monotonic() - started, 1)
    if result is None:
        row["failed"] = [line[-240:] for line in lines if "Error" in line][:12]
        print("\n".join(row["failed"]), flush=True)  # type: ignore[arg-type]
    else:
        row |= json.loads(result)
    shown = {key: value for key, value in row.items() if key not in ("tokens", "failed")}
    print(json.dumps(shown), flush=True)
    return row


def worker(options: argparse.Namespace) -> None:
    from vllm import LLM

    llm = LLM(
        model=options.worker,
        load_format="dummy",
        skip_tokenizer_init=True,
        tensor_parallel_size=options.tp,
        max_model_len=2048,
        gpu_memory_utilization=0.75,
        enable_prefix_caching=False,
        disable_custom_all_reduce=bool(os.environ.get("PLUGIN_BENCH_NCCL")),
    )
    result: dict[str, object] = {"cases": [measured(llm, case) for case in cases(options.batches)]}
    if options.tokens:
        prompts = [prompt(number, 128) for number in range(200)]
        result["tokens"] = [list(out.outputs[0].token_ids) for out in generate(llm, prompts, 32)]
    print("RESULT " + json.dumps(result), flush=True)
    sys.stdout.flush()
    os.killpg(0, 9)  # an engine's orderly end takes longer than the measurement


def cases(text: str) -> list[tuple[int, int]]:
    return [tuple(map(int, case.split("x"))) for case in text.split(",")]  # type: ignore[misc]


def measured(llm: object, case: tuple[int, int]) -> dict[str, object]:
    batch, length = case
    seconds(llm, batch, length, 4)
    first = min(seconds(llm, batch, length, 1) for _ in range(3))
    whole = min(seconds(llm, batch, length, 129) for _ in range(3))
    return {
        "batch": batch,
        "prompt": length,
        "ttft_ms": round(first * 1e3, 3),
        "tpot_ms": round((whole - first) / 128 * 1e3, 4),
    }


def seconds(llm: object, batch: int, length: int, tokens: int) -> float:
    prompts = [prompt(number, length) for number in range(batch)]
    start = time.perf_counter()
    generate(llm, prompts, tokens)
    return time.perf_counter() - start


def prompt(number: int, length: int) -> dict[str, list[int]]:
    return {"prompt_token_ids": [(7919 * number + 31 * i) % 900 + 10 for i in range(length)]}


def generate(llm, prompts, tokens):  # type: ignore[no-untyped-def]
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    return llm.generate(prompts, sampling, use_tqdm=False)


def write_model(folder: Path, name: str) -> Path:
    layers, hidden, inner, heads = SHAPES[name]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 1024 if name == "tiny" else 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_entry_points(folder: Path) -> Path:
    """A folder that makes weft's plugin visible without an installation."""
    info = folder / "entry" / "weft-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weft\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return info.parent


def machine() -> dict[str, object]:
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "gpu": torch.cuda.get_device_name(0) if devices else platform.processor(),
        "num_gpus": devices,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summary(rows: list[dict[str, object]]) -> None:
    stock = {(r["model"], r["tp"]): r for r in rows if r["case"] == "stock" and "cases" in r}
    for row in rows:
        other = stock.get((row["model"], row["tp"]))
        if other is None or row is other or "cases" not in row:
            continue
        for mine, theirs in zip(row["cases"], other["cases"], strict=True):  # type: ignore[call-overload]
            ratio = mine["tpot_ms"] / theirs["tpot_ms"]
            first = mine["ttft_ms"] / theirs["ttft_ms"]
            print(
                f"{row['model']} tp{row['tp']} {mine['batch']}x{mine['prompt']} {row['case']}/stock: "
                f"TPOT {ratio:.3f} ({mine['tpot_ms']} / {theirs['tpot_ms']} ms), TTFT {first:.3f}"
            )
        if "tokens" in row and "tokens" in other:
            differ = sum(a != b for a, b in zip(row["tokens"], other["tokens"], strict=True))  # type: ignore[call-overload]
            print(f"{row['case']}: {differ} of {len(row['tokens'])} prompts differ from stock")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
