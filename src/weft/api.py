"""The library's functions for questions that need no device: schedules, times and plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from weft.closed_form.schedule import closed_form
from weft.errors import UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import WORKLOADS, Workload

if TYPE_CHECKING:
    from weft.planning.planner import Plan
    from weft.prediction.accelerator import Accelerator
    from weft.prediction.engine_profile import EngineProfile
    from weft.prediction.prediction import Prediction
    from weft.prediction.serving import Serving

_PAPER = WORKLOADS["paper"]
_CHAT = WORKLOADS["chat"]
_ONE = Layout()


@overload
def predict(
    model: str,
    layout: Layout = ...,
    workload: Workload = ...,
    *,
    engine: str = ...,
    speculation: Speculation | None = ...,
    prefill_layout: Layout | None = ...,
) -> Schedule: ...


@overload
def predict(
    model: str,
    layout: Layout = ...,
    workload: Workload = ...,
    *,
    engine: str | EngineProfile = ...,
    accelerator: str | Accelerator,
    fabric: str | None = ...,
    weights: str | None = ...,
    nodes: int | None = ...,
) -> Prediction: ...


@overload
def predict(
    model: str,
    layout: Layout = ...,
    workload: Workload = ...,
    *,
    engine: str | EngineProfile = ...,
    accelerator: str | Accelerator | None,
    fabric: str | None = ...,
    weights: str | None = ...,
    nodes: int | None = ...,
    concurrency: int | None = ...,
    rate: float | None = ...,
    trace: str | Path | None = ...,
    burst: int = ...,
    shortest: float = ...,
    requests: int | None = ...,
    speculation: Speculation | None = ...,
    prefill_layout: Layout | None = ...,
) -> Schedule | Prediction | Serving: ...


def predict(
    model: str,
    layout: Layout = _ONE,
    workload: Workload = _PAPER,
    *,
    engine: str | EngineProfile = "weft",
    accelerator: str | Accelerator | None = None,
    fabric: str | None = None,
    weights: str | None = None,
    nodes: int | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
    trace: str | Path | None = None,
    burst: int = 1,
    shortest: float = 1.0,
    requests: int | None = None,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
) -> Schedule | Prediction | Serving:
    """What a layout sends, in closed form; with an ``accelerator``, how long it takes.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism.
        workload: prompt and decode tokens, batch.
        engine: whose schedule and host costs (see vocabulary/conventions.py), or a profile.
        accelerator: name, file or value; asks for times (ms, with 90 % intervals) and memory (GB).
        fabric: name or file of the links; the accelerator's usual ones if left out.
        weights: type of the layers' weights; the model's own if left out.
        nodes: machines under the layout; as few as the fabric allows if left out.
        concurrency: clients of a server, each waiting for its answer.
        rate: requests a second of a server, instead of clients.
        trace: a file of arrivals and lengths for a server.
        burst: requests of ``rate`` that come at once.
        shortest: lengths are even between this share of the workload's and all of it.
        requests: how many are simulated; 10 a client and at least 100 if left out.
        speculation: drafts of each decode step (times: of a server).
        prefill_layout: of other ranks that do the prompts; those of ``layout`` then only decode.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    if accelerator is None:
        _refuse_without_device(
            fabric=fabric,
            weights=weights,
            rate=rate,
            concurrency=concurrency,
            trace=trace,
            burst=None if burst == 1 else burst,
            shortest=None if shortest == 1 else shortest,
            requests=requests,
        )
        shape = layout if nodes is None else replace(layout, nodes=nodes)
        name = engine if isinstance(engine, str) else engine.conventions
        spec = load_spec(model)
        return closed_form(
            spec, shape, workload, name, speculation=speculation, prefill_layout=prefill_layout
        )
    from weft.prediction.latency import predict_latency
    from weft.prediction.machines import machine_named, placed
    from weft.prediction.serving import predict_serving
    from weft.prediction.traffic import Traffic

    machine = machine_named(engine, accelerator, fabric, weights)
    shape = placed(layout, machine.fabric.gpus_per_node, nodes)
    spec = load_spec(model)
    if (concurrency, rate, trace) == (None, None, None):
        for name, value in (("prefill_layout", prefill_layout), ("speculation", speculation)):
            if value is not None:
                raise UserError(
                    f"`{name}`: its times are those of a server; say `concurrency`, `rate` or "
                    "`trace`, or leave `accelerator` out"
                )
        return predict_latency(spec, shape, workload, machine)
    traffic = Traffic(
        workload=workload,
        concurrency=concurrency,
        rate=rate,
        trace=None if trace is None else Path(trace),
        burst=burst,
        shortest=shortest,
        requests=requests,
    )
    if prefill_layout is not None:
        prefill_layout = placed(prefill_layout, machine.fabric.gpus_per_node)
    return predict_serving(
        spec, shape, traffic, machine, prefill_layout=prefill_layout, speculation=speculation
    )


def _refuse_without_device(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"`{name}` {value}: is about latency; name a device (`accelerator`)")


def trace(
    model: str,
    layout: Layout,
    workload: Workload = _PAPER,
    *,
    engine: str = "weft",
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
) -> Schedule:
    """What the real model code sends, from a dry run: no weights, device or peers.

    Takes the same arguments as :func:`predict` and gives the same rows. To record a
    real run use ``LLM.recording``.
    """
    from weft.tracing.dry_run import dry_run

    spec = load_spec(model)
    return dry_run(
        spec, layout, workload, engine, speculation=speculation, prefill_layout=prefill_layout
    )


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
    machine = machine_named(engine, accelerator, fabric, weights)
    width = machine.fabric.gpus_per_node if gpus_per_node is None else gpus_per_node
    question = Question(
        spec=load_spec(model),
        workload=workload,
        machine=with_settings(machine, settings),
        objective=Objective(objective),
        limits=Limits(ttft_ms=ttft, tpot_ms=tpot),
    )
    return make_plan(question, Cluster(num_gpus=num_gpus, gpus_per_node=width), progress)
