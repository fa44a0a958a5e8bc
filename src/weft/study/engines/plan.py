"""What a study of engines runs: the cases, their loads and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from weft.bench.serving.figures import ServiceLimits
from weft.closed_form.schedule import closed_form
from weft.errors import UserError, WorkloadError
from weft.study.engines.model_folder import check_files
from weft.study.engines.table import EngineRow, check_command, check_layout, engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload, workload_named

SHARES: Final = (0.5, 0.8)
"""Rates of the open loop, as shares of what the closed loop reached."""
_AT_MOST: Final = 4
"""Requests of a load for each open one."""


_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*")
"""Of a workload: it is part of file names."""


@dataclass(frozen=True, kw_only=True)
class EngineCase:
    """One engine on one layout under one workload."""

    engine: EngineRow
    layout: Layout
    workload: str

    @property
    def name(self) -> str:
        return f"{self.engine.name}-{self.layout.name}-{self.workload}"


@dataclass(frozen=True, kw_only=True)
class EnginesPlan:
    """The whole study.

    commands, pythons: by engine's name, instead of the table's and this interpreter; urls: running
    servers by (engine, layout); concurrency, rates: None for one request alone and the workload's
    batch, and for SHARES of the rate that the latter reached. sweep: rates to the knee instead. seconds: of one load, after which
    nothing more is sent. weights: auto or dummy.
    """

    model: str
    engines: tuple[EngineRow, ...]
    layouts: tuple[Layout, ...]
    workloads: dict[str, Workload]
    commands: dict[str, str] = field(default_factory=dict)
    pythons: dict[str, str] = field(default_factory=dict)
    urls: dict[tuple[str, str], str] = field(default_factory=dict)
    concurrency: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    num_requests: int = 32
    seconds: float = 30.0
    profiled_requests: int = 2
    profiled_tokens: int = 16
    sweep: bool = False
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    weights: str = "auto"
    device: str = "auto"
    ready_s: float = 600.0
    answer_s: float = 300.0
    time_limit_s: float | None = None

    def check(self) -> None:
        """Raise UserError before anything is started."""
        for name, command in self.commands.items():
            check_command(engine_named(name).name, command)
        spec = load_spec(self.model)
        for case in self.cases():
            closed_form(spec, case.layout, self.workloads[case.workload], case.engine.schedule)
            self._check_can_start(case)
        for name in self.pythons:
            engine_named(name)
        check_files(self.model)
        places = {(case.engine.name, case.layout.name) for case in self.cases()}
        for engine, layout in self.urls:
            if (engine, layout) not in places:
                raise UserError(
                    f"`url` {engine}:{layout}: is none of the engines and layouts asked for"
                )
        self._check_numbers()
        if self.sweep and not self.limits.given:
            raise UserError("`sweep`: needs `goodput`, the limits that are to hold")
        if self.weights not in ("auto", "dummy"):
            raise UserError(f"`weights` {self.weights}: choose auto or dummy")

    def _check_can_start(self, case: EngineCase) -> None:
        engine, layout = case.engine.name, case.layout.name
        if not (self.command(case.engine) or (engine, layout) in self.urls):
            raise UserError(
                f"`engines` {engine}: weft does not start it; give `url` {engine}:{layout}="
                "http://HOST:PORT of a running server or its `engine_command`"
            )
        if (engine, layout) not in self.urls:
            check_layout(engine, self.command(case.engine), case.layout)

    def _check_numbers(self) -> None:
        for name, limit in (
            ("seconds", self.seconds),
            ("ready", self.ready_s),
            ("time_limit", self.time_limit_s),
        ):
            if limit is not None and not 0 < limit < math.inf:
                raise UserError(f"`{name}` {limit:g}: must be above 0 seconds")
        for name, value, least in (
            ("requests", self.num_requests, 1),
            ("profile_requests", self.profiled_requests, 0),
            ("profile_tokens", self.profiled_tokens, 2),
        ):
            if value < least:
                raise WorkloadError(f"`{name}` {value}: must be at least {least}")

    def command(self, engine: EngineRow) -> str:
        return self.commands.get(engine.name, engine.command)

    def cases(self) -> Iterator[EngineCase]:
        """Engine by engine and layout by layout, so that one server runs all its workloads."""
        for engine in self.engines:
            for layout in self.layouts:
                for workload in self.workloads:
                    yield EngineCase(engine=engine, layout=layout, workload=workload)

    def loops(self, workload: Workload) -> tuple[int, ...]:
        """Open requests of each closed loop."""
        return self.concurrency or tuple(sorted({1, workload.batch}))

    def requests_of(self, open_requests: int | None) -> int:
        """Requests that a load of so many open ones (None: by rate) sends at most."""
        return min(self.num_requests, _AT_MOST * (open_requests or self.num_requests))

    def settings(self, case: EngineCase) -> dict[str, Any]:
        """What a finished case must have been run with to be kept."""
        return {
            "model": self.model,
            "command": self.command(case.engine),
            "url": self.urls.get((case.engine.name, case.layout.name)),
            "layout": case.layout.name,
            "workload": asdict(self.workloads[case.workload]),
            "concurrency": list(self.concurrency or ()),
            "rates": list(self.rates or ()) if self.rates is not None else None,
            "requests": self.num_requests,
            "seconds": self.seconds,
            "sweep": asdict(self.limits) if self.sweep else None,
            "profile": [self.profiled_requests, self.profiled_tokens],
            "weights": self.weights,
            "device": self.device,
        }

    @property
    def length(self) -> int:
        """The most positions that a request needs."""
        return max(w.prompt_tokens + w.decode_tokens for w in self.workloads.values()) + 16


def parse_workloads(text: str) -> dict[str, Workload]:
    """``prefill-heavy,chat=512/64/8``: names, or names with PROMPT/DECODE/BATCH of their own."""
    found: dict[str, Workload] = {}
    for part in text.split(","):
        name, given, sizes = part.strip().partition("=")
        found[name] = _sized(name, sizes) if given else workload_named(name)
    return found


def _sized(name: str, sizes: str) -> Workload:
    parts = sizes.split("/")
    if not _NAME.fullmatch(name) or len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise WorkloadError(
            f"`workloads` {name}={sizes}: write NAME=PROMPT/DECODE/BATCH, e.g. chat=512/64/8"
        )
    prompt, decode, batch = map(int, parts)
    return Workload(prompt_tokens=prompt, decode_tokens=decode, batch=batch)


def parse_engines(text: str) -> tuple[EngineRow, ...]:
    """Rows of the table by their names, in this order."""
    return tuple(engine_named(name.strip()) for name in dict.fromkeys(text.split(",")))


def parse_pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` each; UserError names the option."""
    found = {}
    for text in texts or ():
        name, given, value = text.partition("=")
        if not (name and given and value):
            raise UserError(f"`{option}` {text}: write it as NAME=VALUE")
        found[name.strip()] = value
    return found


def parse_urls(texts: list[str] | None) -> dict[tuple[str, str], str]:
    """``ENGINE:LAYOUT=URL`` each."""
    from weft.bench.serving.http_client import parse_url

    found = {}
    for place, url in parse_pairs("url", texts).items():
        engine, colon, layout = place.partition(":")
        if not colon:
            raise UserError(f"`url` {place}={url}: write ENGINE:LAYOUT=URL, e.g. vllm:tp2={url}")
        parse_url(url)
        found[engine_named(engine).name, Layout.parse(layout).name] = url.rstrip("/")
    return found
