"""Write predictions down first, then measure: new runs that no constant has seen.

1. python benchmarks/predict_then_measure.py predict         -> results/predictions_h200x4.json
   Commit that file. It holds every question and weft's answer with its interval.
2. On a machine with 4 H200, with vLLM installed:
   python benchmarks/predict_then_measure.py measure vllm    (batches; LLM.generate, dummy weights)
   python benchmarks/predict_then_measure.py measure weft
   writes results/measured_h200x4_ENGINE.json (weft.measured/1), which
   weft predict scoreboard --runs FILE
   scores through the same path. Closed loops: start a server and run the bench commands that
   `predict` prints; compare with the serving rows of predictions_h200x4.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PREDICTIONS = RESULTS / "predictions_h200x4.json"
HUB = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
}
# (engine, model, layout, weights); each with the batches below.
CASES = [
    (engine, model, layout, weights)
    for engine in ("vllm", "weft")
    for model, layout, weights in (
        ("llama-3.1-8b", "tp4", None),
        ("qwen3-32b", "tp2", None),
        ("qwen3-32b", "tp4", None),
        ("llama-3.1-70b", "tp4", None),
        ("llama-3.1-8b", "pp4", None),
        ("qwen3-32b", "tp2xpp2", None),
        ("qwen3-30b-a3b", "tp2", None),
        ("qwen3-32b", "tp4", "float8_e4m3fn"),
    )
    if not (engine == "weft" and weights)
]
BATCHES = ((4, 512), (16, 2048))
DECODE = 129
LOOPS = [
    ("vllm", "llama-3.1-8b", "1", 24, 512, 128),
    ("vllm", "qwen3-32b", "tp4", 48, 1024, 256),
    ("weft", "llama-3.1-8b", "tp2", 48, 1024, 256),
]


def predict() -> None:
    from weft import api
    from weft.vocabulary.layout import Layout
    from weft.vocabulary.workload import Workload

    rows = []
    for engine, model, layout, weights in CASES:
        for batch, prompt in BATCHES:
            load = Workload(prompt_tokens=prompt, decode_tokens=DECODE, batch=batch)
            found = api.predict(
                model,
                Layout.parse(layout),
                load,
                engine=engine,
                accelerator="h200-sxm",
                fabric="h200-nvlink",
                weights=weights,
            )
            rows.append(found.to_json() | {"weights": weights})
            rows[-1].pop("provenance")
            for phase in ("prefill", "decode"):
                rows[-1].pop(phase)
    loops = []
    for engine, model, layout, clients, prompt, decode in LOOPS:
        serving = api.predict(
            model,
            Layout.parse(layout),
            Workload(prompt_tokens=prompt, decode_tokens=decode),
            engine=engine,
            accelerator="h200-sxm",
            fabric="h200-nvlink",
            concurrency=clients,
        )
        loops.append(serving.to_json())
        print(
            f"weft bench serve --url http://127.0.0.1:8000 --concurrency {clients} "
            f"--prompt {prompt} --decode {decode}   # {engine} {model} {layout}"
        )
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    document = {"commit": head.stdout.strip(), "batches": rows, "closed_loops": loops}
    PREDICTIONS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(engine: str) -> None:
    rows: list[dict[str, Any]] = []
    for name, model, layout, weights in CASES:
        if name == engine:
            rows += [
                {
                    "engine": engine,
                    "accelerator": "h200-sxm",
                    "fabric": "h200-nvlink",
                    "model": model,
                    "layout": layout,
                    "weights": weights,
                    "prompt": prompt,
                    "decode": DECODE,
                    "batch": batch,
                    "ttft_ms": ttft,
                    "tpot_ms": tpot,
                }
                for (batch, prompt), (ttft, tpot) in _times(engine, model, layout, weights)
            ]
    document = {
        "schema": "weft.measured/1",
        "method": "TPOT = (time of 129 tokens - time of 1) / 128, TTFT = time of 1, through "
        "LLM.generate, best of 3, dummy weights",
        "rows": rows,
    }
    path = RESULTS / f"measured_h200x4_{engine}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _times(engine: str, model: str, layout: str, weights: str | None) -> list[Any]:
    """[((batch, prompt), (ttft_ms, tpot_ms))] in a process of its own, so that memory is free."""
    words = [sys.executable, __file__, "one", engine, model, layout, weights or ""]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(engine: str, model: str, layout: str, weights: str) -> None:
    from weft.vocabulary.layout import Layout

    shape = Layout.parse(layout)
    if engine == "vllm":
        from vllm import LLM, SamplingParams

        options: dict[str, Any] = {"quantization": "fp8"} if weights else {}
        llm: Any = LLM(
            HUB[model],
            load_format="dummy",
            tensor_parallel_size=shape.tp,
            pipeline_parallel_size=shape.pp,
            enable_prefix_caching=False,
            max_model_len=4096,
            **options,
        )
        sampling: Any = SamplingParams

        def prompts(batch: int, length: int) -> Any:
            return [{"prompt_token_ids": [7 + i] * length} for i in range(batch)]
    else:
        import weft

        llm = weft.LLM(model, tp=shape.tp, pp=shape.pp, prefix_caching=False)
        sampling = weft.SamplingParams

        def prompts(batch: int, length: int) -> Any:
            return [[7 + i] * length for i in range(batch)]

    def best_ms(batch: int, length: int, tokens: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            llm.generate(prompts(batch, length), sampling(max_tokens=tokens, ignore_eos=True))
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)

    found = []
    for batch, length in BATCHES:
        ttft = best_ms(batch, length, 1)
        whole = statistics.fmean([best_ms(batch, length, DECODE)])
        found.append(((batch, length), (ttft, (whole - ttft) / (DECODE - 1))))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("predict", "measure", "one"))
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    {"predict": predict, "measure": measure, "one": one}[arguments.what](*arguments.words)


if __name__ == "__main__":
    main()
