"""``weft plan``: the best layout of a model on a number of GPUs, and why not another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options
from weft.cli.output import OutputFormat, check_file, print_json, print_rows, progress
from weft.planning.objective import Objective

if TYPE_CHECKING:
    from weft.planning.planner import Plan

Gpus = Annotated[int, "GPUs of the whole machine."]
GpusPerNode = Annotated[int | None, "GPUs of one node [the fabric's]."]
Accelerator = Annotated[str, "The device: a built-in name or a file."]
Fabric = Annotated[str | None, "The links: a built-in name or a file [the device's usual one]."]


def plan(
    *,
    model: options.Model,
    gpus: Gpus = 4,
    gpus_per_node: GpusPerNode = None,
    accelerator: Accelerator = "h200-sxm",
    fabric: Fabric = None,
    engine: options.Engine = "vllm",
    weights: Annotated[str | None, "Type of the layers' weights, e.g. float8_e4m3fn."] = None,
    cache_dtype: Annotated[str | None, "Type of keys and values, e.g. float8_e4m3fn."] = None,
    workload: options.WorkloadName = "chat",
    sizes: options.SizeOptions,
    ttft: Annotated[float | None, "Limit on TTFT in ms."] = None,
    tpot: Annotated[float | None, "Limit on TPOT in ms."] = None,
    objective: Annotated[
        Objective, "latency (of one batch), throughput or goodput."
    ] = Objective.LATENCY,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="What if: e.g. inter.bandwidth=100, inter.latency=x0.5."),
    ] = None,
    explain: Annotated[str | None, "Why this layout is not the best, e.g. tp8."] = None,
    top: Annotated[int, typer.Option(min=1, help="Layouts to print.")] = 10,
    plot: Annotated[
        Path | None, typer.Option(help="Write the Pareto front as HTML.", callback=check_file)
    ] = None,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Rank every layout of GPUS devices for a model and a workload.

    Example: weft plan llama-3.1-70b --gpus 16 --gpus-per-node 4 --accelerator a100-80g
    --workload decode-heavy --explain tp16
    """
    from weft import api

    with progress() as bar:
        task = bar.add_task("layouts", total=None)
        found = api.plan(
            model,
            gpus,
            sizes.of(workload),
            gpus_per_node=gpus_per_node,
            accelerator=accelerator,
            fabric=fabric,
            engine=engine,
            weights=weights,
            cache_dtype=cache_dtype,
            ttft=ttft,
            tpot=tpot,
            objective=objective,
            settings=settings or (),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    text = None if explain is None else _explanation(found, explain)
    if plot is not None:
        _write_plot(found, plot)
    if output_format is OutputFormat.TABLE:
        _print_table(found, top, text)
    elif output_format is OutputFormat.JSON:
        print_json(_document(found, text))
    else:
        print_rows([_row(found, item) for item in found.ranked], output_format)


def _row(plan: Plan, candidate: Any) -> dict[str, Any]:
    prediction = candidate.prediction
    return {
        "rank": plan.ranked.index(candidate) + 1,
        "layout": candidate.layout.name,
        "batch": candidate.concurrency,
        "ttft_ms": _short(candidate.ttft_ms),
        "tpot_ms": _short(candidate.tpot_ms),
        "e2e_ms": _short(candidate.e2e_ms),
        "tokens_per_s_gpu": _short(candidate.tokens_per_s / plan.cluster.num_gpus),
        "memory_gb": _short((candidate.serving or prediction).memory.total_gb),
        "communication": f"{100 * prediction.communication_share:.0f} %",
        "note": "tie" if plan.is_tied(candidate) and candidate is not plan.best else "",
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _print_table(plan: Plan, top: int, explanation: Any) -> None:
    question, cluster = plan.question, plan.cluster
    title = (
        f"{question.spec.name} on {cluster.num_gpus} x {question.machine.accelerator.name}"
        f"{_nodes(cluster)} "
        f"({question.machine.fabric.name}), {question.machine.profile.name}, "
        f"objective {question.objective.value}; a tie is within {100 * plan.noise:.0f} %"
    )
    rows = [_row(plan, candidate) for candidate in plan.ranked[:top]]
    print_rows(rows, OutputFormat.TABLE, title=title)
    front = " ".join(f"{p.layout.name}@{p.concurrency}" for p in plan.pareto())
    print(f"Pareto front (TPOT against tokens/s/GPU, layout@batch): {front}")
    if explanation is not None:
        _print_explanation(explanation)
    if plan.rejected:
        _print_rejected(plan.rejected, top)
    best = plan.best.layout
    print(f"Commands for {best.name}" + (" (on every node)" if best.nodes > 1 else ""))
    for item in plan.commands():
        print(f"{item.engine}: {item.command}")


def _nodes(cluster: Any) -> str:
    return "" if cluster.nodes == 1 else f" in {cluster.nodes} nodes of {cluster.gpus_per_node}"


def _print_rejected(rejected: Any, top: int) -> None:
    """One row a reason; layouts that share it stand together."""
    reasons: dict[str, list[str]] = {}
    for item in rejected:
        reasons.setdefault(item.reason, []).append(item.name)
    rows = [{"layout": _some(names), "reason": reason} for reason, names in reasons.items()]
    more = f" ({top} of {len(rows)} reasons; --top prints more)" if len(rows) > top else ""
    layouts = f"{len(rejected)} layout" + ("s" if len(rejected) > 1 else "")
    print_rows(rows[:top], OutputFormat.TABLE, title=f"{layouts} rejected{more}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _explanation(plan: Plan, name: str) -> Any:
    from weft.planning.explain import explain

    return explain(plan, name)


def _print_explanation(explanation: Any) -> None:
    print(explanation.summary)
    rows = [
        {
            "phase": item.phase,
            "part": item.part,
            "here_ms": _short(item.here_ms),
            "best_ms": _short(item.best_ms),
            "difference_ms": _short(item.difference_ms),
        }
        for item in explanation.differences
    ]
    if rows:
        print_rows(rows, OutputFormat.TABLE)


def _document(plan: Plan, explanation: Any) -> dict[str, Any]:
    more = {} if explanation is None else {"explanation": explanation.summary}
    return plan.to_dict() | more


def _write_plot(plan: Plan, path: Path) -> None:
    from weft import report

    page = report.report_of([report.document(_document(plan, None), "plan")])
    report.write_report(page, path)
