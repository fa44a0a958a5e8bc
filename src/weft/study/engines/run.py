"""The study: servers one after the other, a file for every finished case, one document of all."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from weft import __version__
from weft.errors import WeftError
from weft.fabric.fingerprint import describe, fingerprint
from weft.study.engines.case import Predict, expected, run_case
from weft.study.engines.model_folder import model_of
from weft.study.engines.plan import EngineCase, EnginesPlan
from weft.study.engines.server import EngineFailed, EngineServer, free_port, started
from weft.study.engines.table import command_line
from weft.vocabulary.files import write_file

SCHEMA: Final = "weft.study.engines/1"
Tell = Callable[[EngineCase, str], None]
Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where a study keeps its cases, traces, logs and results."""

    path: Path

    def case_file(self, case: EngineCase) -> Path:
        return self.path / "cases" / f"{case.name}.json"

    def traces(self, case: EngineCase) -> Path:
        """Of the server of the case: all its workloads leave their traces there in turn."""
        return self._made("traces", f"{case.engine.name}-{case.layout.name}")

    def log(self, case: EngineCase) -> Path:
        return self._made("logs") / f"{case.engine.name}-{case.layout.name}.log"

    def _made(self, *parts: str) -> Path:
        folder = self.path.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def kept(self, plan: EnginesPlan, case: EngineCase) -> Document | None:
        """The finished case, if it was run with these settings."""
        try:
            document: Document = json.loads(self.case_file(case).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = document.get("settings") == plan.settings(case)
        return document if same and document.get("status") == "done" else None

    def keep(self, case: EngineCase, document: Document) -> None:
        self._made("cases")
        write_file(self.case_file(case), document)


def run_engines(
    plan: EnginesPlan, output: Path, *, predict: Predict, tell: Tell
) -> Iterator[Document]:
    """Run every case that is not finished yet; after each, the ``weft.study.engines/1`` so far.

    A case that fails is a row with its reason; nothing is started after the plan's time limit.
    """
    study = _Study(plan, Folder(path=output.resolve()), predict, tell)
    found: list[Document] = []
    order = {case.name: number for number, case in enumerate(plan.cases())}
    with _ending_as_by_ctrl_c():
        for document in study.documents():
            found.append(document)
            found.sort(key=lambda one: order[one["name"]])
            yield {
                "schema": SCHEMA,
                "weft_version": __version__,
                "machine": describe(fingerprint()),
                "model": plan.model,
                "weights": plan.weights,
                "limits_ms": {
                    name: value for name, value in asdict(plan.limits).items() if value is not None
                },
                "cases": found,
            }


@contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM ends the servers too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Study:
    def __init__(
        self,
        plan: EnginesPlan,
        folder: Folder,
        predict: Predict,
        tell: Tell,
    ) -> None:
        limit_s = plan.time_limit_s
        self._plan, self._folder, self._predict, self._tell = plan, folder, predict, tell
        self._deadline = None if limit_s is None else time.monotonic() + limit_s

    def documents(self) -> Iterator[Document]:
        """Every case, server by server."""
        by_server = groupby(self._plan.cases(), key=lambda case: (case.engine.name, case.layout))
        for _, group in by_server:
            yield from self.of_server(list(group))

    def of_server(self, cases: list[EngineCase]) -> Iterator[Document]:
        """The cases of one engine and layout: a server that fails is started anew for the rest."""
        pending = []
        for case in cases:
            if kept := self._folder.kept(self._plan, case):
                self._tell(case, "kept")
                yield kept
            else:
                pending.append(case)
        while pending and not self._is_late():
            for document in self._serve(pending):
                pending.pop(0)
                yield document
        for case in pending:
            yield self._row(case, "left out", "the time limit")

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _serve(self, cases: list[EngineCase]) -> Iterator[Document]:
        """Until the last case or the first failure, which costs one row (all, if it never starts)."""
        left = list(cases)
        try:
            with self._server(cases[0]) as (server, model, ready_s):
                while left and not self._is_late():
                    document = self._run(left.pop(0), server, model, ready_s)
                    yield document
                    if document["status"] == "failed":
                        return
        except WeftError as error:
            yield from (self._finish(case, "failed", str(error)) for case in left)

    @contextmanager
    def _server(self, case: EngineCase) -> Iterator[tuple[EngineServer, str, float]]:
        plan, engine = self._plan, case.engine
        began = time.monotonic()
        model = model_of(plan.model, self._folder.path / "model")
        if url := plan.urls.get((engine.name, case.layout.name)):
            server = EngineServer(url=url)
            server.wait_until_ready(engine.ready, plan.ready_s, self._waiting(case))
            yield server, model, time.monotonic() - began
            return
        port, log = free_port(), self._folder.log(case)
        with started(self._command(case, model, port), port, log, engine.environment) as server:
            server.wait_until_ready(engine.ready, plan.ready_s, self._waiting(case))
            yield server, model, time.monotonic() - began

    def _command(self, case: EngineCase, model: str, port: int) -> list[str]:
        plan, engine = self._plan, case.engine
        return command_line(
            plan.command(engine),
            case.layout,
            python=plan.pythons.get(engine.name, sys.executable),
            model=model,
            port=port,
            weights=engine.dummy if plan.weights == "dummy" else "",
            device=plan.device,
            traces=self._folder.traces(case),
            length=plan.length,
        )

    def _waiting(self, case: EngineCase) -> Callable[[float], None]:
        return lambda seconds: self._tell(case, f"starting, {seconds:.0f} s")

    def _run(self, case: EngineCase, server: EngineServer, model: str, ready_s: float) -> Document:
        try:
            found = run_case(
                self._plan,
                case,
                server,
                model,
                self._folder.traces(case),
                lambda stage: self._tell(case, stage),
            )
        except EngineFailed as error:
            return self._finish(case, "failed", str(error))
        for load in found["loads"]:
            if load["concurrency"]:
                load["predicted"] = self._predicted(case, load["concurrency"])
        return self._finish(case, "done", None, ready_s=ready_s, **found)

    def _finish(self, case: EngineCase, status: str, reason: str | None, **found: Any) -> Document:
        document = self._row(case, status, reason, **found)
        self._folder.keep(case, document)
        self._tell(case, status if reason is None else f"{status}: {reason}")
        return document

    def _row(self, case: EngineCase, status: str, reason: str | None, **found: Any) -> Document:
        plan = self._plan
        return {
            "name": case.name,
            "engine": case.engine.name,
            "note": case.engine.note,
            "layout": case.layout.name,
            "ranks": case.layout.world_size,
            "workload": case.workload,
            "status": status,
            "reason": reason,
            "settings": plan.settings(case),
            "expected": expected(plan, case),
            "predicted": self._predicted(case, min(plan.loops(plan.workloads[case.workload]))),
        } | found

    def _predicted(self, case: EngineCase, open_requests: int) -> dict[str, Any] | None:
        workload, requests = (
            self._plan.workloads[case.workload],
            self._plan.requests_of(open_requests),
        )
        return self._predict(case, workload, open_requests, requests)
