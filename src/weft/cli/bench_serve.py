"""``weft bench serve``: load any OpenAI-compatible server and measure its service levels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.errors import EnvironmentUnavailable, UserError

if TYPE_CHECKING:
    from weft.bench.serving.payloads import Target
    from weft.bench.serving.records import RequestSpec
    from weft.bench.serving.runner import Load, RunOutcome, Snapshot

DEFAULT_REQUESTS = 200


def bench_serve(
    url: Annotated[str, typer.Option(help="Where the server listens, e.g. http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="Model name [the server's first].")] = "",
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests open at once; with --rate: at most.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: mean requests per second.")] = None,
    burstiness: Annotated[
        float, typer.Option(help="Shape of the gaps: 1 Poisson, less burstier, more steadier.")
    ] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(help="Replay: Mooncake JSONL, Azure CSV or BurstGPT CSV.")
    ] = None,
    trace_speed: Annotated[float, typer.Option(help="Replay this many times as fast.")] = 1.0,
    num_requests: Annotated[
        int | None, typer.Option(help=f"Requests to send [{DEFAULT_REQUESTS}; a trace: all].")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Stop sending after this (s).")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    token_ids_below: Annotated[
        int | None,
        typer.Option(help="Send prompts as random token ids below this: exact lengths."),
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Requests before the measured ones.")] = 10,
    goodput: Annotated[
        str | None, typer.Option(help="Limits in ms, e.g. ttft:200,tpot:50,e2e:2000.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy [the server's default, 1].")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--stop-at-eos", help="Ask for full-length answers.")
    ] = True,
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object merged into every request.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    timeout: Annotated[float, typer.Option(help="Longest wait for one answer (s).")] = 600.0,
    profile: Annotated[
        bool, typer.Option(help="Profile the server meanwhile: TTFT and TPOT in collectives.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the JSON result here.", callback=check_file)
    ] = None,
    records: Annotated[bool, typer.Option(help="Put every request's chunks in the JSON.")] = False,
    vllm_output: Annotated[
        Path | None, typer.Option(help="Write vLLM's result file here.", callback=check_file)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", callback=check_file)
    ] = None,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Load an OpenAI-compatible server and print TTFT, TPOT, ITL and E2E by definition.

    Example: weft bench serve --url http://127.0.0.1:8000 --rate 4 --num-requests 400
    """
    from weft.bench.serving.figures import ServiceLimits, parse_limits

    limits = ServiceLimits() if goodput is None else parse_limits(goodput)
    if trace is not None and rate is not None:
        raise UserError("--rate and --trace exclude each other: a trace has its own times")
    specs = _specs(trace, trace_speed, num_requests, prompt_tokens, output_tokens)
    specs = _timed(specs, trace, rate, burstiness, concurrency, seed)
    target = _target(
        url, model, api, api_key, temperature, ignore_eos, token_ids_below, extra_body, seed
    )
    load = _load(specs, concurrency, duration, timeout)
    if warm_up < 0:
        raise UserError(f"--warm-up {warm_up}: must not be negative")
    target, outcome, profiled = _run(target, load, warm_up, profile)
    settings = {
        "kind": "trace" if trace else "open" if rate else "closed",
        "rate_per_s": rate,
        "burstiness": burstiness if rate else None,
        "concurrency": concurrency,
        "trace": str(trace) if trace else None,
        "trace_speed": trace_speed if trace else None,
        "prompt_tokens": None if trace else prompt_tokens,
        "output_tokens": None if trace else output_tokens,
        "duration_s": duration,
        "warm_up": warm_up,
        "seed": seed,
    }
    from weft.bench.serving.result import to_json

    document = to_json(
        target, load, outcome, limits, settings=settings, with_records=records, profile=profiled
    )
    if output is not None:
        _write(output, document)
    if vllm_output is not None:
        from weft.bench.serving.vllm_format import to_vllm_json

        vllm = to_vllm_json(target, load, outcome, limits, rate_per_s=rate, burstiness=burstiness)
        _write(vllm_output, vllm)
    if report is not None:
        from weft.bench.serving.report import serve_report
        from weft.report import write_report

        write_report(serve_report(document, outcome), report)
    _print(document, output_format)
    if document["requests"]["completed"] == 0:
        error = next(iter(document["requests"]["errors"]), "nothing was sent")
        raise EnvironmentUnavailable(f"no request completed: {error}")


def _specs(
    trace: Path | None,
    speed: float,
    num_requests: int | None,
    prompt_tokens: int,
    output_tokens: int,
) -> list[RequestSpec]:
    from weft.bench.serving.arrivals import replayed, synthetic
    from weft.bench.serving.trace_files import read_trace

    if trace is None:
        count = DEFAULT_REQUESTS if num_requests is None else num_requests
        return synthetic(count, prompt_tokens, output_tokens)
    if num_requests is not None and num_requests < 1:
        raise UserError(f"--num-requests {num_requests}: must be at least 1")
    return replayed(read_trace(trace), speed, num_requests)


def _timed(
    specs: list[RequestSpec],
    trace: Path | None,
    rate: float | None,
    burstiness: float,
    concurrency: int | None,
    seed: int,
) -> list[RequestSpec]:
    if trace is None and rate is None and concurrency is None:
        raise UserError("say how to load: --concurrency N, --rate R or --trace FILE")
    if rate is None:
        return specs
    from weft.bench.serving.arrivals import at_random

    return at_random(specs, rate, burstiness, seed)


def _target(
    url: str,
    model: str,
    api: str,
    api_key: str | None,
    temperature: float | None,
    ignore_eos: bool,
    token_ids_below: int | None,
    extra_body: str | None,
    seed: int,
) -> Target:
    from weft.bench.serving.http_client import parse_url
    from weft.bench.serving.payloads import Api, Target

    if api not in set(Api):
        raise UserError(f"--api {api}: choose completions or chat")
    if token_ids_below is not None and (api == Api.CHAT or token_ids_below < 1):
        raise UserError(
            f"--token-ids-below {token_ids_below}: needs --api completions and at least 1"
        )
    return Target(
        endpoint=parse_url(url),
        model=model,
        api=Api(api),
        api_key=api_key or None,
        temperature=temperature,
        ignore_eos=ignore_eos,
        token_ids_below=token_ids_below,
        extra_body=_object(extra_body),
        seed=seed,
    )


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--extra-body {text}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"--extra-body {text}: write a JSON object")
    return value


def _load(
    specs: list[RequestSpec], concurrency: int | None, duration: float | None, timeout: float
) -> Load:
    from weft.bench.serving.runner import Load

    return Load(specs=specs, concurrency=concurrency, duration_s=duration, timeout_s=timeout)


def _run(
    target: Target, load: Load, num_warm_up: int, profile: bool
) -> tuple[Target, RunOutcome, dict[str, Any] | None]:
    from weft.bench.serving.session import benchmark, run_event_loop

    result: tuple[Target, RunOutcome, dict[str, Any] | None] = run_event_loop(
        benchmark(target, load, num_warm_up=num_warm_up, profile=profile, on_progress=_progress())
    )
    return result


def _progress() -> Callable[[Snapshot], None] | None:
    """A line on stderr: cheap, because drawing it delays the requests."""
    if not sys.stderr.isatty():
        return None

    def show(now: Snapshot) -> None:
        rate = now.finished / now.elapsed_s if now.elapsed_s > 0 else 0.0
        end = "\n" if now.running == 0 and now.finished == now.offered else ""
        print(
            f"\r{now.elapsed_s:6.1f} s  {now.finished:,}/{now.total:,} done  {now.running} open  "
            f"{now.failed} failed  {rate:,.1f} requests/s ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return show


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


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
