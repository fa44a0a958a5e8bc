"""``weft predict scaling``: strong scaling of large models to many GPUs, by prediction."""

from __future__ import annotations

from typing import Annotated, Any

from weft.cli import options
from weft.cli.output import OutputFormat, print_rows, progress
from weft.errors import UserError
from weft.vocabulary.layout import MOST_RANKS

_MODELS = "llama-3.1-70b,llama-3.1-405b"
_FABRICS = "a100-slingshot11,gh200-ndr"
_WORKLOADS = "prefill-heavy,decode-heavy"
_GPUS = "4,8,16,32,64,128,1024"


def scaling(
    models: Annotated[str, "Models, separated by commas."] = _MODELS,
    fabrics: Annotated[str, "Fabrics, separated by commas."] = _FABRICS,
    workloads: Annotated[str, "Named workloads."] = _WORKLOADS,
    gpus: Annotated[str, "Numbers of GPUs, ascending."] = _GPUS,
    engine: options.Engine = "vllm",
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Predict strong scaling: TP against hybrid, NCCL against the hierarchical all-reduce.

    Example: weft predict scaling --models llama-3.1-405b --gpus 16,32,64,128
    """
    from weft.planning.scale_study import findings, scale_study

    points = scale_study(
        models.split(","), fabrics.split(","), workloads.split(","), _counts(gpus), engine
    )
    with progress() as bar:
        found = list(bar.track(points, description="points"))
    if not found:
        raise UserError(f"--gpus {gpus}: the models fit on none of these; add larger numbers")
    rows = [_row(point) for point in found]
    print_rows(rows, output_format, title="Strong scaling by prediction (E2E of the batch)")
    if output_format is OutputFormat.TABLE:
        for line in findings(found):
            print(line)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > MOST_RANKS:
        raise UserError(
            f"--gpus {text}: write numbers of 1 to {MOST_RANKS} separated by commas, e.g. 4,8,16"
        )
    return counts


def _row(point: Any) -> dict[str, Any]:
    prediction = point.prediction
    return {
        "model": point.model,
        "fabric": point.fabric,
        "workload": point.workload,
        "gpus": point.gpus,
        "family": point.family,
        "layout": prediction.layout.name,
        "all_reduce": point.all_reduce,
        "ttft_ms": _short(prediction.ttft_ms.value),
        "tpot_ms": _short(prediction.tpot_ms.value),
        "e2e_ms": _short(prediction.e2e_ms.value),
        "low_ms": _short(prediction.e2e_ms.low),
        "high_ms": _short(prediction.e2e_ms.high),
        "speedup": _short(point.speedup),
        "communication": f"{100 * prediction.communication_share:.0f} %",
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
