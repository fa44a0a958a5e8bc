"""Public serving rows: InferenceX's and others' in aiconfigurator's ``silicon_sample.csv``.

The file (Apache-2.0) is read where it is; nothing of it is part of this package. A row is asked
as a user would ask: through :func:`weft.api.predict`, with what the row says and the defaults for
the rest. Rows are split by whole sweeps (model, GPU, engine, mode, precision): in alphabetic order
every second sweep is the test; constants are fitted to the others (docs/predict.md).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import Final, Literal

from weft import api
from weft.errors import FileFormatError, LayoutError, UserError
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.prediction import FLOAT8
from weft.prediction.serving import Serving
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

Split = Literal["fit", "test"]

_MODELS: Final = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-v3",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "zhipuai/GLM-5": "glm-5",
}
_ACCELERATORS: Final = {
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
}
_WEIGHTS: Final = {
    "fp8": "float8_e4m3fn",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int4_wo": "int4",
}
_BLOCKS: Final = ("deepseek-ai/", "MiniMaxAI/", "Qwen/Qwen3-235B")
"""Owners and names of models whose checkpoints in 8 bits have scales of blocks, whatever a row says."""
_SHORTEST: Final = 0.8
"""InferenceX's client draws lengths from this share of the stated ones up to them."""


@dataclass(frozen=True, kw_only=True)
class PublicRow:
    """One measured row: a closed loop of ``concurrency`` clients; times in ms.

    layout: of the server, or of those that decode; prefill: of those that only prefill.
    odd: why what the row says describes no servers.
    """

    identity: str
    model_path: str
    system: str
    engine: str
    mode: str
    precision: str
    weights: str | None
    prompt_tokens: int
    decode_tokens: int
    concurrency: int
    layout: Layout
    prefill: Layout | None
    odd: str | None
    ttft_ms: float
    tpot_ms: float

    @property
    def family(self) -> str:
        """Weft's name of the model."""
        return _MODELS[self.model_path]

    @property
    def has_small_cache(self) -> bool:
        """Whether keys and values are in 8 bits, as NVIDIA's checkpoints in 4 and 8 bits say.

        No row states it. TensorRT-LLM's servers of other models are set up that way too.
        """
        by_nvidia = self.weights == "nvfp4" or self.model_path.startswith(
            ("meta-llama/", "nvidia/")
        )
        return self.weights is not None and (by_nvidia or self.engine == "trtllm")

    @property
    def sweep(self) -> str:
        return "/".join((self.family, self.system, self.engine, self.mode, self.precision))

    @property
    def gpus(self) -> int:
        return self.layout.world_size + (self.prefill.world_size if self.prefill else 0)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Generated tokens as the row's own times imply them."""
        cycle_ms = self.ttft_ms + (self.decode_tokens - 1) * self.tpot_ms
        return 1e3 * self.concurrency * self.decode_tokens / cycle_ms / self.gpus


def find_file(path: Path | None) -> Path | None:
    """``path``, or the csv of an installed aiconfigurator, or None where there is none."""
    if path is not None:
        return path
    if util.find_spec("aiconfigurator_core") is None:
        return None
    found = Path(str(resources.files("aiconfigurator_core") / "systems" / "silicon_sample.csv"))
    return found if found.is_file() else None


def read_rows(path: Path) -> list[PublicRow]:
    """Every row of the file. Raises FileFormatError for another file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [_row(row) for row in csv.DictReader(file)]
            if not rows:
                raise ValueError("no rows")
            return rows
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"`silicon` {path}: cannot be read: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"`silicon` {path}: not a silicon_sample.csv ({error})") from None


def _row(row: dict[str, str]) -> PublicRow:
    layout, prefill, odd = _layouts(row)
    stated = re.search(r"silicon_concurrency=(\d+)", row.get("silicon_data_source", ""))
    return PublicRow(
        identity=row["id"],
        model_path=row["model_path"],
        system=row["system"],
        engine=row["backend"],
        mode=row["mode"],
        precision=row["precision"] or "bf16",
        weights=_weights(row),
        prompt_tokens=int(row["isl"]),
        decode_tokens=int(row["osl"]),
        concurrency=int(stated[1]) if stated else _integer(row["batch_size"]),
        layout=layout,
        prefill=prefill,
        odd=odd,
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
    )


def _weights(row: dict[str, str]) -> str | None:
    """The weights' format as the row states it; gpt-oss's experts are in mxfp4."""
    if _MODELS[row["model_path"]].startswith("gpt-oss"):
        return "mxfp4"
    name = row.get("moe_quant_mode") or row.get("gemm_quant_mode") or row["precision"]
    in_blocks = name == "fp8" and row["model_path"].startswith(_BLOCKS)
    return _WEIGHTS.get("fp8_block" if in_blocks else name)


def _integer(text: str | None) -> int:
    return max(1, int(float(text or 1)))


def _layouts(row: dict[str, str]) -> tuple[Layout, Layout | None, str | None]:
    """(layout, prefill, why they describe no servers) of a row."""
    try:
        if row["mode"] == "agg":
            return _pool(row, ""), None, None
        if not row["prefill_num_workers"] or not row["decode_num_workers"]:
            return Layout(), None, "prefill and decode apart: workers are not stated"
        return _pool(row, "decode_"), _pool(row, "prefill_"), None
    except LayoutError:
        return Layout(), None, "the layout states the GPUs of all servers together"


def _pool(row: dict[str, str], prefix: str) -> Layout:
    """The servers of one kind. Experts sliced over replicas are taken as spread over them.

    Some rows state tp x ep (or dp x ep) as the one and its root as both, or tp as dp as well and
    its square as ep: the same measurements stand elsewhere in the file with tp and ep.
    """
    tp, pp, dp, sliced, ep = (
        _integer(row.get(f"{prefix}{name}_size"))
        for name in ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")
    )
    if row["id"].startswith("2026_04") or "db-dump" in row.get("silicon_data_source", ""):
        if dp > 1 and tp == dp:
            dp, ep = 1, tp
        elif sliced == ep > 1 and tp == sliced * ep:
            tp, sliced = ep, 1
        elif sliced == ep > 1 and dp == sliced * ep:
            tp, dp, sliced = 1, ep, 1
    if dp > 1:
        ep = min(ep * sliced, tp * dp)
    if tp > 16 or tp & (tp - 1):
        raise LayoutError("no tensor parallelism of one server")
    return Layout(tp=tp, pp=pp, dp=dp * _integer(row.get(f"{prefix}num_workers")), ep=ep)


def split_of(rows: Sequence[PublicRow]) -> dict[str, Split]:
    """The split of every sweep: in alphabetic order every second one is the test."""
    sweeps = sorted({row.sweep for row in rows})
    return {sweep: "test" if index % 2 else "fit" for index, sweep in enumerate(sweeps)}


def ask(row: PublicRow, engine: EngineProfile | None = None) -> Serving | str:
    """The answer that a user gets for the row, or why there is none.

    engine: another profile than the row's engine has, for fits.
    """
    if row.odd is not None:
        return row.odd
    try:
        return api.predict_serving(
            row.family,
            row.layout,
            Workload(prompt_tokens=row.prompt_tokens, decode_tokens=row.decode_tokens),
            engine=engine or row.engine,
            accelerator=_ACCELERATORS[row.system],
            weights=row.weights,
            cache_dtype=FLOAT8 if row.has_small_cache else None,
            concurrency=row.concurrency,
            shortest=_SHORTEST,
            prefill_layout=row.prefill,
        )
    except UserError as error:
        return str(error)


def peer_times(path: Path) -> dict[str, tuple[float, float]]:
    """Aiconfigurator's (TTFT, TPOT) in ms by row, as benchmarks/aiconfigurator_rows.py wrote them."""
    return dict(_peer_lines(path))


def _peer_lines(path: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["ttft_ms"] is not None:
                yield row["id"], (row["ttft_ms"], row["tpot_ms"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"`peer` {path}: cannot be read: {error}") from None
