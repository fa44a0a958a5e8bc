"""Strong scaling with the time of a step taken apart, by layout, workload and all-reduce."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from weft.closed_form.schedule import closed_form
from weft.errors import UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

SCHEMA: Final = "weft.scaling/1"
ALL_REDUCES: Final = ("library", "weft")


@dataclass(frozen=True, kw_only=True)
class ScalingPlan:
    """What to run on this machine, with dummy weights.

    workloads: by name; all_reduces: ``library`` (gloo's or NCCL's own) and ``weft``, the
    latter only for layouts with tensor parallelism; device: ``cpu`` or ``cuda``.
    """

    model: str
    layouts: tuple[Layout, ...]
    workloads: dict[str, Workload]
    all_reduces: tuple[str, ...] = ALL_REDUCES
    engine: str = "weft"
    device: str = "cpu"

    def check(self) -> None:
        """Raise UserError before anything is started."""
        for name in self.all_reduces:
            if name not in ALL_REDUCES:
                raise UserError(f"`all_reduce` {name}: choose from {', '.join(ALL_REDUCES)}")
        for layout in self.layouts:
            layout.check_started()
            for workload in self.workloads.values():
                closed_form(load_spec(self.model), layout, workload, self.engine)

    def all_reduces_of(self, layout: Layout) -> list[str]:
        """What is compared on a layout: one where nothing is reduced."""
        return list(self.all_reduces if layout.tp > 1 else self.all_reduces[:1])


def run_scaling(plan: ScalingPlan, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; returns the ``weft.scaling/1`` document.

    Its rows have one phase each: milliseconds a step of compute, communication, wait and
    idle (mean over the ranks), and the speed-up of the whole request over the first layout
    with that workload. ``on_progress`` is called after each layout.
    """
    plan.check()
    rows: list[dict[str, Any]] = []
    first_ms: dict[str, float] = {}
    for layout in plan.layouts:
        for result in _run(plan, layout):
            name = result["workload"]
            first_ms.setdefault(name, result["e2e_ms"])
            common = {
                "workload": name,
                "layout": layout.name,
                "ranks": layout.world_size,
                "all_reduce": result["all_reduce"] if layout.tp > 1 else "-",
                "e2e_ms": result["e2e_ms"],
                "speedup": first_ms[name] / result["e2e_ms"],
            }
            rows += [common | phase for phase in result["phases"]]
        on_progress(layout.name)
    return {
        "schema": SCHEMA,
        "model": plan.model,
        "engine": plan.engine,
        "device": plan.device,
        "workloads": {name: asdict(workload) for name, workload in plan.workloads.items()},
        "rows": rows,
    }


def _run(plan: ScalingPlan, layout: Layout) -> list[dict[str, Any]]:
    from weft.launch.elastic import Launch, run_ranks

    with tempfile.TemporaryDirectory(prefix="weft-scaling-") as folder:
        job, output = Path(folder) / "job.json", Path(folder) / "result.json"
        content = {
            "model": plan.model,
            "layout": asdict(layout),
            "workloads": {name: asdict(workload) for name, workload in plan.workloads.items()},
            "engine": plan.engine,
            "device": plan.device,
            "all_reduces": plan.all_reduces_of(layout),
            "output": str(output),
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        worker = ["-m", "weft.study.scaling_worker", str(job)]
        run_ranks(worker, Launch(ranks_per_node=layout.world_size))
        results: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))
        return results
