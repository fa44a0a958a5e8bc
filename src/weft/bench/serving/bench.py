"""A load on an OpenAI-compatible server: what is asked, when, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from weft.errors import UserError

if TYPE_CHECKING:
    from weft.bench.serving.figures import ServiceLimits
    from weft.bench.serving.payloads import Target
    from weft.bench.serving.records import RequestSpec
    from weft.bench.serving.result import ServeResult
    from weft.bench.serving.runner import Load, Snapshot
    from weft.bench.serving.sweep import Sweep, SweepPoint

NUM_REQUESTS: Final = 200
OUTPUT_TOKENS: Final = 128


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """How a server is asked, what is sent and when; checked before anything is sent.

    Example::

        result = weft.ServeBench(url="http://127.0.0.1:8000", concurrency=8).run()
    """

    url: Annotated[str, "Where the server listens, e.g. http://127.0.0.1:8000."]
    model: Annotated[str, "Model name [the server's first]."] = ""
    api: Annotated[str, "completions or chat."] = "completions"
    token_ids_below: Annotated[
        int | None, "Send prompts as random token ids below this: exact lengths."
    ] = None
    temperature: Annotated[float | None, "0 is greedy [the server's default, 1]."] = None
    ignore_eos: Annotated[bool, "Ask for full-length answers.", "--stop-at-eos"] = True
    extra_body: Annotated[str | None, "JSON object merged into every request."] = None
    api_key: Annotated[str | None, "Sent as a bearer token.", "OPENAI_API_KEY"] = None
    concurrency: Annotated[
        int | None, "Closed loop: requests open at once; with --rate: at most."
    ] = None
    rate: Annotated[float | None, "Open loop: mean requests per second."] = None
    burstiness: Annotated[float, "Shape of the gaps: 1 Poisson, less burstier, more steadier."] = (
        1.0
    )
    trace: Annotated[Path | None, "Replay: Mooncake JSONL, Azure CSV or BurstGPT CSV."] = None
    trace_speed: Annotated[float, "Replay this many times as fast."] = 1.0
    prompts: Annotated[Path | None, "Prompts of a file: ShareGPT JSON, or JSON lines."] = None
    num_requests: Annotated[int | None, f"Requests to send [{NUM_REQUESTS}; a trace: all]."] = None
    duration: Annotated[float | None, "Stop sending after this (s)."] = None
    prompt_tokens: Annotated[int, "Prompt length."] = 128
    output_tokens: Annotated[
        int | None, f"Tokens to generate [{OUTPUT_TOKENS}; --prompts: the file's]."
    ] = None
    timeout: Annotated[float, "Longest wait for one answer (s)."] = 600.0
    warm_up: Annotated[int, "Requests before the measured ones."] = 10
    goodput: Annotated[str | None, "Limits in ms, e.g. ttft:200,tpot:50,e2e:2000."] = None
    seed: Annotated[int, "Of prompts and arrivals."] = 0

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise UserError(f"`warm_up` {self.warm_up}: must not be negative")
        if self.num_requests is not None and self.num_requests < 1:
            raise UserError(f"`num_requests` {self.num_requests}: must be at least 1")
        for first, second, why in (
            ("rate", "trace", "a trace has its own times"),
            ("prompts", "trace", "a trace has its own lengths"),
            ("prompts", "token_ids_below", "a file has texts"),
        ):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise UserError(f"`{first}` and `{second}` exclude each other: {why}")

    def run(
        self,
        *,
        profile: bool = False,
        on_progress: Callable[[Snapshot], None] | None = None,
    ) -> ServeResult:
        """Send the load and measure the answers.

        profile: time the collectives of the server meanwhile. Raises UserError for a load that
        cannot be, EnvironmentUnavailable where the server does not answer.
        """
        from weft.bench.serving.result import ServeResult
        from weft.bench.serving.session import benchmark, run_event_loop

        limits, target, load = self.limits, self.target(), self.load()
        target, outcome, profiled = run_event_loop(
            benchmark(
                target, load, num_warm_up=self.warm_up, profile=profile, on_progress=on_progress
            )
        )
        return ServeResult(
            target=target,
            load=load,
            outcome=outcome,
            limits=limits,
            settings=self.settings(),
            profile=profiled,
        )

    def sweep(
        self, over: str = "rate", *, on_point: Callable[[SweepPoint], object] | None = None
    ) -> Sweep:
        """The highest ``rate`` or ``concurrency`` within ``goodput``, or loads: ``rate=1,2,4``.

        It starts from the load given, or from one open request's.
        """
        from weft.bench.serving.sweep import Sweep, SweepPoint, parse_sweep

        kind, loads = parse_sweep(over)
        limits = self.limits
        if not limits.given:
            raise UserError("`sweep`: needs `goodput`, the limits that are to hold")
        if self.trace is not None:
            raise UserError("`sweep`: excludes `trace`, which is one load")

        def measure(load: float, kind: str = kind) -> SweepPoint:
            how = {"rate": load} if kind == "rate" else {"rate": None, "concurrency": int(load)}
            return SweepPoint(load=load, result=replace(self, **how).run().to_dict())

        for check in (self.target, replace(self, concurrency=1, rate=None).load):
            check()
        given = {name: value for name, value in asdict(limits).items() if value is not None}
        found = Sweep(kind=kind, loads=loads, measure=measure, limits_ms=given)
        start = getattr(self, kind) or (1.0 if kind == "concurrency" else 0.0)
        if not (start or loads):
            few = min(10, self.num_requests or 10)
            alone = replace(self, num_requests=few, concurrency=1, rate=None)
            first = SweepPoint(load=1.0, result=alone.run().to_dict())
            start = first.result["throughput"]["requests_per_s"] or 1.0
            if not first.holds:
                found.points.append(replace(first, load=start))
        for point in () if found.points else found.run(start):
            if on_point is not None:
                on_point(point)
        return found

    @property
    def limits(self) -> ServiceLimits:
        from weft.bench.serving.figures import ServiceLimits, parse_limits

        return ServiceLimits() if self.goodput is None else parse_limits(self.goodput)

    def target(self) -> Target:
        """How the server is asked."""
        from weft.bench.serving.http_client import parse_url
        from weft.bench.serving.payloads import Api, Target

        if self.api not in set(Api):
            raise UserError(f"`api` {self.api}: choose completions or chat")
        below = self.token_ids_below
        if below is not None and (self.api == Api.CHAT or below < 1):
            raise UserError(f"`token_ids_below` {below}: needs `api` completions and at least 1")
        return Target(
            endpoint=parse_url(self.url),
            model=self.model,
            api=Api(self.api),
            api_key=self.api_key or None,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            token_ids_below=below,
            extra_body=_object(self.extra_body),
            seed=self.seed,
        )

    def load(self) -> Load:
        """The requests with their times."""
        from weft.bench.serving.arrivals import at_random
        from weft.bench.serving.runner import Load

        if self.rate is None and self.trace is None and self.concurrency is None:
            raise UserError("say how to load: `concurrency` N, `rate` R, `trace` FILE or `sweep`")
        specs = self._specs()
        if self.rate is not None:
            specs = at_random(specs, self.rate, self.burstiness, self.seed)
        return Load(
            specs=specs,
            concurrency=self.concurrency,
            duration_s=self.duration,
            timeout_s=self.timeout,
        )

    def _specs(self) -> list[RequestSpec]:
        from weft.bench.serving.arrivals import replayed, synthetic
        from weft.bench.serving.prompt_files import read_prompts
        from weft.bench.serving.trace_files import read_trace

        if self.trace is not None:
            return replayed(read_trace(self.trace), self.trace_speed, self.num_requests)
        count = self.num_requests or NUM_REQUESTS
        if self.prompts is not None:
            return read_prompts(self.prompts, self.output_tokens, count, self.seed)
        tokens = OUTPUT_TOKENS if self.output_tokens is None else self.output_tokens
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
            "output_tokens": None if is_file else self.output_tokens or OUTPUT_TOKENS,
            "duration_s": self.duration,
            "warm_up": self.warm_up,
            "seed": self.seed,
        }


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"`extra_body` {text}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"`extra_body` {text}: write a JSON object")
    return value
