"""``weft bench serve``: load any OpenAI-compatible server and measure its service levels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.bench.serving.bench import ServeBench
from weft.cli.options import Format
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.errors import EnvironmentUnavailable, UserError
from weft.vocabulary.files import write_file

if TYPE_CHECKING:
    from weft.bench.serving.result import ServeResult
    from weft.bench.serving.runner import Snapshot
    from weft.bench.serving.sweep import SweepPoint


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What becomes of the results."""

    output: Annotated[
        Path | None, typer.Option(help="Write the JSON result here.", callback=check_file)
    ] = None
    records: Annotated[bool, "Put every request's chunks in the JSON."] = False
    vllm_output: Annotated[
        Path | None, typer.Option(help="Write vLLM's result file here.", callback=check_file)
    ] = None
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", callback=check_file)
    ] = None
    output_format: Format = OutputFormat.TABLE


def bench_serve(
    *,
    bench: ServeBench,
    sweep: Annotated[
        str | None,
        "Find the highest rate or concurrency within --goodput; or rate=1,2,4.",
    ] = None,
    profile: Annotated[bool, "Profile the server meanwhile: TTFT and TPOT in collectives."] = False,
    kept: ResultOptions,
) -> None:
    """Load an OpenAI-compatible server and print TTFT, TPOT, ITL and E2E by definition.

    Example: weft bench serve --url http://127.0.0.1:8000 --rate 4 --num-requests 400
    """
    if sweep is not None:
        _sweep(bench, sweep, kept)
        return
    result = bench.run(profile=profile, on_progress=_show if sys.stderr.isatty() else None)
    document = result.to_dict(with_records=kept.records)
    _keep(result, document, kept, bench)
    _print(document, kept.output_format)
    if document["requests"]["completed"] == 0:
        error = next(iter(document["requests"]["errors"]), "nothing was sent")
        raise EnvironmentUnavailable(f"no request completed: {error}")


def _keep(
    result: ServeResult, document: dict[str, Any], kept: ResultOptions, bench: ServeBench
) -> None:
    """The files that were asked for."""
    if kept.output is not None:
        write_file(kept.output, document)
    if kept.vllm_output is not None:
        from weft.bench.serving.vllm_format import to_vllm_json

        vllm = to_vllm_json(
            result.target,
            result.load,
            result.outcome,
            result.limits,
            rate_per_s=bench.rate,
            burstiness=bench.burstiness,
        )
        write_file(kept.vllm_output, vllm)
    if kept.report is not None:
        from weft.bench.serving.report import serve_report
        from weft.report import write_report

        write_report(serve_report(document, result.outcome), kept.report)


def _sweep(bench: ServeBench, over: str, kept: ResultOptions) -> None:
    from weft import report
    from weft.report.sweep_section import sweep_rows, sweep_summary

    if kept.vllm_output is not None:
        raise UserError("--sweep: excludes --vllm-output, which is of one load")

    def tell(point: SweepPoint) -> None:
        share = point.goodput["share"] or 0
        _tell(f"{over} {point.load:.4g}: {share:.1%} within the limits")

    found = bench.sweep(over, on_point=tell)
    document = found.to_dict()
    node = report.document(document, "sweep")
    if kept.output is not None:
        write_file(kept.output, document)
    if kept.report is not None:
        report.write_report(report.report_of([node]), kept.report)
    print_rows(sweep_rows(node), kept.output_format, document=document)
    if kept.output_format is OutputFormat.TABLE:
        print(sweep_summary(node))
    if found.knee is None:
        _tell("no load held the limits")


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _show(now: Snapshot) -> None:
    """A line on stderr: cheap, because drawing it delays the requests."""
    rate = now.finished / now.elapsed_s if now.elapsed_s > 0 else 0.0
    end = "\n" if now.running == 0 and now.finished == now.offered else ""
    print(
        f"\r{now.elapsed_s:6.1f} s  {now.finished:,}/{now.total:,} done  {now.running} open  "
        f"{now.failed} failed  {rate:,.1f} requests/s ",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def _print(result: dict[str, Any], output_format: OutputFormat) -> None:
    from weft.report import document
    from weft.report.serving_section import (
        communication_rows,
        figure_rows,
        goodput_rows,
        lag_verdict,
    )

    bench = document(result, "result")
    print_rows(figure_rows(bench), output_format, document=result)
    if output_format is not OutputFormat.TABLE:
        return
    good = goodput_rows(bench)
    if good:
        print_rows(good, output_format, title="goodput")
    inside = communication_rows(bench)
    if inside:
        print_rows(inside, output_format, title="inside collectives")
    requests, throughput = result["requests"], result["throughput"]
    print(
        f"{requests['completed']} of {requests['offered']} requests completed, "
        f"{requests['failed']} failed; {throughput['requests_per_s']:,.2f} requests/s, "
        f"{throughput['output_tokens_per_s']:,.1f} output tokens/s"
    )
    for error, count in requests["errors"].items():
        print(f"failed {count}: {error}")
    print(lag_verdict(bench.child("client")))
