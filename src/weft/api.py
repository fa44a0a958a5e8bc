"""The library's functions for questions that need no device: schedules, times and plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from weft.closed_form.schedule import closed_form
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.workload import WORKLOADS, Workload

if TYPE_CHECKING:
    from weft.planning.planner import Plan
    from weft.prediction.prediction import Prediction

_PAPER = WORKLOADS["paper"]


@overload
def predict(
    model: str, layout: Layout, workload: Workload = ..., *, engine: str = ...
) -> Schedule: ...


@overload
def predict(
    model: str,
    layout: Layout,
    workload: Workload = ...,
    *,
    engine: str = ...,
    accelerator: str,
    fabric: str | None = ...,
) -> Prediction: ...


def predict(
    model: str,
    layout: Layout,
    workload: Workload = _PAPER,
    *,
    engine: str = "weft",
    accelerator: str | None = None,
    fabric: str | None = None,
) -> Schedule | Prediction:
    """What a layout sends, in closed form; with an ``accelerator``, how long it takes.

    Args:
        model: built-in name, directory with a config.json, or hub id.
        layout: degrees of parallelism.
        workload: prompt and decode tokens, batch.
        engine: whose schedule and host costs (see vocabulary/conventions.py).
        accelerator: name or file; asks for times (ms, with 90 % intervals) and memory (GB).
        fabric: name or file of the links; the accelerator's usual ones if left out.

    Raises:
        UserError: naming the value that cannot be and the fix.

    """
    if accelerator is None:
        return closed_form(load_spec(model), layout, workload, engine)
    from weft.prediction.latency import predict_latency
    from weft.prediction.machines import machine_named

    machine = machine_named(engine, accelerator, fabric)
    return predict_latency(load_spec(model), layout, workload, machine)


def trace(
    model: str, layout: Layout, workload: Workload = _PAPER, *, engine: str = "weft"
) -> Schedule:
    """What the real model code sends, from a dry run: no weights, device or peers.

    Takes the same arguments as :func:`predict` and gives the same rows. To record a
    real run use ``LLM.recording``.
    """
    from weft.tracing.dry_run import dry_run

    return dry_run(load_spec(model), layout, workload, engine)


def plan(
    model: str,
    num_gpus: int,
    workload: Workload = _PAPER,
    *,
    gpus_per_node: int | None = None,
    accelerator: str = "h200-sxm",
    fabric: str | None = None,
    engine: str = "vllm",
) -> Plan:
    """Every layout of ``num_gpus`` devices that fits, ranked by latency, and why others do not.

    Raises LayoutError where nothing fits, UserError for unknown names.
    """
    from weft.planning.objective import Question
    from weft.planning.planner import make_plan
    from weft.planning.space import Cluster
    from weft.prediction.machines import machine_named

    machine = machine_named(engine, accelerator, fabric)
    width = machine.fabric.gpus_per_node if gpus_per_node is None else gpus_per_node
    question = Question(spec=load_spec(model), workload=workload, machine=machine)
    return make_plan(question, Cluster(num_gpus=num_gpus, gpus_per_node=width))
