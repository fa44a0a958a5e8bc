"""Measured runs that come with the package, each with its method."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from weft.errors import FileFormatError
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

Role = Literal["fitted", "tuned", "test", "compared"]


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One measured batch: what ran, and its TTFT and TPOT in ms (None = not given).

    role: fitted (the engine profile was fitted to it), tuned (a constant was chosen with
    it), test (never used) or compared (known to contradict itself; shown, never used).
    """

    source: str
    method: str
    role: Role
    engine: str
    accelerator: str
    fabric: str
    model: str
    layout: Layout
    workload: Workload
    ttft_ms: float | None
    tpot_ms: float | None

    @property
    def name(self) -> str:
        load = self.workload
        return (
            f"{self.model} {self.layout.name} {load.prompt_tokens}/{load.decode_tokens} "
            f"x{load.batch}"
        )


@cache
def measurements(name: str) -> dict[str, Any]:
    """A file of measurements of the package (``h200x4``, ``published_h100x8``), as it is."""
    file = resources.files("weft.prediction") / "data" / "measurements" / f"{name}.json"
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def h200_runs() -> list[MeasuredRun]:
    """Runs of vLLM 0.25.1 on 4 H200: the rows that the ``vllm`` profile is fitted to."""
    data = measurements("h200x4")["vllm"]
    return [
        MeasuredRun(
            source="h200x4",
            method=data["method"],
            role="fitted",
            engine=data["engine"],
            accelerator=data["accelerator"],
            fabric=data["fabric"],
            model=row["model"],
            layout=Layout(tp=row["tp"], pp=row["pp"]),
            workload=Workload(
                prompt_tokens=row["prompt"], decode_tokens=data["decode_tokens"], batch=row["batch"]
            ),
            ttft_ms=row["ttft_ms"],
            tpot_ms=row["tpot_ms"],
        )
        for row in data["rows"]
    ]


def runs_from_file(path: Path) -> list[MeasuredRun]:
    """Own measured batches: ``{"schema": "weft.measured/1", "method": ..., "rows": [...]}``.

    A row names engine, accelerator, fabric, model, layout (short name), nodes, prompt, decode,
    batch, ttft_ms and tpot_ms (null where not measured). FileFormatError says what is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != "weft.measured/1":
            raise FileFormatError(f"--runs {path}: schema is not 'weft.measured/1'")
        return [_own_run(row, path.stem, str(document["method"])) for row in document["rows"]]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"--runs {path}: cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"--runs {path}: missing or wrong field {error}") from None


def _own_run(row: dict[str, Any], source: str, method: str) -> MeasuredRun:
    return MeasuredRun(
        source=source,
        method=method,
        role="test",
        engine=row["engine"],
        accelerator=row["accelerator"],
        fabric=row["fabric"],
        model=row["model"],
        layout=replace(Layout.parse(row["layout"]), nodes=row.get("nodes", 1)),
        workload=Workload(
            prompt_tokens=row["prompt"], decode_tokens=row["decode"], batch=row["batch"]
        ),
        ttft_ms=row["ttft_ms"],
        tpot_ms=row["tpot_ms"],
    )


def published_runs() -> list[MeasuredRun]:
    """Published service times of vLLM V0 on H100 nodes of four: compared, never fitted."""
    data = measurements("published_h100x8")
    return [
        MeasuredRun(
            source="published",
            method=data["method"],
            role="compared",
            engine=data["engine"],
            accelerator=data["accelerator"],
            fabric=data["fabric"],
            model=row["model"],
            layout=Layout(tp=row["tp"], pp=row["pp"], nodes=row["nodes"]),
            workload=Workload(prompt_tokens=128, decode_tokens=128, batch=1),
            ttft_ms=row["ttft_ms"],
            tpot_ms=row["tpot_ms"],
        )
        for row in data["rows"]
    ]
