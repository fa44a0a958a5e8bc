"""aiconfigurator's own predictions of the public rows, for `weft predict scoreboard --peer FILE`.

Run in an environment of its own (pip install aiconfigurator==0.12.0), some ten minutes:
    python benchmarks/aiconfigurator_rows.py peer.jsonl
A line a row: id, ttft_ms and tpot_ms (null and the reason where it refuses). Its tables are asked
in their default mode. Only re-reading of its yaml files is remembered, which takes seconds a row.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import io
import json
import logging
import sys
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

KNOWN: dict[Any, Any] = {}
SAFE_LOAD = yaml.safe_load
NAMES = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}


def remembered(stream: Any) -> Any:
    """yaml.safe_load, once a text."""
    text = stream if isinstance(stream, str | bytes) else stream.read()
    if text not in KNOWN:
        KNOWN[text] = SAFE_LOAD(text)
    return copy.deepcopy(KNOWN[text])


def number(row: dict[str, str], key: str) -> int | None:
    return int(float(row[key])) if row[key] else None


def degrees(row: dict[str, str], prefix: str = "") -> dict[str, int | None]:
    names = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    found = {prefix + name: number(row, prefix + name) for name in names}
    found[f"{prefix}attention_dp_size"] = found[f"{prefix}attention_dp_size"] or 1
    for name in names[3:]:
        found[prefix + name] = found[prefix + name] or None
    return found


def ask(estimate: Any, row: dict[str, str]) -> Any:
    settings: dict[str, Any] = {
        "backend_name": row["backend"],
        "isl": int(row["isl"]),
        "osl": int(row["osl"]),
        "gemm_quant_mode": row["gemm_quant_mode"] or "bfloat16",
    }
    if row["moe_quant_mode"]:
        settings["moe_quant_mode"] = row["moe_quant_mode"]
    model = NAMES.get(row["model_path"], row["model_path"])
    if row["mode"] == "agg":
        own = degrees(row)
        batch = max(1, (number(row, "batch_size") or 1) // (own["attention_dp_size"] or 1))
        return estimate(model, row["system"], batch_size=batch, **own, **settings)
    if not row["prefill_num_workers"] or not row["decode_batch_size"]:
        return None
    for prefix in ("prefill_", "decode_"):
        settings |= degrees(row, prefix)
        settings |= {f"{prefix}{name}": number(row, prefix + name) for name in COUNTS}
    return estimate(model, row["system"], mode="disagg", **settings)


COUNTS = ("batch_size", "num_workers")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    yaml.safe_load = remembered
    from aiconfigurator.cli.api import cli_estimate
    from aiconfigurator_core.sdk import perf_database

    slow = ("get_latest_database_version", "get_supported_databases")
    for module in list(sys.modules.values()):
        for name in slow:
            if getattr(module, "__name__", "").startswith("aiconfigurator") and name in vars(
                module
            ):
                setattr(module, name, functools.cache(getattr(perf_database, name)))
    source = resources.files("aiconfigurator_core") / "systems" / "silicon_sample.csv"
    rows = list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        for row in rows:
            answer: dict[str, Any] = {"id": row["id"], "ttft_ms": None, "tpot_ms": None}
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found = ask(cli_estimate, row)
                if found is not None:
                    answer |= {"ttft_ms": float(found.ttft), "tpot_ms": float(found.tpot)}
            except Exception as error:  # noqa: BLE001 - its refusals have many types
                answer["reason"] = f"{type(error).__name__}: {error}"[:200]
            file.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
