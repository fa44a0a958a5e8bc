"""vLLM's time to first token and per token, as ``weft bench decode`` takes them, beside it.

Run: PYTHONPATH=src:VLLM python benchmarks/decode_vllm.py --output FILE qwen3-30b-a3b:1:1x128,32x1024
     llama-3.1-8b:1:1x128:--quantization=fp8        (model:tp:cases[:vLLM options, by commas])
Dummy weights, CUDA graphs, vLLM's defaults otherwise but for prefix caching, which is off. TTFT is
the least time of one token over the repeats, TPOT that of the other 128 over their number.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from weft.vocabulary.families import CONFIGS
from weft.vocabulary.model_source import load_spec

DECODE, REPEATS = 129, 3
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for job in arguments.jobs:
        model, tp, cases, *more = job.split(":")
        given = dict(
            one.removeprefix("--").split("=") for one in (more[0].split(",") if more else [])
        )
        rows += measured(model, int(tp), cases.split(","), given)
        arguments.output.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


def measured(model: str, tp: int, cases: list[str], given: dict[str, str]) -> list[dict[str, Any]]:
    """One row a case."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        config = dict(CONFIGS[model])
        config["architectures"] = [ARCHITECTURES[config["model_type"]]]
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            tensor_parallel_size=tp,
            enable_prefix_caching=False,
            max_model_len=2048,
            **given,
        )
        rows = []
        for case in cases:
            batch, length = map(int, case.split("x"))
            pick = random.Random(0)
            vocabulary = load_spec(model).vocab_size
            prompts = [
                {"prompt_token_ids": [pick.randrange(vocabulary) for _ in range(length)]}
                for _ in range(batch)
            ]

            def seconds(count: int, prompts: list[Any] = prompts) -> float:
                sampling = SamplingParams(
                    max_tokens=count, ignore_eos=True, temperature=0, detokenize=False
                )
                started = time.perf_counter()
                llm.generate(prompts, sampling, use_tqdm=False)
                return time.perf_counter() - started

            seconds(8)
            first = min(seconds(1) for _ in range(REPEATS))
            every = min(seconds(DECODE) for _ in range(REPEATS))
            rows.append(
                {
                    "model": model, "tp": tp, "batch": batch, "prompt_tokens": length,
                    "options": given, "ttft_ms": first * 1e3,
                    "tpot_ms": (every - first) / (DECODE - 1) * 1e3,
                    "vllm": vllm.__version__, "torch": torch.__version__,
                    "gpu": torch.cuda.get_device_name(),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        return rows


if __name__ == "__main__":
    main()
