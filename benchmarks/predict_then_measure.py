"""Write predictions down first, then measure: new runs that no constant has seen (2 x H200).

1. python benchmarks/predict_then_measure.py predict          -> results/predictions_h200x2.json
   Commit that file. It holds every question and weft's answer with its interval.
2. On a machine with 2 H200 (vLLM's in the folder VLLM; one engine and one group of cases a call, so
   that a call stays short; a file that is there is added to):
   python benchmarks/predict_then_measure.py measure weft
   PYTHONPATH=src:VLLM python benchmarks/predict_then_measure.py measure vllm
   python benchmarks/predict_then_measure.py measure weft --loops
   PYTHONPATH=src:VLLM python benchmarks/predict_then_measure.py measure vllm --loops
   write results/measured_h200x2_ENGINE.json (weft.measured/1); --only TEXT takes the cases whose
   name has it, --output DIR writes elsewhere.
3. python benchmarks/predict_then_measure.py score            (against the file of step 1)
   weft predict scoreboard --runs benchmarks/results/measured_h200x2_weft.json   (against today's)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve_vs_vllm_gpu as server
from serve_common import make_word_model
from weft.vocabulary.layout import Layout

RESULTS = Path(__file__).parent / "results"
PREDICTIONS = RESULTS / "predictions_h200x2.json"
CONFIGS = server.MODELS | {
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
}
ENGINES = ("weft", "vllm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch, or (with ``concurrency``) a server's clients."""

    kind: str
    engine: str
    model: str = "llama-3.1-8b"
    layout: str = "1"
    weights: str | None = None
    batch: int = 1
    prompt: int = 1024
    decode: int = 129
    concurrency: int | None = None

    @property
    def requests(self) -> int | None:
        return self.concurrency and max(128, 3 * self.concurrency)

    @property
    def name(self) -> str:
        many = f"c{self.concurrency}" if self.concurrency else f"b{self.batch}"
        words = (self.engine, self.model, self.layout, self.weights, self.prompt, self.decode, many)
        return " ".join(str(word) for word in words if word)

    def row(self) -> dict[str, Any]:
        """The question as a row of weft.measured/1."""
        names = ("engine", "model", "layout", "weights", "batch", "prompt", "decode", "concurrency")
        row = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return row | {"accelerator": "h200-sxm"} | ({"requests": n} if (n := self.requests) else {})


BATCHES = ((1, 512), (4, 512), (16, 2048), (64, 512))
KINDS = (
    ("dense in 16 bits", {"layout": "1"}, ENGINES),
    ("dense in 16 bits", {"layout": "tp2"}, ENGINES),
    ("pipelines", {"layout": "pp2"}, ENGINES),
    ("experts", {"model": "qwen3-30b-a3b", "layout": "1"}, ENGINES),
    ("fp8", {"weights": "float8_e4m3fn", "layout": "1"}, ("vllm",)),
    ("fp8", {"weights": "float8_e4m3fn", "layout": "tp2"}, ("vllm",)),
)
CASES = [
    Case(kind=kind, engine=engine, batch=batch, prompt=prompt, **changes)
    for kind, changes, engines in KINDS
    for engine in engines
    for batch, prompt in BATCHES
]
LOOPS = [
    Case(
        kind="closed loops",
        engine=engine,
        layout=layout,
        concurrency=clients,
        prompt=prompt,
        decode=decode,
    )
    for engine in ENGINES
    for layout, clients, prompt, decode in (
        ("1", 16, 1024, 256),
        ("1", 64, 1024, 256),
        ("tp2", 16, 256, 128),
        ("tp2", 64, 1024, 256),
    )
]


def predict() -> None:
    from weft.calibration.measured import runs_of

    rows = []
    for case in CASES + LOOPS:
        (run,) = runs_of("new", {"rows": [case.row() | {"ttft_ms": None, "tpot_ms": None}]})
        ttft, tpot = run.ask()
        row = {"name": case.name, "kind": case.kind, **case.row()}
        rows.append(row | {"ttft_ms": ttft.to_dict(), "tpot_ms": tpot.to_dict()})
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    document = {
        "what": "predicted before the runs; a server's times are the medians of all requests",
        "after_commit": head.stdout.strip(),
        "rows": rows,
    }
    PREDICTIONS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(engine: str, loops: bool, only: str, output: Path) -> None:
    """Every layout in a process of its own, so that its memory is free afterwards."""
    groups: dict[tuple[str, str, str | None], list[Case]] = defaultdict(list)
    for case in LOOPS if loops else CASES:
        if case.engine == engine and only in case.name:
            groups[case.model, case.layout, case.weights].append(case)
    for cases in groups.values():
        times = serve(cases) if loops else batches(cases)
        rows = [
            case.row() | {"ttft_ms": ttft, "tpot_ms": tpot}
            for case, (ttft, tpot) in zip(cases, times, strict=True)
        ]
        add(output / f"measured_h200x2_{engine}.json", rows)
        print(json.dumps(rows), flush=True)


def add(path: Path, rows: list[dict[str, Any]]) -> None:
    document: dict[str, Any] = {
        "schema": "weft.measured/1",
        "method": "batches: TPOT = (time of 129 tokens - time of 1) / 128, TTFT = time of 1, through "
        "LLM.generate, best of 3, dummy weights; closed loops: medians of all requests",
        "rows": [],
    }
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    document["rows"] += rows
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def batches(cases: list[Case]) -> list[Any]:
    """(TTFT, TPOT) in ms of each case."""
    first, shape = cases[0], Layout.parse(cases[0].layout)
    with tempfile.TemporaryDirectory() as folder:
        if first.engine == "weft":
            output = Path(folder) / "out.json"
            words = [sys.executable, "-m", "weft", "bench", "decode", first.model]
            words += ["--tp", str(shape.tp), "--pp", str(shape.pp), "--output", str(output)]
            words += [word for case in cases for word in ("--case", f"{case.batch}x{case.prompt}")]
            subprocess.run(words, check=True, timeout=540)
            rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
            return [(row["ttft_ms"], row["tpot_ms"]) for row in rows]
        numbers = [str(CASES.index(case)) for case in cases]
        words = [sys.executable, __file__, "vllm-batches", *numbers]
        environment = os.environ | server.VLLM_ENVIRONMENT
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, timeout=540, env=environment
        )
        return list(json.loads(done.stdout.splitlines()[-1]))


def vllm_batches(numbers: list[str]) -> None:
    cases = [CASES[int(number)] for number in numbers]
    shape = Layout.parse(cases[0].layout)
    vllm: Any = importlib.import_module("vllm")
    folder = tempfile.mkdtemp()
    config = Path(folder) / "config.json"
    config.write_text(json.dumps(CONFIGS[cases[0].model]), encoding="utf-8")
    options: dict[str, Any] = {"quantization": "fp8"} if cases[0].weights else {}
    llm = vllm.LLM(
        folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        tensor_parallel_size=shape.tp,
        pipeline_parallel_size=shape.pp,
        enable_prefix_caching=False,
        max_model_len=4096,
        **options,
    )
    print(json.dumps([times_of(llm, vllm.SamplingParams, case) for case in cases]))


def times_of(llm: Any, sampling: Any, case: Case) -> tuple[float, float]:
    def best_ms(tokens: int) -> float:
        prompts = [
            {"prompt_token_ids": [(7 * i + j) % 30000 + 10 for j in range(case.prompt)]}
            for i in range(case.batch)
        ]
        wanted = sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            llm.generate(prompts, wanted, use_tqdm=False)
            times.append(time.perf_counter() - start)
        return 1e3 * min(times[1:])

    ttft = best_ms(1)
    return ttft, (best_ms(case.decode) - ttft) / (case.decode - 1)


def serve(cases: list[Case]) -> list[Any]:
    """(median TTFT, median TPOT) in ms of each case on one server, by its default command."""
    first = cases[0]
    tp = Layout.parse(first.layout).tp
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_word_model(Path(folder) / "model", server.MODELS[first.model])
        with server._server(first.engine, model, tp, 0, "cuda") as url:  # noqa: SLF001
            for seed, case in enumerate(cases, 1):
                assert case.concurrency is not None
                loop = server.Case(
                    clients=case.concurrency,
                    prompt_tokens=case.prompt,
                    output_tokens=case.decode,
                )
                row = server._case(first.engine, url, model, loop, seed)  # noqa: SLF001
                found.append((row["ttft_ms_p50"], row["tpot_ms_p50"]))
    return found


def score() -> None:
    """Errors of each kind against the predictions that were written down."""
    document = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    names = (*CASES[0].row(), "weights", "concurrency")
    known = {tuple(row.get(name) for name in names): row for row in document["rows"]}
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("measured_h200x2_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            said = known[tuple(row.get(name) for name in names)]
            pair = [said[key]["value"] / row[key] - 1 for key in ("ttft_ms", "tpot_ms")]
            inside = [
                said[key]["low"] <= row[key] <= said[key]["high"] for key in ("ttft_ms", "tpot_ms")
            ]
            errors[f"{row['engine']}, {said['kind']}"].append((pair[0], pair[1]))
            print(f"{said['name']:55} TTFT {pair[0]:+7.1%} TPOT {pair[1]:+7.1%} inside {inside}")
    for kind, pairs in sorted(errors.items()):
        ttft, tpot = (statistics.mean(abs(pair[i]) for pair in pairs) for i in (0, 1))
        print(f"{kind:30} {len(pairs):3} rows: TPOT {tpot:6.1%}  TTFT {ttft:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("predict", "measure", "vllm-batches", "score"))
    parser.add_argument("words", nargs="*")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.what == "predict":
        predict()
    elif arguments.what == "measure":
        (engine,) = arguments.words
        measure(engine, arguments.loops, arguments.only, arguments.output)
    elif arguments.what == "score":
        score()
    else:
        vllm_batches(arguments.words)


if __name__ == "__main__":
    main()
