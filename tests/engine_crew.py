"""Ranks that are started once and play many cases (tests/engine_cases.py)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import torch
from hypothesis import HealthCheck, given, settings

from engine_cases import Alone, Arrival, Case, Outcome, cases, differences, play
from weft.comm.groups import ProcessGroups, open_groups
from weft.engine import failure
from weft.engine.config import EngineConfig
from weft.engine.engine import Engine
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import ModelSource, find_model

LAYOUTS = {"1": Layout(), "tp2": Layout(tp=2), "pp2": Layout(pp=2), "tp2xpp2": Layout(tp=2, pp=2)}
_START_S, _PLAY_S = 200.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The work of ``ranks`` raises at the given call; they are 1, 2, ..."""

    ranks: tuple[int, ...]
    calls: tuple[int, ...]

    def plant(self, engine: Engine) -> None:
        forward, count = engine.runner.forward, itertools.count(1)
        failure._AGREE_S = 2.0  # type: ignore[misc]

        def falls(*arguments: Any, **options: Any) -> Any:
            if next(count) in self.calls:
                raise RuntimeError("planted")
            return forward(*arguments, **options)

        engine.runner.forward = falls  # type: ignore[method-assign]


def open_engine(source: ModelSource, groups: ProcessGroups, config: dict[str, Any]) -> Engine:
    return Engine(source, groups, EngineConfig(**config))


class Crew:
    """One process a rank, or none where the layout has one rank: the cases run here then."""

    def __init__(self, model: str, layout: Layout) -> None:
        self._model, self._layout = model, layout
        self._source = find_model(model)
        self._here: ProcessGroups | None = None
        self._links: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        if self._layout.world_size == 1:
            self._here = open_groups(self._layout)
        else:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._here is not None:
            self._here.close()

    def play(
        self, config: dict[str, Any], arrivals: list[Arrival], fault: Fault | None = None
    ) -> list[Outcome]:
        """The outcomes, which all ranks must agree on; AssertionError for an error or a hang."""
        if self._here is not None:
            return play(open_engine(self._source, self._here, config), arrivals)
        self._send(config, arrivals, fault)
        answers = [self._receive(link, _PLAY_S) for link in self._links]
        if any(isinstance(answer, str) for answer in answers):
            self._end()
            raise AssertionError("\n".join(a for a in answers if isinstance(a, str)))
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    def last_words(self, rank: int, config: dict[str, Any], arrivals: list[Arrival]) -> str:
        """What ends ``rank``, whose work alone fails; then the crew starts afresh."""
        self._send(config, arrivals, Fault(ranks=(rank,), calls=(5,)))
        answer: str = self._receive(self._links[rank], _PLAY_S)
        self._end()
        return answer

    def _send(self, *case: Any) -> None:
        if not self._processes:
            self._start()
        for link in self._links:
            link.send(case)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for rank in range(self._layout.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(self._model, self._layout, rank, port, theirs), daemon=True
            )
            process.start()
            self._links.append(ours)
            self._processes.append(process)
        for link in self._links:
            assert self._receive(link, _START_S) is None

    def _receive(self, link: Connection, wait_s: float) -> Any:
        try:
            return link.recv() if link.poll(wait_s) else f"no answer within {wait_s:g} s"
        except EOFError:
            return "a rank has died"

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._links, self._processes = [], []


def _rank(model: str, layout: Layout, rank: int, port: int, link: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    source = find_model(model)
    groups = open_groups(layout, rank=rank, timeout_s=20)
    link.send(None)
    while True:
        config, arrivals, fault = link.recv()
        try:
            engine = open_engine(source, groups, config)
            if fault is not None and rank in fault.ranks:
                fault.plant(engine)
            link.send(play(engine, arrivals))
        except Exception:
            link.send(f"rank {rank}: {traceback.format_exc()}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def references(model: str) -> dict[str, Alone]:
    """One-by-one engines on one rank, by type."""
    made = {}
    for dtype in ("float32", "float64"):
        config = {"weights": "dummy", "dtype": dtype, "cache_tokens": 64, "prefix_caching": False}
        made[dtype] = Alone(open_engine(find_model(model), open_groups(Layout()), config))
    return made


def check(crew: Crew, alone: dict[str, Alone], case: Case) -> bool:
    """AssertionError where a request is not what it is alone; False for a mere tie.

    What differs in fp32 and not in fp64 is a tie that rounding decides, not a wrong token.
    """
    found: list[str] = []
    for dtype, one in alone.items():
        arrivals = [one.arrival(ask) for ask in case.asks]
        outcomes = crew.play(case.config | {"dtype": dtype}, arrivals)
        is_tie, found = bool(found), differences(case, one, outcomes)
        if not found:
            return not is_tie
    raise AssertionError("\n".join(found))


def check_many(crew: Crew, alone: dict[str, Alone], count: int, **options: Any) -> int:
    """Random cases; a failing one is shrunk and shown. Returns how many were ties."""
    num_ties = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    @given(case=cases())
    def holds(case: Case) -> None:
        nonlocal num_ties
        num_ties += not check(crew, alone, case)

    holds()
    return num_ties
