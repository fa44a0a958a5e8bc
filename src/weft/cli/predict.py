"""``weft predict``: what a layout sends and, given a machine, how long it takes.

``weft predict MODEL`` prints the schedule; with ``--accelerator`` it predicts latency and
memory. ``scoreboard``, ``scaling`` and ``allreduce`` in the place of MODEL are commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli import options, predict_allreduce, scaling, scoreboard
from weft.cli.default_group import app_with_default
from weft.cli.output import OutputFormat
from weft.cli.schedule_output import print_schedule
from weft.errors import UserError


def predict(
    *,
    model: options.Model,
    degrees: options.LayoutOptions,
    nodes: Annotated[
        int | None,
        "Machines that the ranks are spread over [1; with --accelerator, as few as the "
        "fabric's GPUs a node allow].",
    ] = None,
    workload: options.WorkloadName = "paper",
    sizes: options.SizeOptions,
    engine: options.Engine = "weft",
    accelerator: Annotated[
        str | None,
        "Predict latency on this device: a built-in name or a file.",
    ] = None,
    fabric: Annotated[
        str | None,
        "Links under it: a built-in name or a file [the device's usual one].",
    ] = None,
    weights: Annotated[str | None, "Type of the layers' weights, e.g. float8_e4m3fn."] = None,
    cache_dtype: Annotated[str | None, "Type of keys and values, e.g. float8_e4m3fn."] = None,
    concurrency: Annotated[
        int | None,
        "A server with so many clients that wait for their answers.",
    ] = None,
    rate: Annotated[float | None, "A server with so many requests a second."] = None,
    trace: Annotated[
        Path | None,
        "A server with the requests of a Mooncake, Azure or BurstGPT trace.",
    ] = None,
    burst: Annotated[int, "Requests of --rate that come at once."] = 1,
    shortest: Annotated[
        float,
        "Lengths are even between this share of the workload's and all of it.",
    ] = 1.0,
    requests: Annotated[int | None, "Requests to simulate [10 a client, at least 100]."] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="List every input of the time model with its source.")
    ] = False,
    more: options.ScheduleOptions,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Print the schedule of collectives of one request, or its latency on a machine.

    Example: weft predict llama-2-13b --tp 4 --prompt 128 --decode 128 --engine vllm-v0

    Example: weft predict deepseek-v3 --tp 8 --speculate mtp:2:1.7 --prefill-layout tp8

    Example: weft predict llama-3.1-8b --tp 2 --engine vllm --accelerator h200-sxm --concurrency 64
    """
    from weft import api

    layout, load, steps = degrees.on(), sizes.of(workload), more.parsed()
    traffic = {"rate": rate, "concurrency": concurrency, "trace": trace}
    details: dict[str, Any] = {
        "burst": None if burst == 1 else burst,
        "shortest": None if shortest == 1 else shortest,
        "requests": requests,
    }
    if accelerator is None:
        details |= {"fabric": fabric, "weights": weights, "cache_dtype": cache_dtype}
        _refuse(
            traffic | details | {"inputs": inputs or None}, "latency; name a device (--accelerator)"
        )
        found = api.predict(model, layout, load, engine=engine, nodes=nodes, **steps)
        print_schedule(found, output_format)
        return
    from weft.cli.predict_latency import print_times

    machine: dict[str, Any] = {
        "engine": engine,
        "accelerator": accelerator,
        "fabric": fabric,
        "weights": weights,
        "cache_dtype": cache_dtype,
        "nodes": nodes,
    }
    if any(value is not None for value in traffic.values()):
        machine |= traffic | {"burst": burst, "shortest": shortest, "requests": requests}
        times = api.predict_serving(model, layout, load, **machine, **steps)
        print_times(times, output_format, inputs=inputs)
        return
    _refuse(details, "a server; say --concurrency, --rate or --trace")
    if any(steps.values()):
        raise UserError(
            "--speculate, --prefill-layout: their times are those of a server; say --concurrency, "
            "--rate or --trace, or leave --accelerator out"
        )
    batch = api.predict_latency(model, layout, load, **machine)
    print_times(batch, output_format, inputs=inputs)


def _refuse(given: dict[str, Any], about: str) -> None:
    for name, value in given.items():
        if value is not None:
            said = "" if value is True else f" {value}"
            raise UserError(f"--{name.replace('_', '-')}{said}: is about {about}")


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
