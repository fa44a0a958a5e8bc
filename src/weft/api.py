"""The library's functions for questions that need no device: schedules, times and plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from weft.closed_form.schedule import check_length, closed_form
from weft.errors import UserError
from weft.launch.own_ranks import on_ranks
from weft.vocabulary.keywords import LayoutDegrees, layout_of, named_arguments
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.result import BenchResult
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import WORKLOADS, Workload

if TYPE_CHECKING:
    from weft.importer.imported import ImportedTrace
    from weft.planning.planner import Plan
    from weft.prediction.accelerator import Accelerator
    from weft.prediction.engine_profile import EngineProfile
    from weft.prediction.prediction import Prediction
    from weft.prediction.serving import Serving

_PAPER = WORKLOADS["paper"]
_CHAT = WORKLOADS["chat"]


@named_arguments(LayoutDegrees)
def predict(
    model: str,
    layout: Layout | None = None,
    workload: Workload = _PAPER,
    *,
    engine: str = "weft",
    nodes: int | None = None,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
    **degrees: Unpack[LayoutDegrees],
) -> Schedule:
    """What a layout sends, in closed form.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism; or ``tp=4, pp=2`` and the like.
        workload: prompt and decode tokens, batch.
        engine: whose schedule (see vocabulary/conventions.py).
        nodes: machines under the layout; the layout's own if left out.
        speculation: drafts of each decode step.
        prefill_layout: of other ranks that do the prompts; those of ``layout`` then only decode.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    return closed_form(
        load_spec(model),
        _on(layout_of(layout, degrees), nodes),
        workload,
        engine,
        speculation=speculation,
        prefill_layout=prefill_layout,
    )


@named_arguments(LayoutDegrees)
def predict_latency(
    model: str,
    layout: Layout | None = None,
    workload: Workload = _PAPER,
    *,
    accelerator: str | Accelerator,
    engine: str | EngineProfile = "weft",
    fabric: str | None = None,
    weights: str | None = None,
    cache_dtype: str | None = None,
    nodes: int | None = None,
    **degrees: Unpack[LayoutDegrees],
) -> Prediction:
    """How long one batch takes (ms, with 90 % intervals) and its memory (GB).

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism; or ``tp=4, pp=2`` and the like.
        workload: prompt and decode tokens, batch.
        accelerator: name, file or value of the device.
        engine: whose schedule and host costs, or a profile.
        fabric: name or file of the links; the accelerator's usual ones if left out.
        weights: type of the layers' weights; the model's own if left out.
        cache_dtype: type of keys and values (``float8_e4m3fn``); the model's own if left out.
        nodes: machines under the layout; as few as the fabric allows if left out.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    from weft.prediction import latency
    from weft.prediction.machines import machine_named, placed

    machine = machine_named(engine, accelerator, fabric, weights, cache_dtype)
    shape = placed(layout_of(layout, degrees), machine.fabric.gpus_per_node, nodes)
    return latency.predict_latency(load_spec(model), shape, workload, machine)


@named_arguments(LayoutDegrees)
def predict_serving(
    model: str,
    layout: Layout | None = None,
    workload: Workload = _PAPER,
    *,
    accelerator: str | Accelerator,
    concurrency: int | None = None,
    rate: float | None = None,
    trace: str | Path | None = None,
    burst: int = 1,
    shortest: float = 1.0,
    requests: int | None = None,
    engine: str | EngineProfile = "weft",
    fabric: str | None = None,
    weights: str | None = None,
    cache_dtype: str | None = None,
    nodes: int | None = None,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
    **degrees: Unpack[LayoutDegrees],
) -> Serving:
    """What the clients of a server see, simulated step by step; say how they come.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism; or ``tp=4, pp=2`` and the like.
        workload: prompt and decode tokens of a request.
        accelerator: name, file or value of the device.
        concurrency: clients, each waiting for its answer.
        rate: requests a second instead.
        trace: a file of arrivals and lengths instead.
        burst: requests of ``rate`` that come at once.
        shortest: lengths are even between this share of the workload's and all of it.
        requests: how many are simulated; 10 a client and at least 100 if left out.
        engine: whose schedule and host costs, or a profile.
        fabric: name or file of the links; the accelerator's usual ones if left out.
        weights: type of the layers' weights; the model's own if left out.
        cache_dtype: type of keys and values (``float8_e4m3fn``); the model's own if left out.
        nodes: machines under the layout; as few as the fabric allows if left out.
        speculation: drafts of each decode step.
        prefill_layout: of other ranks that do the prompts; those of ``layout`` then only decode.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    from weft.prediction import serving
    from weft.prediction.machines import machine_named, placed
    from weft.prediction.traffic import Traffic

    machine = machine_named(engine, accelerator, fabric, weights, cache_dtype)
    width = machine.fabric.gpus_per_node
    traffic = Traffic(
        workload=workload,
        concurrency=concurrency,
        rate=rate,
        trace=None if trace is None else Path(trace),
        burst=burst,
        shortest=shortest,
        requests=requests,
    )
    return serving.predict_serving(
        load_spec(model),
        placed(layout_of(layout, degrees), width, nodes),
        traffic,
        machine,
        prefill_layout=None if prefill_layout is None else placed(prefill_layout, width),
        speculation=speculation,
    )


@named_arguments(LayoutDegrees)
def trace(
    model: str = "embedded",
    layout: Layout | None = None,
    workload: Workload = _PAPER,
    *,
    engine: str = "weft",
    dry_run: bool = False,
    device: str = "auto",
    timeout_s: float = 120.0,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
    **degrees: Unpack[LayoutDegrees],
) -> Schedule:
    """What the real model code sends: recorded from a run, or from a dry run at any scale.

    A run starts its own ranks, or joins a launcher's; the rows are those of :func:`predict`.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism; or ``tp=4, pp=2`` and the like.
        workload: prompt and decode tokens, batch.
        engine: whose schedule (see vocabulary/conventions.py).
        dry_run: shapes only; no weights, device or peers.
        device: of a run: ``auto``, ``cpu`` or ``cuda``.
        timeout_s: of a run: the longest wait for another rank.
        speculation: of a dry run: drafts of each decode step.
        prefill_layout: of a dry run: other ranks do the prompts.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    spec, shape = load_spec(model), layout_of(layout, degrees)
    shape.check_model(spec)
    check_length(spec, workload)
    more = {"speculation": speculation, "prefill_layout": prefill_layout}
    if dry_run:
        from weft.tracing.dry_run import dry_run as run_dry

        return run_dry(spec, shape, workload, engine, **more)  # type: ignore[arg-type]
    for name, value in more.items():
        if value is not None:
            raise UserError(f"`{name}`: is a schedule that is not run here; ask for `dry_run`")
    from weft.tracing.run import trace_run

    shape.check_here()
    arguments = (model, shape, workload, engine, device, timeout_s)
    return on_ranks(shape.world_size, trace_run, *arguments)  # type: ignore[no-any-return]


def _on(layout: Layout, nodes: int | None) -> Layout:
    return layout if nodes is None else replace(layout, nodes=nodes)


@named_arguments()
def run_study(
    model: str = "embedded",
    layouts: Sequence[str | Layout] = ("1", "tp2", "tp4", "pp2", "pp4", "tp2xpp2", "sp2"),
    workload: Workload = _PAPER,
    *,
    engine: str = "weft",
    device: str = "auto",
    progress: Callable[[str], object] = lambda _name: None,
) -> BenchResult:
    """Run layouts on this machine; hold measured, dry-run and closed form together.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layouts: each is run with ranks of its own.
        workload: prompt and decode tokens, batch.
        engine: whose schedule (see vocabulary/conventions.py).
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told the name of each layout and published table that is done.

    Raises:
        UserError: naming the value that cannot be and the fix, before anything is started.

    """
    from weft.study import study

    plan = study.StudyPlan(
        model=model,
        layouts=tuple(Layout.parse(one) if isinstance(one, str) else one for one in layouts),
        workload=workload,
        engine=engine,
        device=device,
    )
    return BenchResult(study.run_study(plan, progress))


@named_arguments()
def import_traces(
    files: Sequence[str | Path],
    *,
    model: str | None = None,
    engine: str = "auto",
    layout: Layout | str | None = None,
    fabric: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportedTrace:
    """Read the profiler traces of one run's ranks and hold them against the engine's schedule.

    Args:
        files: traces, one a rank, or folders of them.
        model: the model that ran: name, directory or hub id; judged without if left out.
        engine: ``auto``, or the engine that ran.
        layout: of the run, or its short name; read off the traces if left out.
        fabric: say what the best all-reduce on these links would gain.
        jobs: processes that read files; one a core if left out.
        progress: told how many more bytes of the files were read.

    Raises:
        FileFormatError: for files that are no traces of one run.
        LayoutError: for a layout that the ranks or the model contradict.

    """
    from weft.allreduce.scale import best_all_reduce
    from weft.fabric import load
    from weft.importer import importing
    from weft.importer.inputs import given_model, trace_files

    links = None if fabric is None else load(fabric)
    found, notes = trace_files([Path(file) for file in files])
    if not found:
        raise UserError("`files` []: name at least one trace, or a folder of them")
    imported = importing.import_traces(
        found,
        model=None if model is None else given_model(model),
        engine=engine,
        layout=Layout.parse(layout) if isinstance(layout, str) else layout,
        num_processes=jobs,
        on_bytes=progress,
        best=None if links is None else partial(best_all_reduce, links),
    )
    return replace(imported, notes=(*notes, *imported.notes))


@named_arguments()
def plan(
    model: str,
    num_gpus: int = 4,
    workload: Workload = _CHAT,
    *,
    gpus_per_node: int | None = None,
    accelerator: str = "h200-sxm",
    fabric: str | None = None,
    engine: str = "vllm",
    weights: str | None = None,
    cache_dtype: str | None = None,
    ttft: float | None = None,
    tpot: float | None = None,
    objective: str = "latency",
    settings: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Plan:
    """Every layout of ``num_gpus`` devices that fits, ranked, and why others do not.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        num_gpus: devices of the whole machine.
        workload: prompt and decode tokens, batch (of the latency objective).
        gpus_per_node: devices of one node; the fabric's if left out.
        accelerator: name or file of the device.
        fabric: name or file of the links; the accelerator's usual ones if left out.
        engine: whose schedule and host costs.
        weights: type of the layers' weights; the model's own if left out.
        cache_dtype: type of keys and values (``float8_e4m3fn``); the model's own if left out.
        ttft: limit on TTFT in ms.
        tpot: limit on TPOT in ms.
        objective: latency (of one batch), throughput or goodput.
        settings: what-ifs such as ``inter.bandwidth=100``.
        progress: told how many layouts of how many are done.

    Raises:
        UserError: LayoutError where nothing fits; naming the value that cannot be and the fix.

    """
    from weft.planning.objective import Limits, Objective, Question
    from weft.planning.planner import make_plan
    from weft.planning.space import Cluster
    from weft.planning.what_if import with_settings
    from weft.prediction.machines import machine_named

    if objective not in tuple(Objective):
        raise UserError(f"`objective` {objective}: choose one of {', '.join(Objective)}")
    machine = machine_named(engine, accelerator, fabric, weights, cache_dtype)
    width = machine.fabric.gpus_per_node if gpus_per_node is None else gpus_per_node
    question = Question(
        spec=load_spec(model),
        workload=workload,
        machine=with_settings(machine, settings),
        objective=Objective(objective),
        limits=Limits(ttft_ms=ttft, tpot_ms=tpot),
    )
    return make_plan(question, Cluster(num_gpus=num_gpus, gpus_per_node=width), progress)
