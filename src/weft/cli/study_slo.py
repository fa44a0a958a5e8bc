"""``weft study slo``: service levels of layouts and servers, measured beside predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.errors import CheckFailed, UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload


def study_slo(
    model: Annotated[str, typer.Option(help="Built-in name, directory or hub id.")] = "embedded",
    layouts: Annotated[
        str, typer.Option(help="Layouts that weft serves in turn; empty for none.")
    ] = "1,tp2",
    url: Annotated[
        list[str] | None, typer.Option(help="A running server to measure too; may be repeated.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    num_requests: Annotated[int, typer.Option(help="Requests to each server.")] = 50,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop [1 without --rate].")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second.")] = None,
    goodput: Annotated[
        str | None, typer.Option(help="Limits in ms, e.g. ttft:200,tpot:50.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Predict for this device: a built-in name or a file.")
    ] = None,
    fabric: Annotated[str | None, typer.Option(help="Links under it [the usual ones].")] = None,
    weights: Annotated[str, typer.Option(help="auto or dummy.")] = "auto",
    device: ranks.Device = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Write the JSON here.", callback=check_file)
    ] = None,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Serve each layout, load it alike, and print TTFT, TPOT and E2E with their communication.

    Example: weft study slo --layouts 1,tp2,pp2,tp2xpp2 --rate 2 --goodput ttft:500,tpot:100
    """
    from weft.bench.serving.figures import ServiceLimits, parse_limits
    from weft.bench.serving.http_client import parse_url
    from weft.bench.serving.slo_study import SloPlan, run_study, table
    from weft.engine.config import EngineConfig
    from weft.prediction.machines import machine_named

    spec = load_spec(model)
    chosen = [Layout.parse(name.strip()) for name in layouts.split(",") if name.strip()]
    if not chosen and not url:
        raise UserError("--layouts is empty and no --url is given: name at least one server")
    for layout in chosen:
        layout.check_model(spec)
    plan = SloPlan(
        model=model,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        num_requests=num_requests,
        concurrency=1 if concurrency is None and rate is None else concurrency,
        rate_per_s=rate,
        limits=ServiceLimits() if goodput is None else parse_limits(goodput),
        vocab_size=spec.vocab_size,
        device=device,
        weights=weights,
    )
    plan.load()
    EngineConfig(weights=weights)  # type: ignore[arg-type]  # it checks
    for address in url or []:
        parse_url(address)
    predict = None
    if fabric is not None and accelerator is None:
        raise UserError(f"--fabric {fabric}: is about predictions; name a device (--accelerator)")
    if accelerator is not None:
        machine_named("weft", accelerator, fabric)
        load = Workload(
            prompt_tokens=prompt_tokens, decode_tokens=output_tokens, batch=plan.concurrency or 1
        )

        def predict(layout: Layout) -> dict[str, Any]:
            return _predicted(model, layout, load, accelerator, fabric)

    document = run_study(plan, chosen, url or [], predict)
    if output is not None:
        output.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print_rows(table(document), output_format, document=document)
    failed = sum(row["result"]["requests"]["failed"] for row in document["rows"])
    if failed:
        raise CheckFailed(f"{failed} requests failed")


def _predicted(
    model: str, layout: Layout, load: Workload, accelerator: str, fabric: str | None
) -> dict[str, Any]:
    """Median times by the time model of ``weft predict``."""
    from weft.prediction.latency import predict_latency
    from weft.prediction.machines import machine_named

    machine = machine_named("weft", accelerator, fabric)
    prediction = predict_latency(load_spec(model), layout, load, machine)
    names = ("ttft_ms", "tpot_ms", "e2e_ms")
    return {name: getattr(prediction, name).value for name in names}
