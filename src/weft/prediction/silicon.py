"""Rows of aiconfigurator's ``silicon_sample.csv`` (Apache-2.0), read where it is installed.

Only dense models on H100 and H200 under vLLM. Constants were chosen with the H100 rows
alone; the H200 rows test them. Nothing of the file is part of this package.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module, resources, util
from pathlib import Path
from typing import Final

from weft.errors import EnvironmentUnavailable, FileFormatError, WorkloadError
from weft.fabric import Fabric
from weft.fabric import load as load_fabric
from weft.prediction.accelerator import load_accelerator
from weft.prediction.engine_profile import profile_named
from weft.prediction.measured import Role
from weft.prediction.prediction import FLOAT8, Machine
from weft.prediction.quantity import Estimate
from weft.prediction.serving import Serving, serve_at_concurrency
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

_MODELS: Final = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
_ACCELERATORS: Final = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm"}
_CONTRADICTING: Final = ("nvidia/Llama-3.1-8B-Instruct-FP8",)
"""Rows that contradict the device and rows beside them (see ``SiliconRow.role``)."""

_PEER_MODELS: Final = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
}

# Constants chosen with the H100 rows: NCCL with in-switch reduction on nodes of eight moves
# fewer bytes a link (as a bandwidth), and a tenth of the requests come in the first burst.
_NODE_BANDWIDTH_GB_S: Final = 575.0
_BURST_SHARE: Final = 0.1
_SERVER_BATCHED_TOKENS: Final = 8192


@dataclass(frozen=True, kw_only=True)
class SiliconRow:
    """One measured row: a closed loop of ``concurrency`` clients; times in ms."""

    identity: str
    backend: str
    model_path: str
    system: str
    is_8bit: bool
    prompt_tokens: int
    decode_tokens: int
    concurrency: int
    tp: int
    pp: int
    ttft_ms: float
    tpot_ms: float

    @property
    def role(self) -> Role:
        """Rows of H100 are tuned with, those of H200 the test.

        Compared are SGLang's rows, which are predicted with vLLM's profile, and vLLM's 8-bit 8B
        rows: they claim up to three times the throughput of SGLang's of the same model, device
        and load, and five of them more than the device computes.
        """
        if self.model_path in _CONTRADICTING or self.backend != "vllm":
            return "compared"
        return "tuned" if self.system == "h100_sxm" else "test"

    @property
    def model(self) -> str:
        return _MODELS[self.model_path]

    @property
    def layout(self) -> Layout:
        return Layout(tp=self.tp, pp=self.pp)

    @property
    def name(self) -> str:
        return (
            f"{self.system} {self.model} {self.layout.name} "
            f"{self.prompt_tokens}/{self.decode_tokens} x{self.concurrency}"
        )

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Generated tokens as the row's own times imply them."""
        cycle_ms = self.ttft_ms + (self.decode_tokens - 1) * self.tpot_ms
        return 1e3 * self.concurrency * self.decode_tokens / cycle_ms / (self.tp * self.pp)

    @property
    def implied_tflops(self) -> float:
        """Operations a second and GPU that the row claims, if every prompt was computed."""
        tokens = (self.prompt_tokens + self.decode_tokens) / self.decode_tokens
        rate = self.tokens_per_s_per_gpu * tokens
        return rate * 2 * load_spec(self.model).num_parameters * 1e-12

    @property
    def is_possible(self) -> bool:
        """False where the claim exceeds what the device sustains (prompts came from a cache)."""
        device = load_accelerator(_ACCELERATORS[self.system])
        limit = device.matmul8_tflops if self.is_8bit else device.matmul_tflops
        return self.implied_tflops <= limit.value


def find_file(path: Path | None) -> Path | None:
    """``path``, or the csv of an installed aiconfigurator, or None where there is none."""
    if path is not None:
        return path
    if util.find_spec("aiconfigurator_core") is None:
        return None
    found = Path(str(resources.files("aiconfigurator_core") / "systems" / "silicon_sample.csv"))
    return found if found.is_file() else None


def read_rows(path: Path) -> list[SiliconRow]:
    """The rows of dense models on Hopper under vLLM, and on H200 under SGLang.

    Raises FileFormatError for another file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_rows(csv.DictReader(file)))
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"--silicon {path}: cannot be read: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"--silicon {path}: not a silicon_sample.csv ({error})") from None


def _rows(reader: csv.DictReader[str]) -> Iterator[SiliconRow]:
    for row in reader:
        known = row["model_path"] in _MODELS and row["system"] in _ACCELERATORS
        is_sglang = (row["backend"], row["system"]) == ("sglang", "h200_sxm")
        if row["mode"] != "agg" or not known or not (row["backend"] == "vllm" or is_sglang):
            continue
        yield SiliconRow(
            identity=row["id"],
            backend=row["backend"],
            model_path=row["model_path"],
            system=row["system"],
            is_8bit=row["precision"] == "fp8",
            prompt_tokens=int(row["isl"]),
            decode_tokens=int(row["osl"]),
            concurrency=int(float(row["batch_size"])),
            tp=int(float(row["tp_size"])),
            pp=int(float(row["pp_size"])),
            ttft_ms=float(row["silicon_ttft_ms"]),
            tpot_ms=float(row["silicon_tpot_ms"]),
        )


def machines() -> Callable[[SiliconRow], Machine]:
    """The machine of a row (one object for all rows that share it)."""
    fabric = _node_of_eight()
    profile = replace(profile_named("vllm"), max_batched_tokens=_SERVER_BATCHED_TOKENS)
    made: dict[tuple[str, bool], Machine] = {}

    def machine(row: SiliconRow) -> Machine:
        key = (row.system, row.is_8bit)
        if key not in made:
            made[key] = Machine(
                accelerator=load_accelerator(_ACCELERATORS[row.system]),
                fabric=fabric,
                profile=profile,
                weight_dtype=FLOAT8 if row.is_8bit else None,
            )
        return made[key]

    return machine


def _node_of_eight() -> Fabric:
    base = load_fabric("h200-nvlink")
    intra = replace(
        base.intra,
        bandwidth_gb_s=_NODE_BANDWIDTH_GB_S,
        bandwidth_source="chosen with the H100 rows: in-switch reduction on nodes of eight",
    )
    return replace(base, name="hopper-node-of-8", gpus_per_node=8, intra=intra, tables=())


def serve(row: SiliconRow, machine: Machine) -> Serving | None:
    """The prediction for a row, its TTFT with the first burst; None where it does not fit."""
    load = Workload(
        prompt_tokens=row.prompt_tokens, decode_tokens=row.decode_tokens, batch=row.concurrency
    )
    try:
        serving = serve_at_concurrency(load_spec(row.model), row.layout, load, machine)
    except WorkloadError:
        return None
    burst_ms = _BURST_SHARE * (serving.running - 1) / 2 * serving.prompt_ms
    return replace(serving, ttft_ms=_longer(serving.ttft_ms, burst_ms))


def _longer(estimate: Estimate, added_ms: float) -> Estimate:
    return estimate.scaled(1 + added_ms / estimate.value)


def peer_predictor() -> Callable[[SiliconRow], tuple[float, float] | None]:
    """The peer's own (TTFT, TPOT) in ms for a row; EnvironmentUnavailable without it."""
    try:
        estimate = import_module("aiconfigurator.cli.api").cli_estimate
    except ImportError:
        raise EnvironmentUnavailable(
            "--peer: aiconfigurator is not installed here (pip install aiconfigurator)"
        ) from None

    def predict(row: SiliconRow) -> tuple[float, float] | None:
        try:
            result = estimate(
                _PEER_MODELS.get(row.model_path, row.model_path),
                row.system,
                backend_name="vllm",
                isl=row.prompt_tokens,
                osl=row.decode_tokens,
                batch_size=row.concurrency,
                tp_size=row.tp,
                pp_size=row.pp,
                gemm_quant_mode="fp8" if row.is_8bit else "bfloat16",
            )
        except Exception:  # noqa: BLE001 - the peer's refusals have many types
            return None
        return float(result.ttft), float(result.tpot)

    return predict
