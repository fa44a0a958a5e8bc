"""``weft predict``: what a layout sends and, given a machine, how long it takes.

``weft predict MODEL`` prints the schedule; with ``--accelerator`` it predicts latency and
memory. ``scoreboard``, ``scaling`` and ``allreduce`` in the place of MODEL are commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from weft.cli import options, predict_allreduce, scaling, scoreboard
from weft.cli.default_group import app_with_default
from weft.cli.output import OutputFormat
from weft.cli.schedule_output import print_schedule
from weft.closed_form.schedule import closed_form
from weft.errors import UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload


def predict(
    model: options.Model,
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    sp: options.Sp = 1,
    ep: options.Ep = 1,
    dp: options.Dp = 1,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="Machines that the ranks are spread over [1; with --accelerator, as few as the "
            "fabric's GPUs a node allow]."
        ),
    ] = None,
    stage_layers: options.StageLayers = None,
    workload: options.WorkloadName = "paper",
    prompt: options.Prompt = None,
    decode: options.Decode = None,
    batch: options.Batch = None,
    engine: options.Engine = "weft",
    accelerator: Annotated[
        str | None,
        typer.Option(help="Predict latency on this device: a built-in name or a file."),
    ] = None,
    fabric: Annotated[
        str | None,
        typer.Option(help="Links under it: a built-in name or a file [the device's usual one]."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Type of the layers' weights, e.g. float8_e4m3fn.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second of a server under load.")
    ] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="List every input of the time model with its source.")
    ] = False,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Print the schedule of collectives of one request, or its latency on a machine.

    Example: weft predict llama-2-13b --tp 4 --prompt 128 --decode 128 --engine vllm-v0

    Example: weft predict llama-3.1-8b --tp 2 --engine vllm --accelerator h200-sxm
    """
    layout = options.make_layout(
        tp=tp,
        pp=pp,
        sp=sp,
        ep=ep,
        dp=dp,
        nodes=1 if nodes is None else nodes,
        stage_layers=stage_layers,
    )
    load = options.make_workload(workload, prompt, decode, batch)
    if accelerator is not None:
        settings = (engine, accelerator, fabric, weights)
        _print_latency(model, layout, nodes, load, settings, rate, inputs, output_format)
        return
    given = {"--fabric": fabric, "--weights": weights, "--rate": rate, "--inputs": inputs or None}
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} {value}: is about latency; name a device (--accelerator)")
    print_schedule(closed_form(load_spec(model), layout, load, engine), output_format)


def _print_latency(
    model: str,
    layout: Layout,
    nodes: int | None,
    load: Workload,
    settings: tuple[str, str, str | None, str | None],
    rate: float | None,
    inputs: bool,
    output_format: OutputFormat,
) -> None:
    from weft.cli.predict_latency import print_prediction, print_serving
    from weft.prediction.machines import machine_named

    machine = machine_named(*settings)
    if nodes is None:
        width = machine.fabric.gpus_per_node
        layout = replace(layout, nodes=max(1, -(-layout.world_size // width)))
    machine = machine_named(*settings, nodes=layout.nodes)
    if rate is None:
        print_prediction(load_spec(model), layout, load, machine, output_format, inputs=inputs)
    else:
        print_serving(load_spec(model), layout, load, machine, rate, output_format)


app = app_with_default(
    predict,
    {
        "scoreboard": scoreboard.scoreboard,
        "scaling": scaling.scaling,
        "allreduce": predict_allreduce.predict_allreduce,
    },
    epilog="Also: weft predict scoreboard (predictions against measurements), weft predict scaling "
    "(strong scaling to many GPUs), weft predict allreduce (latency by algorithm).",
)
