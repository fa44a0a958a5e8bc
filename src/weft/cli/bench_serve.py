"""``weft bench serve``: load any OpenAI-compatible server and measure its service levels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, check_file, print_rows, write_text
from weft.errors import EnvironmentUnavailable, UserError

if TYPE_CHECKING:
    from weft.bench.serving.figures import ServiceLimits
    from weft.bench.serving.payloads import Target
    from weft.bench.serving.records import RequestSpec
    from weft.bench.serving.runner import Load, RunOutcome, Snapshot
    from weft.bench.serving.sweep import Sweep

DEFAULT_REQUESTS = 200
DEFAULT_OUTPUT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The server and how it is asked."""

    url: Annotated[str, typer.Option(help="Where the server listens, e.g. http://127.0.0.1:8000.")]
    model: Annotated[str, typer.Option(help="Model name [the server's first].")] = ""
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions"
    token_ids_below: Annotated[
        int | None,
        typer.Option(help="Send prompts as random token ids below this: exact lengths."),
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy [the server's default, 1].")
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--stop-at-eos", help="Ask for full-length answers.")
    ] = True
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object merged into every request.")
    ] = None
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None

    def target(self, seed: int) -> Target:
        """Checked; prompts are made from ``seed``."""
        from weft.bench.serving.http_client import parse_url
        from weft.bench.serving.payloads import Api, Target

        if self.api not in set(Api):
            raise UserError(f"--api {self.api}: choose completions or chat")
        below = self.token_ids_below
        if below is not None and (self.api == Api.CHAT or below < 1):
            raise UserError(f"--token-ids-below {below}: needs --api completions and at least 1")
        return Target(
            endpoint=parse_url(self.url),
            model=self.model,
            api=Api(self.api),
            api_key=self.api_key or None,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            token_ids_below=below,
            extra_body=_object(self.extra_body),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is sent, and when."""

    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests open at once; with --rate: at most.")
    ] = None
    rate: Annotated[float | None, typer.Option(help="Open loop: mean requests per second.")] = None
    burstiness: Annotated[
        float, typer.Option(help="Shape of the gaps: 1 Poisson, less burstier, more steadier.")
    ] = 1.0
    trace: Annotated[
        Path | None, typer.Option(help="Replay: Mooncake JSONL, Azure CSV or BurstGPT CSV.")
    ] = None
    trace_speed: Annotated[float, typer.Option(help="Replay this many times as fast.")] = 1.0
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts of a file: ShareGPT JSON, or JSON lines.")
    ] = None
    num_requests: Annotated[
        int | None, typer.Option(help=f"Requests to send [{DEFAULT_REQUESTS}; a trace: all].")
    ] = None
    duration: Annotated[float | None, typer.Option(help="Stop sending after this (s).")] = None
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length.")] = 128
    output_tokens: Annotated[
        int | None,
        typer.Option(help=f"Tokens to generate [{DEFAULT_OUTPUT_TOKENS}; --prompts: the file's]."),
    ] = None
    timeout: Annotated[float, typer.Option(help="Longest wait for one answer (s).")] = 600.0

    def load(self, seed: int) -> Load:
        """The requests with their times, or a one-line UserError."""
        from weft.bench.serving.arrivals import at_random
        from weft.bench.serving.runner import Load

        given = [name for name in ("rate", "trace") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError("--rate and --trace exclude each other: a trace has its own times")
        if self.trace is not None and self.prompts is not None:
            raise UserError("--prompts and --trace exclude each other: a trace has its own lengths")
        if not given and self.concurrency is None:
            raise UserError("say how to load: --concurrency N, --rate R, --trace FILE or --sweep")
        specs = self._specs(seed)
        if self.rate is not None:
            specs = at_random(specs, self.rate, self.burstiness, seed)
        return Load(
            specs=specs,
            concurrency=self.concurrency,
            duration_s=self.duration,
            timeout_s=self.timeout,
        )

    def _specs(self, seed: int) -> list[RequestSpec]:
        from weft.bench.serving.arrivals import replayed, synthetic
        from weft.bench.serving.prompt_files import read_prompts
        from weft.bench.serving.trace_files import read_trace

        count = self.num_requests
        if count is not None and count < 1:
            raise UserError(f"--num-requests {count}: must be at least 1")
        if self.trace is not None:
            return replayed(read_trace(self.trace), self.trace_speed, count)
        count = DEFAULT_REQUESTS if count is None else count
        if self.prompts is not None:
            return read_prompts(self.prompts, self.output_tokens, count, seed)
        tokens = DEFAULT_OUTPUT_TOKENS if self.output_tokens is None else self.output_tokens
        return synthetic(count, self.prompt_tokens, tokens)

    def settings(self) -> dict[str, Any]:
        """As results tell them."""
        is_file = self.trace is not None or self.prompts is not None
        return {
            "kind": "trace" if self.trace else "open" if self.rate else "closed",
            "rate_per_s": self.rate,
            "burstiness": self.burstiness if self.rate else None,
            "concurrency": self.concurrency,
            "trace": str(self.trace) if self.trace else None,
            "trace_speed": self.trace_speed if self.trace else None,
            "prompts": str(self.prompts) if self.prompts else None,
            "prompt_tokens": None if is_file else self.prompt_tokens,
            "output_tokens": None if is_file else self.output_tokens or DEFAULT_OUTPUT_TOKENS,
            "duration_s": self.duration,
        }


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What becomes of the results."""

    output: Annotated[
        Path | None, typer.Option(help="Write the JSON result here.", callback=check_file)
    ] = None
    records: Annotated[bool, typer.Option(help="Put every request's chunks in the JSON.")] = False
    vllm_output: Annotated[
        Path | None, typer.Option(help="Write vLLM's result file here.", callback=check_file)
    ] = None
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", callback=check_file)
    ] = None
    output_format: Format = OutputFormat.TABLE


def bench_serve(
    *,
    asked: TargetOptions,
    sent: LoadOptions,
    sweep: Annotated[
        str | None,
        typer.Option(help="Find the highest rate or concurrency within --goodput; or rate=1,2,4."),
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Requests before the measured ones.")] = 10,
    goodput: Annotated[
        str | None, typer.Option(help="Limits in ms, e.g. ttft:200,tpot:50,e2e:2000.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    profile: Annotated[
        bool, typer.Option(help="Profile the server meanwhile: TTFT and TPOT in collectives.")
    ] = False,
    kept: ResultOptions,
) -> None:
    """Load an OpenAI-compatible server and print TTFT, TPOT, ITL and E2E by definition.

    Example: weft bench serve --url http://127.0.0.1:8000 --rate 4 --num-requests 400
    """
    from weft.bench.serving.figures import ServiceLimits, parse_limits

    limits = ServiceLimits() if goodput is None else parse_limits(goodput)
    if warm_up < 0:
        raise UserError(f"--warm-up {warm_up}: must not be negative")
    target = asked.target(seed)
    if sent.prompts is not None and asked.token_ids_below is not None:
        raise UserError("--prompts and --token-ids-below exclude each other: a file has texts")
    if sweep is not None:
        _sweep(sweep, target, sent, limits, kept, warm_up, seed)
        return
    load = sent.load(seed)
    target, outcome, profiled = _run(target, load, warm_up, profile)
    from weft.bench.serving.result import to_json

    document = to_json(
        target,
        load,
        outcome,
        limits,
        settings=sent.settings() | {"warm_up": warm_up, "seed": seed},
        with_records=kept.records,
        profile=profiled,
    )
    _keep(document, kept, target, load, outcome, limits, sent)
    _print(document, kept.output_format)
    if document["requests"]["completed"] == 0:
        error = next(iter(document["requests"]["errors"]), "nothing was sent")
        raise EnvironmentUnavailable(f"no request completed: {error}")


def _keep(
    document: dict[str, Any],
    kept: ResultOptions,
    target: Target,
    load: Load,
    outcome: RunOutcome,
    limits: ServiceLimits,
    sent: LoadOptions,
) -> None:
    """The files that were asked for."""
    if kept.output is not None:
        _write(kept.output, document)
    if kept.vllm_output is not None:
        from weft.bench.serving.vllm_format import to_vllm_json

        vllm = to_vllm_json(
            target, load, outcome, limits, rate_per_s=sent.rate, burstiness=sent.burstiness
        )
        _write(kept.vllm_output, vllm)
    if kept.report is not None:
        from weft.bench.serving.report import serve_report
        from weft.report import write_report

        write_report(serve_report(document, outcome), kept.report)


def _sweep(
    text: str,
    target: Target,
    sent: LoadOptions,
    limits: ServiceLimits,
    kept: ResultOptions,
    warm_up: int,
    seed: int,
) -> None:
    """Loads from the one given, or from one open request's, to the knee."""
    from dataclasses import asdict

    from weft.bench.serving.sweep import Sweep, parse_sweep

    kind, loads = parse_sweep(text)
    if not limits.given:
        raise UserError("--sweep: needs --goodput, the limits that are to hold")
    if sent.trace is not None or kept.vllm_output is not None:
        raise UserError("--sweep: excludes --trace and --vllm-output, which are of one load")
    alone = replace(sent, concurrency=1, rate=None)
    alone.load(seed)
    sweep = Sweep(
        kind=kind, loads=loads, measure=_measure(kind, target, sent, limits, warm_up, seed)
    )
    start = getattr(sent, kind) or (1.0 if kind == "concurrency" else 0.0)
    if not (start or loads):
        few = replace(alone, num_requests=min(10, sent.num_requests or 10))
        first = _measure("concurrency", target, few, limits, warm_up, seed)(1.0)
        start = first.result["throughput"]["requests_per_s"] or 1.0
        if not first.holds:
            sweep.points.append(replace(first, load=start))
    for point in () if sweep.points else sweep.run(start):
        _tell(f"{kind} {point.load:.4g}: {point.goodput['share'] or 0:.1%} within the limits")
    document = sweep.to_dict({k: v for k, v in asdict(limits).items() if v is not None})
    if kept.output is not None:
        _write(kept.output, document)
    if kept.report is not None:
        from weft import report

        report.write_report(report.report_of([report.document(document, "sweep")]), kept.report)
    _print_sweep(document, sweep, kept.output_format)


def _measure(
    kind: str, target: Target, sent: LoadOptions, limits: ServiceLimits, warm_up: int, seed: int
) -> Callable[[float], Any]:
    from weft.bench.serving.result import to_json
    from weft.bench.serving.sweep import SweepPoint

    def measure(load: float) -> SweepPoint:
        how = {"rate": load} if kind == "rate" else {"rate": None, "concurrency": int(load)}
        asked = replace(sent, **how)
        sending = asked.load(seed)
        used, outcome, _ = _run(target, sending, warm_up, profile=False)
        settings = asked.settings() | {"warm_up": warm_up, "seed": seed}
        return SweepPoint(
            load=load, result=to_json(used, sending, outcome, limits, settings=settings)
        )

    return measure


def _print_sweep(document: dict[str, Any], sweep: Sweep, output_format: OutputFormat) -> None:
    from weft.report import document as node
    from weft.report.sweep_section import sweep_rows, sweep_summary

    read = node(document, "sweep")
    print_rows(sweep_rows(read), output_format, document=document)
    if output_format is OutputFormat.TABLE:
        print(sweep_summary(read))
    if sweep.knee is None:
        _tell("no load held the limits")


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


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
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


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
